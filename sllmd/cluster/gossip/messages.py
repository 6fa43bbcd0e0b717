"""What gossiping nodes say to each other. Pure.

Claims (``Alive`` ``Suspect`` ``Dead`` ``Left``) are passed on; the rest is for its receiver alone. ``seq``
names a probe; an answer carries the probe's, so that an old answer is never taken for a new one. Answers go
to where the question came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sllmd.cluster.codec import Codec, pack, unpack
from sllmd.cluster.gossip.meta import META_BYTES_MAX
from sllmd.core.errors import ProtocolError
from sllmd.core.ids import NodeId

PROTOCOL_VERSION = 1
"""The rules spoken here. A member tells the range that it understands; ranges must meet."""
PROTOCOL_VERSION_MIN = 1

NAME_BYTES_MAX = 128
"""Names, ids and addresses: generous for people, small enough for a claim to fit a packet."""
PACKET_MESSAGES_MAX = 256
"""More cannot fit a datagram."""


class Status(IntEnum):
    """What is believed of a member. Of one incarnation, the higher value wins."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(frozen=True, slots=True)
class Alive:
    """A node's own claim: I live, this is where I am and what I am. Only the node itself makes one."""

    node: NodeId
    incarnation: int
    name: str
    address: str
    protocol_min: int
    protocol_max: int
    meta: bytes


@dataclass(frozen=True, slots=True)
class Suspect:
    """``source`` got no answer from the node."""

    node: NodeId
    incarnation: int
    source: NodeId


@dataclass(frozen=True, slots=True)
class Dead:
    """``source`` waited for the suspect's refutation in vain."""

    node: NodeId
    incarnation: int
    source: NodeId


@dataclass(frozen=True, slots=True)
class Left:
    """The node itself said goodbye."""

    node: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you ``target``, and alive?"""

    seq: int
    source: NodeId
    target: NodeId


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Ping ``target`` for me, and tell me in time if there is no answer."""

    seq: int
    source: NodeId
    target: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class Ack:
    """``source`` is alive: its own word, or that of the member who was asked to probe it."""

    seq: int
    source: NodeId


@dataclass(frozen=True, slots=True)
class Nack:
    """I am well and probed, and got no answer: the fault is not in your own link."""

    seq: int
    source: NodeId


@dataclass(frozen=True, slots=True)
class Conflict:
    """Your id belongs to a node that answers at ``address``: you run on a copy of its directory."""

    node: NodeId
    address: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A row of a table. ``incarnation`` may be above the claim's: a suspicion can arrive before the claim."""

    claim: Alive
    incarnation: int
    status: Status


@dataclass(frozen=True, slots=True)
class Exchange:
    """A whole table, its owner's own claim apart. ``joining``: the owner is new here."""

    claim: Alive
    joining: bool
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answer to an exchange with a node that cannot be a member."""

    reason: str


Claim = Alive | Suspect | Dead | Left
Message = Claim | Ping | PingRequest | Ack | Nack | Conflict
StreamMessage = Ping | Ack | Exchange | Refusal | Conflict

_CODEC = Codec(
    {
        1: Alive,
        2: Suspect,
        3: Dead,
        4: Left,
        5: Ping,
        6: PingRequest,
        7: Ack,
        8: Nack,
        9: Conflict,
        10: Exchange,
        11: Refusal,
    }
)
_STREAM_TYPES = (Ping, Ack, Exchange, Refusal, Conflict)
PACKET_FRAMING_BYTES = 3
"""msgpack's array header around the messages of a packet."""


def packed_bytes(message: Message) -> int:
    """How much room a message takes in a packet."""
    return len(_CODEC.pack(message))


def pack_packet(messages: Sequence[Message]) -> bytes:
    """A datagram's contents."""
    return pack([_CODEC.encode(message) for message in messages])


def unpack_packet(data: bytes) -> tuple[Message, ...]:
    """The inverse; raises ProtocolError unless all of it is well formed."""
    items = unpack(data)
    if not isinstance(items, list) or len(items) > PACKET_MESSAGES_MAX:
        raise ProtocolError(f"a packet is an array of at most {PACKET_MESSAGES_MAX} messages")
    messages = tuple(_CODEC.decode(item) for item in items)
    for message in messages:
        if isinstance(message, Exchange | Refusal):
            raise ProtocolError(f"{type(message).__name__} does not travel in packets")
        _check(message)
    return messages


def pack_stream(message: StreamMessage) -> bytes:
    """The contents of a stream's frame."""
    return _CODEC.pack(message)


def unpack_stream(data: bytes) -> StreamMessage:
    """The inverse; raises ProtocolError."""
    message = _CODEC.unpack(data)
    if not isinstance(message, _STREAM_TYPES):
        raise ProtocolError(f"{type(message).__name__} does not travel in streams")
    _check(message)
    if isinstance(message, Exchange):
        for fact in message.facts:
            _check_claim(fact.claim)
            if fact.incarnation < fact.claim.incarnation:
                raise ProtocolError("a fact is older than the claim that it is about")
    return message


def _check(message: Any) -> None:
    if isinstance(message, Alive):
        _check_claim(message)
    elif isinstance(message, Exchange):
        _check_claim(message.claim)
    elif isinstance(message, Suspect | Dead | Left):
        _check_range(message.incarnation)


def _check_claim(claim: Alive) -> None:
    _check_range(claim.incarnation)
    for text in (claim.node, claim.name, claim.address):
        if not 0 < len(text.encode()) <= NAME_BYTES_MAX:
            raise ProtocolError(f"a claim's id, name and address are 1 to {NAME_BYTES_MAX} bytes long")
    if len(claim.meta) > META_BYTES_MAX:
        raise ProtocolError(f"a claim's meta of {len(claim.meta)} bytes is over {META_BYTES_MAX}")
    if not 0 < claim.protocol_min <= claim.protocol_max:
        raise ProtocolError("a claim's protocol range is empty")


def _check_range(incarnation: int) -> None:
    if not 0 <= incarnation < 1 << 62:  # far beyond any life, and room to answer it with a higher one
        raise ProtocolError(f"{incarnation} is no incarnation")
