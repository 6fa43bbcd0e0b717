"""The exit codes: the one table of what scripts can tell apart, and which errors mean what.

Invariants: of an error's classes the nearest that the table knows decides; `sllmd --help` and README.md show
the table as it is here (``tests/cli/test_exits.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cli.client import DaemonUnreachable, KeyRefused
from sllmd.core.errors import (
    BusyError,
    CallerError,
    ConfigError,
    Conflict,
    InvalidApiKey,
    ModelNotFound,
    PathNotFound,
    PeerRefused,
    RecordNotFound,
    SllmdError,
)

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Exit:
    """A code, when it is given, and the errors that it is given for."""

    code: int
    means: str
    errors: tuple[type[SllmdError], ...] = ()


EXITS = (
    Exit(0, "done"),
    Exit(1, "failed, for none of the reasons below", (SllmdError,)),
    Exit(2, "usage: a command, an option or a value is wrong", (CallerError,)),
    Exit(3, "no daemon answers", (DaemonUnreachable,)),
    Exit(4, "not found: a model, node, key, request or file", (ModelNotFound, RecordNotFound, PathNotFound)),
    Exit(5, "busy, or it took too long: the same may do later", (BusyError,)),
    Exit(6, "the configuration cannot be used", (ConfigError,)),
    Exit(
        7,
        "refused: by key, scope or token, or because of what is there already",
        (InvalidApiKey, KeyRefused, PeerRefused, Conflict),
    ),
    Exit(INTERRUPTED, "interrupted"),
)
_CODES = {error: row.code for row in EXITS for error in row.errors}


def exit_code(error: SllmdError) -> int:
    """The code that a command ends with because of ``error``."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def exits_text() -> str:
    """The table, for ``--help``."""
    return "\n".join(f"{row.code:>5}  {row.means}" for row in EXITS)
