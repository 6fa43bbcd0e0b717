"""Why a worker ended, in a sentence, and what to do about it. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sllmd.engine.messages import Failed

_LOOKS_LIKE_AN_ERROR = re.compile(
    r"^([A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b|Fatal Python error|terminate called|.*\berror:)"
)
_DEVICE_FULL_HINT = (
    "the device's memory does not hold the model and its cache: lower [engine] cache_tokens, "
    "unload another model, or spread this one over more devices"
)
_HINTS = (
    (
        re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE),
        _DEVICE_FULL_HINT,
    ),
    (
        re.compile(
            r"can't allocate memory|Cannot allocate memory|MemoryError|std::bad_alloc|not enough memory"
        ),
        "the machine's memory is exhausted: lower [loader] dram_budget or [engine] cache_tokens",
    ),
    (
        re.compile(r"CUDA error|CUDA driver|no CUDA-capable device|NVML"),
        "look at `nvidia-smi` and `dmesg`: the device or its driver refuses",
    ),
)
_KILLED_HINT = (
    "the kernel's out-of-memory killer ends processes this way: look at `dmesg`, "
    "and lower [loader] dram_budget or [engine] cache_tokens if it did"
)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a process ended; ``hint`` names the remedy, where one is known."""

    message: str
    hint: str | None = None


def explain(
    who: str,
    *,
    exit_code: int | None,
    output: Sequence[str],
    last_words: Failed | None,
    killed_because: Cause | None,
) -> Cause:
    """The cause of the end of ``who``, from the best witness there is.

    1. The daemon ended it itself. 2. Its own last words. 3. A signal, with what it printed.
    4. An exit status, with what it printed. ``exit_code`` is negative for a signal, None when nobody knows.
    """
    if killed_because is not None:  # 1
        return killed_because
    if last_words is not None:  # 2
        return Cause(last_words.message, last_words.hint or hint_for(last_words.message))
    printed = last_error(output)
    if exit_code == -signal.SIGKILL:  # 3
        return Cause(f"{who} was killed (SIGKILL)", _KILLED_HINT)
    if exit_code is not None and exit_code < 0:
        return _with_output(f"{who} crashed ({_signal_name(-exit_code)})", printed)
    if exit_code is None:
        return _with_output(f"{who} is gone", printed)
    return _with_output(f"{who} exited with status {exit_code}", printed)  # 4


def last_error(output: Sequence[str]) -> str | None:
    """The line that tells most: the last that looks like an error, else the last that is not empty."""
    lines = [line.strip() for line in output if line.strip()]
    errors = [line for line in lines if _LOOKS_LIKE_AN_ERROR.match(line)]
    return errors[-1] if errors else lines[-1] if lines else None


def hint_for(message: str) -> str | None:
    """What to do about an error of torch, CUDA or the system."""
    return next((hint for pattern, hint in _HINTS if pattern.search(message)), None)


def _with_output(fate: str, printed: str | None) -> Cause:
    return Cause(fate) if printed is None else Cause(f"{fate}: {printed}", hint_for(printed))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
