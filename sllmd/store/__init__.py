"""The checkpoint on disk.

Owns: the format, importing other formats into it, naming, aliases, verification, quarantine.
Knows nothing of DRAM, devices, workers or HTTP clients of sllmd.
Invariants: a checkpoint is published whole (temp + fsync + rename) or not there; pickles are never run;
this process never imports torch (conversions that need it run in a child); resolving a name is cheap and
sees what other processes imported. Start at ``manifest``, then ``store`` and ``importing``.
"""
