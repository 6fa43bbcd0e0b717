"""Snapshots: the log gives way behind one, and a node that is too far behind gets one in parts (§7). Pure.

The machine never holds a snapshot's bytes: it asks the shell to read a part, to write a part, to finish.
One part per node is on its way; a part that got lost is asked for again at the next heartbeat.
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.raft.core import Core, Start
from sllmd.cluster.raft.entries import SnapshotMeta
from sllmd.cluster.raft.events import (
    ChunkRead,
    ChunkUnavailable,
    FinishSnapshot,
    ReadChunk,
    Restore,
    Role,
    SnapshotReceived,
    SnapshotRejected,
    SnapshotTaken,
    WriteChunk,
)
from sllmd.cluster.raft.messages import AppendReply, SnapshotChunk, SnapshotReply
from sllmd.cluster.raft.progress import Progress, ProgressState
from sllmd.core.ids import NodeId


@dataclass(slots=True)
class _Incoming:
    """A snapshot that is being received."""

    meta: SnapshotMeta
    offset: int = 0
    finishing: bool = False


class Snapshots(Core):
    """Both ends of a snapshot's way."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._incoming: _Incoming | None = None

    def on_snapshot_taken(self, event: SnapshotTaken) -> None:
        """Let go of entries behind a snapshot of this node's own."""
        if self.log.snapshot is not None and event.meta.index <= self.log.snapshot.index:
            return
        assert event.meta.index <= self.applied, "a snapshot of a state that was never reached"
        self.log.snapshot = event.meta
        self.log.compact(event.meta.index - self.settings.trailing_entries)

    # --- the sending end ---

    def begin_snapshot(self, peer: NodeId, progress: Progress) -> None:
        """The entries that this node needs are gone: send what took their place."""
        meta = self.log.snapshot
        assert meta is not None, "entries were compacted without a snapshot"
        progress.become_snapshot(meta)
        self._ask_for_chunk(peer, progress)

    def _ask_for_chunk(self, peer: NodeId, progress: Progress) -> None:
        assert progress.snapshot is not None
        bytes_max = int(self.settings.chunk_bytes)
        self.out.act(ReadChunk(peer, progress.snapshot, progress.chunk_offset, bytes_max))

    def nudge_snapshot(self, peer: NodeId, progress: Progress) -> None:
        """At a heartbeat: if nothing moved since the last one, something was lost."""
        if progress.active and not progress.chunk_moved:
            self._ask_for_chunk(peer, progress)
        progress.chunk_moved = False

    def on_chunk_read(self, event: ChunkRead) -> None:
        """Send the part, if it is still the one wanted."""
        progress = self.progress.get(event.target)
        if progress and progress.snapshot == event.meta and progress.chunk_offset == event.offset:
            chunk = SnapshotChunk(self.node, event.target, self.term, event.meta, event.offset, event.data)
            self.out.now(chunk)

    def on_chunk_unavailable(self, event: ChunkUnavailable) -> None:
        """That snapshot is gone: probing will find out that a newer one is needed."""
        progress = self.progress.get(event.target)
        if progress and progress.snapshot == event.meta:
            progress.become_probe()

    def on_snapshot_reply(self, reply: SnapshotReply) -> None:
        """Go on where the receiver wants to go on."""
        progress = self.progress.get(reply.source)
        if progress is None:
            return
        progress.active = True
        if progress.state is not ProgressState.SNAPSHOT or progress.snapshot is None:
            return
        if progress.snapshot.index != reply.index or reply.offset > progress.snapshot.size_bytes:
            return
        if reply.offset > progress.chunk_offset or reply.offset == 0 < progress.chunk_offset:
            progress.chunk_offset, progress.chunk_moved = reply.offset, True
            if reply.offset < progress.snapshot.size_bytes:
                self._ask_for_chunk(reply.source, progress)

    # --- the receiving end ---

    def on_snapshot_chunk(self, chunk: SnapshotChunk) -> None:
        """Take the part if it is the next one; say in any case what is wanted next."""
        self.follow(chunk.source)
        if self._has_what_it_covers(chunk.meta):
            self._incoming = None
            self._acknowledge(self.commit)
            return
        incoming = self._incoming
        if incoming is None or incoming.meta != chunk.meta:
            incoming = self._incoming = _Incoming(chunk.meta)
        if chunk.offset == incoming.offset and not incoming.finishing:
            self._take(incoming, chunk.data)
        self._want(chunk.meta, incoming.offset)

    def _take(self, incoming: _Incoming, data: bytes) -> None:
        self.out.act(WriteChunk(incoming.meta, incoming.offset, data))
        incoming.offset += len(data)
        if incoming.offset >= incoming.meta.size_bytes:
            incoming.finishing = True
            self.out.act(FinishSnapshot(incoming.meta))

    def _has_what_it_covers(self, meta: SnapshotMeta) -> bool:
        """The log holds the snapshot's last entry: then it holds all that the snapshot stands for."""
        if meta.index > self.commit and self.log.matches(meta.index, meta.term):
            self.advance_commit(meta.index)
        return meta.index <= self.commit

    def on_snapshot_received(self, event: SnapshotReceived) -> None:
        """The whole snapshot lies on the disk: it takes the place of this log."""
        if self._incoming is None or self._incoming.meta != event.meta:
            return
        self._incoming = None
        if not self._has_what_it_covers(event.meta):
            self.log.reset(event.meta)
            self.commit = self.applied = event.meta.index
            self.out.install(event.meta)
            self.out.act(Restore(event.meta))
        self._acknowledge(self.commit)

    def on_snapshot_rejected(self, event: SnapshotRejected) -> None:
        """Its checksum was wrong: once more from the start."""
        if self._incoming is not None and self._incoming.meta == event.meta:
            self._incoming = None
            self._want(event.meta, 0)

    def _want(self, meta: SnapshotMeta, offset: int) -> None:
        if self.leader is not None and self.role is Role.FOLLOWER:
            self.out.after(SnapshotReply(self.node, self.leader, self.term, meta.index, offset))

    def _acknowledge(self, index: int) -> None:
        if self.leader is not None and self.role is Role.FOLLOWER:
            self.out.after(AppendReply(self.node, self.leader, self.term, 0, True, 0, index, 0))
