"""sllmd's own loader, one per process: lift a checkpoint of the bench's store into DRAM and print JSON.

``recycled`` lifts it twice and measures the second time, into slabs that were used before, as in a daemon
that has served other models; ``fresh`` measures the first load of a new process. Mapping the slabs as a
worker does and touching a byte of each page is timed apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path

import numpy as np
from pydantic import ByteSize

from benchmarks.anchors import PAGE_BYTES, cached_bytes, make_cold
from benchmarks.store import bench_store
from sllmd.core.memory import PartitionMemory
from sllmd.engine.memory import map_partitions
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.tier import DramTier
from sllmd.store.checkpoint import Checkpoint


async def measure(name: str, *, recycled: bool, verify: str) -> dict[str, object]:
    """One cold load and what it cost."""
    store = bench_store()
    checkpoint = store.resolve(name)
    room_bytes = checkpoint.manifest.span_bytes + LoaderSettings().slab_bytes
    settings = LoaderSettings(
        verify="always" if verify == "always" else "never",
        dram_budget="90%",
        reserve_bytes=ByteSize(room_bytes) if recycled else LoaderSettings().reserve_bytes,
    )
    tier = DramTier(settings, quarantine=store.quarantine, complete_remote=store.complete_remote)
    try:
        if recycled:
            lease = tier.acquire(checkpoint)
            await lease.loaded()
            lease.release()
            tier.evict(checkpoint.manifest.digest)
        files = data_files(checkpoint)
        make_cold(*files)
        return await _load(tier, checkpoint, files)
    finally:
        await tier.close()


async def _load(tier: DramTier, checkpoint: Checkpoint, files: list[Path]) -> dict[str, object]:
    _forget_peak()
    before = _memory()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    lease = tier.acquire(checkpoint)
    report = await lease.loaded()
    loaded_seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    peak, now = _memory()["VmHWM"], _memory()
    begin = time.perf_counter()
    _map_and_touch(lease.memory)
    touch_seconds = time.perf_counter() - begin
    lease.release()
    slabs_grew_bytes = now["RssShmem"] - before["RssShmem"]
    page_cache_bytes = sum(cached_bytes(file) for file in files)
    return {
        "seconds": loaded_seconds,
        "touch_seconds": touch_seconds,
        "bytes": checkpoint.manifest.size_bytes,
        "cpu_seconds": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "extra_bytes": max(0, peak - before["VmRSS"] - slabs_grew_bytes) + page_cache_bytes,
        "direct_io": report.direct_io,
        "verified": report.verified,
    }


def data_files(checkpoint: Checkpoint) -> list[Path]:
    """Where the checkpoint's bytes lie."""
    return [
        checkpoint.data_directory / file.path
        for partition in checkpoint.manifest.partitions
        for file in partition.files
    ]


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _map_and_touch(memory: tuple[PartitionMemory, ...]) -> None:
    """As a worker does it; then one byte of each page."""
    for partition in map_partitions(memory):
        partition.populate(0, partition.span_bytes)
        np.frombuffer(partition.buffer(), dtype=np.uint8)[::PAGE_BYTES].sum()
        partition.close()


def _memory() -> dict[str, int]:
    """The figures of /proc/self/status that are in kB, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--slabs", choices=["recycled", "fresh"], required=True)
    parser.add_argument("--verify", choices=["always", "never"], required=True)
    given = parser.parse_args()
    found = asyncio.run(measure(given.model, recycled=given.slabs == "recycled", verify=given.verify))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
