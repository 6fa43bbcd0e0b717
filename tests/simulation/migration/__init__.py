"""Moves of one generation in a virtual world: every failure in every phase, in seeded order.

The ledger, the machine of a move and the patience of a failover are the real ones; sources, targets, their
messages and their clock are made here. ``world.run(seed, plan)`` plays one life and returns what was wrong.
"""
