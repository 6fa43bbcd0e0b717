"""What holds for every test."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Half a million objects of torch's, transformers' and pytest's own are here to stay.

    The collector walks them no more: a full collection takes a millisecond then, not half a second.
    """
    gc.collect()
    gc.freeze()
