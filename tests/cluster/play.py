"""A few raft machines on a table: the test is the network, the disk and the clock.

Nothing happens by itself. ``deliver`` passes messages on until there are none (or only chosen ones),
``sync`` makes a node's writes durable; both are automatic unless a test takes them into its own hands.
"""

from __future__ import annotations

from collections.abc import Callable

from sllmd.cluster.raft import Raft, RaftSettings, Start
from sllmd.cluster.raft.entries import (
    NOTHING,
    Entry,
    EntryKind,
    HardState,
    Membership,
    Restored,
    SnapshotMeta,
    founding,
    membership,
)
from sllmd.cluster.raft.events import (
    Action,
    Apply,
    ChunkRead,
    Event,
    FinishSnapshot,
    Persist,
    Persisted,
    Proposal,
    Propose,
    ReadChunk,
    Receive,
    Restore,
    Role,
    Send,
    SnapshotReceived,
    SnapshotTaken,
    Tick,
    WriteChunk,
)
from sllmd.cluster.raft.messages import Message
from sllmd.core.ids import NodeId

A, B, C, D, E = (NodeId(name) for name in "abcde")
SETTINGS = RaftSettings()
ELECTION = SETTINGS.election_seconds_min
ROUNDS_MAX = 1000
Choose = Callable[[Message], bool]


def everything(message: Message) -> bool:
    return True


def only(*kinds: type) -> Choose:
    return lambda message: isinstance(message, kinds)


def log_of(*terms: int, vote: NodeId | None = None, term: int | None = None, voters: str = "abc") -> Restored:
    """A journal whose entries have these terms; the first one is always the founding entry."""
    first = founding(membership({NodeId(name) for name in voters}, set())).entries[0]
    rest = tuple(
        Entry(index, one, EntryKind.COMMAND, f"{index}/{one}".encode()) for index, one in enumerate(terms, 2)
    )
    return Restored(HardState(max((1, *terms)) if term is None else term, vote), None, (first, *rest))


class Table:
    """The nodes, what is on the wire, and everything that was done."""

    def __init__(
        self,
        restored: dict[NodeId, Restored] | None = None,
        *,
        settings: RaftSettings = SETTINGS,
        raft_class: type[Raft] = Raft,
        jitter: float = 0.5,
    ) -> None:
        self.now = 100.0
        self.settings = settings
        self.raft_class = raft_class
        self.jitter = jitter
        self.nodes: dict[NodeId, Raft] = {}
        self.wire: list[Message] = []
        self.unsynced: dict[NodeId, list[Persist]] = {}
        self.by_hand: set[NodeId] = set()
        """Nodes whose disk waits for ``sync``."""
        self.down: set[NodeId] = set()
        self.done: dict[NodeId, list[Action]] = {}
        self.snapshots: dict[SnapshotMeta, bytes] = {}
        for node, journal in (restored or {node: log_of() for node in (A, B, C)}).items():
            self.boot(node, journal)

    def boot(self, node: NodeId, journal: Restored = NOTHING, *, nonce: int = 1) -> Raft:
        """A new life for a node."""
        start = Start(node, self.settings, journal, self.now, self.jitter, nonce)
        self.nodes[node] = self.raft_class(start)
        self.unsynced[node], self.done[node] = [], []
        self.down.discard(node)
        return self.nodes[node]

    def __getitem__(self, node: NodeId) -> Raft:
        return self.nodes[node]

    # --- moves ---

    def give(self, node: NodeId, event: Event) -> list[Action]:
        """One event for one node; its actions, carried out as the shell would."""
        actions = self.nodes[node].handle(event)
        self.done[node].extend(actions)
        for action in actions:
            self._carry_out(node, action)
        return actions

    def _carry_out(self, node: NodeId, action: Action) -> None:
        match action:
            case Send(message):
                self.wire.append(message)
            case Persist():
                self.unsynced[node].append(action)
                if node not in self.by_hand:
                    self.sync(node)
            case ReadChunk(target, meta, offset, bytes_max):
                data = self.snapshots[meta][offset : offset + bytes_max]
                self.give(node, ChunkRead(self.now, target, meta, offset, data))
            case FinishSnapshot(meta):
                self.give(node, SnapshotReceived(self.now, meta))
            case _:
                pass

    def sync(self, node: NodeId, count: int = -1) -> None:
        """The disk finishes the next ``count`` writes, or all."""
        while self.unsynced[node] and count != 0:
            persist = self.unsynced[node].pop(0)
            self.wire.extend(persist.messages)
            self.give(node, Persisted(self.now, persist.ticket))
            count -= 1

    def tick(self, node: NodeId, after_seconds: float | None = None) -> list[Action]:
        """The clock goes on to the node's deadline, or by so much, and the node is told."""
        due = self.nodes[node].deadline_seconds() if after_seconds is None else self.now + after_seconds
        self.now = max(self.now, due)
        return self.give(node, Tick(self.now, self.jitter))

    def wait(self, seconds: float) -> None:
        """The clock goes on and nobody is told."""
        self.now += seconds

    def deliver(self, choose: Choose = everything, *, among: str = "abcde", rounds: int = ROUNDS_MAX) -> int:
        """Pass on the chosen messages between the named nodes, and what comes of them; the rest stays."""
        count = 0
        for _ in range(rounds):
            chosen = [one for one in self.wire if choose(one) and one.source in among and one.target in among]
            if not chosen:
                return count
            for message in chosen:
                self.wire.remove(message)
                count += 1
                if message.target in self.nodes and message.target not in self.down:
                    self.give(message.target, Receive(self.now, message))
        assert rounds < ROUNDS_MAX, "messages without end"
        return count

    def move(self, node: NodeId, *, among: str) -> None:
        """One round of messages; when there are none, the node's clock goes on."""
        if not self.deliver(among=among, rounds=1):
            self.tick(node)

    def take(self, choose: Choose) -> list[Message]:
        """Take messages off the wire, to deliver them late, twice, or never."""
        taken = [one for one in self.wire if choose(one)]
        self.wire = [one for one in self.wire if not choose(one)]
        return taken

    def drop(self, choose: Choose = everything) -> None:
        self.take(choose)

    # --- plays ---

    def elect(self, node: NodeId, among: str = "abcde") -> Raft:
        """The node's patience ends; it asks, stands, wins."""
        raft = self.nodes[node]
        while raft.role is Role.FOLLOWER:
            self.tick(node)  # the first one may come late, and then it only listens once more
        self.deliver(among=among)
        assert raft.role is Role.LEADER, f"{node} is {raft.role}"
        return raft

    def propose(self, node: NodeId, *commands: str) -> list[Action]:
        proposals = tuple(Proposal(number, command.encode()) for number, command in enumerate(commands))
        return self.give(node, Propose(self.now, proposals))

    def compact(self, node: NodeId, size_bytes: int = 1000) -> SnapshotMeta:
        """The node takes a snapshot of what it has applied."""
        raft = self.nodes[node]
        index = raft.applied
        term = raft.log.term_at(index)
        assert term is not None
        meta = SnapshotMeta(index, term, raft.log.membership_at(index), size_bytes, index)
        self.snapshots[meta] = bytes(size_bytes)
        self.give(node, SnapshotTaken(self.now, meta))
        return meta

    # --- what is to be seen ---

    def of(self, node: NodeId, kind: type) -> list[Action]:
        return [action for action in self.done[node] if isinstance(action, kind)]

    def applied(self, node: NodeId) -> list[str]:
        """Commands that the node's state machine was given."""
        entries = [entry for action in self.of(node, Apply) for entry in action.entries]  # type: ignore[attr-defined]
        return [entry.data.decode() for entry in entries if entry.kind is EntryKind.COMMAND]

    def terms(self, node: NodeId) -> list[int]:
        """The terms of the node's log, without the founding entry."""
        log = self.nodes[node].log
        return [entry.term for entry in log.range(max(2, log.base_index + 1), log.last_index)]

    def leaders(self) -> set[NodeId]:
        return {
            node for node, raft in self.nodes.items() if raft.role is Role.LEADER and node not in self.down
        }


def members(voters: str, learners: str = "") -> Membership:
    return membership({NodeId(name) for name in voters}, {NodeId(name) for name in learners})


__all__ = [
    "ELECTION",
    "SETTINGS",
    "A",
    "B",
    "C",
    "D",
    "E",
    "Restore",
    "Table",
    "WriteChunk",
    "everything",
    "log_of",
    "members",
    "only",
]
