"""How long a suspect may take to refute: Lifeguard's shrinking time-out (§IV-B). Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sllmd.cluster.gossip.settings import GossipSettings
from sllmd.core.ids import NodeId


def seconds_min(settings: GossipSettings, members: int) -> float:
    """With everybody agreed: grows with the time that news takes through so many members."""
    return settings.suspicion_multiplier * max(1.0, math.log10(max(1, members))) * settings.probe_seconds


def confirmations_wanted(settings: GossipSettings, members: int) -> int:
    """How many others must agree for the shortest wait; none where there are not so many others."""
    wanted = max(0, math.floor(settings.suspicion_multiplier) - 2)
    return wanted if members - 2 >= wanted else 0


@dataclass(slots=True)
class Suspicion:
    """One suspect, the members that suspect it, and until when it may refute."""

    begun_seconds: float
    least_seconds: float
    most_seconds: float
    wanted: int
    sources: list[NodeId] = field(default_factory=list)
    last_call_ends_seconds: float | None = None
    """Set while the suspect is being asked a last time."""

    @classmethod
    def begin(cls, settings: GossipSettings, members: int, now_seconds: float, source: NodeId) -> Suspicion:
        """The first suspicion; it is no confirmation of itself."""
        least = seconds_min(settings, members)
        most = least * settings.suspicion_max_multiplier
        return cls(now_seconds, least, most, confirmations_wanted(settings, members), [source])

    def confirm(self, source: NodeId) -> bool:
        """Another member suspects it too; False if that is no news."""
        if source in self.sources or len(self.sources) > self.wanted:
            return False
        self.sources.append(source)
        return True

    def begin_again(self, now_seconds: float) -> None:
        """It gave a sign of life: wait for its own word once more."""
        self.begun_seconds = now_seconds
        self.last_call_ends_seconds = None

    def shift(self, seconds: float) -> None:
        """So much time did not count."""
        self.begun_seconds += seconds
        if self.last_call_ends_seconds is not None:
            self.last_call_ends_seconds += seconds

    @property
    def deadline_seconds(self) -> float:
        """Each confirmation shortens the wait, the first ones most."""
        if self.wanted == 0:
            return self.begun_seconds + self.least_seconds
        share = math.log(len(self.sources)) / math.log(self.wanted + 1)
        wait = self.most_seconds - share * (self.most_seconds - self.least_seconds)
        return self.begun_seconds + max(self.least_seconds, wait)
