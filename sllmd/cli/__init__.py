"""The command line: what people type, what they see, and the exit code that scripts see.

Owns: arguments, tables, progress bars, exit codes. Knows nothing of how a model is served: it speaks HTTP
to a daemon (``client``) or opens the store on disk.
Invariants: results go to standard output and everything else to standard error; bars only on a terminal;
exit codes are those of ``exits``; a command imports only what it needs, so that none is slow to start.
Start at ``app``.
"""
