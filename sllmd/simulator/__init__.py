"""A virtual cluster that the scheduler's own code decides for: to compare policies and to choose hardware.

Owns: traces of requests, virtual nodes with their paths and devices, the policies that are compared, and the
figures and plots of a run. Knows nothing of sockets, files, processes and real clocks: time is a number, and
chance comes from a seed, so a run repeats exactly.

Invariants: policies see the cluster only through the scheduler's view, which is fed by the same reports that
daemons send; what really happens (bandwidth, noise, lengths of answers) is hidden from all but the oracle;
all policies share estimator, keep-alive and caches and differ in what they decide.

Start at ``simulation.Simulation``; ``paper`` holds the setting of the paper.
"""
