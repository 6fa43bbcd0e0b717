"""Loading over http: into DRAM while the copy on SSD grows, from servers good and bad."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from sllmd.core.errors import ChecksumMismatch, LoadStalled, SourceChanged, SourceUnavailable, StoreError
from sllmd.core.ids import Digest
from sllmd.loader.partial import JOURNAL_NAME
from sllmd.loader.remote import server_of
from sllmd.store.checkpoint import Checkpoint
from tests.loader.conftest import (
    CHUNK_BYTES,
    SLAB_BYTES,
    chunk_digests,
    expected_memory,
    make_checkpoint,
    read_memory,
)
from tests.loader.servers import Answer, RangeServer, Request, range_server
from tests.waiting import eventually

SIZES = [[3 * CHUNK_BYTES + 1, 5], [2 * SLAB_BYTES + 100]]
CHUNKS = 4 + 1 + 5


class Publisher:
    """Stands for the store: notes what is complete and where it is now."""

    def __init__(self) -> None:
        self.calls: list[dict[str, list[str]]] = []

    def __call__(self, checkpoint: Checkpoint, digests) -> Checkpoint:
        self.calls.append(digests)
        manifest = checkpoint.manifest.model_copy(update={"digest": Digest("published")})
        return dataclasses.replace(checkpoint, manifest=manifest, remote_url=None)


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def origin(tmp_path) -> Checkpoint:
    """What the server has."""
    return make_checkpoint(tmp_path / "origin", "m", SIZES)


@pytest.fixture
def server(origin):
    with range_server(origin.data_directory) as server:
        yield server


def remote(origin: Checkpoint, url: str, data: Path, *, digests: bool = False) -> Checkpoint:
    """The same checkpoint as a node sees it that has none of its bytes."""
    manifest = origin.manifest
    if not digests:
        parts = tuple(
            part.model_copy(
                update={"files": tuple(f.model_copy(update={"chunk_digests": ()}) for f in part.files)}
            )
            for part in manifest.partitions
        )
        manifest = manifest.model_copy(update={"partitions": parts})
    return Checkpoint(origin.name, manifest, data, data, remote_url=url)


@pytest.fixture
def checkpoint(origin, server, tmp_path) -> Checkpoint:
    return remote(origin, server.url, tmp_path / "node")


@pytest.fixture
def tier_of(make_tier, publisher):
    def make(**changes):
        quick = {"http_retry_seconds": 0.001, "http_connections": 4}
        return make_tier(complete_remote=publisher, **(quick | changes))

    return make


def files_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    paths = [file.path for part in checkpoint.manifest.partitions for file in part.files]
    return {path: (checkpoint.data_directory / path).read_bytes() for path in paths}


async def check_loads(tier, checkpoint, origin, publisher) -> None:
    lease = tier.acquire(checkpoint)
    report = await lease.loaded()
    assert [read_memory(memory) for memory in lease.memory] == expected_memory(origin)
    assert report.stage == "remote→dram"
    assert report.stored
    assert files_of(checkpoint) == files_of(origin)
    assert publisher.calls == [{path: list(chunk_digests(data)) for path, data in files_of(origin).items()}]
    assert not (checkpoint.data_directory / JOURNAL_NAME).exists()
    lease.release()


# --- servers that behave ---


async def test_bytes_go_to_memory_and_to_ssd(tier_of, checkpoint, origin, publisher, server):
    tier = tier_of()
    assert tier.where(checkpoint) == "remote"
    await check_loads(tier, checkpoint, origin, publisher)
    assert len(server.requests) == CHUNKS
    published = dataclasses.replace(
        checkpoint,
        manifest=checkpoint.manifest.model_copy(update={"digest": Digest("published")}),
        remote_url=None,
    )
    assert tier.where(published) == "dram"
    assert tier.evict(Digest("published")) > 0
    assert tier.where(published) == "ssd"


async def test_known_checksums_are_compared(tier_of, origin, server, tmp_path, publisher):
    tier = tier_of()
    checkpoint = remote(origin, server.url, tmp_path / "node", digests=True)
    lease = tier.acquire(checkpoint)
    assert (await lease.loaded()).verified


async def test_many_waiters_are_one_download(tier_of, checkpoint, server):
    tier = tier_of()
    leases = [tier.acquire(checkpoint) for _ in range(20)]
    await asyncio.gather(*(lease.loaded() for lease in leases))
    assert len(server.requests) == CHUNKS


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 1])
async def test_awkward_sizes(tmp_path, tier_of, publisher, size):
    origin = make_checkpoint(tmp_path / "origin", "m", [[size, 0]])
    with range_server(origin.data_directory) as server:
        await check_loads(tier_of(), remote(origin, server.url, tmp_path / "node"), origin, publisher)


async def test_a_redirect_is_followed(tier_of, checkpoint, origin, publisher, server):
    def misbehave(request: Request, answer: Answer) -> Answer:
        if "?signed" in request.path:
            return answer
        return Answer(302, {"Location": f"{request.path}?signed=1", "Content-Length": "0"}, b"")

    server.misbehave = misbehave
    await check_loads(tier_of(), checkpoint, origin, publisher)


async def test_a_query_of_the_base_url_is_kept(tier_of, origin, server, tmp_path, publisher):
    checkpoint = remote(origin, f"{server.url}/?token=a%20b", tmp_path / "node")
    await check_loads(tier_of(), checkpoint, origin, publisher)
    assert all(request.path.endswith("?token=a%20b") for request in server.requests)


async def test_a_proxy_of_the_environment_is_used(tier_of, origin, server, tmp_path, publisher, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:p%40ss@"))
    checkpoint = remote(origin, "http://models.invalid:81?token=1", tmp_path / "node")
    await check_loads(tier_of(), checkpoint, origin, publisher)
    assert {request.path.rpartition("/")[0] for request in server.requests} == {"http://models.invalid:81"}
    assert {request.headers["Host"] for request in server.requests} == {"models.invalid:81"}
    assert {request.headers["Proxy-Authorization"] for request in server.requests} == {"Basic bWU6cEBzcw=="}


async def test_a_proxy_is_asked_for_a_tunnel(tier_of, origin, server, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    checkpoint = remote(origin, "https://models.invalid/m", tmp_path / "node")
    with pytest.raises(SourceUnavailable, match="Tunnel connection failed: 501"):
        await tier_of(http_attempts=1).acquire(checkpoint).loaded()


async def test_no_proxy_names_servers_that_are_near(tier_of, checkpoint, origin, publisher, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    await check_loads(tier_of(), checkpoint, origin, publisher)


async def test_a_proxy_of_another_kind_is_refused(tier_of, checkpoint, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://me:secret@proxy:1080")
    with pytest.raises(SourceUnavailable, match="speaks socks5 cannot be used") as caught:
        await tier_of().acquire(checkpoint).loaded()
    assert "secret" not in str(caught.value)


@pytest.fixture
def nginx(origin, tmp_path):
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("nginx is not installed")
        pytest.skip("nginx is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path / "nginx"
    home.mkdir()
    temporary = "".join(
        f"{kind}_temp_path {home}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (home / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {home}/pid; error_log {home}/error.log;"
        f"events {{ worker_connections 64; }}"
        f"http {{ access_log {home}/access.log; {temporary}"
        f"server {{ listen 127.0.0.1:{port}; root {origin.data_directory}; }} }}"
    )
    process = subprocess.Popen(
        [binary, "-c", str(home / "nginx.conf"), "-p", str(home)], stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", home / "access.log"
    finally:
        process.terminate()
        process.communicate(timeout=60)


async def test_a_real_nginx(tier_of, origin, nginx, tmp_path, publisher):
    url, access_log = nginx
    await check_loads(tier_of(), remote(origin, url, tmp_path / "node"), origin, publisher)
    await eventually(lambda: access_log.read_text().count(" 206 ") == CHUNKS)
    assert access_log.read_text().count("\n") == CHUNKS


async def test_a_file_that_changes_behind_a_real_nginx(tier_of, origin, nginx, tmp_path):
    url, _ = nginx
    checkpoint = remote(origin, url, tmp_path / "node")
    tier = tier_of(remote_bandwidth_max_bytes=200_000, http_connections=1)
    lease = tier.acquire(checkpoint)
    await lease.progress_changed()
    for path, content in files_of(origin).items():
        (origin.data_directory / path).write_bytes(content[::-1])
        os.utime(origin.data_directory / path, (1, 1))
    with pytest.raises(SourceChanged, match="changed at its source"):
        await lease.loaded()


# --- servers that do not ---


def first_times(count: int, change):
    """Misbehave for the first ``count`` requests."""

    def misbehave(request: Request, answer: Answer) -> Answer:
        return change(answer) if request.number < count else answer

    return misbehave


def cut(answer: Answer) -> Answer:
    return dataclasses.replace(answer, sent_bytes=len(answer.body) // 2)


def stall(answer: Answer) -> Answer:
    return dataclasses.replace(answer, sent_bytes=len(answer.body) // 2, afterwards="stall")


def corrupt(answer: Answer) -> Answer:
    return dataclasses.replace(answer, body=bytes(len(answer.body)))


def status(code: int):
    return lambda answer: Answer(code, {"Content-Length": "4"}, b"oops")


def redirect(location: str):
    return lambda answer: Answer(302, {"Location": location, "Content-Length": "0"}, b"")


def header(name: str, value: str):
    return lambda answer: dataclasses.replace(answer, headers=answer.headers | {name: value})


def whole(answer: Answer) -> Answer:
    return Answer(200, {"Content-Length": "100000"}, b"x" * 100000)


def short(answer: Answer) -> Answer:
    half = answer.body[: len(answer.body) // 2]
    headers = answer.headers | {"Content-Length": str(len(half))}
    return dataclasses.replace(answer, headers=headers, body=half)


def long(answer: Answer) -> Answer:
    return dataclasses.replace(answer, body=answer.body + b"surplus" * 10)


@pytest.mark.parametrize(
    "change", [cut, short, long, status(503), status(429)], ids=lambda each: each.__name__
)
async def test_what_passes_is_tried_again(tier_of, checkpoint, origin, publisher, server, change):
    server.misbehave = first_times(3, change)
    await check_loads(tier_of(), checkpoint, origin, publisher)


async def test_after_a_cut_it_goes_on_where_it_was(tier_of, checkpoint, origin, publisher, server):
    server.misbehave = first_times(1, cut)
    await check_loads(tier_of(http_connections=1), checkpoint, origin, publisher)
    asked = [request.headers["Range"] for request in server.requests[:2]]
    assert asked == ["bytes=0-16383", "bytes=8192-16383"]
    assert server.requests[1].headers["If-Range"] == '"v1"'


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (cut, SourceUnavailable, r"closed the connection early \(3 attempts\)"),
        (status(503), SourceUnavailable, r"503 Service Unavailable \(3 attempts\)"),
        (status(404), SourceUnavailable, "answered 404"),
        (status(403), SourceUnavailable, "answered 403"),
        (status(416), SourceChanged, "another file now"),
        (whole, SourceUnavailable, "does not serve ranges"),
        (header("Content-Range", "bytes 5-9/7"), SourceUnavailable, "another range"),
        (header("Content-Range", "lots"), SourceUnavailable, "another range"),
        (header("Content-Range", "bytes 0-16383/999"), SourceChanged, "999 bytes instead of 49153"),
        (redirect("/part-0-0.bin"), SourceUnavailable, "redirects more than 5 times"),
        (redirect("ftp://x/"), SourceUnavailable, r"no http\(s\) URL"),
    ],
)
async def test_what_stays_wrong_is_an_error_for_every_waiter(
    tier_of, checkpoint, server, publisher, change, error, message
):
    server.misbehave = first_times(10**9, change)
    tier = tier_of(http_attempts=3, http_connections=1)
    leases = [tier.acquire(checkpoint) for _ in range(3)]
    for result in await asyncio.gather(*(lease.loaded() for lease in leases), return_exceptions=True):
        with pytest.raises(error, match=message):
            raise result
    assert publisher.calls == []
    for lease in leases:
        lease.release()
    await eventually(lambda: tier.stats().used_bytes + tier.stats().draining_bytes == 0)


async def test_nobody_listens(tier_of, origin, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(SourceUnavailable, match="Connection refused"):
            await tier_of(http_attempts=2).acquire(remote(origin, url, tmp_path / "node")).loaded()


async def test_a_server_that_stalls(tier_of, checkpoint, server):
    server.misbehave = first_times(10**9, stall)
    tier = tier_of(stall_timeout_seconds=0.3)
    lease = tier.acquire(checkpoint)
    with pytest.raises(LoadStalled, match="no byte arrived for 300 ms"):
        await lease.loaded()
    lease.release()
    # Threads that wait for bytes are woken, not waited for.
    await eventually(lambda: not tier.stats().draining_bytes, seconds=20)


async def test_one_connection_that_stalls_costs_one_time_out(tier_of, checkpoint, origin, publisher, server):
    server.misbehave = first_times(1, stall)
    await check_loads(tier_of(stall_timeout_seconds=1.5), checkpoint, origin, publisher)


async def test_giving_up_wakes_connections_that_wait(tier_of, checkpoint, server):
    server.misbehave = first_times(10**9, stall)
    tier = tier_of()
    lease = tier.acquire(checkpoint)
    await eventually(lambda: len(server.requests) == 4)
    lease.release()
    await eventually(lambda: not tier.stats().draining_bytes, seconds=20)


async def test_a_version_that_changes_between_two_ranges(tier_of, checkpoint, server):
    def misbehave(request: Request, answer: Answer) -> Answer:
        return header("ETag", '"v2"')(answer) if request.number >= 2 else answer

    server.misbehave = misbehave
    with pytest.raises(SourceChanged, match='its version is "v2" now'):
        await tier_of(http_connections=1).acquire(checkpoint).loaded()
    assert list(checkpoint.data_directory.iterdir()) == []


async def test_a_server_that_answers_whole_because_the_version_changed(tier_of, checkpoint, server):
    def misbehave(request: Request, answer: Answer) -> Answer:
        return whole(answer) if "If-Range" in request.headers else answer

    server.misbehave = misbehave
    with pytest.raises(SourceChanged, match="another file now"):
        await tier_of(http_connections=1).acquire(checkpoint).loaded()


async def test_a_version_that_is_not_the_registered_one(tier_of, checkpoint, server):
    fingerprint = json.dumps({"part-0-0.bin": '"v0"', "part-1-0.bin": ""})
    source = checkpoint.manifest.source.model_copy(update={"kind": "http", "fingerprint": fingerprint})
    manifest = checkpoint.manifest.model_copy(update={"source": source})
    with pytest.raises(SourceChanged, match=r'part-0-0.bin .* its version is "v1" now'):
        await tier_of().acquire(dataclasses.replace(checkpoint, manifest=manifest)).loaded()


async def test_bytes_that_differ_from_known_checksums(tier_of, origin, server, tmp_path, publisher):
    checkpoint = remote(origin, server.url, tmp_path / "node", digests=True)
    server.misbehave = first_times(1, corrupt)
    await check_loads(tier_of(), checkpoint, origin, publisher)


async def test_bytes_that_always_differ_name_file_and_chunk(tier_of, origin, server, tmp_path):
    def misbehave(request: Request, answer: Answer) -> Answer:
        wrong = request.path == "/part-1-0.bin" and "bytes=16384-" in request.headers["Range"]
        return corrupt(answer) if wrong else answer

    server.misbehave = misbehave
    lease = tier_of().acquire(remote(origin, server.url, tmp_path / "node", digests=True))
    with pytest.raises(ChecksumMismatch, match=r"part-1-0.bin, chunk 1"):
        await lease.loaded()
    progress = lease.progress()
    assert 0 <= progress.bytes_done <= progress.bytes_total


# --- going on ---


async def give_up_after(tier, checkpoint, server: RangeServer, chunks: int) -> None:
    """Load until ``chunks`` requests were answered, then leave."""
    server.misbehave = lambda request, answer: stall(answer) if request.number >= chunks else answer
    lease = tier.acquire(checkpoint)
    journal = checkpoint.data_directory / JOURNAL_NAME
    await eventually(lambda: journal.exists() and journal.read_text().count('"chunk": ') - 1 == chunks)
    lease.release()
    await eventually(lambda: not tier.stats().draining_bytes)
    server.misbehave = lambda _, answer: answer
    server.requests.clear()


async def test_a_load_that_was_given_up_goes_on(tier_of, checkpoint, origin, publisher, server):
    tier = tier_of(http_connections=1)
    await give_up_after(tier, checkpoint, server, 4)
    await check_loads(tier, checkpoint, origin, publisher)
    assert len(server.requests) == CHUNKS - 4


async def test_at_once_too(tier_of, checkpoint, origin, publisher, server):
    """The second load waits until the first one's threads let go of the files."""
    tier = tier_of()
    server.misbehave = first_times(4, stall)
    lease = tier.acquire(checkpoint)
    await eventually(lambda: len(server.requests) == 4)
    lease.release()
    await check_loads(tier, checkpoint, origin, publisher)


async def test_a_chunk_that_was_damaged_on_ssd_meanwhile_is_fetched_again(
    tier_of, checkpoint, origin, publisher, server
):
    tier = tier_of(http_connections=1)
    await give_up_after(tier, checkpoint, server, 4)
    path = checkpoint.data_directory / "part-0-0.bin"
    path.write_bytes(bytes(5) + path.read_bytes()[5:])
    await check_loads(tier, checkpoint, origin, publisher)
    assert len(server.requests) == CHUNKS - 3


async def test_a_torn_journal_costs_its_last_line(tier_of, checkpoint, origin, publisher, server):
    tier = tier_of(http_connections=1)
    await give_up_after(tier, checkpoint, server, 4)
    journal = checkpoint.data_directory / JOURNAL_NAME
    journal.write_text(journal.read_text()[:-10])
    await check_loads(tier, checkpoint, origin, publisher)
    assert len(server.requests) == CHUNKS - 3


async def test_a_journal_of_another_version_counts_for_nothing(
    tier_of, checkpoint, origin, publisher, server
):
    tier = tier_of(http_connections=1)
    await give_up_after(tier, checkpoint, server, 4)
    journal = checkpoint.data_directory / JOURNAL_NAME
    heading, *rest = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps(json.loads(heading) | {"digest": "other"}), *rest]))
    await check_loads(tier, checkpoint, origin, publisher)
    assert len(server.requests) == CHUNKS


async def test_a_source_that_changed_since_is_noticed(tier_of, checkpoint, server):
    tier = tier_of(http_connections=1)
    await give_up_after(tier, checkpoint, server, 2)
    server.misbehave = first_times(10**9, header("ETag", '"v2"'))
    with pytest.raises(SourceChanged):
        await tier.acquire(checkpoint).loaded()


# --- an SSD that cannot take it ---


async def load_into_dram_only(tier, checkpoint, origin, publisher, capsys) -> None:
    lease = tier.acquire(checkpoint)
    report = await lease.loaded()
    assert not report.stored
    assert [read_memory(memory) for memory in lease.memory] == expected_memory(origin)
    assert "on SSD" in capsys.readouterr().out
    assert tier.where(checkpoint) == "dram"
    lease.release()


async def test_a_full_disk_leaves_nothing_behind(make_tier, checkpoint, origin, publisher, capsys):
    """/dev/full is a disk that is always full."""
    checkpoint.data_directory.mkdir()
    (checkpoint.data_directory / "part-1-0.bin").symlink_to("/dev/full")
    tier = make_tier(complete_remote=publisher)
    await load_into_dram_only(tier, checkpoint, origin, publisher, capsys)
    assert publisher.calls == []
    assert list(checkpoint.data_directory.iterdir()) == []


@pytest.mark.parametrize("etag", [True, False])
async def test_a_disk_that_fills_up_between_bytes_and_their_note(
    make_tier, checkpoint, origin, publisher, server, capsys, etag
):
    """The journal has reached the largest size of a file, the data files have not."""
    limit = 1024 * 1024
    checkpoint.data_directory.mkdir()
    heading = {"digest": checkpoint.manifest.digest, "url": server.url, "chunk": CHUNK_BYTES}
    journal = json.dumps(heading).ljust(limit - 1) + "\n"
    (checkpoint.data_directory / JOURNAL_NAME).write_text(journal)
    if not etag:
        server.misbehave = lambda _, answer: dataclasses.replace(answer, headers=without_etag(answer))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        tier = make_tier(complete_remote=publisher)
        await load_into_dram_only(tier, checkpoint, origin, publisher, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.requests) == CHUNKS
    assert list(checkpoint.data_directory.iterdir()) == []


def without_etag(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "ETag"}


async def test_a_place_that_cannot_be_written(make_tier, checkpoint, origin, publisher, capsys):
    checkpoint.data_directory.write_bytes(b"not a directory")
    tier = make_tier(complete_remote=publisher)
    await load_into_dram_only(tier, checkpoint, origin, publisher, capsys)


async def test_another_process_that_writes_the_same_copy(make_tier, checkpoint, origin, publisher, capsys):
    checkpoint.data_directory.mkdir()
    with (checkpoint.data_directory / JOURNAL_NAME).open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        tier = make_tier(complete_remote=publisher)
        await load_into_dram_only(tier, checkpoint, origin, publisher, capsys)
    assert [path.name for path in checkpoint.data_directory.iterdir()] == [JOURNAL_NAME]


async def test_a_store_that_cannot_publish(make_tier, checkpoint, origin, publisher, capsys, server):
    def complete(*call: object) -> Checkpoint:
        if not server.requests:
            return publisher(*call)
        raise StoreError("no space left")

    tier = make_tier(complete_remote=complete)
    await load_into_dram_only(tier, checkpoint, origin, publisher, capsys)
    server.requests.clear()
    assert tier.evict(checkpoint.manifest.digest)
    await check_loads(tier, checkpoint, origin, publisher)
    assert server.requests == []


# --- names of servers ---


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://a/b/c", "http://a"),
        ("https://a:8443/b", "https://a:8443"),
        ("http://user:secret@a/b", "http://a"),
    ],
)
def test_server_of(url, name):
    assert server_of(url) == name


@pytest.mark.parametrize("url", ["ftp://a", "/etc/passwd", "file:///x", "http://", ""])
def test_what_is_no_server(url):
    with pytest.raises(SourceUnavailable):
        server_of(url)
