"""What raft nodes say to each other. Every message carries its sender's term, every reply the round it
answers, so that nothing old is ever taken for news. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sllmd.cluster.codec import Codec
from sllmd.cluster.raft.entries import Entry, SnapshotMeta
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class PreVoteRequest:
    """Would you vote for me in ``term``? Nobody's term changes by asking (thesis §9.6)."""

    source: NodeId
    target: NodeId
    term: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """A yes carries the term asked for, a no the sender's own."""

    source: NodeId
    target: NodeId
    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """Vote for me in ``term`` (§5.2). ``transfer``: the leader itself asked for this election."""

    source: NodeId
    target: NodeId
    term: int
    last_index: int
    last_term: int
    transfer: bool


@dataclass(frozen=True, slots=True)
class VoteReply:
    """The vote, given or not."""

    source: NodeId
    target: NodeId
    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class Append:
    """Entries that follow ``previous_index`` (§5.3); without entries, a heartbeat."""

    source: NodeId
    target: NodeId
    term: int
    previous_index: int
    previous_term: int
    entries: tuple[Entry, ...]
    commit: int
    round: int


@dataclass(frozen=True, slots=True)
class AppendReply:
    """Accepted: the logs agree, durably, up to ``index``. Else ``index`` and ``hint_term`` say where to
    look for agreement, and ``previous_index`` which Append is being refused."""

    source: NodeId
    target: NodeId
    term: int
    round: int
    accepted: bool
    previous_index: int
    index: int
    hint_term: int


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A part of a snapshot, for a node that needs entries which no longer exist (§7)."""

    source: NodeId
    target: NodeId
    term: int
    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SnapshotReply:
    """``offset`` is the next byte wanted; 0 means from the start."""

    source: NodeId
    target: NodeId
    term: int
    index: int
    offset: int


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Stand for election at once: the leader wants to hand over (thesis §3.10)."""

    source: NodeId
    target: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """How far must I have applied to answer a read that arrived just now? ``nonce`` is drawn when a
    node starts: an answer to a request of its former life must not match one of this life."""

    source: NodeId
    target: NodeId
    term: int
    nonce: int
    read_id: int


@dataclass(frozen=True, slots=True)
class ReadReply:
    """Up to ``index``, at least."""

    source: NodeId
    target: NodeId
    term: int
    nonce: int
    read_id: int
    index: int


Message = (
    PreVoteRequest
    | PreVoteReply
    | VoteRequest
    | VoteReply
    | Append
    | AppendReply
    | SnapshotChunk
    | SnapshotReply
    | TimeoutNow
    | ReadRequest
    | ReadReply
)

_CODEC = Codec(
    {
        1: PreVoteRequest,
        2: PreVoteReply,
        3: VoteRequest,
        4: VoteReply,
        5: Append,
        6: AppendReply,
        7: SnapshotChunk,
        8: SnapshotReply,
        9: TimeoutNow,
        10: ReadRequest,
        11: ReadReply,
    }
)


def pack_message(message: Message) -> bytes:
    """A message's bytes on the wire."""
    return _CODEC.pack(message)


def unpack_message(data: bytes) -> Message:
    """The inverse; raises ProtocolError for anything else."""
    return cast("Message", _CODEC.unpack(data))
