"""How this process's malloc behaves, for a pass that makes and frees a thousand small tensors."""

from __future__ import annotations

import ctypes

_M_MXFAST = 1


def merge_at_once() -> None:
    """Have glibc merge freed chunks with their neighbours when they are freed.

    By default those under 128 bytes are put aside, and every larger request sweeps them up first: 3 % of a
    step of four rows. Another C library has its own ways and no such option.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MXFAST, 0)
