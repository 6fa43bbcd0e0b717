"""One node of the cluster: what is left when founding, joining, gossip, calls and agreement are put together.

Start order: who we are (found, join or remember), agreement, chunks, calls, gossip, duties. The port for
calls opens only when its methods have somebody behind them; gossip comes last, because it tells where that
port is. Stopping runs the other way round.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

import sllmd
from sllmd.cluster.admitting import Admitting, Refused
from sllmd.cluster.agreeing import agreement_role, keeps_authority, retire, start_control
from sllmd.cluster.bootstrapping import State, bootstrap, offer_bootstrap
from sllmd.cluster.calls import GOSSIP_ADDRESS, Calls
from sllmd.cluster.catalogue.commands import NodeRemove
from sllmd.cluster.control import ControlStore
from sllmd.cluster.doorkeeper import Doorkeeper, tells_removal
from sllmd.cluster.duties import Duties
from sllmd.cluster.founding import found
from sllmd.cluster.gossip import Meta
from sllmd.cluster.home import Belonging, Home, LastPorts
from sllmd.cluster.joining import join
from sllmd.cluster.keyrings import Keyrings, offer_status
from sllmd.cluster.listening import choose_ports
from sllmd.cluster.membership import Membership
from sllmd.cluster.roster import Identity, MemberView
from sllmd.cluster.settings import ClusterSettings
from sllmd.cluster.tokens import Tokens
from sllmd.cluster.whereabouts import AUTHORITY_ROLE, Whereabouts
from sllmd.core.errors import ConfigError, ControlUnavailable, PeerRefused, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import format_address, split_address
from sllmd.wire.bulk.server import BulkServer, Provider
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.identity import Authority, pin_of
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.joining import offer_authority
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.seal import Keyring
from sllmd.wire.tls import Tls
from sllmd.wire.token import JoinToken

CHUNK_PORT = "chunk_port"
"""In the facts of a node's hello: where it serves chunks."""
LEAVE_RETRY_SECONDS = 10.0
ROLE = "server"

_log = structlog.get_logger(__name__)


class ClusterNode:
    """See the module. What it is before ``start``: settings and handlers; the rest is there afterwards."""

    def __init__(self, settings: ClusterSettings, *, directory: Path, name: str, dev: bool) -> None:
        """``directory``: this node's own, in its data directory. ``dev``: loopback, plain TCP, no token."""
        self.settings = settings
        self.dev = dev
        self.methods = Methods()
        """Roles register their handlers before ``start``."""
        self.facts: dict[str, Any] = {}
        """Told to every node that this one talks to."""
        self.devices: dict[str, int] = {}
        """Bytes that replicas may take, by device, for the catalogue."""
        self.labels: dict[str, str] = {}
        self.token: JoinToken | None = None
        """What to join with."""
        self.key: ClusterKey | None = None
        """What a scripted fleet shares: it joins with it where it has no token, and lets others in by it."""
        self.share: Provider | None = None
        """What other nodes may read; None: this node serves no chunks."""
        self.on_refused: Refused = lambda _name, _address, _reason: None
        self.founded = False
        """Whether this start founded the cluster."""
        self.identity: Identity
        self.membership: Membership
        self.control: ControlStore
        self.tls: Tls | None = None
        self.tokens: Tokens | None = None
        """None in a --dev cluster, which needs none."""
        self.keyring: Keyring
        self.keyrings: Keyrings
        self.home = Home(directory)
        self.doorkeeper = Doorkeeper()
        self.authority: Authority | None = None
        self.whereabouts: Whereabouts
        self.calls: Calls
        self.duties: Duties
        self.failed: asyncio.Future[SllmdError]
        """Resolved when this node must stop: it was removed, or is a copy of another."""
        self.heard = asyncio.Event()
        """Set once it has read, since it started, what is agreed; until then it may know an older state."""
        self._name = name
        self._rooms = AsyncExitStack()
        self._ca_pin = ""
        self._joined = False
        self._leaving = False

    # --- a life ---

    async def start(self) -> None:
        """Found a cluster, go on in one's own, or join one, however long that takes.

        Raises ConfigError, JournalError, and PeerRefused when the cluster does not let this node in.
        """
        self.failed = asyncio.get_running_loop().create_future()
        belonging = await self._belong()
        try:
            await self._take_part(belonging)
        except BaseException:
            await self._rooms.aclose()
            raise

    async def leave(self) -> None:
        """Go for good: hand over, be no member any more, say goodbye. ``close`` afterwards.

        Raises ControlUnavailable and OutcomeUnknown when the cluster cannot agree to it now.
        """
        self._leaving = True
        if not await retire(self.control):
            raise ControlUnavailable(
                "the other nodes cannot do without this one now",
                retry_after_seconds=LEAVE_RETRY_SECONDS,
                hint="the last node of a cluster cannot leave; else wait for the others to be well",
            )
        await self._leave_authority()
        await self.control.propose(NodeRemove(self.identity.node, None))
        await self.membership.leave()
        try:
            await asyncio.to_thread(self.home.forget, self.identity.cluster_id)
        except OSError as error:  # it is no member any more: going on would be no remedy
            hint = f"remove {self.home.directory}"
            _log.error("what this node kept as a member is still there", reason=str(error), hint=hint)

    async def _leave_authority(self) -> None:
        """Who keeps the log now asks for the CA within seconds; it must not go with this node."""
        changes = self.membership.changed()
        try:
            async with asyncio.timeout(LEAVE_RETRY_SECONDS):
                while self.authority is not None and self.members_here() and not self.whereabouts.keepers():
                    await anext(changes)
        except TimeoutError:
            raise ControlUnavailable(
                "no other node has the cluster's CA yet", retry_after_seconds=LEAVE_RETRY_SECONDS
            ) from None

    async def close(self) -> None:
        """Stop, and stay a member: whoever leads hands over, gossip says that this node goes."""
        await self._rooms.aclose()

    # --- talking to others ---

    @property
    def address(self) -> str:
        """Where other nodes call this one."""
        return self.whereabouts.address

    def members_here(self) -> list[MemberView]:
        """Other members that are not known to be dead or gone."""
        return self.whereabouts.members_here()

    async def connection(self, node: NodeId) -> Connection:
        """To another node. Raises as ``Calls.connection``."""
        try:
            return await self.calls.connection(node)
        except PeerRefused as error:
            if tells_removal(error, self.identity.node):
                self.fail_as_removed()
            raise

    async def call(
        self, node: NodeId, method: str, body: Any, *, deadline_seconds: float | None = None
    ) -> Any:
        """What another node answers. Raises as ``connection``, and what its handler raises."""
        connection = await self.connection(node)
        return await connection.call(method, body, deadline_seconds=deadline_seconds)

    # --- who we are ---

    async def _belong(self) -> Belonging:
        known = self.home.belonging()
        if known is not None and not known.joining:
            if self.settings.join:
                _log.info(
                    "a member already: join is only for finding its cluster again", cluster=known.cluster_id
                )
            return self.home.begin(self._name)
        if not self.settings.join:
            if known is not None:
                raise ConfigError(
                    f"this node was about to join a cluster, and nobody says which: {self.home.directory}",
                    hint="give --join again; or remove that directory to found a cluster of its own",
                )
            return self._found(self.home.begin(self._name))
        return await self._come_in()

    async def _come_in(self) -> Belonging:
        secret = None if self.dev else self.token or self.key
        if not self.dev and secret is None:
            raise ConfigError(
                "joining needs a token",
                hint="`sllmd token create` on a member makes one; give it with --token, SLLMD_TOKEN or "
                "[cluster] token_file",
            )
        settings, belonging = self.settings, self.home.begin(self._name)
        key = self.key if settings.bootstrap_expect else None
        if key is not None and await bootstrap(belonging.node, settings, key):
            return self._found(belonging)
        self._joined = True
        return await join(
            self.home,
            belonging,
            settings.join,
            secret,
            settings.rpc,
            devices=self.devices,
            labels=self.labels,
            store=settings.store,
        )

    def _found(self, belonging: Belonging) -> Belonging:
        self.founded = True
        return found(self.home, belonging, plain=self.dev)

    # --- taking part ---

    async def _take_part(self, belonging: Belonging) -> None:
        self.identity = Identity(belonging.cluster_id, belonging.node, belonging.name)
        keyring = self.home.keyring()
        if keyring is None:
            raise ConfigError(f"{self.home.directory} has lost its keyring", hint="join the cluster anew")
        self.keyring = keyring
        self.authority = self.home.authority()
        self.whereabouts = Whereabouts(belonging.node, self.home.peers())
        self.calls = self._open_calls()
        self._rooms.push_async_callback(self.calls.close)
        self.control = self.whereabouts.control = await start_control(
            self.settings,
            belonging,
            directory=self.home.journal_directory,
            memory=self.home.catalogue_file,
            methods=self.methods,
            connect=self.connection,
            alive=self.whereabouts.nodes_here,
        )
        self._rooms.push_async_callback(self.control.close)
        self.doorkeeper.follow(self.control.view().catalogue)
        self._offer_methods()
        self.duties = Duties(self, belonging)
        if belonging.founding:  # before anybody can ask to join with it
            await self.duties.register_key()
        await self._listen()
        self._rooms.push_async_callback(self.duties.close)
        await self.duties.start(fresh=self._joined)
        self._rooms.push_async_callback(self._say_goodbye)

    def _open_calls(self) -> Calls:
        tls = self._open_tls()
        local = Local(self._hello, self.methods, self.settings.rpc, tls, self.doorkeeper)
        share = self.share
        chunks = None if share is None else BulkServer(share, self.settings.bulk, tls, self.doorkeeper)
        return Calls(local, self.whereabouts, chunks)

    def _open_tls(self) -> Tls | None:
        if self.dev:
            return None
        identity = self.home.identity()
        if identity is None or identity.node != self.identity.node:
            raise ConfigError(
                f"{self.home.identity_file} is not this node's", hint="restore it, or join the cluster anew"
            )
        self.tls = Tls(self.home.identity_file)
        self._ca_pin = pin_of(identity.ca_pem)
        offer_authority(self.methods, identity.ca_pem, self.key)
        if self.key is not None:
            offer_bootstrap(self.methods, self.identity.node, self.key, lambda _asker, _wish: State.MEMBER)
        return self.tls

    def _hello(self) -> Hello:
        return Hello(self.identity.cluster_id, self.identity.node, facts=self.facts)

    def _offer_methods(self) -> None:
        if not self.dev:
            self.tokens = Tokens(self.control, self._ca_pin)
        self.keyrings = Keyrings(
            self.control,
            self.keyring,
            self.identity.node,
            lambda: [view.node for view in self.members_here()],
            self.call,
        )
        offer_status(self.methods, lambda: self.keyring)
        Admitting(
            cluster_id=self.identity.cluster_id,
            me=self.identity.node,
            plain=self.dev,
            store=self.settings.store,
            control=self.control,
            authority=lambda: self.authority,
            keys=self.keyring.keys,
            peers=self.whereabouts.known_peers,
            keepers=self.whereabouts.keepers,
            may_keep=lambda node: keeps_authority(self.control, node),
            call=self.call,
            refused=self.on_refused,
        ).register(self.methods)

    async def _listen(self) -> None:
        last, remembered = self.home.ports(), self.whereabouts.remembered
        listening = choose_ports(self.settings, last, remembered, dev=self.dev)
        self._rooms.push_async_callback(self.calls.shut)
        chunk_port = self.facts[CHUNK_PORT] = await self.calls.serve_chunks(listening)
        port = await self.calls.listen(listening)
        self.whereabouts.address = format_address(listening.advertised_host, port)
        self.membership = self.whereabouts.membership = await Membership.start(
            self.identity,
            self.keyring,
            Meta(self.address, sllmd.__version__, self.roles()),
            listen=listening.gossip,
            settings=self.settings.gossip,
        )
        self._rooms.push_async_callback(self.membership.close)
        self.facts[GOSSIP_ADDRESS] = self.membership.address
        _, gossip_port = split_address(self.membership.address)
        self.home.save_ports(LastPorts(port, gossip_port, chunk_port))

    async def _say_goodbye(self) -> None:
        """A restart rejoins; until then nobody needs to wait for this node, or wonder where it is."""
        if self.membership.peers():
            await self.control.hand_over()
            await self.membership.leave()

    # --- what duties and methods ask ---

    def roles(self) -> tuple[str, ...]:
        """What gossip tells that this node is."""
        role = agreement_role(self.control, self.identity.node)
        keeps = self.authority is not None
        return (ROLE, *([role] if role else []), *([AUTHORITY_ROLE] if keeps else []))

    def fail(self, error: SllmdError) -> None:
        """This node must stop, because of ``error``."""
        if not self._leaving and not self.failed.done():
            _log.error("this node stops", reason=error.message, hint=error.hint)
            self.failed.set_result(error)

    def fail_as_removed(self) -> None:
        """This node is no member any more, and has no use for the CA."""
        self.fail(
            PeerRefused(
                f"node {self.identity.name} was removed from the cluster",
                hint=f"to join again, as a new node, move {self.home.directory} away",
            )
        )
        try:
            self.forget_authority()
        except OSError as error:
            self.authority = None
            _log.error(
                "the CA is on this node's disk still, though it is no member any more",
                reason=str(error),
                hint=f"remove {self.home.directory}",
            )

    def forget_authority(self) -> None:
        """This node keeps the CA no longer, neither on its disk nor in memory; OSError: it does, in both."""
        if self.authority is not None:
            self.home.forget_authority()
            self.authority = None
            _log.info("this node keeps the cluster's CA no longer")
