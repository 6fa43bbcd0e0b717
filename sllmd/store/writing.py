"""Writing the store's own format: tensors copied to their places, hashed as they pass, in bounded memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import xxhash

from sllmd.core.errors import MalformedCheckpoint
from sllmd.core.units import MIB
from sllmd.store.durable import create_file, write_all
from sllmd.store.layout import Layout
from sllmd.store.manifest import DataFile, Partition
from sllmd.store.source import SourceTensor

COPY_BYTES = 4 * MIB
"""Read and written at once; each thread holds one such buffer, whatever the model's size."""
THREADS_MAX = 4
"""Partitions written at once; one thread already copies as fast as most disks write."""


class ImportCancelled(Exception):
    """Another partition's thread failed, or the user interrupted; that is the error to tell."""


def write_partitions(
    layout: Layout,
    sources: Mapping[str, Path],
    directory: Path | None,
    *,
    chunk_bytes: int,
    advance: Callable[[int], None],
) -> tuple[Partition, ...]:
    """Write ``tensors.N.bin`` for every partition, synced, and say what was written.

    ``directory`` None: nothing is written, only said what would be. ``sources``: where each source file is.
    ``advance`` gets the bytes of each step, from several threads.
    Raises MalformedCheckpoint when a source ends early, OSError as the system does.
    """
    copier = _Copier(sources, chunk_bytes, advance)
    count = len(layout.spans_bytes)
    with ThreadPoolExecutor(min(THREADS_MAX, count)) as pool:
        futures = [pool.submit(copier.write_partition, layout, index, directory) for index in range(count)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Done, failed or interrupted from the keyboard: whoever still copies need not go on.
            copier.stop.set()
            failed = [future for future in futures if future.done() and future.exception()]
    for future in (*failed, *futures):
        future.result()
    return tuple(future.result() for future in futures)


class _Copier:
    """What the threads of one import share."""

    def __init__(self, sources: Mapping[str, Path], chunk_bytes: int, advance: Callable[[int], None]) -> None:
        self.stop = Event()
        self._sources = sources
        self._chunk_bytes = chunk_bytes
        self._advance = advance

    def write_partition(self, layout: Layout, index: int, directory: Path | None) -> Partition:
        name, span_bytes = f"tensors.{index}.bin", layout.spans_bytes[index]
        if directory is None:
            writer = HashingWriter(None, self._chunk_bytes)
            self._copy_tensors(layout, index, writer)
        else:
            writer = self._write_file(layout, index, directory / name)
        file = DataFile(path=name, base_bytes=0, size_bytes=span_bytes, chunk_digests=writer.digests())
        return Partition(span_bytes=span_bytes, files=(file,))

    def _write_file(self, layout: Layout, index: int, path: Path) -> HashingWriter:
        span_bytes = layout.spans_bytes[index]
        descriptor = create_file(path)
        try:
            writer = HashingWriter(descriptor, self._chunk_bytes)
            self._copy_tensors(layout, index, writer)
            os.fsync(descriptor)
            written_bytes = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if written_bytes != span_bytes:
            raise OSError(errno.EIO, f"{path} has {written_bytes} bytes after {span_bytes} were written")
        return writer

    def _copy_tensors(self, layout: Layout, index: int, writer: HashingWriter) -> None:
        buffer = memoryview(bytearray(COPY_BYTES))
        for placement in layout.partition(index):
            writer.pad_to(placement.tensor.offset_bytes)
            self._copy_tensor(placement.source, writer, buffer)
        writer.pad_to(layout.spans_bytes[index])

    def _copy_tensor(self, tensor: SourceTensor, writer: HashingWriter, buffer: memoryview) -> None:
        left_bytes, offset_bytes = tensor.size_bytes, tensor.offset_bytes
        with self._sources[tensor.file].open("rb", buffering=0) as file:
            while left_bytes:
                if self.stop.is_set():
                    raise ImportCancelled
                count = os.preadv(file.fileno(), [buffer[: min(left_bytes, len(buffer))]], offset_bytes)
                if count == 0:
                    raise MalformedCheckpoint(f"{tensor.file} ended inside tensor {tensor.name}: it changed")
                writer.write(buffer[:count])
                offset_bytes += count
                left_bytes -= count
                self._advance(count)


class HashingWriter:
    """Writes a file front to back, if there is one, and hashes each of its chunks."""

    def __init__(self, descriptor: int | None, chunk_bytes: int) -> None:
        self._descriptor = descriptor
        self._chunk_bytes = chunk_bytes
        self._position = 0
        self._hasher = xxhash.xxh3_128()
        self._digests: list[str] = []

    def write(self, data: memoryview) -> None:
        """Write all of ``data``. Raises OSError."""
        if self._descriptor is not None:
            write_all(self._descriptor, data)
        while data:
            room = self._chunk_bytes - self._position % self._chunk_bytes
            self._hasher.update(data[:room])
            self._position += min(room, len(data))
            data = data[room:]
            if self._position % self._chunk_bytes == 0:
                self._end_chunk()

    def pad_to(self, offset_bytes: int) -> None:
        """Write zeros up to ``offset_bytes``, which is less than one alignment away."""
        self.write(memoryview(bytes(offset_bytes - self._position)))

    def digests(self) -> tuple[str, ...]:
        """One per chunk; the last chunk may be short."""
        if self._position % self._chunk_bytes:
            self._end_chunk()
        return tuple(self._digests)

    def _end_chunk(self) -> None:
        self._digests.append(self._hasher.hexdigest())
        self._hasher = xxhash.xxh3_128()
