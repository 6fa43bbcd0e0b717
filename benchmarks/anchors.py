"""Anchors: what the hardware gives right now, read in the same round as whatever is judged by it.

A disk of a virtual machine drifts by a factor of two within minutes, so seconds alone say little; the
ratio to an anchor of the same minute does. Run as a program, it is a fresh process that prints JSON.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 16 * 1024 * 1024
THREADS = 4
"""Reads in flight. One leaves a disk idle between two requests; more than four were found to add nothing."""
MEMMOVE_BYTES = 256 * 1024 * 1024
PAGE_BYTES = 4096
COLD_BYTES_MAX = 16 * PAGE_BYTES
"""Of a file, in the page cache: what reading its header again leaves there."""
COLD_WAIT_SECONDS = 30.0
"""For processes that are ending; a replica of Ray Serve has been seen to take several seconds."""
COLD_RETRY_SECONDS = 0.5


def drop_caches() -> None:
    """Empty the page cache. Raises PermissionError when not root: no cold figure without it."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def cached_bytes(path: Path) -> int:
    """Bytes of a file in the page cache, as ``fincore`` (mincore) counts them."""
    said = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", path],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(said.stdout)


def make_cold(*files: Path) -> None:
    """Drop the page cache until nothing of these files is in it any more.

    Pages that a process maps cannot be dropped, and one that was told to end takes a while to be gone.
    Raises RuntimeError with the names of those that keep them.
    """
    give_up_seconds = time.monotonic() + COLD_WAIT_SECONDS
    for file in files:
        drop_caches()
        while cached_bytes(file) > COLD_BYTES_MAX:
            if time.monotonic() > give_up_seconds:
                raise RuntimeError(f"{file} stays in the page cache: mapped by {', '.join(_mapped_by(file))}")
            time.sleep(COLD_RETRY_SECONDS)
            drop_caches()


def _mapped_by(file: Path) -> list[str]:
    """The processes that map a file, as ``pid (name)``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(file) in (process / "maps").read_text():
                found.append(f"{process.name} ({(process / 'comm').read_text().strip()})")
        except OSError:
            continue  # it has ended meanwhile
    return found or ["processes that have ended meanwhile"]


def read_anchor(path: Path, *, huge_pages: bool = True) -> float:
    """Seconds to read a file through O_DIRECT, in order, into reused buffers that were touched before.

    With huge pages one request covers megabytes; with small ones it ends after as many pages as the disk
    takes segments (often 1 MB). Where a virtual disk is limited in requests per second, that decides.
    """
    size = path.stat().st_size
    buffers = [_touched(CHUNK_BYTES, huge_pages=huge_pages) for _ in range(THREADS)]
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    chunks = iter(range(0, size, CHUNK_BYTES))

    def reader(buffer: mmap.mmap) -> int:
        done = 0
        for offset in chunks:  # one iterator for all threads: `next` on a range is atomic
            done += os.preadv(descriptor, [buffer], offset)
        return done

    try:
        with ThreadPoolExecutor(THREADS) as threads:
            begin = time.perf_counter()
            done = sum(threads.map(reader, buffers))
            seconds = time.perf_counter() - begin
    finally:
        os.close(descriptor)
    if done != size:
        raise RuntimeError(f"the anchor read {done} of {size} bytes of {path}")
    return seconds


def memmove_gb_per_s() -> float:
    """GB/s of one thread copying between touched buffers."""
    source, target = _touched(MEMMOVE_BYTES), _touched(MEMMOVE_BYTES)
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in (target, source)]
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        ctypes.memmove(*addresses, MEMMOVE_BYTES)
        best = min(best, time.perf_counter() - begin)
    return MEMMOVE_BYTES / best / 1e9


def warm_memory(size_bytes: int) -> None:
    """Have the host back ``size_bytes`` of this machine's free memory, and give them back.

    A page that a virtual machine gave back to its host costs ten times a usual first touch. Without this,
    whichever loader happens to get such pages looks slow.
    """
    script = (
        f"import mmap; m = mmap.mmap(-1, {size_bytes}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS);"
        f"[m.__setitem__(i, 1) for i in range(0, {size_bytes}, {PAGE_BYTES})]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def measure(file: Path, *, huge_pages: bool = True) -> dict[str, float]:
    """Both anchors, from a fresh process."""
    pages = "huge" if huge_pages else "small"
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.anchors", file, pages], check=True, capture_output=True, text=True
    )
    anchors: dict[str, float] = json.loads(said.stdout)
    return anchors


def _touched(size_bytes: int, *, huge_pages: bool = False) -> mmap.mmap:
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages:
        buffer.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, size_bytes, PAGE_BYTES):
        buffer[offset] = 1
    return buffer


def main(file: Path, pages: str) -> None:
    """Print both anchors as JSON."""
    found = {
        "bytes": file.stat().st_size,
        "seconds": read_anchor(file, huge_pages=pages == "huge"),
        "memmove_gb_per_s": memmove_gb_per_s(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
