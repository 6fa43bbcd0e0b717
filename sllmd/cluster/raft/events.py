"""What goes into the machine, and what comes out of it. Pure.

Every event carries ``now_seconds`` of a clock that does not run backwards. The shell carries out actions
in the order in which they stand, except that a ``Persist`` is only begun: its messages wait for the disk,
the actions after it do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sllmd.cluster.raft.entries import Entry, HardState, Membership, SnapshotMeta
from sllmd.cluster.raft.messages import Message
from sllmd.core.ids import NodeId


class Role(StrEnum):
    """What a node is doing. Whether it may vote stands in the membership, not here."""

    FOLLOWER = "follower"
    PRECANDIDATE = "precandidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
    STOPPED = "stopped"


class Refusal(StrEnum):
    """Why something asked of this node was not even begun. Nothing refused ever takes effect."""

    NOT_LEADER = "not_leader"
    NO_LEADER = "no_leader"
    TRANSFERRING = "transferring"
    BUSY = "busy"
    NOT_READY = "not_ready"
    """The leader has not committed an entry of its own term yet."""
    CHANGE_PENDING = "change_pending"
    """Another change of the membership is not committed yet."""
    INVALID = "invalid"
    TIMEOUT = "timeout"
    LEADER_CHANGED = "leader_changed"


# --- events -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """``Raft.deadline_seconds()`` has come. ``jitter`` is drawn from [0, 1) for the next time-out."""

    now_seconds: float
    jitter: float


@dataclass(frozen=True, slots=True)
class Receive:
    """A message arrived from an authenticated node."""

    now_seconds: float
    message: Message


@dataclass(frozen=True, slots=True)
class Persisted:
    """This ``Persist``, and every earlier one, is durable."""

    now_seconds: float
    ticket: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A command that wants a place in the log; ``proposal_id`` is the shell's name for it."""

    proposal_id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Propose:
    """Commands, in this order. Each is answered by ``Appended`` or ``Refused``."""

    now_seconds: float
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class ChangeMembership:
    """Go over to this membership, at most one voter away. Answered as a proposal is."""

    now_seconds: float
    proposal_id: int
    membership: Membership


@dataclass(frozen=True, slots=True)
class Read:
    """Say when a read that arrived now may be answered from the state machine here."""

    now_seconds: float
    read_id: int


@dataclass(frozen=True, slots=True)
class TransferLeadership:
    """Hand the leadership to this voter."""

    now_seconds: float
    target: NodeId


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """A snapshot of the state machine here is durable: entries that it covers may go."""

    now_seconds: float
    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class ChunkRead:
    """The answer to ``ReadChunk``."""

    now_seconds: float
    target: NodeId
    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChunkUnavailable:
    """The answer to ``ReadChunk`` where that snapshot is gone or cannot be read."""

    now_seconds: float
    target: NodeId
    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class SnapshotReceived:
    """The answer to ``FinishSnapshot``: whole, durable, and its checksum is right."""

    now_seconds: float
    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class SnapshotRejected:
    """The answer to ``FinishSnapshot`` where the checksum is wrong."""

    now_seconds: float
    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class JournalLost:
    """The disk refused (EIO, full): this node can promise nothing any more."""

    now_seconds: float
    reason: str


Event = (
    Tick
    | Receive
    | Persisted
    | Propose
    | ChangeMembership
    | Read
    | TransferLeadership
    | SnapshotTaken
    | ChunkRead
    | ChunkUnavailable
    | SnapshotReceived
    | SnapshotRejected
    | JournalLost
)


# --- actions ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Make all of this durable, after every earlier ticket; then send ``messages`` and say ``Persisted``.

    The ordering law of raft is this type: a message that promises something travels inside the action
    that makes the promise true. Order on disk: ``snapshot`` (a received one: the log begins anew after
    it), then ``entries`` (they replace everything from the first one's index on), then ``hard_state``.
    ``commit`` goes along and is no reason to write; see ``Restored``.
    """

    ticket: int
    hard_state: HardState | None
    snapshot: SnapshotMeta | None
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Send:
    """This message promises nothing that is not durable yet: it may go at once. Losing it is allowed."""

    message: Message


@dataclass(frozen=True, slots=True)
class Apply:
    """These entries are agreed: feed them to the state machine, in order, each once."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """The state machine becomes this snapshot, which lies in the journal."""

    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class Appended:
    """The proposal got this place. It took effect if and only if an entry of this term is applied there."""

    proposal_id: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The proposal or transfer was not begun; ``leader`` is who to ask, as far as is known here."""

    proposal_id: int | None
    reason: Refusal
    leader: NodeId | None


@dataclass(frozen=True, slots=True)
class ReadReady:
    """The state machine, after the actions before this one, may answer the read."""

    read_id: int


@dataclass(frozen=True, slots=True)
class ReadRefused:
    """The read cannot be answered now; asking again is safe."""

    read_id: int
    reason: Refusal


@dataclass(frozen=True, slots=True)
class LeadershipChanged:
    """Who leads, as this node sees it. ``epoch`` is the raft term."""

    epoch: int
    leader: NodeId | None
    role: Role


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """This membership is in force here from now on; it may not be committed yet."""

    index: int
    membership: Membership


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """The leadership was not taken over in time; this node leads on."""

    target: NodeId


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """Read so many bytes of this snapshot at ``offset``, for ``target``; answer with ``ChunkRead``."""

    target: NodeId
    meta: SnapshotMeta
    offset: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Write a received part of a snapshot; offset 0 begins anew. Not durable until ``FinishSnapshot``."""

    meta: SnapshotMeta
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class FinishSnapshot:
    """All parts were written: check, make durable, answer ``SnapshotReceived`` or ``SnapshotRejected``."""

    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class Stopped:
    """This node takes no further part; every later event is answered by nothing."""

    reason: str


Action = (
    Persist
    | Send
    | Apply
    | Restore
    | Appended
    | Refused
    | ReadReady
    | ReadRefused
    | LeadershipChanged
    | MembershipChanged
    | TransferFailed
    | ReadChunk
    | WriteChunk
    | FinishSnapshot
    | Stopped
)
