"""Configuration: the settings of all rooms together, and where each value came from.

Owns: the sections' order, the layers (flag > environment > conf.d > file > default), the messages for
what is wrong in them. Knows nothing of what the values do: each room has its own ``settings.py``.
Invariants: an unknown key is an error that names its file and line; a loaded ``Config`` never changes.
Start at ``loading.load_config``.
"""
