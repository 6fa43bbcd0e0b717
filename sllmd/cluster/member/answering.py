"""What other nodes ask of this one: raft's messages, proposals, reads, the catalogue as it grows.

=====================  =========  =====================================================================
method                 kind       body, answer
=====================  =========  =====================================================================
``raft.message``       note       one message's bytes
``control.removed``    note       (index, voters, learners): a membership without the node that gets it
``control.propose``    unary      commands as bytes; for each None, or why it was not begun
``control.read``       unary      nil; (term, position) that a read which began at the call must have seen
``control.membership`` unary      nil; (index, voters, learners) if committed and led, else nil
``control.retire``     unary      nil; the caller wants to be a member no more; answered at once
``control.follow``     stream     see ``feeding``
=====================  =========  =====================================================================
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from sllmd.cluster.catalogue import unpack_command
from sllmd.cluster.member.feeding import Feed
from sllmd.cluster.member.links import Links
from sllmd.cluster.member.proposing import COMMAND_BYTES_MAX
from sllmd.cluster.member.seat import Seat
from sllmd.cluster.member.stewardship import Steward
from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.raft.events import Refusal, Role
from sllmd.cluster.raft.messages import Append, SnapshotChunk, unpack_message
from sllmd.core.errors import ControlUnavailable, ProtocolError
from sllmd.wire.rpc.methods import Caller, Methods


class Answering:
    """The handlers, over one seat."""

    def __init__(self, seat: Seat, links: Links, steward: Steward, methods: Methods) -> None:
        self._seat = seat
        self._links = links
        self._steward = steward
        self._feed = Feed(lambda: seat.shell, seat.place.control)
        methods.note("raft.message", self._on_message)
        methods.note("control.removed", self._on_removed)
        methods.unary("control.propose", self._on_propose)
        methods.unary("control.read", self._on_read)
        methods.unary("control.membership", self._on_membership)
        methods.unary("control.retire", self._on_retire)
        methods.stream("control.follow", self._on_follow)

    def _on_message(self, body: Any, caller: Caller) -> None:
        if not isinstance(body, bytes):
            raise ProtocolError("a raft message is bytes")
        message = unpack_message(body)
        if message.source != caller.node:
            raise ProtocolError(f"a message of node {message.source}, from node {caller.node}")
        self._links.heard(caller.node, caller.connection)
        seat = self._seat
        if seat.shell is not None and not seat.is_outdated(message.term):
            seat.shell.receive(message)
        elif message.target == seat.place.node and (
            seat.shell is not None or isinstance(message, (Append, SnapshotChunk))
        ):
            seat.wanted(message.term)

    def _on_removed(self, body: Any, _caller: Caller) -> None:
        match body:
            case (int(index), tuple(voters), tuple(learners)):
                self._seat.heard_of_membership(index, Membership(voters, learners))
            case _:
                raise ProtocolError("no membership")

    async def _on_propose(self, body: Any, _caller: Caller) -> Any:
        if not isinstance(body, tuple) or not all(isinstance(command, bytes) for command in body):
            raise ProtocolError("proposals are an array of bytes")
        shell = self._seat.shell
        if shell is None or shell.raft.role is not Role.LEADER:
            return [Refusal.NOT_LEADER] * len(body)
        readable = [_is_readable(command) for command in body]
        taken = [command for command, good in zip(body, readable, strict=True) if good]
        answers = iter(await shell.propose(taken))
        return [next(answers) if good else Refusal.INVALID for good in readable]

    async def _on_read(self, _body: Any, _caller: Caller) -> Any:
        shell = self._seat.shell
        refusal = Refusal.NOT_LEADER if shell is None else await shell.read()
        if shell is None or refusal is not None:
            raise self._unavailable(f"this node cannot say what is newest: {refusal}")
        return shell.term, shell.position

    async def _on_membership(self, _body: Any, _caller: Caller) -> Any:
        shell = self._seat.shell
        if shell is None:
            return None
        status = shell.status()
        if status.leader is None or not status.membership_committed:
            return None
        members = status.membership
        return (shell.raft.log.membership_index, members.voters, members.learners)

    async def _on_retire(self, _body: Any, caller: Caller) -> Any:
        if self._seat.shell is None or not self._seat.shell.leads:
            raise self._unavailable("this node does not lead")
        self._steward.retiring(caller.node)

    async def _on_follow(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        match body:
            case (int(position), int(term)):
                pass
            case _:
                raise ProtocolError("to follow, say the position and term of what is known")
        async for item in self._feed.follow(position, term):
            yield item
        me = self._seat.place.node
        yield ("elsewhere", [node for node in self._seat.membership.everyone if node != me])

    def _unavailable(self, message: str) -> ControlUnavailable:
        return ControlUnavailable(message, retry_after_seconds=self._seat.place.control.retry_seconds)


def _is_readable(command: bytes) -> bool:
    """A leader takes no command into the log that it could not carry out itself, or send on."""
    if len(command) > COMMAND_BYTES_MAX:
        return False
    try:
        unpack_command(command)
    except ProtocolError:
        return False
    return True
