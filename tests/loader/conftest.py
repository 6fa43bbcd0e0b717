"""Checkpoints of random bytes, made by hand: the loader knows no tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import xxhash

from sllmd.core.ids import Digest, ModelName
from sllmd.core.memory import PartitionMemory
from sllmd.core.units import KIB
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.tier import DramTier
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.manifest import ALIGNMENT_BYTES, FORMAT_VERSION, DataFile, Manifest, Partition, Source

CHUNK_BYTES = 16 * KIB
SLAB_BYTES = 32 * KIB


def align(count: int) -> int:
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def chunk_digests(content: bytes) -> tuple[str, ...]:
    pieces = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
    return tuple(xxhash.xxh3_128(piece).hexdigest() for piece in pieces)


def make_checkpoint(
    root: Path,
    name: str,
    sizes: Sequence[Sequence[int]],
    *,
    digests: bool = True,
    remote_url: str | None = None,
) -> Checkpoint:
    """``sizes``: bytes of each file of each partition; the files are written below ``root / name``."""
    directory = root / name
    directory.mkdir(parents=True)
    source = random.Random(name)
    partitions = []
    for number, file_sizes in enumerate(sizes):
        files, base = [], 0
        for index, size in enumerate(file_sizes):
            path = f"part-{number}-{index}.bin"
            content = source.randbytes(size)
            (directory / path).write_bytes(content)
            files.append(
                DataFile(
                    path=path,
                    base_bytes=base,
                    size_bytes=size,
                    chunk_digests=chunk_digests(content) if digests else (),
                )
            )
            base = align(base + size)
        partitions.append(Partition(span_bytes=base, files=tuple(files)))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=Digest(xxhash.xxh3_128(name.encode()).hexdigest()),
        source=Source(kind="fake", location=str(directory), fingerprint="none"),
        architecture="fake",
        config={},
        tensors=(),
        ties={},
        partitions=tuple(partitions),
        chunk_bytes=CHUNK_BYTES,
    )
    return Checkpoint(
        name=ModelName(name),
        manifest=manifest,
        directory=directory,
        data_directory=directory,
        remote_url=remote_url,
    )


def read_memory(memory: PartitionMemory) -> bytes:
    """What a worker would see in a partition."""
    import os

    pieces = [os.pread(descriptor, memory.slab_bytes, 0) for descriptor in memory.descriptors]
    return b"".join(pieces)[: memory.span_bytes]


def expected_memory(checkpoint: Checkpoint, directory: Path | None = None) -> list[bytes]:
    """The partitions' address spaces, from the files."""
    spaces = []
    for partition in checkpoint.manifest.partitions:
        space = bytearray(partition.span_bytes)
        for file in partition.files:
            content = ((directory or checkpoint.data_directory) / file.path).read_bytes()
            space[file.base_bytes : file.base_bytes + len(content)] = content
        spaces.append(bytes(space))
    return spaces


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def status_bytes(field: str) -> int:
    """A size in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{field}:"))


def small_settings(**changes: object) -> LoaderSettings:
    values: dict[str, object] = {
        "dram_budget": f"{64 * SLAB_BYTES}",
        "slab_bytes": SLAB_BYTES,
        "reserve_bytes": 4 * SLAB_BYTES,
        "headroom_bytes": 0,
        "progress_interval_seconds": 0.001,
    }
    return LoaderSettings.model_validate(values | changes)


def refuse(*_: object) -> object:
    raise AssertionError("not expected in this test")


@pytest.fixture
async def make_tier():
    """Builds tiers of tiny slabs; they are closed afterwards."""
    tiers: list[DramTier] = []

    def make(**changes: object) -> DramTier:
        callbacks: dict[str, Callable[..., object]] = {
            "quarantine": changes.pop("quarantine", refuse),  # type: ignore[dict-item]
            "complete_remote": changes.pop("complete_remote", refuse),  # type: ignore[dict-item]
        }
        peers = changes.pop("peers", None)
        tier = DramTier(small_settings(**changes), **callbacks, peers=peers)  # type: ignore[arg-type]
        tiers.append(tier)
        return tier

    yield make
    for tier in tiers:
        await tier.close()
