"""What the loss of a source means for its generation, and how long a pause of its tokens may be. Pure.

An error is the caller's (it would come back anywhere), or the place's (another may do). Resuming is bounded
twice: by tries that bring no token, so that a generation which kills what runs it kills few, and altogether.
"""

from __future__ import annotations

from sllmd.core.errors import BusyError, CallerError, NodeDraining, PeerError, SllmdError
from sllmd.engine.protocol import FailedEvent
from sllmd.migration.settings import MigrationSettings


def is_places_fault(error: SllmdError) -> bool:
    """Whether another place may do what this one did not."""
    return not isinstance(error, CallerError)


def is_worth_waiting(error: SllmdError) -> bool:
    """Whether a place may do it a moment later: it is busy, or its connection broke; not one that goes."""
    return isinstance(error, BusyError | PeerError) and not isinstance(error, NodeDraining)


def is_misfit(event: FailedEvent, *, tokens: int) -> bool:
    """Whether the engine refuses a generation that another has run: the replica here is smaller, say."""
    return event.kind != "internal" and tokens > 0


class Patience:
    """How often one generation may still be resumed."""

    def __init__(self, settings: MigrationSettings) -> None:
        self.failovers = 0
        self._settings = settings
        self._attempts = 0
        self._tokens = 0

    def may_resume(self, tokens: int) -> bool:
        """Its source is lost with ``tokens`` in the ledger: whether to try again."""
        if tokens > self._tokens:
            self._attempts = 0
        self._tokens = tokens
        self.failovers += 1
        self._attempts += 1
        settings = self._settings
        return self._attempts <= settings.attempts_max and self.failovers <= settings.failovers_max


class Pulse:
    """When a source is quiet for longer than its tokens so far let expect."""

    def __init__(self, settings: MigrationSettings, now_seconds: float) -> None:
        self._settings = settings
        self._last_seconds = now_seconds
        self._longest_seconds = 0.0
        self._begun = False

    def beat(self, now_seconds: float) -> None:
        """A token came."""
        if self._begun:
            self._longest_seconds = max(self._longest_seconds, now_seconds - self._last_seconds)
        self._begun = True
        self._last_seconds = now_seconds

    def restart(self, now_seconds: float) -> None:
        """Another source: it is given the time it needs to its first token."""
        self._begun = False
        self._last_seconds = now_seconds

    def due_seconds(self) -> float | None:
        """When it counts as stalled; None: no token has come yet, and how long that takes is not known."""
        return self._last_seconds + self._bound_seconds(self._settings.stall_min) if self._begun else None

    def end_seconds(self) -> float:
        """When it is given up."""
        if not self._begun:
            return self._last_seconds + self._settings.first_token_max
        return self._last_seconds + self._bound_seconds(self._settings.silence_max)

    def _bound_seconds(self, least_seconds: float) -> float:
        return max(least_seconds, self._settings.stall_gaps * self._longest_seconds)
