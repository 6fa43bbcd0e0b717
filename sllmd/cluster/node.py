"""One node of the cluster: what is left when founding, joining, gossip, calls and agreement are put together.

Start order: who we are (found, join or remember), agreement, chunks, calls, gossip, duties. The port for
calls opens only when its methods have somebody behind them; gossip comes last, because it tells where that
port is. Stopping runs the other way round.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

import sllmd
from sllmd.cluster.admitting import Admitting, Refused
from sllmd.cluster.agreeing import agreement_role, keeps_authority, retire, start_control
from sllmd.cluster.bootstrapping import State, bootstrap, offer_bootstrap
from sllmd.cluster.catalogue.commands import NodeRemove
from sllmd.cluster.control import ControlStore
from sllmd.cluster.doorkeeper import Doorkeeper, tells_removal
from sllmd.cluster.duties import Duties
from sllmd.cluster.founding import found
from sllmd.cluster.gossip import Meta
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.home import Belonging, Home, LastPorts
from sllmd.cluster.joining import join
from sllmd.cluster.keyrings import Keyrings, offer_status
from sllmd.cluster.membership import Membership
from sllmd.cluster.passport import KnownPeer
from sllmd.cluster.roster import Identity, Listen, MemberView
from sllmd.cluster.settings import RPC_PORT, ClusterSettings
from sllmd.cluster.tokens import Tokens
from sllmd.core.errors import ConfigError, ControlUnavailable, PeerRefused, PeerUnreachable, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import format_address, is_loopback, split_address
from sllmd.wire.bulk.client import BulkAddress
from sllmd.wire.bulk.server import BulkServer, Provider
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.identity import Authority, pin_of
from sllmd.wire.ports import candidates, first_free
from sllmd.wire.route import advertised_host
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.dialing import dial
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.joining import offer_authority
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.seal import Keyring
from sllmd.wire.tls import Tls
from sllmd.wire.token import JoinToken

CHUNK_PORT = "chunk_port"
"""In the facts of a node's hello: where it serves chunks."""
GOSSIP_ADDRESS = "gossip_address"
"""In the facts of a node's hello: where it gossips, for members that lost sight of it."""
LEAVE_RETRY_SECONDS = 10.0
HANG_UP_SECONDS = 1.0
"""From a node's removal to the end of its connections; new ones are refused at once."""
ROLE = "server"
AUTHORITY_ROLE = "authority"
"""Told in gossip by nodes that keep the CA."""

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
        self.remembered: list[KnownPeer] = []
        """Where other members were when this node last ran."""
        self.home = Home(directory)
        self.doorkeeper = Doorkeeper()
        self.authority: Authority | None = None
        self.address = ""
        """Where other nodes call this one."""
        self.failed: asyncio.Future[SllmdError]
        """Resolved when this node must stop: it was removed, or is a copy of another."""
        self._name = name
        self._rooms = AsyncExitStack()
        self._local: Local
        self._peers: Peers
        self._listener: Listener
        self.duties: Duties
        self._bulk: BulkServer | None = None
        self._gossip: Membership | None = None
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
        await asyncio.to_thread(self.home.forget, self.identity.cluster_id)

    async def _leave_authority(self) -> None:
        """Who keeps the log now asks for the CA within seconds; it must not go with this node."""
        changes = self.membership.changed()
        try:
            async with asyncio.timeout(LEAVE_RETRY_SECONDS):
                while self.authority is not None and self.members_here() and not self.keepers():
                    await anext(changes)
        except TimeoutError:
            raise ControlUnavailable(
                "no other node has the cluster's CA yet", retry_after_seconds=LEAVE_RETRY_SECONDS
            ) from None

    async def close(self) -> None:
        """Stop, and stay a member: whoever leads hands over, gossip says that this node goes."""
        await self._rooms.aclose()

    # --- talking to others ---

    async def connection(self, node: NodeId) -> Connection:
        """To another node, where it was last seen.

        Raises PeerUnreachable, PeerRefused, ProtocolError, DeadlineExceeded.
        """
        try:
            return await self._peers.connection(node, self._address_of(node))
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

    def bulk_address(self, node: NodeId) -> BulkAddress | None:
        """Where it serves chunks, if it does and this node has talked to it."""
        try:
            address = self._address_of(node)
        except PeerUnreachable:
            return None
        connection = self._peers.connected(node, address) or next(
            (one for one in self._listener.connections if one.peer.node == node and one.lost is None), None
        )
        port = connection.peer.facts.get(CHUNK_PORT) if connection is not None else None
        return BulkAddress(node, address.host, port) if isinstance(port, int) else None

    def members_here(self) -> list[MemberView]:
        """Other members that are not known to be dead or gone."""
        return [view for view in self._others() if view.status <= Status.SUSPECT]

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
        self.remembered = self.home.peers()
        self.authority = self.home.authority()
        tls = self._open_tls()
        self._local = local = Local(self._hello, self.methods, self.settings.rpc, tls, self.doorkeeper)
        self._peers, self._listener = Peers(local), Listener(local)
        self._rooms.push_async_callback(self._peers.close)
        self.control = await start_control(
            self.settings,
            belonging,
            directory=self.home.journal_directory,
            memory=self.home.catalogue_file,
            methods=self.methods,
            connect=self.connection,
            alive=self._alive,
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
            peers=self.known_peers,
            keepers=self.keepers,
            may_keep=lambda node: keeps_authority(self.control, node),
            call=self.call,
            refused=self.on_refused,
        ).register(self.methods)

    async def _listen(self) -> None:
        ports = self.settings.ports([peer.rpc for peer in self.remembered])
        if self.dev and not is_loopback(ports.host):
            raise ConfigError(
                f"--dev does not listen on {ports.host}: it knows neither keys nor encryption",
                hint="start without --dev to meet other machines",
            )
        host = advertised_host(ports.host, self.settings.advertise or None)
        last, avoid = self.home.ports(), self._avoided(host)

        def tried(port: int, before: int) -> list[int]:
            return candidates(port, exactly=ports.exactly, last=before, avoid=avoid)

        chunk_port = 0
        if self.share is not None:
            self._bulk = bulk = BulkServer(self.share, self.settings.bulk, self.tls, self.doorkeeper)
            self._rooms.push_async_callback(asyncio.to_thread, bulk.close)

            async def listen_for_chunks(port: int) -> int:
                return bulk.start(ports.host, port)

            chunk_port = await first_free(listen_for_chunks, tried(ports.chunks, last.chunks))
            self.facts[CHUNK_PORT] = chunk_port
        self._rooms.push_async_callback(self._listener.close)
        listen = functools.partial(self._listener.start, ports.host)
        port = await first_free(listen, tried(ports.rpc, last.rpc))
        self.address = format_address(host, port)
        self.membership = self._gossip = await Membership.start(
            self.identity,
            self.keyring,
            Meta(self.address, sllmd.__version__, self.roles()),
            listen=Listen(
                ports.host,
                ports.gossip,
                ports.exactly,
                self.settings.advertise or None,
                last.gossip,
                avoid,
            ),
            settings=self.settings.gossip,
        )
        self._rooms.push_async_callback(self.membership.close)
        self.facts[GOSSIP_ADDRESS] = self.membership.address
        _, gossip_port = split_address(self.membership.address)
        self.home.save_ports(LastPorts(port, gossip_port, chunk_port))

    def _avoided(self, host: str) -> frozenset[int]:
        """Ports on this machine that others remember somebody at: who restarts first must not take them."""
        last = self.home.ports()
        others = [address for peer in self.remembered for address in (peer.rpc, peer.gossip) if address]
        taken = [port for at, port in map(split_address, others) if at == host]
        return frozenset([*taken, last.rpc, last.gossip, last.chunks])

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

    def known_peers(self) -> list[KnownPeer]:
        """Where members are, this one among them."""
        return [
            KnownPeer(view.node, view.meta.address, view.address)
            for view in self.membership.members()
            if view.status <= Status.SUSPECT and view.meta is not None
        ]

    async def gossip_address(self, address: str) -> str | None:
        """Where the member that takes calls at ``address`` gossips; None: no other of this cluster does."""
        host, port = split_address(address, default_port=RPC_PORT)
        if format_address(host, port) == self.address:
            return None
        try:
            connection = await dial(self._local, host, port)
        except SllmdError as error:
            _log.info("nobody of this cluster found there", address=address, reason=error.message)
            return None
        found = connection.peer.facts.get(GOSSIP_ADDRESS)
        await connection.close()
        return found if isinstance(found, str) else None

    def keepers(self) -> list[NodeId]:
        """Other living nodes that keep the CA."""
        return [
            view.node
            for view in self.members_here()
            if view.meta is not None and AUTHORITY_ROLE in view.meta.roles
        ]

    def hang_up(self, nodes: frozenset[NodeId]) -> None:
        """These are members no more: end what was begun with them, in a moment, so that a node that asked for
        it hears so."""
        asyncio.get_running_loop().call_later(HANG_UP_SECONDS, self._hang_up, nodes)

    def _hang_up(self, nodes: frozenset[NodeId]) -> None:
        for node in nodes:
            self._peers.forget(node)
        for connection in self._listener.connections:
            if connection.peer.node in nodes:
                connection.abort()
        if self._bulk is not None:
            self._bulk.hang_up(nodes)

    def fail(self, error: SllmdError) -> None:
        """This node must stop, because of ``error``."""
        if not self._leaving and not self.failed.done():
            _log.error("this node stops", reason=error.message, hint=error.hint)
            self.failed.set_result(error)

    def fail_as_removed(self) -> None:
        """This node is no member any more, and has no use for the CA."""
        self.forget_authority()
        self.fail(
            PeerRefused(
                f"node {self.identity.name} was removed from the cluster",
                hint=f"to join again, as a new node, move {self.home.directory} away",
            )
        )

    def forget_authority(self) -> None:
        """This node keeps the CA no longer, neither in memory nor on its disk."""
        if self.authority is not None:
            self.authority = None
            self.home.forget_authority()
            _log.info("this node keeps the cluster's CA no longer")

    def _alive(self) -> list[NodeId]:
        """Whom agreement may count on; until gossip knows somebody, those who were there last time."""
        if not self._others():
            return [peer.node for peer in self.remembered]
        return [view.node for view in self.members_here()]

    def _others(self) -> list[MemberView]:
        """Members besides this one, dead ones too; none before gossip has begun."""
        members = self._gossip.members() if self._gossip is not None else []
        return [view for view in members if not view.is_me]

    def _address_of(self, node: NodeId) -> Address:
        """By gossip; else as agreed; else where it was when this node last ran."""
        view = self._gossip.member(node) if self._gossip is not None else None
        found = view.meta.address if view is not None and view.meta is not None else ""
        if not found:
            agreed = self._agreed_address(node)
            found = agreed or next((peer.rpc for peer in self.remembered if peer.node == node), "")
        if not found:
            raise PeerUnreachable(f"nobody knows where node {node} is")
        if found == self.address and node != self.identity.node:
            raise PeerUnreachable(
                f"the known address {found} of node {node} is outdated: it is this node's now"
            )
        return Address(*split_address(found))

    def _agreed_address(self, node: NodeId) -> str:
        control: ControlStore | None = getattr(self, "control", None)  # it asks for nodes while it starts
        known = control.view().catalogue.nodes.get(node) if control is not None else None
        return known.address if known is not None else ""
