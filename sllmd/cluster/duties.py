"""What a member does all the time: follow what was agreed, tell who leads, keep its papers in order.

Each duty is a task of its own, which is tried again where the cluster cannot agree now.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from sllmd.cluster import keyrings
from sllmd.cluster.admitting import AUTHORITY_METHOD, KEEPING_METHOD, RENEW_METHOD
from sllmd.cluster.agreeing import keeps_authority
from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import NodeAdmit, NodeRemove
from sllmd.cluster.catalogue.results import Denied, Reason, Result
from sllmd.cluster.home import Belonging
from sllmd.cluster.membership import JOIN_RETRY_SECONDS_MAX, JOIN_RETRY_SECONDS_MIN
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown, PeerRefused, SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.wire.identity import make_identity, make_request, new_key, parse_authority

if TYPE_CHECKING:
    from sllmd.cluster.node import ClusterNode

MEET_SECONDS = 3.0
"""A node that starts waits so long for others and for what is agreed; later it goes on without."""
HEAR_SECONDS = 1.0
"""Where it knows what had been agreed before: longer than who leads needs to answer."""
RETRY_SECONDS = 1.0
"""Before something that the cluster could not do is asked for again."""
RECORD_TRIES = 3
"""For one change of this node's record: somebody else's may come in between (a cordon, its address)."""
CERTIFICATE_SECONDS = 3600.0
"""How often the certificate's age is looked at; it is renewed months before its end."""
AUTHORITY_SECONDS = 2.0
"""How often a node looks whether it is to keep the CA: who just began to vote asks soon, who ends lets go."""
PEERS_SECONDS = 5.0
"""Peers are written down at most so often."""
PEERS_MAX = 64
"""Written down: more than ever die at once."""

_log = structlog.get_logger(__name__)


class Duties:
    """Of one started node."""

    def __init__(self, node: ClusterNode, belonging: Belonging) -> None:
        self._node = node
        self._belonging = belonging
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, fresh: bool) -> None:
        """Begin. ``fresh``: this node was let in just now, and waits until gossip knows somebody.

        Any node waits for what is agreed now, for a while: who serves knows which keys there are.
        """
        duties = (
            self._meet,
            self._follow_catalogue,
            self._tell_leadership,
            self._register,
            self._keep_certificate,
            self._keep_authority,
            self._remember_peers,
            self._watch_id,
        )
        self._tasks = [keep_running(duty, expected=(ControlUnavailable, OutcomeUnknown)) for duty in duties]
        if fresh:
            await asyncio.wait(self._tasks[:1], timeout=MEET_SECONDS)
        knows_something = self._node.control.view().position > 0
        with suppress(TimeoutError):
            patience_seconds = HEAR_SECONDS if knows_something else MEET_SECONDS
            await asyncio.wait_for(self._node.heard.wait(), patience_seconds)

    async def close(self) -> None:
        """Stop."""
        await end_tasks(*self._tasks)

    # --- others ---

    async def _meet(self) -> None:
        """Until somebody is found where the others were, or through ``join``, or found this node."""
        addresses = [peer.gossip for peer in self._node.whereabouts.remembered if peer.gossip]
        if not addresses:
            if self._node.settings.join:  # it founded its cluster, and is now told to join another
                await self._search()
            return
        ways = [asyncio.create_task(self._rejoin(addresses)), asyncio.create_task(self._search())]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        finally:
            await end_tasks(*ways)

    async def _rejoin(self, addresses: list[str]) -> None:
        attempt = await self._node.membership.join_for_ever(addresses)
        if not attempt.joined:
            _log.error("the other members refuse this node", address=attempt.address, reason=attempt.reason)

    async def _search(self) -> None:
        """Where the others were nobody may be any more: ask at the addresses in ``join``, too."""
        node, pause_seconds = self._node, JOIN_RETRY_SECONDS_MIN
        while not node.members_here():
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(JOIN_RETRY_SECONDS_MAX, 2 * pause_seconds)
            found = [await node.calls.gossip_address(address) for address in node.settings.join]
            await node.membership.join([address for address in found if address])

    async def _remember_peers(self) -> None:
        node, known = self._node, list(self._node.whereabouts.remembered)
        async for _ in node.membership.changed():
            others = (peer for peer in node.whereabouts.known_peers() if peer.node != node.identity.node)
            peers = list(itertools.islice(others, PEERS_MAX))
            if peers and peers != known:
                await asyncio.to_thread(node.home.save_peers, peers)
                known = peers
                await asyncio.sleep(PEERS_SECONDS)

    async def _watch_id(self) -> None:
        address = await self._node.membership.id_taken
        self._node.fail(
            PeerRefused(
                f"another node with this node's id {self._node.identity.node} lives at {address}: this data "
                "directory is a copy",
                hint="never clone a data directory; start the copy with an empty one and --join",
            )
        )

    # --- what was agreed ---

    async def _follow_catalogue(self) -> None:
        views = self._node.control.views()
        self._follow(self._node.control.view().catalogue)
        async for view in views:
            self._follow(view.catalogue)

    def _follow(self, catalogue: Catalogue) -> None:
        node = self._node
        removed = node.doorkeeper.follow(catalogue)
        if node.identity.node in node.doorkeeper.removed:  # now, or before it started
            node.fail_as_removed()
        if removed:
            node.calls.hang_up(removed)
        keys = keyrings.agreed_keys(catalogue)
        if keys is not None and keyrings.follow(node.keyring, keys):
            node.home.save_keyring(node.keyring)

    async def _tell_leadership(self) -> None:
        node = self._node
        leaderships = node.control.leaderships()
        self.tell()
        async for _ in leaderships:
            self.tell()

    def tell(self) -> None:
        """Have gossip tell who leads, and what this node is."""
        membership, leadership = self._node.membership, self._node.control.leadership()
        meta = replace(
            membership.meta,
            roles=self._node.roles(),
            epoch=leadership.epoch,
            leader=leadership.leader,
        )
        if meta != membership.meta:
            membership.tell(meta)

    # --- this node's papers ---

    async def _register(self) -> None:
        """The catalogue knows this node as it is now. Raises ControlUnavailable."""
        await self._put_record()
        for lost in self._belonging.lost:
            await self._node.control.propose(NodeRemove(lost, None))
        if self._belonging.founding or self._belonging.lost:
            self._belonging = replace(self._belonging, founding=False, lost=())
            await asyncio.to_thread(self._node.home.save_belonging, self._belonging)
        await self.register_key()

    async def _put_record(self) -> None:
        """This node's record as it should be. Raises ControlUnavailable when others keep changing it."""
        for _ in range(RECORD_TRIES):
            result = await self._try_record()
            if not isinstance(result, Denied):
                return
            if result.reason is not Reason.CONFLICT:
                self._not_registered(result)
                return
        raise ControlUnavailable("this node's record changes all the time", retry_after_seconds=RETRY_SECONDS)

    async def _try_record(self) -> Result | None:
        """Put the record if it is another; what came of it."""
        node = self._node
        catalogue = await node.control.read()
        node.heard.set()
        known = catalogue.nodes.get(node.identity.node)
        identity = node.home.identity()
        wanted = NodeAdmit(
            node.identity.node,
            node.identity.name,
            node.address,
            identity.fingerprint if identity else "",
            node.devices,
            node.labels,
            known.revision if known else 0,
        )
        if known is not None and _facts(wanted) == _facts(known):
            return None
        return await node.control.propose(wanted)

    async def register_key(self) -> None:
        """Nodes with the cluster key may join."""
        node = self._node
        if node.key is not None and node.tokens is not None:
            await node.tokens.register(node.key)

    def _not_registered(self, result: Denied) -> None:
        if result.reason is Reason.REMOVED:
            return  # the catalogue tells, too
        _log.warning(
            "the cluster knows this node as it was before",
            reason=result.message,
            hint="choose another --name",
        )

    async def _keep_certificate(self) -> None:
        while not self._node.dev:
            identity = self._node.home.identity()
            if identity is not None and identity.renewal_due(time.time()):
                await self.renew()
            await asyncio.sleep(CERTIFICATE_SECONDS)

    async def renew(self) -> None:
        """Have a new certificate for a new key, and use it from the next connection on."""
        node, old = self._node, self._node.home.identity()
        assert old is not None
        assert node.tls is not None
        key = new_key()
        request = make_request(node.identity.node, key)
        if node.authority is not None:
            signed = node.authority.sign(request, node.identity.node, now_seconds=time.time())
        else:
            signed = await self._ask_keepers(RENEW_METHOD, request)
        node.home.save_identity(make_identity(key, signed, old.ca_pem))
        node.tls.reload()
        _log.info("this node has a new certificate")
        await self._register()

    async def _keep_authority(self) -> None:
        """For ever: have the CA's key while this node is to keep it, and only then."""
        node = self._node
        while not node.dev:
            if self._is_to_keep(node.identity.node):
                if node.authority is None and node.whereabouts.keepers():
                    await self._fetch_authority()
            elif node.authority is not None and await self._another_keeps_it():
                node.forget_authority()
                self.tell()
            await asyncio.sleep(AUTHORITY_SECONDS)

    def _is_to_keep(self, node: NodeId) -> bool:
        return keeps_authority(self._node.control, node)

    async def _fetch_authority(self) -> None:
        node = self._node
        authority = parse_authority(await self._ask_keepers(AUTHORITY_METHOD, None))
        identity = node.home.identity()
        if identity is None or authority.certificate_pem != identity.ca_pem:
            raise PeerRefused("a node sent the CA of another cluster")
        await asyncio.to_thread(node.home.save_authority, authority)
        node.authority = authority
        self.tell()

    async def _another_keeps_it(self) -> bool:
        """By its own word, now, and this node is still not to: the last one must not let go."""
        node = self._node
        for keeper in filter(self._is_to_keep, node.whereabouts.keepers()):
            try:
                if await node.call(keeper, KEEPING_METHOD, None) is True:
                    return not self._is_to_keep(node.identity.node)
            except SllmdError as error:
                _log.debug("cannot ask for the CA", node=keeper, reason=error.message)
        return False

    async def _ask_keepers(self, method: str, body: str | None) -> str:
        lost: SllmdError | None = None
        for keeper in self._node.whereabouts.keepers():
            try:
                return str(await self._node.call(keeper, method, body))
            except SllmdError as error:
                lost = error
        raise ControlUnavailable(
            f"no node with the cluster's CA answers{f': {lost.message}' if lost else ''}",
            retry_after_seconds=RETRY_SECONDS,
        )


def _facts(record: object) -> tuple[object, ...]:
    names = ("name", "address", "certificate_fingerprint", "devices", "labels")
    return tuple(getattr(record, name) for name in names)
