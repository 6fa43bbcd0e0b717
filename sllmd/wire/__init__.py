"""How processes talk: length-prefixed msgpack frames over Unix sockets, descriptors passed beside them.

Owns: framing and codecs. Knows nothing of what the messages mean.
Invariants: every frame has a size limit; a malformed frame is an error, never a guess. Start at ``frames``.
"""
