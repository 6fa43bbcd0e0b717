"""What a replica's start, waking and going are thought to take on this node, and what follows from that.

Owns: what was learned of starts and wakings, and who asked for what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sllmd.core.ids import Digest, ModelName
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.tier import DramTier
from sllmd.roles.admission import ReplicaState
from sllmd.roles.demand import Demand
from sllmd.roles.residence import Residence
from sllmd.roles.settings import ModelSettings
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.store.checkpoint import Checkpoint


class Estimates:
    """See the module."""

    def __init__(
        self,
        tier: DramTier,
        supervisor: Supervisor,
        model_settings: Mapping[str, ModelSettings],
        scheduler_settings: SchedulerSettings,
        keep_alive_of: Callable[[ModelName], float | None],
        keep_alive_seconds: float | None,
    ) -> None:
        """``keep_alive_of``: what the cluster says of a model; ``keep_alive_seconds``: of all others."""
        self.wake_seconds = 0.1
        self._start_overhead_seconds = 0.3
        self._demand = Demand(scheduler_settings)
        self._tier = tier
        self._supervisor = supervisor
        self._model_settings = model_settings
        self._keep_alive_of = keep_alive_of
        self._keep_alive_seconds = keep_alive_seconds

    def asked(self, digest: Digest) -> None:
        """A request asks for it now."""
        self._demand.asked(digest, time.time())

    def chance(self, digest: Digest) -> float | None:
        """That it is asked for before long; None: it never was."""
        return self._demand.chance(digest, time.time())

    def started(self, beyond_seconds: float) -> None:
        """A start took that long beyond its bytes and its worker."""
        self._start_overhead_seconds += 0.3 * (beyond_seconds - self._start_overhead_seconds)

    def woken(self, seconds: float) -> None:
        """A waking took that long."""
        self.wake_seconds += 0.3 * (seconds - self.wake_seconds)

    def startup_seconds(self, checkpoint: Checkpoint, residence: Residence | None) -> float:
        """0 when it serves; else what its bytes or its worker take, and a start took lately beyond them."""
        if residence is not None and residence.state is ReplicaState.SERVING:
            return 0.0
        if residence is not None and residence.state is ReplicaState.ASLEEP:
            return self.wake_seconds
        there_seconds = max(self._tier.estimate_seconds(checkpoint), self._supervisor.wait_estimate_seconds())
        return there_seconds + self._start_overhead_seconds

    def worth_seconds(self, residence: Residence) -> float:
        """What its going is expected to cost: the chance that it is asked for, times bringing it back."""
        chance = self.chance(residence.need.digest) or 0.0
        return chance * max(residence.startup_seconds, self.wake_seconds)

    def keep_alive_seconds(self, checkpoint: Checkpoint) -> float:
        """How long an idle replica of it stays ready, unless a request says otherwise."""
        own = self._model_settings.get(checkpoint.name)
        if own is not None and own.keep_alive is not None:
            return own.keep_alive
        agreed = self._keep_alive_of(checkpoint.name)
        if agreed is not None:
            return agreed
        if self._keep_alive_seconds is not None:
            return self._keep_alive_seconds
        load_seconds = self._tier.reload_seconds(checkpoint) + self._start_overhead_seconds
        return self._demand.keep_alive_seconds(load_seconds)
