"""One planned move of one generation: a machine with one door. Pure.

::

                     Held              Warmed, gap still shrinking
    HOLDING ─────────────▶ WARMING ◀──────────────┐
       │                      │ └─────────────────┘
       │ Held, source lost    │ Warmed, gap small or not shrinking; or source lost
       └──────────────────────┴──────▶ COMMITTED
    anything else that ends it ──────▶ OVER

Before ``Commit`` the source owns the generation, and a failing target costs it nothing. ``Commit`` is the
router's switch, carried out at once and without waiting; after it the target owns the generation, and this
machine hears nothing any more. If the source is lost while the target warms up, the target takes over as it
is. If it is lost before, another place is looked for at once (``FailOver``), while the target goes on
starting: whichever is ready first has the generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sllmd.migration.settings import MigrationSettings


class Phase(Enum):
    """Where a move is."""

    HOLDING = "holding"
    """The target finds or starts a replica."""
    WARMING = "warming"
    """The target computes keys and values for what is known."""
    COMMITTED = "committed"
    OVER = "over"
    """It did not come about."""


# --- events: ``tokens`` is how many the ledger has at that moment -----------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """The target has a replica for it."""

    tokens: int
    now_seconds: float


@dataclass(frozen=True, slots=True)
class Warmed:
    """A round is over: the target's cache is warm for the tokens of that ``Warm``."""

    tokens: int
    now_seconds: float


@dataclass(frozen=True, slots=True)
class TargetFailed:
    """It refuses, is lost, or was given up on."""

    reason: str


@dataclass(frozen=True, slots=True)
class SourceLost:
    """What ran the generation is gone; the ledger is where it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """After the source was lost, another place than the target has taken the generation."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The generation is over, or its client left, or the move is called back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Late:
    """The time that a move may take is up."""


Event = Held | Warmed | TargetFailed | SourceLost | Resumed | Ended | Late


# --- actions ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Warm:
    """Have the target compute what the ledger has at this moment."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Switch to the target, now: nothing may come between."""


@dataclass(frozen=True, slots=True)
class Release:
    """Let the target go; the source goes on, or there is nothing to go on with."""

    reason: str
    called_off: bool = False
    """Not a failure: there was nothing to gain any more."""


@dataclass(frozen=True, slots=True)
class FailOver:
    """The source is lost, and the target not ready: look for another place, too."""

    reason: str


Action = Warm | Commit | Release | FailOver


class Move:
    """The machine."""

    def __init__(
        self, settings: MigrationSettings, *, tokens: int, tokens_max: int, now_seconds: float
    ) -> None:
        """``tokens``: that the ledger has; ``tokens_max``: that it may have in the end."""
        self.phase = Phase.HOLDING
        self.rounds = 0
        self._settings = settings
        self._tokens_max = tokens_max
        self._began_tokens = tokens
        self._began_seconds = now_seconds
        self._round_tokens = tokens
        """What the ledger had when the round under way began."""
        self._round_seconds = now_seconds
        self._gap: int | None = None
        """Tokens that the source made during the last round."""
        self._lost = False

    def handle(self, event: Event) -> list[Action]:
        """What to do, in this order."""
        if self.phase in (Phase.COMMITTED, Phase.OVER):
            return []
        match event:
            case Held():
                return self._commit() if self._lost else self._begin_round(event.tokens, event.now_seconds)
            case Warmed():
                return self._warmed(event)
            case SourceLost(reason):
                self._lost = True
                return self._commit() if self.phase is Phase.WARMING else [FailOver(reason)]
            case Resumed():
                return self._release("it runs elsewhere already", called_off=True) if self._lost else []
            case TargetFailed(reason):
                return self._release(reason)
            case Late():
                return self._release(f"not over within {self._settings.move_timeout:g} s")
            case Ended(reason):
                return self._release(reason, called_off=True)

    def _warmed(self, event: Warmed) -> list[Action]:
        if self.phase is not Phase.WARMING:
            return []
        settings = self._settings
        gap = event.tokens - self._round_tokens
        before, self._gap = self._gap, gap
        if self._is_late_for(gap, event):
            return self._release("the generation is nearly over", called_off=True)
        shrinking = before is None or gap < before
        if gap <= settings.gap_tokens or not shrinking or self.rounds >= settings.rounds_max:
            return self._commit()
        return self._begin_round(event.tokens, event.now_seconds)

    def _is_late_for(self, gap: int, event: Warmed) -> bool:
        """Whether what remains takes the source no longer than one more round takes the target."""
        remaining = self._tokens_max - event.tokens
        made = event.tokens - self._began_tokens
        elapsed_seconds = event.now_seconds - self._began_seconds
        if remaining <= self._settings.remaining_tokens_min:
            return True
        if made == 0 or gap <= self._settings.gap_tokens:
            return False
        round_seconds = event.now_seconds - self._round_seconds
        return remaining * elapsed_seconds / made < round_seconds

    def _begin_round(self, tokens: int, now_seconds: float) -> list[Action]:
        if self.phase is Phase.HOLDING and self._tokens_max - tokens <= self._settings.remaining_tokens_min:
            return self._release("the generation is nearly over", called_off=True)
        self.phase = Phase.WARMING
        self.rounds += 1
        self._round_tokens, self._round_seconds = tokens, now_seconds
        return [Warm()]

    def _commit(self) -> list[Action]:
        self.phase = Phase.COMMITTED
        return [Commit()]

    def _release(self, reason: str, *, called_off: bool = False) -> list[Action]:
        self.phase = Phase.OVER
        return [Release(reason, called_off)]
