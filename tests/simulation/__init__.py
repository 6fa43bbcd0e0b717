"""The whole agreement core under a seed: clock, network and disk are simulated, the rest is the product.

A failing seed is the bug report. To look at one:
``python -m tests.simulation --seed 17 --trace`` (``--mutant NAME`` for a planted bug).
"""
