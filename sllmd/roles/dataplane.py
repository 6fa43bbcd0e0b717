"""A node's data plane in a cluster: everything that lets a request run on another node, put together.

Order: handlers are registered before the node listens; after it has joined, names are the cluster's, and the
node reports to and learns from whoever leads. Stopping runs the other way round. No request waits for a
leader: without one the last table serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

import structlog

from sllmd.cluster.catalogue.state import EMPTY, Catalogue
from sllmd.cluster.control import Leadership
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.member import RaftControl
from sllmd.cluster.node import CHUNK_PORT, ClusterNode
from sllmd.cluster.roster import MemberView
from sllmd.core.errors import ConfigError, NotHere, PeerUnreachable
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.loader.tier import DramTier
from sllmd.roles.agent import Agent
from sllmd.roles.asking import Asking
from sllmd.roles.berths import Berths
from sllmd.roles.bookkeeping import ASK, Bookkeeper, unpack_report
from sllmd.roles.chunks import Chunks
from sllmd.roles.clearing import Clearing
from sllmd.roles.deployments import Deployments
from sllmd.roles.files import FileFetch, serve_files
from sllmd.roles.inventory import Inventory, Report
from sllmd.roles.leader import Leader
from sllmd.roles.led import Led
from sllmd.roles.library import Library, Shared
from sllmd.roles.lifts import Lifts
from sllmd.roles.members import name_table
from sllmd.roles.orders import Fence, Orders
from sllmd.roles.place import Here
from sllmd.roles.placing import Placing, Surroundings
from sllmd.roles.relay import Relays, serve_generations
from sllmd.roles.reporting import TOLD_SECONDS, Reporter
from sllmd.roles.resumption import Resumption
from sllmd.roles.settings import MirrorSettings, ModelSettings, RoutingSettings, ServingSettings
from sllmd.roles.stock import Stock
from sllmd.roles.table import Table
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.store.store import Store
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.wire.addresses import split_address
from sllmd.wire.rpc.connection import Connection

MEMORY_FILE = "deployed.json"
FENCE_FILE = "epoch.json"
ADOPTED_DIRECTORY = "adopted"
"""In the node's cluster directory: a store of what came from other nodes."""
START_GRACE_SECONDS = 5.0
"""Beyond the queue's time-out over there: that node's own refusal says more than ours."""

_log = structlog.get_logger(__name__)


class DataPlane:
    """See the module."""

    def __init__(
        self,
        node: ClusterNode,
        library: Library,
        agent: Agent,
        tier: DramTier,
        chunks: Chunks,
        *,
        directory: Path,
        models: Mapping[str, ModelSettings],
        routing: RoutingSettings,
        serving: ServingSettings,
        mirror: MirrorSettings,
        scheduler: SchedulerSettings,
    ) -> None:
        """``directory``: of this node in the cluster."""
        self._node = node
        self._library = library
        self._agent = agent
        self._directory = directory
        self._chunks = chunks
        self._alive: frozenset[NodeId] = frozenset()
        self._others: frozenset[NodeId] = frozenset()
        self._started = False
        self._tasks: list[asyncio.Task[None]] = []
        self._adopted = Store(directory / ADOPTED_DIRECTORY)
        self._stock = Stock(agent, tier, library, lambda: int(node.facts.get(CHUNK_PORT, 0)))
        self.keeper = Bookkeeper(routing, self._ask, lambda each: each in self._alive)
        self.reporter = Reporter(self._stock.take_all, self._connect, self.keeper, routing)
        start_seconds = serving.queue_timeout + START_GRACE_SECONDS
        self.relays = Relays(self._connect, start_timeout_seconds=start_seconds)
        self.here = Here(agent, library.obtain_exactly, NodeId(""))
        self.berths = Berths(self.here)
        self.orders = Orders(agent, library, Lifts(agent, tier))
        self.reporter.fence = self.orders.fence
        self.leader = Leader(node, self.orders, scheduler, lambda: self._alive)
        self.keeper.on_inventory, self.keeper.on_ready = self.leader.take, self.leader.nodes_asked
        self._led = Led(routing.leader_wait)
        self.asking = Asking(node, self.leader, self._led, wait_seconds=serving.queue_timeout)
        surroundings = Surroundings(lambda: self._alive, self._has_leader, self._catalogue, self.asking.place)
        self.placing = Placing(
            self.here, agent, self._stock.take, self.relays, self.reporter, surroundings, routing
        )
        self.resumption = Resumption(mirror, self._connect, lambda: self._others)
        self._deployments = Deployments(
            library,
            self._adopted,
            models,
            directory / MEMORY_FILE,
            elsewhere=self._elsewhere,
            in_use=lambda name: any(each.need.model == name for each in agent.residences()),
            changed=self.reporter.note_change,
            retire=self.asking.retire,
        )
        self._clearing = Clearing(library, agent, tier)
        self._register()

    def _register(self) -> None:
        methods = self._node.methods
        serve_generations(methods, self.here)
        self.berths.offer(methods)
        serve_files(methods, self._library.find)
        self.keeper.offer(methods)
        self.reporter.offer(methods)
        self.orders.offer(methods)
        self.leader.offer(methods)
        self.resumption.offer(methods)

    @property
    def table(self) -> Table:
        """Who has what, as this node knows it."""
        return self.reporter.table

    def inventories(self) -> dict[NodeId, Inventory]:
        """The same with this node's own, as it is now."""
        return {**self.table.inventories, self.here.node: self._stock.take()}

    # -- a life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """The node has joined: from now on names and places are the cluster's. Raises StoreError."""
        identity = self._node.identity
        self.here.node = identity.node
        self._stock.name, self._stock.labels = identity.name, self._node.labels
        await asyncio.to_thread(self._adopted.prepare)
        fetch = FileFetch(self._connect, self._file_holders).fetch
        self._chunks.table = lambda: self.table
        view, adopted = self._node.control.view, self._adopted
        self._library.share(Shared(identity.node, adopted, view, lambda: self.table, fetch, self._who_had))
        self._agent.changed = self.reporter.note_change
        self._agent.keep_alive_of = self._keep_alive_of
        self._started = True
        self._look_around()
        self.orders.open(Fence(self._directory / FENCE_FILE, identity.cluster_id))
        self._deployments.start(self._node.control, identity.cluster_id)
        parts = (self._watch_members, self._watch_leaders, self._clearing.run)
        self._tasks = [keep_running(part) for part in parts]

    async def close(self) -> None:
        """Take part no more; what runs here for others ends with the connections."""
        await end_tasks(*self._tasks)
        await self._deployments.close()
        self.leader.rest()
        await self.orders.close()
        await self.resumption.close()
        self.keeper.rest()
        await self.reporter.close()

    # -- leaders and members -------------------------------------------------------------------

    async def _watch_leaders(self) -> None:
        changes = self._node.control.leaderships()
        self._lead_or_follow(self._node.control.leadership())
        async for leadership in changes:
            self._lead_or_follow(leadership)

    def _lead_or_follow(self, leadership: Leadership) -> None:
        self._led.look(leadership, self._alive, self._voters())
        if leadership.is_me:
            self.leader.lead(leadership.epoch)
            self.keeper.lead(leadership.epoch, self._alive)
        else:
            self.leader.rest()
            self.keeper.rest()
        self.reporter.follow(leadership.leader, self.here.node)

    async def _watch_members(self) -> None:
        async for change in self._node.membership.changed():
            before = change.node in self._alive
            self._look_around()
            member = change.member
            if member is None or member.status >= Status.DEAD:
                self.relays.lost(change.node)
                self.keeper.forget(change.node)
                self.reporter.note_dead(change.node)
            elif member.status is Status.ALIVE and not before:
                self.keeper.welcome(change.node)
                if change.node not in self.table.inventories:
                    self.reporter.refresh()

    def _look_around(self) -> None:
        members = self._node.membership.members()
        self._alive = frozenset(each.node for each in members if each.status is Status.ALIVE)
        others = self._alive - {self.here.node}
        if others != self._others:  # whoever holds it sees by its identity that it changed
            self._others = others
        self._led.look(self._node.control.leadership(), self._alive, self._voters())
        hosts = {each.node: _host(each) for each in members if not each.is_me}
        self._chunks.hosts = {node: host for node, host in hosts.items() if host is not None}

    def _voters(self) -> Collection[NodeId]:
        control = self._node.control
        return control.membership.voters if isinstance(control, RaftControl) else ()

    # -- what the parts ask --------------------------------------------------------------------

    async def _connect(self, node: NodeId) -> Connection:
        if not self._started:
            raise PeerUnreachable("this node has not joined yet")
        return await self._node.connection(node)

    async def _ask(self, node: NodeId) -> Report:
        epoch = self._node.control.leadership().epoch
        if node == self.here.node:
            await self.orders.fence(epoch)
            return self.reporter.full()
        connection = await self._connect(node)
        return unpack_report(await connection.call(ASK, epoch, deadline_seconds=START_GRACE_SECONDS))

    def _catalogue(self) -> Catalogue:
        return self._node.control.view().catalogue if self._started else EMPTY

    def _has_leader(self) -> bool:
        return self._led.who is not None

    def _keep_alive_of(self, name: ModelName) -> float | None:
        deployment = self._catalogue().deployments.get(name)
        if deployment is None:
            return None
        if deployment.spec.min_replicas:
            return float("inf")  # the leader lets go what is too many
        return deployment.spec.stays_seconds

    def _who_had(self, digest: Digest) -> str | None:
        node = self.reporter.had.get(digest)
        if node is None:
            return None
        return name_table(self._node.membership.members(), self._catalogue()).get(node)

    def _elsewhere(self) -> Collection[Digest]:
        others = (each for node, each in self.table.inventories.items() if node != self.here.node)
        return {fact.digest for each in others for fact in each.checkpoints if not fact.adopted}

    async def _file_holders(self, digest: Digest) -> list[NodeId]:
        try:
            async with asyncio.timeout(TOLD_SECONDS):
                while True:
                    holders = self.table.holders(digest, files_only=True)
                    found = [node for node in holders if node in self._others]
                    if found:
                        return found
                    await self.reporter.table_changed()
        except TimeoutError:
            raise NotHere(f"no node that is here has checkpoint {digest[:12]}") from None


def _host(member: MemberView) -> str | None:
    """Where it is; None while it is not well, or tells an address that is none."""
    if member.status is not Status.ALIVE or member.meta is None:
        return None
    try:
        return split_address(member.meta.address, default_port=0)[0]
    except ConfigError:
        return None
