"""The words everything is said in.

Owns: ids, units, the error tree. Knows nothing of sockets, clocks, files, processes or torch.
Invariants: pure; imports nothing of sllmd outside itself. Start at ``errors``.
"""
