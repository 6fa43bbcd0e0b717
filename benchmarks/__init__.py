"""sllmd measured beside what else one would use: ``scripts/bench``. Not part of the package.

Start at ``__main__``; README.md tells how each target is measured.
"""
