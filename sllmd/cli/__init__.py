"""The ``sllmd`` command, one file per family.

Owns: words, tables, exit codes, hints. Knows nothing of how a daemon works: it speaks HTTP to one, or to
the store on disk. Start at ``app``.
"""
