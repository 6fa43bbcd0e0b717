"""Loading from other nodes: whole, spread, with peers that die, lie, or know nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sllmd.core.errors import LoadError, SourceUnavailable
from sllmd.core.ids import Digest, NodeId
from sllmd.loader.peer import PEERS_ONLY_URL, PeerAccess
from sllmd.loader.sharing import Sharing
from sllmd.store.checkpoint import Checkpoint
from sllmd.wire.bulk.client import BulkAddress, BulkClient
from sllmd.wire.bulk.pipe import Piece, Span
from sllmd.wire.bulk.server import BulkServer, Holding
from sllmd.wire.bulk.settings import BulkSettings
from tests.loader.conftest import (
    CHUNK_BYTES,
    SLAB_BYTES,
    expected_memory,
    make_checkpoint,
    read_memory,
)
from tests.loader.servers import range_server
from tests.loader.test_remote import CHUNKS, SIZES, Publisher, files_of, remote
from tests.waiting import eventually

SETTINGS = BulkSettings()


class Network:
    """Other nodes: their chunk servers, and the table of who holds what."""

    def __init__(self) -> None:
        self.addresses: list[BulkAddress] = []
        self.reads: dict[str, list[tuple[str, int]]] = {}
        self.before_read: Callable[[str, int], None] = lambda _node, _count: None
        self.servers: dict[str, BulkServer] = {}
        self.access = PeerAccess(holders=self._holders, connect=self._connect)

    def _holders(self, digest: Digest) -> Sequence[BulkAddress]:
        return tuple(self.addresses)

    def _connect(self, address: BulkAddress) -> BulkClient:
        return BulkClient(address, SETTINGS, None)

    def add(self, name: str, provider: Callable[[str], Holding]) -> None:
        self.reads[name] = []
        server = BulkServer(lambda digest: Watched(self, name, provider(digest)), SETTINGS, None)
        self.servers[name] = server
        self.addresses.append(BulkAddress(NodeId(name), "127.0.0.1", server.start("127.0.0.1", 0)))


class Watched:
    def __init__(self, network: Network, name: str, inner: Holding) -> None:
        self._network = network
        self._name = name
        self._inner = inner

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        reads = self._network.reads[self._name]
        reads.append((path, offset_bytes))
        self._network.before_read(self._name, len(reads))
        return self._inner.pieces(path, offset_bytes, size_bytes)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
async def network():
    network = Network()
    yield network
    for server in network.servers.values():
        await asyncio.to_thread(server.close)


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def origin(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "origin", "m", SIZES)


@pytest.fixture
def checkpoint(origin: Checkpoint, tmp_path: Path) -> Checkpoint:
    """As a node sees it that has none of its bytes."""
    return remote(origin, PEERS_ONLY_URL, tmp_path / "node", digests=True)


@pytest.fixture
def target(make_tier, network: Network, publisher: Publisher):
    return make_tier(complete_remote=publisher, peers=network.access, peer_connections=3)


def on_disk(make_tier, origin: Checkpoint) -> Callable[[str], Holding]:
    return Sharing(make_tier(), lambda digest: origin if digest == origin.manifest.digest else None).hold


async def check_loads(target, checkpoint: Checkpoint, origin: Checkpoint, publisher: Publisher) -> None:
    lease = target.acquire(checkpoint)
    report = await lease.loaded()
    assert [read_memory(memory) for memory in lease.memory] == expected_memory(origin)
    assert (report.stage, report.stored, report.verified) == ("peer→dram", True, True)
    assert report.size_bytes == origin.manifest.size_bytes
    assert lease.progress().bytes_done == origin.manifest.size_bytes
    assert files_of(checkpoint) == files_of(origin)
    assert len(publisher.calls) == 1
    lease.release()


# --- peers that behave ---


async def test_from_a_peers_disk(make_tier, network, target, checkpoint, origin, publisher):
    network.add("a", on_disk(make_tier, origin))
    assert target.where(checkpoint) == "peer"
    assert target.estimate_seconds(checkpoint) > 0
    await check_loads(target, checkpoint, origin, publisher)
    assert len(network.reads["a"]) == CHUNKS
    assert target.stats().bytes_per_second.keys() == {"peers"}


async def test_from_a_peers_memory(make_tier, network, target, checkpoint, origin, publisher):
    source = make_tier()
    lease = source.acquire(origin)
    await lease.loaded()
    lease.release()
    network.add("a", Sharing(source, lambda _digest: None).hold)
    await check_loads(target, checkpoint, origin, publisher)


async def test_a_copy_that_is_read_is_not_evicted(make_tier, origin):
    source = make_tier()
    lease = source.acquire(origin)
    await lease.loaded()
    lease.release()
    sharing = Sharing(source, lambda _digest: None)
    holding = await asyncio.to_thread(sharing.hold, origin.manifest.digest)
    pieces = holding.pieces("part-1-0.bin", SLAB_BYTES - 10, 30)
    whole = (origin.data_directory / "part-1-0.bin").read_bytes()
    assert b"".join(bytes(piece) for piece in pieces) == whole[SLAB_BYTES - 10 : SLAB_BYTES + 20]
    assert source.evict(origin.manifest.digest) == 0
    holding.close()
    await eventually(lambda: source.evict(origin.manifest.digest) > 0)


async def test_several_peers_share_the_work(make_tier, network, target, checkpoint, origin, publisher):
    for name in ("a", "b"):
        network.add(name, on_disk(make_tier, origin))
    await check_loads(target, checkpoint, origin, publisher)
    counts = [len(reads) for reads in network.reads.values()]
    assert sum(counts) == CHUNKS
    assert min(counts) >= 3


# --- peers that do not ---


class Dying:
    """Sends half of its second chunk, and then nothing any more."""

    def __init__(self, inner: Holding, reads: list[tuple[str, int]], nothing: int) -> None:
        self._inner = inner
        self._reads = reads
        self._nothing = nothing

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        if len(self._reads) < 2:
            return self._inner.pieces(path, offset_bytes, size_bytes)
        half = self._inner.pieces(path, offset_bytes, size_bytes // 2)
        return [*half, Span(self._nothing, 0, size_bytes - size_bytes // 2)]

    def close(self) -> None:
        self._inner.close()


async def test_a_peer_that_dies_within_a_chunk(make_tier, network, target, checkpoint, origin, publisher):
    hold = on_disk(make_tier, origin)
    with Path("/dev/null").open("rb") as nothing:  # noqa: ASYNC230  it does not wait
        network.add("a", lambda digest: Dying(hold(digest), network.reads["a"], nothing.fileno()))
        network.add("b", hold)
        await check_loads(target, checkpoint, origin, publisher)
    once, twice = set(network.reads["a"]), set(network.reads["b"])
    assert len(once | twice) == CHUNKS
    assert once & twice, "what broke off came from the other"


class Lying:
    """Gives other bytes than the manifest says."""

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        return [memoryview(bytes(size_bytes))]

    def close(self) -> None:
        pass


async def test_a_peer_that_lies_is_left(make_tier, network, target, checkpoint, origin, publisher):
    network.add("liar", lambda _digest: Lying())
    network.add("b", on_disk(make_tier, origin))
    await check_loads(target, checkpoint, origin, publisher)
    assert network.reads["liar"]


async def test_nobody_tells_the_truth(network, target, checkpoint):
    network.add("liar", lambda _digest: Lying())
    lease = target.acquire(checkpoint)
    with pytest.raises(SourceUnavailable, match="of node liar has another checksum"):
        await lease.loaded()
    lease.release()


async def test_peers_that_do_not_hold_it(make_tier, network, target, checkpoint, origin):
    network.add("a", Sharing(make_tier(), lambda _digest: None).hold)
    lease = target.acquire(checkpoint)
    with pytest.raises(SourceUnavailable, match="is not on this node"):
        await lease.loaded()
    lease.release()


async def test_no_peer_at_all(target, checkpoint):
    assert target.where(checkpoint) == "remote"
    lease = target.acquire(checkpoint)
    with pytest.raises(SourceUnavailable, match="no node holds it"):
        await lease.loaded()
    lease.release()


async def test_a_node_that_knows_no_others(make_tier, checkpoint):
    with pytest.raises(SourceUnavailable, match="this node knows none"):
        make_tier().acquire(checkpoint)


async def test_the_own_server_when_peers_fail(make_tier, network, target, origin, publisher, tmp_path):
    network.add("liar", lambda _digest: Lying())
    with range_server(origin.data_directory) as server:
        checkpoint = remote(origin, server.url, tmp_path / "node", digests=True)
        await check_loads(target, checkpoint, origin, publisher)
        assert len(server.requests) == CHUNKS


async def test_without_peers_a_remote_checkpoint_comes_from_its_server(
    make_tier, target, origin, publisher, tmp_path
):
    with range_server(origin.data_directory) as server:
        checkpoint = remote(origin, server.url, tmp_path / "node", digests=True)
        assert target.where(checkpoint) == "remote"
        lease = target.acquire(checkpoint)
        assert (await lease.loaded()).stage == "remote→dram"
        lease.release()


async def test_what_has_arrived_is_not_fetched_again(make_tier, network, checkpoint, origin, publisher):
    target = make_tier(complete_remote=publisher, peers=network.access, peer_connections=1)
    network.add("a", on_disk(make_tier, origin))

    def refuse(name: str, count: int) -> None:
        if count > 6:
            raise SourceUnavailable("enough")

    network.before_read = refuse
    lease = target.acquire(checkpoint)
    with pytest.raises(LoadError):
        await lease.loaded()
    lease.release()
    network.before_read = lambda _name, _count: None
    first = len(network.reads["a"])
    network.reads["a"].clear()
    await check_loads(target, checkpoint, origin, publisher)
    assert first == 7
    assert len(network.reads["a"]) == CHUNKS - 6


async def test_a_load_that_nobody_waits_for_ends_at_once(make_tier, network, target, checkpoint, origin):
    network.add("a", on_disk(make_tier, origin))
    stuck, go_on = threading.Event(), threading.Event()

    def stall(name: str, count: int) -> None:
        stuck.set()
        go_on.wait(60)

    network.before_read = stall
    lease = target.acquire(checkpoint)
    await eventually(stuck.is_set)
    lease.release()
    await eventually(lambda: target.stats().draining_bytes == 0)
    go_on.set()


# --- what may be read ---


@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("../origin/m/part-0-0.bin", 0, 5),
        ("/etc/passwd", 0, 5),
        ("manifest.json", 0, 5),
        ("part-0-1.bin", 0, 6),
        ("part-0-1.bin", 5, 1),
    ],
)
async def test_only_what_the_manifest_names_can_be_read(make_tier, origin, path, offset, size):
    hold = on_disk(make_tier, origin)
    holding = await asyncio.to_thread(hold, origin.manifest.digest)
    with pytest.raises(SourceUnavailable, match="has no"):
        holding.pieces(path, offset, size)
    assert holding.pieces("part-0-1.bin", 0, 5)
    holding.close()


async def test_a_file_that_is_gone(make_tier, origin):
    (origin.data_directory / "part-0-0.bin").unlink()
    holding = await asyncio.to_thread(on_disk(make_tier, origin), origin.manifest.digest)
    with pytest.raises(SourceUnavailable, match="cannot be read on this node"):
        holding.pieces("part-0-0.bin", 0, CHUNK_BYTES)
    holding.close()


async def test_a_checkpoint_that_has_not_arrived_is_not_shared(make_tier, checkpoint):
    sharing = Sharing(make_tier(), lambda _digest: checkpoint)
    with pytest.raises(SourceUnavailable, match="not on this node"):
        await asyncio.to_thread(sharing.hold, checkpoint.manifest.digest)
