"""The leader's housekeeping: a snapshot in pieces, one pointer that flips, then batches and pieces that go.

A reader reads pointer, pieces and batches at one revision, so that it never sees half of this. Every step
holds only while the leader's seat is the same: of two that believe to lead, one writes.
"""

from __future__ import annotations

import asyncio

import structlog

from sllmd.cluster.catalogue import Catalogue, snapshot
from sllmd.cluster.etcd.election import Election, Term
from sllmd.cluster.etcd.failures import OUT_OF_RANGE, EtcdAway, EtcdRefused
from sllmd.cluster.etcd.gateway import Gateway
from sllmd.cluster.etcd.keys import Keys, Pointer, pack_pointer, unpack_pointer
from sllmd.cluster.etcd.log import Log
from sllmd.cluster.etcd.requests import (
    Json,
    Pair,
    created,
    delete,
    get,
    look,
    page,
    put,
    read_ended,
    read_page,
    txn,
    written,
    written_until,
)
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.units import KIB

PIECE_BYTES = 1000 * KIB
"""etcd refuses requests above 1.5 MiB."""
DELETES_PER_TXN = 100
"""etcd refuses transactions of more than 128 steps."""

_log = structlog.get_logger(__name__)


class Snapshots:
    """Keeps what lies in etcd short. ``run`` for ever in a task; ``wake`` it after each change."""

    def __init__(
        self, gateway: Gateway, keys: Keys, settings: EtcdSettings, log: Log, election: Election
    ) -> None:
        self._gateway = gateway
        self._keys = keys
        self._settings = settings
        self._log = log
        self._election = election
        self._awake = asyncio.Event()

    def wake(self) -> None:
        """Something may be due."""
        if self._due():
            self._awake.set()

    async def run(self) -> None:
        """Take a snapshot whenever one is due and this node leads."""
        while True:
            await self._awake.wait()
            self._awake.clear()
            term = self._election.term
            if term is None or not self._due():
                continue
            try:
                await self._take(term)
            except (EtcdAway, EtcdRefused) as error:
                _log.warning("no snapshot was written to etcd", cause=error.message)
                await asyncio.sleep(self._settings.pulse_seconds)
                self.wake()

    def _due(self) -> bool:
        log, settings = self._log, self._settings
        return (
            log.commands_since_snapshot >= settings.snapshot_commands
            or log.bytes_since_snapshot >= settings.snapshot_bytes
        )

    async def _take(self, term: Term) -> None:
        log = self._log
        position, catalogue = log.position, log.catalogue
        commands, size_bytes = log.commands_since_snapshot, log.bytes_since_snapshot
        if await self._write_snapshot(term, position, catalogue):
            log.commands_since_snapshot = max(0, log.commands_since_snapshot - commands)
            log.bytes_since_snapshot = max(0, log.bytes_since_snapshot - size_bytes)

    async def _write_snapshot(self, term: Term, position: int, catalogue: Catalogue) -> bool:
        """Whether a snapshot counts that is as new as this one."""
        before = read_page(await self._gateway.call("/v3/kv/range", get(self._keys.pointer))).only
        previous = unpack_pointer(before.value).position if before is not None else 0
        if previous >= position:
            return True
        data = await asyncio.to_thread(snapshot, catalogue)
        pieces = [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]
        pointer = Pointer(position, f"{position}-{term.seat_revision}", len(pieces), previous)
        for index, piece in enumerate(pieces):
            if not await self._write(term, [], [put(self._keys.piece(pointer.name, index), piece)]):
                return False
        if not await self._flip(term, before, pointer):
            return False
        _log.info("wrote a snapshot to etcd", position=position, bytes=len(data))
        await self._forget(pointer)
        return True

    async def _write(self, term: Term, compare: list[Json], steps: list[Json]) -> bool:
        compare = [created(self._keys.leader, term.seat_revision), *compare]
        return read_ended(await self._gateway.call("/v3/kv/txn", txn(compare, steps))).held

    async def _flip(self, term: Term, before: Pair | None, pointer: Pointer) -> bool:
        compare = [
            created(self._keys.leader, term.seat_revision),
            written(self._keys.pointer, before.mod_revision if before is not None else 0),
        ]
        value = pack_pointer(pointer)
        request = txn(compare, [put(self._keys.pointer, value)], [look(self._keys.pointer)])
        answer = read_ended(await self._gateway.call("/v3/kv/txn", request))
        if answer.held:
            return True
        found = answer.pages[0].only
        return found is not None and found.value == value  # an earlier attempt had arrived

    async def _forget(self, pointer: Pointer) -> None:
        """Delete what the snapshot replaces. What is left undone the next one does."""
        await self._delete(self._keys.commands, pointer.position, keep=None)
        await self._delete(self._keys.snapshots, 0, keep=self._keys.snapshots + f"{pointer.name}/".encode())
        if self._settings.compact and pointer.previous:
            await self._compact(pointer.previous)

    async def _delete(self, prefix: bytes, until: int, *, keep: bytes | None) -> None:
        """Keys last written until a revision (0: whenever), each only if it was not written since."""
        after = 0
        while True:
            request = page(prefix, limit=DELETES_PER_TXN, after=after, until=until, keys_only=True)
            found = read_page(await self._gateway.call("/v3/kv/range", request))
            doomed = [pair for pair in found.pairs if keep is None or not pair.key.startswith(keep)]
            if doomed:
                compare = [written_until(pair.key, pair.mod_revision) for pair in doomed]
                steps = [delete(pair.key) for pair in doomed]
                await self._gateway.call("/v3/kv/txn", txn(compare, steps))
            if not found.more:
                return
            after = found.pairs[-1].mod_revision

    async def _compact(self, revision: int) -> None:
        try:
            await self._gateway.call("/v3/kv/compaction", {"revision": str(revision)})
        except EtcdRefused as refusal:
            if refusal.grpc != OUT_OF_RANGE:  # somebody has compacted further already
                raise
