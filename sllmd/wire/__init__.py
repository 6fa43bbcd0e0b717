"""How processes and nodes talk.

Owns: ``frames`` (length-prefixed msgpack over Unix sockets, descriptors passed beside them), ``rpc`` (calls
and streams between nodes, over mutual TLS), ``bulk`` (chunks of checkpoints, in threads), ``seal`` with
``datagram`` and ``inquiry`` (sealed boxes over UDP, and over TCP what does not fit), ``identity``, ``tls``
and ``token`` (who may talk at all), ``codec``, ``addresses``. Knows nothing of what the messages mean.

Invariants: everything read has a size limit; what is malformed is an error or is dropped and counted, never
guessed at; nothing of a stranger's gets further than the first check. Start at ``frames`` for processes, at
``rpc`` for nodes.
"""
