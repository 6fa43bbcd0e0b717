"""What goes into the machine, and what comes out of it. Pure.

Every event carries ``now_seconds`` of a clock that does not run backwards; it need not agree with anybody
else's. Addresses are the shell's business: the machine only compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Message, StreamMessage
from sllmd.core.ids import NodeId

# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """``Gossip.deadline_seconds()`` has come; if much later than that, this node stood still."""

    now_seconds: float


@dataclass(frozen=True, slots=True)
class Receive:
    """A packet arrived, unsealed, from this address."""

    now_seconds: float
    address: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody opened a stream and sent this; answered by ``Answer`` with the same ``ask_id``, or not."""

    now_seconds: float
    ask_id: int
    message: StreamMessage


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to an ``Ask``."""

    now_seconds: float
    ask_id: int
    message: StreamMessage


@dataclass(frozen=True, slots=True)
class AskFailed:
    """An ``Ask`` got no answer."""

    now_seconds: float
    ask_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Join:
    """Become a member through whoever answers there. Ends in ``Joined`` or ``JoinFailed``."""

    now_seconds: float
    address: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye. Ends in ``Gone``."""

    now_seconds: float


@dataclass(frozen=True, slots=True)
class ChangeMeta:
    """Tell this about this node from now on."""

    now_seconds: float
    meta: bytes


Event = Tick | Receive | Asked | Answered | AskFailed | Join | Leave | ChangeMeta

# --- actions ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """One packet."""

    address: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Open a stream to there, send this, and bring the answer."""

    ask_id: int
    address: str
    message: StreamMessage
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer an ``Asked``."""

    ask_id: int
    message: StreamMessage


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """``before`` is None for one that was not known."""

    before: Member | None
    after: Member


@dataclass(frozen=True, slots=True)
class MemberForgotten:
    """Dead or gone for so long that it is no longer listed."""

    member: Member


@dataclass(frozen=True, slots=True)
class Joined:
    """The table of whoever answers at ``address`` is known now."""

    address: str


@dataclass(frozen=True, slots=True)
class JoinFailed:
    """``refused``: the other side will not have this node; trying again there is in vain."""

    address: str
    reason: str
    refused: bool


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Two members here go by one name; the one with the lower id keeps it."""

    name: str
    keeper: NodeId
    other: NodeId


@dataclass(frozen=True, slots=True)
class IdTaken:
    """Another node with this node's id answers at ``address``, and has the older right: stop."""

    address: str


@dataclass(frozen=True, slots=True)
class Incompatible:
    """A node that would be a member speaks no protocol version that this one does; it is ignored."""

    node: NodeId
    name: str
    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The goodbye has been told, or nobody is there to hear it."""


Action = (
    Send
    | Ask
    | Answer
    | MemberChanged
    | MemberForgotten
    | Joined
    | JoinFailed
    | NameTaken
    | IdTaken
    | Incompatible
    | Gone
)
