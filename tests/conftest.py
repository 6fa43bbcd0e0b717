"""What holds for every test: how many examples hypothesis tries, and what the collector looks at."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

if os.environ.get("CI") != "true":
    # There hypothesis's own profile holds: 100 examples, the same ones each time.
    settings.register_profile("before a commit", max_examples=30, deadline=None)
    settings.load_profile("before a commit")


def pytest_collection_finish() -> None:
    """Half a million objects of torch's, transformers' and pytest's own are here to stay.

    The collector walks them no more: a full collection takes a millisecond then, not half a second.
    """
    gc.collect()
    gc.freeze()
