"""The sending half of the chunk bench, a process of its own: our server, and the bare loops beside it.

``python -m benchmarks.cluster.chunk_source IDENTITY`` prints the ports of ``Ports`` and serves until its
standard input ends.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from sllmd.wire.bulk.pipe import Piece
from sllmd.wire.bulk.server import BulkServer
from sllmd.wire.bulk.settings import BulkSettings
from sllmd.wire.tls import Tls

CHUNK_BYTES = 16 * 1024 * 1024
"""The chunk that checkpoints travel in."""
CHUNKS = 8
"""Sent by a bare loop per connection, and asked of our server."""
SOURCE_CHUNKS = 4
"""Different ones: more than a processor's cache holds."""
TLS_WRITE_BYTES = 1024 * 1024
"""Of the bare TLS loop; larger writes were found to be slower."""


@dataclass(frozen=True)
class Ports:
    """Where each sender listens."""

    encrypted: int
    ticketed: int
    bare: int
    bare_tls: int


class _Held:
    """Shared memory, as the DRAM tier's is."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def pieces(self, _path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        return [self._memory[offset_bytes : offset_bytes + size_bytes]]

    def close(self) -> None:
        """The memory belongs to the process."""


def _memory() -> memoryview:
    descriptor = os.memfd_create("chunks")
    os.ftruncate(descriptor, SOURCE_CHUNKS * CHUNK_BYTES)
    mapped = mmap.mmap(descriptor, SOURCE_CHUNKS * CHUNK_BYTES)
    mapped.write(os.urandom(SOURCE_CHUNKS * CHUNK_BYTES))
    return memoryview(mapped)


def _bare(memory: memoryview, wrap: Callable[[socket.socket], socket.socket], write_bytes: int) -> int:
    """A listener that sends chunks to whoever connects and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            connection = wrap(listener.accept()[0])
            for number in range(CHUNKS):
                begin = number % SOURCE_CHUNKS * CHUNK_BYTES
                for offset in range(begin, begin + CHUNK_BYTES, write_bytes):
                    connection.sendall(memory[offset : offset + write_bytes])
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def main(identity: Path) -> None:
    """Serve until whoever started this leaves."""
    configure_logs(LogSettings(level="warning"), stream=sys.stderr)
    memory, tls = _memory(), Tls(identity)
    servers = {
        name: BulkServer(lambda _: _Held(memory), BulkSettings.model_validate({"encryption": name}), tls)
        for name in ("on", "off")
    }
    ports = Ports(
        encrypted=servers["on"].start("127.0.0.1", 0),
        ticketed=servers["off"].start("127.0.0.1", 0),
        bare=_bare(memory, lambda one: one, CHUNK_BYTES),
        bare_tls=_bare(
            memory, lambda one: tls.strict_server.wrap_socket(one, server_side=True), TLS_WRITE_BYTES
        ),
    )
    print(json.dumps(asdict(ports)), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
