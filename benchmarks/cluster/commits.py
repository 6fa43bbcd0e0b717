"""What a commit costs: three voters of our own, and a real etcd of three members, asked in the same way.

Both are asked by this process, which keeps no log: every proposal crosses to the leader and its result comes
back, as in a daemon that is not a voter. Journals are on the same disk, with fdatasync. A commit of etcd is a
put of its own, over its gateway; that is what the target is held against. The rows named *store over etcd*
are our ``ControlStore`` on it, which packs all that waits into one put.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import uvloop

from benchmarks.cluster.options import Options
from benchmarks.cluster.voter import taking_part
from benchmarks.environments import log
from benchmarks.report import Goal, Report, ratios, rotated
from benchmarks.servers import free_port
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.control import ControlStore
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from tests.cluster.etcd_process import etcd_cluster, why_no_etcd

GOALS = (
    Goal("cluster.commit_p50_ms", "ms", "<=", 2),
    Goal("cluster.commit_p99_ms", "ms", "<=", 20),
    Goal("cluster.commits_vs_etcd", "ratio", ">=", 1.2),
)
VALUE = bytes(200)
KEYS = 100
"""Written in turn, so that the catalogue stays small."""
SERIAL = 500
IN_FLIGHT = 64
BURST_SECONDS = 2.0
OURS, THEIRS, PACKED = "raft", "etcd", "store over etcd"

Samples = dict[str, dict[int, float]]
Put = Callable[[str], Awaitable[object]]


def measure(report: Report, options: Options) -> None:
    """One by one, then many at once, each way in each round."""
    samples: Samples = defaultdict(dict)
    configure_logs(LogSettings(level="warning"), stream=sys.stderr)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # not tmpfs: it syncs nothing
        uvloop.run(_measure(Path(directory), options.rounds, samples))
    for name, found in samples.items():
        report.row(name, list(found.values()), "commits/s" if "flight" in name else "ms")
    report.value("cluster.commit_p50_ms", list(samples[f"{OURS}: p50"].values()), options.rounds)
    report.value("cluster.commit_p99_ms", list(samples[f"{OURS}: p99"].values()), options.rounds)
    report.value(
        "cluster.commits_vs_etcd", ratios(samples[_burst(OURS)], samples[_burst(THEIRS)]), options.rounds
    )


async def _measure(directory: Path, rounds: int, samples: Samples) -> None:
    async with _ours(directory) as ours, _theirs(directory) as theirs:
        ways = {OURS: ours, **theirs}
        for put in ways.values():
            await _burst_rate(put, seconds=0.5)
        for index in range(rounds):
            for name in rotated(list(ways), index):
                latencies = await _serial(ways[name])
                samples[f"{name}: p50"][index] = statistics.median(latencies)
                samples[f"{name}: p99"][index] = statistics.quantiles(latencies, n=100)[98]
                samples[_burst(name)][index] = await _burst_rate(ways[name], seconds=BURST_SECONDS)


def _burst(name: str) -> str:
    return f"{name}: {IN_FLIGHT} in flight"


async def _serial(put: Put) -> list[float]:
    """Milliseconds of each commit, one after another."""
    found = []
    for number in range(SERIAL):
        begin = time.perf_counter()
        await put(f"key{number % KEYS}")
        found.append((time.perf_counter() - begin) * 1000)
    return found


async def _burst_rate(put: Put, *, seconds: float) -> float:
    """Commits per second with so many in flight."""
    numbers = itertools.count()
    done = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await put(f"key{next(numbers) % KEYS}")
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - begin)


def _proposer(control: ControlStore) -> Put:
    return lambda key: control.propose(SettingPut(key, VALUE, None))


async def _ready(put: Put) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await put("ready")
            except SllmdError:
                await asyncio.sleep(0.05)
            else:
                return


def _start_voter(directory: Path, node: NodeId, addresses: dict[NodeId, int]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.cluster.voter",
        directory / node,
        node,
        json.dumps(addresses),
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


@asynccontextmanager
async def _ours(directory: Path) -> AsyncIterator[Put]:
    addresses = {NodeId(name): free_port() for name in "abc"}
    voters = [_start_voter(directory, node, addresses) for node in addresses]
    try:
        async with taking_part(directory / "client", NodeId("client"), addresses) as control:
            put = _proposer(control)
            await _ready(put)
            yield put
    finally:
        for voter in voters:
            voter.kill()
            voter.communicate()


@asynccontextmanager
async def _theirs(directory: Path) -> AsyncIterator[dict[str, Put]]:
    """Through our own store, and bare. Without an etcd: nothing, said aloud."""
    reason = why_no_etcd()
    if reason is not None:
        log(f"no comparison: {reason}")
        yield {}
        return
    with etcd_cluster(directory, 3) as cluster:
        control = await EtcdControl.start(
            node=NodeId("client"), cluster_id="bench", settings=EtcdSettings(endpoints=cluster.endpoints)
        )
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            try:
                put = _proposer(control)
                await _ready(put)
                yield {PACKED: put, THEIRS: lambda key: _bare_put(http, cluster.endpoints[0], key)}
            finally:
                await control.close()


async def _bare_put(http: aiohttp.ClientSession, endpoint: str, key: str) -> None:
    body = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(VALUE).decode()}
    async with http.post(f"{endpoint}/v3/kv/put", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"etcd: {answer.status} {await answer.text()}")
        await answer.read()
