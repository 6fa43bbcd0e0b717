"""Chunks over one connection on loopback, against bare loops of the same round.

The sender is another process. The anchor of plain chunks is ``recv_into`` in a loop that does nothing else,
that of encrypted ones the same over TLS. Each is read in the two ways that one could call bare, whole chunks
at once and in pieces of our own size, and the one that is faster in the median counts.
"""

from __future__ import annotations

import json
import mmap
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from benchmarks.cluster.chunk_source import CHUNK_BYTES, CHUNKS, SOURCE_CHUNKS, Ports
from benchmarks.cluster.identities import identities, saying
from benchmarks.cluster.options import Options
from benchmarks.report import Goal, Report, ratios, rotated
from sllmd.core.ids import NodeId
from sllmd.wire.bulk.client import BulkAddress, BulkClient
from sllmd.wire.bulk.pipe import PIECE_BYTES
from sllmd.wire.bulk.settings import BulkSettings
from sllmd.wire.tls import Tls

GOALS = (
    Goal("cluster.chunk_tls_ratio", "ratio", ">=", 0.8),
    Goal("cluster.chunk_verified_ratio", "ratio", ">=", 0.6),
    Goal("cluster.chunk_plain_ratio", "ratio", ">=", 0.9),
)
ROUNDS_MIN = 25
"""A round takes a quarter of a second, and loopback's speed varies by a third from one to the next."""
RATIOS = {
    "cluster.chunk_tls_ratio": ("chunks, TLS", ("bare TLS loop, whole chunks", "bare TLS loop, pieces")),
    "cluster.chunk_verified_ratio": ("chunks, verified", ("bare loop, whole chunks", "bare loop, pieces")),
    "cluster.chunk_plain_ratio": ("chunks, unverified", ("bare loop, whole chunks", "bare loop, pieces")),
}

Samples = dict[str, dict[int, float]]


def measure(report: Report, options: Options) -> None:
    """GB/s of each way, in rotated order."""
    samples: Samples = defaultdict(dict)
    rounds = max(ROUNDS_MIN, options.rounds)
    with identities(["source", "target"]) as (source, target), saying("chunk_source", source) as said:
        ways = _ways(Ports(**json.loads(said)), Tls(target))
        for index in range(rounds):
            for name in rotated(list(ways), index):
                samples[name][index] = CHUNKS * CHUNK_BYTES / ways[name]() / 1e9
    for name, found in samples.items():
        report.row(name, list(found.values()), "GB/s")
    for goal, (ours, anchors) in RATIOS.items():
        fastest = max(anchors, key=lambda anchor: statistics.median(samples[anchor].values()))
        report.value(goal, ratios(samples[ours], samples[fastest]), rounds)


def _ways(ports: Ports, tls: Tls) -> dict[str, Callable[[], float]]:
    """What is measured -> a function that does it once and returns its seconds."""
    target = memoryview(mmap.mmap(-1, SOURCE_CHUNKS * CHUNK_BYTES))
    target[:] = bytes(len(target))  # pages that were touched
    return {
        "bare loop, whole chunks": partial(_bare, ports.bare, None, target, CHUNK_BYTES),
        "bare loop, pieces": partial(_bare, ports.bare, None, target, PIECE_BYTES),
        "chunks, unverified": partial(_ours, ports.ticketed, "off", tls, target, tagged=False),
        "chunks, verified": partial(_ours, ports.ticketed, "off", tls, target, tagged=True),
        "bare TLS loop, whole chunks": partial(_bare, ports.bare_tls, tls, target, CHUNK_BYTES),
        "bare TLS loop, pieces": partial(_bare, ports.bare_tls, tls, target, PIECE_BYTES),
        "chunks, TLS": partial(_ours, ports.encrypted, "on", tls, target, tagged=False),
    }


def _bare(port: int, tls: Tls | None, target: memoryview, piece_bytes: int) -> float:
    connection = socket.create_connection(("127.0.0.1", port))
    if tls is not None:
        connection = tls.client.wrap_socket(connection)
    with connection:
        begin = time.perf_counter()
        for number in range(CHUNKS):
            chunk = _chunk(target, number)
            for offset in range(0, CHUNK_BYTES, piece_bytes):
                view = chunk[offset : offset + piece_bytes]
                while view:
                    view = view[connection.recv_into(view) :]
        return time.perf_counter() - begin


def _ours(port: int, encryption: str, tls: Tls, target: memoryview, *, tagged: bool) -> float:
    """A connection that is open already: checkpoints have hundreds of chunks."""
    settings = BulkSettings.model_validate({"encryption": encryption})
    client = BulkClient(BulkAddress(NodeId("source"), "127.0.0.1", port), settings, tls, tagged=tagged)
    try:
        client.fetch("digest", "weights", 0, [target[:4096]], lambda _: None)
        begin = time.perf_counter()
        for number in range(CHUNKS):
            offset = number % SOURCE_CHUNKS * CHUNK_BYTES
            client.fetch("digest", "weights", offset, [_chunk(target, number)], lambda _: None)
        return time.perf_counter() - begin
    finally:
        client.close()


def _chunk(target: memoryview, number: int) -> memoryview:
    begin = number % SOURCE_CHUNKS * CHUNK_BYTES
    return target[begin : begin + CHUNK_BYTES]
