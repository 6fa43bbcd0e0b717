"""One run: a trace, virtual nodes, one policy.

Whatever happens is told to the keeper as a node's report; whatever is decided is carried out as an agent
would.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId, RequestId
from sllmd.scheduler import reports
from sllmd.scheduler.decisions import Decision, Evict, Load, Move, Refuse, Use, Wait
from sllmd.scheduler.facts import Model, Request, Tier
from sllmd.scheduler.scaling import keep_alive_seconds
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.turns import longest_wait, must_yield
from sllmd.scheduler.view import GenerationView
from sllmd.simulator.copies import Copies
from sllmd.simulator.hardware import Hardware, Kind
from sllmd.simulator.policies import LIFTING, Setting, make_policy
from sllmd.simulator.results import Result
from sllmd.simulator.traces import Arrival
from sllmd.simulator.truth import Job, Paths, Replica
from sllmd.simulator.world import World

_PAUSE_TOKENS = 4
"""Tokens recomputed in a migration's last round, while the stream stands still."""
_AHEAD_MAX = 4
"""Requests of a model that are looked at again, though a row is on its way, when something has changed."""

_HEADS_MAX = 32
"""Models in a row for which nothing could be done before the others are not asked about."""


class Simulation(World):
    """Runs ``trace`` once; ``run`` gives the result."""

    def __init__(
        self,
        hardware: Hardware,
        models: Sequence[tuple[Kind, Model]],
        trace: Sequence[Arrival],
        policy: str,
        *,
        seed: int,
        settings: SchedulerSettings | None = None,
    ) -> None:
        super().__init__(hardware, [model for _, model in models], settings)
        self.result = Result(policy, seed, devices=hardware.nodes * hardware.devices)
        self._trace = trace
        self._next = 0
        self._beat_due = 0.0
        self._kinds = {model.name: kind for kind, model in models}
        self._paths = Paths(hardware, random.Random(f"noise {seed}"))
        self._replicas: dict[ReplicaId, Replica] = {}
        self._lines: dict[ModelName, deque[Job]] = {}
        self._jobs: dict[GenerationId, Job] = {}
        self._copies = Copies(self, self._paths, self._asleep_on, self._go)
        self._caches = policy != "download"
        self._preempts = policy == "shepherd"
        self._lifts = policy in LIFTING
        if policy == "oracle":
            self.view.rest_seconds = self._true_rest
        chance = random.Random(f"policy {seed}")
        self._policy = make_policy(
            policy, Setting(self.keeper, chance, self._next_request, self._was_preempted)
        )

    # --- the loop ---

    def run(self) -> Result:
        """Until every request of the trace has ended."""
        if self._trace:
            self.at(self._trace[0].seconds, self._arrive)
        for node in self.nodes:
            self._lift(node)
        self.run_events()
        self.result.failed += sum(len(line) for line in self._lines.values())
        errors = [error for each in self.view.errors.values() for error in each.recent]
        if errors:
            self.result.error_median = sorted(abs(error) for error in errors)[len(errors) // 2]
        return self.result

    def _beat(self) -> None:
        """Nodes report now and then though nothing happens. Nobody looks at that but decisions, so it is
        made up for before one."""
        if self.now >= self._beat_due:
            self._beat_due = self.now + self.view.settings.stale_after / 4
            for node in self.nodes:
                self.tell(node)
                self._lift(node)

    def _lift(self, node: NodeId) -> None:
        if self._lifts:
            self._copies.lift(node)

    # --- what only the oracle may know ---

    def _next_request(self) -> Request | None:
        if self._next >= len(self._trace):
            return None
        arrival = self._trace[self._next]
        return Request(RequestId("next"), arrival.model, arrival.seconds)

    def _true_rest(self, generation: GenerationView, now: float) -> float:
        return max(self._jobs[generation.generation].end_seconds - now, 0.0)

    def _was_preempted(self, replica: ReplicaId) -> bool:
        return any(job.preempted for job in self._replicas[replica].jobs.values())

    # --- requests ---

    def _arrive(self) -> None:
        arrival = self._trace[self._next]
        self._next += 1
        if self._next < len(self._trace):
            self.at(self._trace[self._next].seconds, self._arrive)
        name = f"{self._next}"
        request = Request(RequestId(name), arrival.model, self.now)
        job = Job(arrival, request, GenerationId(name), waiting_since=self.now)
        self._jobs[job.generation] = job
        self.keeper.arrived(arrival.model, self.now)
        line = self._lines.setdefault(arrival.model, deque())
        line.append(job)
        self._decide(arrival.model, len(line) - 1)

    def _decide(self, model: ModelName, ahead: int) -> Decision | None:
        """Ask the policy for the request at that place of a model's line, and carry the answer out."""
        self._beat()
        line = self._lines[model]
        self.keeper.waiting(model, len(line) - 1)
        decision = self._policy(line[ahead].request, self.now, ahead)
        self.keeper.waiting(model, len(line))
        match decision:
            case Use():
                job = line[ahead]
                line.remove(job)
                self.keeper.waiting(model, len(line))
                self._begin(job, self._replicas[decision.replica])
            case Load():
                line[ahead].cold = True
                self._load(model, decision)
            case Refuse():
                line.remove(line[ahead])
                self.keeper.waiting(model, len(line))
                self.result.failed += 1
            case Wait():
                pass
        return decision

    def _look_again(self) -> None:
        """Something has become free: who waits longest asks first."""
        heads = sorted((line[0].request.arrived_seconds, name) for name, line in self._lines.items() if line)
        in_vain = 0
        for _, name in heads:
            in_vain = 0 if self._look_again_for(name) else in_vain + 1
            if in_vain >= _HEADS_MAX:
                return

    def _look_again_for(self, name: ModelName) -> bool:
        """Whether anything could be done for the line."""
        line, ahead, done = self._lines[name], 0, False
        while ahead < len(line):
            under_way = self._rows_under_way(name)
            if ahead < under_way and ahead >= _AHEAD_MAX:
                ahead = under_way
                continue
            decision = self._decide(name, ahead)
            if isinstance(decision, Wait):
                if ahead >= under_way:
                    return done
                ahead += 1
            else:
                done = True
        return done

    def _rows_under_way(self, name: ModelName) -> int:
        replicas = self.view.models[name].replicas.values()
        return sum(max(replica.free_rows, 0) for replica in replicas if replica.load is not None)

    def _begin(self, job: Job, replica: Replica) -> None:
        """A request gets a row."""
        pace = replica.pace
        tokens = job.arrival.tokens_in + job.tokens_done
        prefill = pace.prefill_seconds + tokens * pace.token_prefill_seconds
        job.startup_seconds += self.now - job.waiting_since
        self.tell(replica.node, reports.Prefilled(replica.model.name, tokens, prefill))
        self._run_on(job, replica, prefill)

    def _run_on(self, job: Job, replica: Replica, delay_seconds: float) -> None:
        job.turn += 1
        job.replica, turn = replica, job.turn
        replica.jobs[job.generation] = job
        job.began_seconds = self.now + delay_seconds
        left = job.arrival.tokens_out - job.tokens_done
        job.end_seconds = job.began_seconds + left * replica.pace.token_seconds
        facts = reports.GenerationFacts(job.generation, job.arrival.tokens_in, job.tokens_done)
        self.tell(replica.node, reports.GenerationBegan(replica.replica, facts))
        self.at(job.end_seconds, lambda: self._end(job, turn))

    def _leave(self, job: Job, tokens_out: int) -> Replica:
        """A request gives its row back; 0 tokens: it goes on elsewhere."""
        replica = job.replica
        assert replica is not None
        job.replica = None
        job.turn += 1
        del replica.jobs[job.generation]
        ended = reports.GenerationEnded(replica.replica, job.generation, tokens_out)
        self.tell(replica.node, ended)
        self._spend(replica, job)
        return replica

    def _spend(self, replica: Replica, job: Job) -> None:
        """Device time of a row that was given back, on the steps that it fell into."""
        steps, width = self.result.busy_device_seconds, self.result.step_seconds
        begin = min(job.began_seconds, self.now)
        while begin < self.now:
            step = int(begin / width)
            until = min((step + 1) * width, self.now)
            steps.extend([0.0] * (step + 1 - len(steps)))
            steps[step] += (until - begin) * len(replica.devices) / replica.model.rows
            begin = until if until > begin else math.nextafter(self.now, math.inf)
        self.result.seconds = max(self.result.seconds, self.now)

    def _end(self, job: Job, turn: int) -> None:
        if job.turn != turn:
            return
        replica = self._leave(job, job.arrival.tokens_out)
        self.result.startup_seconds.append(job.startup_seconds)
        if job.cold:
            self.result.cold += 1
            self.result.cold_startup_seconds.append(job.startup_seconds)
        del self._jobs[job.generation]
        self._row_freed(replica)

    def _row_freed(self, replica: Replica) -> None:
        if replica.closing:
            if not replica.jobs:
                self._lie_down(replica)
            return
        name = replica.model.name
        line = self._lines.get(name)
        if line and not self._yields(replica, line[0]):
            job = line.popleft()
            self.keeper.waiting(name, len(line))
            self._begin(job, replica)
            return
        self._stay_for_a_while(replica)
        self._look_again()

    def _yields(self, replica: Replica, head: Job) -> bool:
        heads = {name: line[0].request.arrived_seconds for name, line in self._lines.items() if line}
        seen = self.view.replicas[replica.replica]
        known = self.view.models[replica.model.name]
        switch = replica.model.part_bytes / self.hardware.to_device + self.hardware.start_seconds
        own = self.now - head.request.arrived_seconds
        other = longest_wait(known, heads, self.now)
        return not replica.jobs and must_yield(seen, own, other, switch, self.view.settings, self.now)

    # --- replicas ---

    def _load(self, model: ModelName, load: Load) -> Replica:
        kind = self._kinds[model]
        made = self.view.models[model].model
        name = ReplicaId(f"r{self.number()}")
        self.keeper.promise(name, made, load, self.now)
        if load.wakes is not None:
            self._replicas.pop(load.wakes).gone = True
            self.result.woken += 1
        replica = Replica(name, made, kind.pace, load.node, load.devices, load.source, load.wakes is not None)
        self._replicas[name] = replica
        self.result.loads[load.source.tier] = self.result.loads.get(load.source.tier, 0) + 1
        for victim in load.victims:
            self._displace(self._replicas[victim.replica], victim, replica)
        if not replica.awaits:
            self._start(replica)
        return replica

    def _displace(self, victim: Replica, how: Evict | Move, replica: Replica) -> None:
        victim.closing, victim.frees = True, replica
        replica.awaits.add(victim.replica)
        self.keeper.close(victim.replica)
        if isinstance(how, Move):
            self._move(victim, how)
            return
        for job in list(victim.jobs.values()):
            self._preempt(job, victim)
        self.at(self.now + self.hardware.evict_seconds, lambda: self._lie_down(victim))

    def _preempt(self, job: Job, victim: Replica) -> None:
        """It is stopped and stands in line again, before all others of its model."""
        assert self._preempts
        job.tokens_done = job.tokens_at(self.now, victim.pace)
        self._leave(job, 0)
        job.preempted += 1
        job.waiting_since = self.now
        self.result.preempted += 1
        name = victim.model.name
        self._lines.setdefault(name, deque()).appendleft(job)
        self.keeper.waiting(name, len(self._lines[name]))
        self.at(self.now, lambda: self._look_again_for(name))

    def _asleep_on(self, node: NodeId) -> list[Replica]:
        return [each for each in self._replicas.values() if each.asleep and each.node == node]

    def _lie_down(self, replica: Replica) -> None:
        """An idle replica leaves its devices and sleeps, if its bytes are in DRAM; for its keep-alive."""
        if replica.gone or replica.asleep:
            return
        if replica.model.name not in self.view.nodes[replica.node].dram:
            self._go(replica)
            return
        replica.asleep, replica.closing = True, False
        self.tell(replica.node, reports.ReplicaAsleep(replica.replica, replica.model.name))
        self.at(self.now + self._keep_alive_seconds(replica), lambda: self._go(replica))
        self._leave_room(replica)

    def _go(self, replica: Replica) -> None:
        """A replica ends."""
        if replica.gone:
            return
        replica.gone = True
        self.tell(replica.node, reports.ReplicaGone(replica.replica))
        del self._replicas[replica.replica]
        self._leave_room(replica)

    def _leave_room(self, replica: Replica) -> None:
        """Its devices are free: whoever waits for them starts."""
        heir, replica.frees = replica.frees, None
        if heir is not None:
            heir.awaits.discard(replica.replica)
            if not heir.awaits:
                self._start(heir)

    def _start(self, replica: Replica) -> None:
        """The devices are free: its bytes move as soon as the paths are."""
        if replica.source.tier is Tier.SSD:
            self._copies.stop_lift(replica.node)
        begin, end = self._paths.book(replica, self.now)
        self.at(begin, lambda: self._bytes_begin(replica))
        self.at(end, lambda: self._bytes_end(replica, end - begin))

    def _bytes_begin(self, replica: Replica) -> None:
        began = reports.LoadBegan(replica.replica, replica.model.name, replica.devices, replica.source)
        self.tell(replica.node, began)

    def _bytes_end(self, replica: Replica, seconds: float) -> None:
        if self._caches:
            self._copies.keep(replica)
        self._lift(replica.node)
        start = self.hardware.wake_seconds if replica.wakes else self.hardware.start_seconds
        self.at(self.now + start, lambda: self._ready(replica, seconds, start))

    def _ready(self, replica: Replica, bytes_seconds: float, start_seconds: float) -> None:
        self.tell(replica.node, reports.LoadEnded(replica.replica, bytes_seconds, start_seconds))
        replica.ready = True
        for source in replica.movers:
            self._hand_over(source, replica)
        name = replica.model.name
        line = self._lines.get(name)
        while line and self.view.replicas[replica.replica].free_rows > 0 and not replica.closing:
            job = line.popleft()
            job.cold = True
            self.keeper.waiting(name, len(line))
            self._begin(job, replica)
        if not replica.jobs and not replica.movers:
            self._stay_for_a_while(replica)
        self._look_again()

    def _stay_for_a_while(self, replica: Replica) -> None:
        """An idle replica sleeps when its keep-alive is over."""
        seen = self.view.replicas.get(replica.replica)
        if seen is None or replica.jobs or replica.closing:
            return
        resident = seen.since_seconds + self.view.settings.residency_min
        if resident > self.now:
            self.at(resident, self._look_again)
        used = seen.used_seconds
        self.at(self.now + self._keep_alive_seconds(replica), lambda: self._expire(replica, used))

    def _keep_alive_seconds(self, replica: Replica) -> float:
        load = replica.model.total_bytes / self.hardware.from_ssd
        return keep_alive_seconds(replica.model.rules, load, self.view.settings)

    def _expire(self, replica: Replica, used_seconds: float) -> None:
        seen = self.view.replicas.get(replica.replica)
        unused = seen is not None and seen.used_seconds == used_seconds and not seen.reserved_rows
        if unused and not replica.jobs and not replica.closing:
            self._lie_down(replica)
            self._look_again()

    # --- migration ---

    def _move(self, victim: Replica, move: Move) -> None:
        self.result.moved += len(victim.jobs)
        if move.target_replica is not None:
            target = self._replicas[move.target_replica]
            self.keeper.reserve(target.replica, len(victim.jobs))
            self._hand_over(victim, target)
            return
        assert move.target_source is not None
        load = Load(move.target_node, move.target_devices, move.target_source, move.seconds, 0.0)
        target = self._load(victim.model.name, load)
        self.keeper.reserve(target.replica, len(victim.jobs))
        target.movers.append(victim)

    def _hand_over(self, source: Replica, target: Replica) -> None:
        """The target recomputes while the source goes on; then each stream stands still for one short
        round."""
        delay = 0.0
        for job in source.jobs.values():
            tokens = job.arrival.tokens_in + job.tokens_at(self.now, source.pace)
            delay += target.pace.prefill_seconds + tokens * target.pace.token_prefill_seconds
        jobs = list(source.jobs.values())
        self.at(self.now + delay, lambda: self._switch(source, target, jobs))

    def _switch(self, source: Replica, target: Replica, jobs: Sequence[Job]) -> None:
        pace = target.pace
        pause = pace.prefill_seconds + _PAUSE_TOKENS * pace.token_prefill_seconds
        self.keeper.reserve(target.replica, -len(jobs))
        for job in jobs:
            if job.replica is source:
                job.tokens_done = job.tokens_at(self.now, pace)
                self._leave(job, 0)
                job.startup_seconds += pause
                self._run_on(job, target, pause)
        self.at(self.now + self.hardware.evict_seconds, lambda: self._lie_down(source))
        if not target.jobs:
            self._row_freed(target)


def simulate(
    hardware: Hardware,
    models: Sequence[tuple[Kind, Model]],
    trace: Sequence[Arrival],
    policy: str,
    seed: int,
    settings: SchedulerSettings | None = None,
) -> Result:
    """Run ``trace`` once under ``policy``."""
    return Simulation(hardware, models, trace, policy, seed=seed, settings=settings).run()
