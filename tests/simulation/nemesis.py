"""Bad luck under a seed: at random times something breaks, and usually is repaired later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sllmd.cluster.catalogue import Command, pack_command
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.raft.events import ChangeMembership, Proposal, Propose, TransferLeadership

if TYPE_CHECKING:
    from tests.simulation.host import Host
    from tests.simulation.world import World


class Nemesis:
    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.active = True
        self.flips_left = 1 if len(world.hosts) >= 5 else 0
        self._voters_min = 2 + self.flips_left
        """One node may lose its disk for good: without it there must still be a majority."""
        network = world.network
        if self.random.random() < 0.7:
            network.loss = self.random.random() * 0.15
            network.doubling = self.random.random() * 0.1
            network.straggling = self.random.random() * 0.1
        self.period_seconds = self.random.choice((0.1, 0.25, 0.6))
        self._blows: list[Callable[[], None]] = [
            self._crash, self._crash, self._crash_leader, self._crash_all, self._split, self._one_way,
            self._isolate_leader, self._heal, self._pause, self._slow_disk, self._fail_disk,
            self._change_membership, self._change_membership, self._transfer, self._flood,
            self._strand, self._strand,
        ]  # fmt: skip
        self._later()

    def _later(self) -> None:
        delay = self.random.expovariate(1 / self.period_seconds)
        self.world.at(self.world.now + delay, self._strike)

    def _strike(self) -> None:
        if self.active:
            cut = len(self.world.network.cut)
            self.random.choice(self._blows)()
            if len(self.world.network.cut) > cut and self.random.random() < 0.8:
                self.world.at(self.world.now + self.random.expovariate(1.5), self._heal)
            self._later()

    def _someone(self) -> Host:
        return self.random.choice(list(self.world.hosts.values()))

    def _leader(self) -> Host | None:
        leaders = [host for host in self.world.hosts.values() if host.leads]
        return self.random.choice(leaders) if leaders else None

    def _bring_down(self, host: Host) -> None:
        host.crash()
        self.world.at(self.world.now + self.random.expovariate(2.0), self._bring_up, host)

    def _bring_up(self, host: Host) -> None:
        if not host.up and self.flips_left and self.random.random() < 0.03:
            self.flips_left -= 1
            host.disk.flip(self.random)
        host.start()

    def _crash(self) -> None:
        self._bring_down(self._someone())

    def _crash_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self._bring_down(leader)

    def _crash_all(self) -> None:
        if self.random.random() < 0.4:
            for host in self.world.hosts.values():
                self._bring_down(host)

    def _split(self) -> None:
        nodes = list(self.world.hosts)
        self.world.network.partition(set(self.random.sample(nodes, self.random.randint(1, len(nodes) // 2))))

    def _one_way(self) -> None:
        nodes = list(self.world.hosts)
        for _ in range(self.random.randint(1, len(nodes))):
            self.world.network.cut.add((self.random.choice(nodes), self.random.choice(nodes)))

    def _isolate_leader(self) -> None:
        leader = self._leader()
        if leader is not None:
            self.world.network.partition({leader.node})

    def _heal(self) -> None:
        self.world.network.cut.clear()

    def _pause(self) -> None:
        host = self._leader() if self.random.random() < 0.5 else self._someone()
        if host is not None:
            host.paused_until = self.world.now + self.random.expovariate(1 / 0.3)

    def _slow_disk(self) -> None:
        host, fast = self._someone(), (0.0002, 0.004)
        host.disk_seconds = (0.01, 0.3) if host.disk_seconds == fast else fast

    def _fail_disk(self) -> None:
        host = self._someone()
        if host.up:
            host.disk.failing = self.random.choice(("Input/output error", "No space left on device"))
            self.world.at(self.world.now + 0.5 + self.random.random(), self._replace_disk, host)

    def _replace_disk(self, host: Host) -> None:
        host.disk.failing = ""
        self._bring_up(host)

    def _transfer(self) -> None:
        leader = self._leader()
        if leader is not None:
            target = self.random.choice(leader.raft.membership.voters)
            leader.handle(TransferLeadership(self.world.now, target))

    def _flood(self) -> None:
        """Many commands at once, at whoever leads or believes that it does."""
        for host in self.world.hosts.values():
            if host.leads:
                junk = [
                    SettingPut("junk", bytes(self.random.randint(1, 40)), None)
                    for _ in range(self.random.randint(1, 25))
                ]
                commands = [pack_command(Command(body)) for body in junk]
                proposals = tuple(Proposal(self.world.fresh_id(), command) for command in commands)
                host.handle(Propose(self.world.now, proposals))

    def _strand(self) -> None:
        """A leader is cut off with a log that nobody else has; whoever was cut off before comes back."""
        leader = self._leader()
        if leader is not None:
            self.world.network.cut.clear()
            if self.random.random() < 0.5:
                self.world.network.partition({leader.node})
                self._flood()
            else:  # one follower gets some of it
                self._flood()
                friends = {leader.node, self._someone().node}
                self.world.network.partition(friends)

    def _change_membership(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        members, node = leader.raft.membership, self._someone().node
        if node in members.voters:
            if len(members.voters) <= self._voters_min:
                return
            wanted = members.without(node) if self.random.random() < 0.5 else members.with_learner(node)
        elif node in members.learners:
            wanted = members.with_voter(node)
        else:
            wanted = members.with_learner(node)
        leader.handle(ChangeMembership(self.world.now, self.world.fresh_id(), wanted))
