"""A member of the cluster: drives the gossip machine with the loop's clock, datagrams and ``inquiries``.

Owns the UDP socket, the timer, and everything about times and addresses that people read. Decides nothing
about who lives: ``gossip`` does.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import structlog

from sllmd.cluster.changes import Changes
from sllmd.cluster.gossip import Gossip, GossipSettings, Meta, Start, pack_meta, unpack_meta
from sllmd.cluster.gossip.events import (
    Action,
    Answer,
    Ask,
    ChangeMeta,
    Event,
    Gone,
    IdTaken,
    Incompatible,
    Join,
    Joined,
    JoinFailed,
    Leave,
    MemberChanged,
    MemberForgotten,
    NameTaken,
    Receive,
    Send,
    Tick,
)
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Status, pack_packet, unpack_packet
from sllmd.cluster.inquiries import Inquiries
from sllmd.cluster.roster import GOSSIP_PORT, Change, Identity, JoinAttempt, Listen, MemberView
from sllmd.core.errors import ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import format_address, is_numeric, split_address
from sllmd.wire.datagram import DatagramEndpoint
from sllmd.wire.ports import bind_port
from sllmd.wire.route import advertised_host
from sllmd.wire.seal import OVERHEAD_BYTES, Drop, Keyring, Sealer

JOIN_RETRY_SECONDS_MIN = 1.0
JOIN_RETRY_SECONDS_MAX = 30.0
"""A cluster that is away is asked again for ever, ever less often (Consul's retry_join)."""

_log = structlog.get_logger(__name__)


class Membership:
    """One node's place in the cluster. Make it with ``start``; ``leave`` and ``close`` when done."""

    def __init__(self, identity: Identity, settings: GossipSettings, keyring: Keyring, meta: Meta) -> None:
        self.identity = identity
        self.keyring = keyring
        self.address = ""
        """Where other members find this one; set by ``start``."""
        self.id_taken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolved with an address when another node with this node's id lives there: stop this one."""
        self._settings = settings
        self._meta = meta
        self._loop = asyncio.get_running_loop()
        self._sealer = Sealer(keyring, identity.cluster_id)
        self._datagrams = DatagramEndpoint(
            self._sealer, bytes_max=settings.packet_bytes_max, on_contents=self._on_packet
        )
        self._inquiries = Inquiries(self._sealer, self._handle)
        self._machine: Gossip
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._joins: dict[str, asyncio.Future[JoinAttempt]] = {}
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._subscribers: weakref.WeakSet[Changes] = weakref.WeakSet()
        self._carriers: dict[type, Callable[[Any], None]] = {
            Send: self._send,
            Ask: self._inquiries.ask,
            Answer: self._inquiries.answer,
            MemberChanged: self._member_changed,
            MemberForgotten: self._member_forgotten,
            Joined: self._joined,
            JoinFailed: self._join_failed,
            NameTaken: self._name_taken,
            IdTaken: self._id_taken,
            Incompatible: self._incompatible,
            Gone: self._went,
        }

    @classmethod
    async def start(
        cls,
        identity: Identity,
        keyring: Keyring,
        meta: Meta,
        *,
        listen: Listen | None = None,
        settings: GossipSettings | None = None,
    ) -> Self:
        """Listen, as a cluster of one. Raises ConfigError when the address cannot be used."""
        listen = listen or Listen()
        membership = cls(identity, settings or GossipSettings(), keyring, meta)
        host = advertised_host(listen.host, listen.advertise_host)
        bound = bind_port(
            listen.host,
            listen.port,
            exactly=listen.port_exactly,
            last=listen.port_last,
            avoid=listen.avoid,
        )
        membership.address = format_address(host, bound.port)
        membership._machine = Gossip(
            Start(
                identity.node,
                identity.name,
                membership.address,
                pack_meta(meta),
                membership._settings,
                membership._loop.time(),
                int.from_bytes(os.urandom(8)),
                OVERHEAD_BYTES,
            )
        )
        await membership._datagrams.open(bound.datagrams)
        await membership._inquiries.open(bound)
        membership._arm()
        return membership

    # --- what others want to know ---

    def members(self) -> list[MemberView]:
        """Every member known, this node among them, by name."""
        views = [self._view(member) for member in self._machine.table.members.values()]
        return sorted(views, key=lambda view: (view.name, view.node))

    def member(self, node: NodeId) -> MemberView | None:
        """One of them."""
        member = self._machine.table.get(node)
        return self._view(member) if member is not None else None

    def peers(self) -> list[str]:
        """Addresses of the others that are here: what to join through after a restart."""
        return [view.address for view in self.members() if view.status <= Status.SUSPECT and not view.is_me]

    def changed(self) -> Changes:
        """An async iterator over changes from now on; who no longer wants it forgets it."""
        changes = Changes()
        self._subscribers.add(changes)
        return changes

    def leader_hint(self) -> tuple[int, NodeId] | None:
        """The highest epoch that a living member tells of, and who leads in it."""
        hints = [
            (view.meta.epoch, view.meta.leader)
            for view in self.members()
            if view.status <= Status.SUSPECT and view.meta is not None and view.meta.leader is not None
        ]
        return max(hints, default=None)

    @property
    def meta(self) -> Meta:
        """What this node tells of itself."""
        return self._meta

    @property
    def health(self) -> int:
        """0 when this node is well; the higher, the slower it probes others (Lifeguard)."""
        return self._machine.health.score

    @property
    def dropped(self) -> Counter[Drop]:
        """What arrived and was not taken, by reason."""
        return self._datagrams.dropped + self._inquiries.dropped

    @property
    def datagrams(self) -> DatagramEndpoint:
        """The UDP side, for its counts."""
        return self._datagrams

    # --- what its owner does with it ---

    async def join(self, addresses: Sequence[str]) -> list[JoinAttempt]:
        """Ask all of these once, at the same time; how each went. ``host``, or ``host:port``."""
        return list(await asyncio.gather(*(self._join(address) for address in addresses)))

    async def join_for_ever(self, addresses: Sequence[str]) -> JoinAttempt:
        """Until one of them lets this node in; returns that attempt, or the first refusal when all refuse."""
        pause_seconds = JOIN_RETRY_SECONDS_MIN
        while True:
            attempts: list[JoinAttempt] = []
            for answering in asyncio.as_completed([self._join(address) for address in addresses]):
                attempts.append(await answering)
                if attempts[-1].joined:
                    return attempts[-1]  # the others go on, and may still be of use
            if all(attempt.refused for attempt in attempts):
                return attempts[0]
            reasons = {attempt.address: attempt.reason for attempt in attempts}
            _log.warning("join failed", reasons=reasons, retry_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(JOIN_RETRY_SECONDS_MAX, 2 * pause_seconds)

    def tell(self, meta: Meta) -> None:
        """Tell this of the node from now on; ConfigError if it is too much."""
        packed = pack_meta(meta)
        self._meta = meta
        self._handle(ChangeMeta(self._loop.time(), packed))

    async def leave(self) -> None:
        """Say goodbye, and return when it has been told; ``close`` afterwards."""
        self._handle(Leave(self._loop.time()))
        await self._gone

    async def close(self) -> None:
        """Be gone without a word; idempotent."""
        self._datagrams.close()
        await self._inquiries.close()
        for future in self._joins.values():
            future.cancel()
        self._gone.cancel()
        self.id_taken.cancel()
        if self._timer is not None:  # last: nothing is left that could set it again
            self._timer.cancel()

    # --- events in ---

    def _handle(self, event: Event) -> None:
        for action in self._machine.handle(event):
            self._carry_out(action)
        self._arm()

    def _arm(self) -> None:
        deadline = self._machine.deadline_seconds()
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._tick) if deadline < float("inf") else None

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._handle(Tick(self._loop.time()))

    def _on_packet(self, address: str, contents: bytes) -> None:
        try:
            messages = unpack_packet(contents)
        except ProtocolError as error:
            self._datagrams.dropped[Drop.MALFORMED] += 1
            _log.warning("a member sent what is no message", address=address, error=str(error))
            return
        self._handle(Receive(self._loop.time(), address, messages))

    async def _join(self, address: str) -> JoinAttempt:
        host, port = split_address(address, default_port=GOSSIP_PORT)
        try:
            numeric = host if is_numeric(host) else await self._look_up(host, port)
        except OSError as error:
            return JoinAttempt(address, f"cannot look up {host}: {error}")
        target = format_address(numeric, port)
        if target not in self._joins:
            self._joins[target] = self._loop.create_future()
            self._handle(Join(self._loop.time(), target))
        return await asyncio.shield(self._joins[target])

    async def _look_up(self, host: str, port: int) -> str:
        found = await self._loop.getaddrinfo(host, port)
        return str(found[0][4][0])

    # --- actions out ---

    def _carry_out(self, action: Action) -> None:
        self._carriers[type(action)](action)

    def _send(self, action: Send) -> None:
        self._datagrams.send(action.address, pack_packet(action.messages))

    def _member_changed(self, action: MemberChanged) -> None:
        after, before = action.after, action.before
        if before is None or before.status is not after.status:
            view = self._view(after)
            log = _log.debug if before is None else _log.info  # who joins a large cluster meets them all
            log(
                "member changed",
                member=view.name,
                node=view.node,
                status=after.status.name.lower(),
                address=view.address,
                suspected_by=view.suspected_by or None,
            )
        self._publish(after.node)

    def _member_forgotten(self, action: MemberForgotten) -> None:
        self._publish(action.member.node)

    def _publish(self, node: NodeId) -> None:
        for changes in self._subscribers:
            changes.put(Change(node, self.member(node)))

    def _joined(self, action: Joined) -> None:
        self._end_join(JoinAttempt(action.address, None))

    def _join_failed(self, action: JoinFailed) -> None:
        self._end_join(JoinAttempt(action.address, action.reason, action.refused))

    def _end_join(self, attempt: JoinAttempt) -> None:
        future = self._joins.pop(attempt.address, None)
        if future is not None and not future.done():
            future.set_result(attempt)

    def _name_taken(self, action: NameTaken) -> None:
        _log.warning("two members have one name", name=action.name, keeper=action.keeper, other=action.other)

    def _id_taken(self, action: IdTaken) -> None:
        _log.error("another node has this node's id: this is a copy of its directory", address=action.address)
        if not self.id_taken.done():
            self.id_taken.set_result(action.address)

    def _incompatible(self, action: Incompatible) -> None:
        _log.warning("a node cannot be a member", address=action.address, reason=action.reason)

    def _went(self, _: Gone) -> None:
        if not self._gone.done():
            self._gone.set_result(None)

    # --- for people ---

    def _view(self, member: Member) -> MemberView:
        claim = member.claim
        try:
            meta = unpack_meta(claim.meta)
        except ProtocolError:
            meta = None
        return MemberView(
            node=member.node,
            name=claim.name,
            address=member.address,
            status=member.status,
            since_seconds=time.time() - (self._loop.time() - member.since_seconds),
            incarnation=member.incarnation,
            meta=meta,
            suspected_by=self._machine.suspected_by(member.node),
            is_me=member.node == self.identity.node,
        )
