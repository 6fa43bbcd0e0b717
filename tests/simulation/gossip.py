"""A simulated cluster of gossiping members: real machines, simulated clock, packets and streams.

``python -m tests.simulation.gossip --members 5000 --loss 0.25`` prints how long a change takes to everybody.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from sllmd.cluster.gossip import Gossip, GossipSettings, Meta, Start, pack_meta
from sllmd.cluster.gossip.events import (
    Action,
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    ChangeMeta,
    Event,
    Gone,
    IdTaken,
    Join,
    Leave,
    MemberChanged,
    Receive,
    Send,
    Tick,
)
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import PROTOCOL_VERSION, Alive, Message, Status, StreamMessage, pack_packet
from sllmd.cluster.gossip.suspicion import seconds_min
from sllmd.core.ids import NodeId
from tests.simulation.clock import Clock
from tests.simulation.network import Network

STREAM_SECONDS = 0.004
"""Connect, question, answer."""
RECEIVE_BUFFER_PACKETS = 2_000
"""What the kernel keeps for a process that stands still."""
META = pack_meta(Meta("10.0.0.1:8344", "0.1.0", ("server",)))


@dataclass(frozen=True, slots=True)
class Packet:
    """Source and target are what the simulated network cuts by."""

    source: NodeId
    target: NodeId
    messages: tuple[Message, ...]


class GossipWorld(Clock):
    """``converged``: all know all from the start; else everybody is alone until it joins."""

    def __init__(
        self,
        members: int,
        *,
        seed: int = 0,
        settings: GossipSettings | None = None,
        converged: bool = True,
        check_sizes: bool = False,
    ) -> None:
        super().__init__()
        self.random = Random(seed)
        self.settings = settings or GossipSettings()
        self.check_sizes = check_sizes
        self.network = Network(self)  # type: ignore[arg-type]  # it needs a clock, chance and hosts
        self.hosts: dict[NodeId, GossipHost] = {}
        self.addresses: dict[str, GossipHost] = {}
        self.packets = 0
        self.deaths: list[tuple[float, NodeId, NodeId]] = []
        """When, who believed it, and of whom."""
        nodes = [NodeId(f"n{number:04}") for number in range(members)]
        known: dict[NodeId, Member] = {}
        if converged:
            claims = [
                Alive(node, 0, f"name-{node}", f"{node}:1", 1, PROTOCOL_VERSION, META) for node in nodes
            ]
            known = {claim.node: Member(claim, 0, Status.ALIVE, 0.0) for claim in claims}
        for node in nodes:
            self.add(node, known=known)

    def add(self, node: NodeId, **options: Any) -> GossipHost:
        host = GossipHost(self, node, **options)
        self.hosts.setdefault(node, host)
        self.addresses[host.address] = host
        return host

    def hand_over(self, source: GossipHost, address: str, messages: tuple[Message, ...]) -> None:
        self.packets += 1
        if self.check_sizes:
            assert len(pack_packet(messages)) <= self.settings.packet_bytes_max
        host = self.addresses.get(address)
        if host is not None:
            self.network.send(Packet(source.place, host.place, messages))  # type: ignore[arg-type]

    def are_cut(self, one: GossipHost, other: GossipHost) -> bool:
        """A stream needs both directions."""
        cut = self.network.cut
        return (one.place, other.place) in cut or (other.place, one.place) in cut

    def knowing(self, node: NodeId, incarnation: int) -> int:
        """How many living hosts have heard this of a member."""
        return sum(
            host.up
            and (member := host.machine.table.get(node)) is not None
            and member.incarnation >= incarnation
            for host in self.hosts.values()
        )

    def believe(self, node: NodeId, status: Status, hosts: Iterable[GossipHost] | None = None) -> int:
        """How many hosts believe this of a member."""
        return sum(host.status(node) is status for host in hosts or self.hosts.values() if host.up)

    def everyone_sees_everyone(self) -> bool:
        alive = [host.node for host in self.hosts.values() if host.up]
        return all(
            host.machine.table.here_count == len(alive)
            and all(host.status(node) is Status.ALIVE for node in alive)
            for host in self.hosts.values()
            if host.up
        )


class GossipHost:
    """The shell of one simulated member."""

    def __init__(
        self,
        world: GossipWorld,
        node: NodeId,
        *,
        place: str = "",
        known: dict[NodeId, Member] | None = None,
        name: str = "",
        protocol: tuple[int, int] = (1, PROTOCOL_VERSION),
        clock_offset: float = 0.0,
    ) -> None:
        self.world = world
        self.node = node
        self.place = NodeId(place or node)
        """Where it runs: a clone has its original's id and another place."""
        self.address = f"{self.place}:1"
        self.up = True
        self.paused_until = 0.0
        self.clock_offset = clock_offset
        self.seen: list[Action] = []
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._tick_at = float("inf")
        if self.place != node:
            world.hosts[self.place] = self
        self.machine = Gossip(
            Start(
                node,
                name or f"name-{node}",
                self.address,
                META,
                world.settings,
                world.now + clock_offset,
                world.random.getrandbits(64),
                protocol_min=protocol[0],
                protocol_max=protocol[1],
                known=known or {},
            )
        )
        self._arm()

    # --- what a test does with it ---

    def handle(self, event: Event) -> None:
        if not self.up:
            return
        for action in self.machine.handle(event):
            self._carry_out(action)
        self._arm()

    def join(self, other: GossipHost) -> None:
        self.handle(Join(self.clock(), other.address))

    def leave(self) -> None:
        self.handle(Leave(self.clock()))

    def tell(self, meta: bytes) -> None:
        self.handle(ChangeMeta(self.clock(), meta))

    def kill(self) -> None:
        self.up = False

    def pause(self, seconds: float) -> None:
        self.paused_until = self.world.now + seconds
        self.world.at(self.paused_until, self._resume)

    def clock(self) -> float:
        return self.world.now + self.clock_offset

    def status(self, node: NodeId) -> Status | None:
        member = self.machine.table.get(node)
        return member.status if member is not None else None

    def saw(self, kind: type) -> list[Any]:
        return [action for action in self.seen if isinstance(action, kind)]

    # --- events in ---

    @property
    def paused(self) -> bool:
        return self.world.now < self.paused_until

    def receive(self, packet: Packet) -> None:
        """Called by the network."""
        self._let_in("packet", f"{packet.source}:1", packet.messages)

    def _let_in(self, *what: Any) -> None:
        if not self.paused:
            self._take(*what)
        elif len(self._waiting) < RECEIVE_BUFFER_PACKETS:
            self._waiting.append(what)

    def _take(self, kind: str, *what: Any) -> None:
        if kind == "packet":
            self.handle(Receive(self.clock(), *what))
        elif kind == "answer":
            self.handle(Answered(self.clock(), *what))
        elif kind == "failed":
            self.handle(AskFailed(self.clock(), *what))
        else:
            self._asked(*what)

    def _resume(self) -> None:
        """As after SIGCONT: what the kernel kept is read first, then late timers fire."""
        if self.paused:
            return
        while self._waiting:
            self._take(*self._waiting.popleft())
        self._tick_at = float("inf")
        self._arm()

    def _arm(self) -> None:
        deadline = max(self.world.now, self.machine.deadline_seconds() - self.clock_offset)
        if deadline < self._tick_at:
            self._tick_at = deadline
            self.world.at(deadline, self._tick, deadline)

    def _tick(self, due: float) -> None:
        if due != self._tick_at or self.paused or not self.up:
            return
        self._tick_at = float("inf")
        if self.machine.deadline_seconds() <= self.clock():
            self.handle(Tick(self.clock()))
        else:
            self._arm()

    # --- actions out ---

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Send):
            self.world.hand_over(self, action.address, action.messages)
        elif isinstance(action, Ask):
            self._ask(action)
        elif isinstance(action, Answer):
            self._answers[action.ask_id] = action.message
        elif isinstance(action, MemberChanged):
            if action.after.status is Status.DEAD:
                self.world.deaths.append((self.world.now, self.node, action.after.node))
        else:
            self.seen.append(action)
            if isinstance(action, Gone | IdTaken):
                self.up = False

    _answers: dict[int, StreamMessage]

    def _ask(self, ask: Ask) -> None:
        """A stream loses nothing, but for what cannot be reached or does not run."""
        other = self.world.addresses.get(ask.address)
        if other is None or not other.up or self.world.are_cut(self, other):
            self.world.at(self.world.now + ask.timeout_seconds, self._let_in, "failed", ask.ask_id, "silence")
            return
        self.world.at(self.world.now + STREAM_SECONDS / 2, other._let_in, "question", self, ask)
        self.world.at(self.world.now + ask.timeout_seconds, self._let_in, "failed", ask.ask_id, "silence")

    def _asked(self, source: GossipHost, ask: Ask) -> None:
        self._answers = {}
        self.handle(Asked(self.clock(), 1, ask.message))
        answer = self._answers.get(1)
        if answer is not None and self.up:
            self.world.at(self.world.now + STREAM_SECONDS / 2, source._let_in, "answer", ask.ask_id, answer)


def seconds_until_all_know(members: int, loss: float, seed: int) -> tuple[float, GossipWorld]:
    """One member changes its meta in a calm cluster; how long until the last one has heard."""
    world = GossipWorld(members, seed=seed)
    world.network.loss = loss
    world.run(1.0)
    changer = next(iter(world.hosts.values()))
    changer.tell(pack_meta(Meta("10.0.0.2:8344", "0.1.0", ("server",))))
    told = changer.machine.me.incarnation
    begun = world.now
    while world.knowing(changer.node, told) < members and world.now < begun + 20:
        world.run(world.now + 0.05)
    return world.now - begun, world


def after_a_pause(members: int, loss: float, seed: int, *, paused_seconds: float = 5.0) -> GossipWorld:
    """A tenth of a calm cluster stands still for a while; what has become of it when all doubts are over."""
    world = GossipWorld(members, seed=seed)
    world.network.loss = loss
    world.run(2.0)
    for host in world.random.sample(list(world.hosts.values()), members // 10):
        host.pause(paused_seconds)
    world.run(world.now + paused_seconds - 0.1)
    assert any(host.machine.suspicions for host in world.hosts.values()), "nobody noticed the pause"
    doubts_last = seconds_min(world.settings, members)
    world.run(world.now + 2 * doubts_last)
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", action="store_true", help="a tenth stands still for 5 s; who dies?")
    options = parser.parse_args()
    begun = time.perf_counter()
    if options.pause:
        world = after_a_pause(options.members, options.loss, options.seed)
        outcome = f"all see all after a pause: {world.everyone_sees_everyone()}"
    else:
        seconds, world = seconds_until_all_know(options.members, options.loss, options.seed)
        outcome = f"all know after {seconds:.2f} s"
    real_seconds = time.perf_counter() - begun
    print(  # noqa: T201 - a command
        f"{options.members} members, {options.loss:.0%} loss: {outcome}, {world.packets} packets, "
        f"{len(world.deaths)} deaths, {real_seconds:.1f} s to simulate"
    )


if __name__ == "__main__":
    main()
