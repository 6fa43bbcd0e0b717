"""Clients that send nonsense, dawdle, or leave: nothing of theirs stays behind."""

import asyncio
import gc
import io
import json
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.api.spec import check
from tests.waiting import PATIENCE_SECONDS, eventually

END_OF_TEXT = 256
"""Id of a token with a long text."""
BODY = b'{"model": "slow", "prompt": "hi", "max_tokens": 1000, "stream": true}'


def address(live) -> tuple[str, int]:
    parts = urlsplit(live.url)
    return parts.hostname, parts.port


def post(body: bytes, path: str = "/v1/completions", length: int | None = None) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    ).encode() + body


def running(live) -> int:
    return sum(r.state not in ("finished", "failed", "cancelled") for r in live.daemon.router.requests())


async def leave(asking) -> None:
    """Close connections whether they have had an answer yet or not."""
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    for task in asking:
        if not task.cancelled():
            task.result().close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


NONSENSE = [
    b"",
    b"\x00",
    b"{",
    b"[]",
    b"nul",
    b'{"model": "letters", "prompt": "\xff\xfe"}',
    b'{"model": "letters", "prompt": "\\ud800"}',
    b'{"model": "letters", "prompt": ["a", "\\udfff"]}',
    b'{"model": "letters", "prompt": "x", "temperature": NaN}',
    b'{"model": "letters", "prompt": "x", "temperature": Infinity}',
    b'{"model": "letters", "prompt": "x", "temperature": 1e999}',
    b'{"model": "letters", "prompt": "x", "max_tokens": 1e999}',
    b'{"model": "letters", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    b'{"model": "letters", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"model": "letters", "x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    b'{"model": "letters", "model": "tiny", "prompt": "x"}',
    b'{"model": ["letters"], "prompt": "x"}',
    b'{"model": "letters", "prompt": {"a": 1}}',
    b'{"model": "letters", "prompt": [[[1]]]}',
    b'{"model": "letters", "prompt": [1, "a"]}',
    b'{"model": "letters", "prompt": [99999999999999999999]}',
    b'{"model": "../../etc/passwd", "prompt": "x"}',
    b'{"model": "letters\\u0000", "prompt": "x"}',
    b'{"model": "' + b"m" * 100_000 + b'", "prompt": "x"}',
    b'{"model": "letters", "prompt": "x", "stop": ["a", "b", "c", "d", "e"]}',
    b'{"model": "letters", "prompt": "x", "stop": ""}',
    b'{"model": "letters", "prompt": "x", "stop": [""]}',
    b'{"model": "letters", "prompt": "x", "logit_bias": {"1": 1e400}}',
    b'{"model": "letters", "prompt": "x", "logit_bias": {"\xc2\xb2": 1}}',
    b'{"model": "letters", "prompt": "x", "n": 1e308}',
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_nonsense_gets_an_answer_with_the_envelope(live, path):
    for raw in NONSENSE:
        response = await live.client.post(live.url + path, data=raw)
        if path == "/tokenize" and response.status == 200:
            continue  # fields it does not know are not its business
        assert 400 <= response.status < 500, raw[:80]
        check(await response.json(), "ErrorResponse")
    assert running(live) == 0


async def test_a_body_over_the_limit_is_refused_announced_or_not(serve):
    async with serve(api={"body_max_bytes": 1000}) as live:
        big = b'{"model": "letters", "prompt": "' + b"x" * 2000 + b'"}'
        announced = await live.client.post(live.url + "/v1/completions", data=big)
        assert announced.status == 413
        check(await announced.json(), "ErrorResponse")

        async def chunks():
            yield big

        chunked = await live.client.post(live.url + "/v1/completions", data=chunks())
        assert chunked.status == 413
        assert (await chunked.json())["error"]["code"] == "body_too_large"


async def test_a_compressed_bomb_is_measured_unpacked(serve):
    import gzip

    async with serve(api={"body_max_bytes": 100_000}) as live:
        bomb = gzip.compress(b'{"model": "letters", "prompt": "' + b"x" * 5_000_000 + b'"}')
        assert len(bomb) < 100_000
        response = await live.client.post(
            live.url + "/v1/completions", data=bomb, headers={"Content-Encoding": "gzip"}
        )
        assert response.status in (400, 413)


async def test_a_body_that_does_not_come_is_not_waited_for(serve):
    async with serve(api={"body_timeout": 0.1}) as live:
        reader, writer = await asyncio.open_connection(*address(live))
        writer.write(post(b'{"model"', length=100))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
        assert head.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_headers_that_drip_are_cut_off(serve):
    async with serve(api={"idle_timeout": 0.3}) as live:
        reader, writer = await asyncio.open_connection(*address(live))
        writer.write(b"POST /v1/completions HTTP/1.1\r\n")

        async def drip():
            while True:
                writer.write(b"X-Slow: 1\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            answer = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        except ConnectionResetError:  # closed while a line of ours was still on its way
            answer = b""
        assert answer == b""
        dripping.cancel()
        writer.close()


async def test_a_client_that_says_nothing_is_cut_off(serve):
    async with serve(api={"idle_timeout": 0.1}) as live:
        reader, writer = await asyncio.open_connection(*address(live))
        assert await asyncio.wait_for(reader.read(), PATIENCE_SECONDS) == b""
        writer.close()


async def test_half_a_request_and_a_reset_leave_nothing(live):
    for cut in (1, 40, len(post(BODY)) - 1):
        _, writer = await asyncio.open_connection(*address(live))
        writer.write(post(BODY)[:cut])
        await writer.drain()
        writer.transport.abort()
    assert (await live.get("/healthz")).status == 200
    assert running(live) == 0


async def test_a_half_closed_client_counts_as_gone_and_leaves_nothing(live):
    reader, writer = await asyncio.open_connection(*address(live))
    writer.write(post(BODY))
    await reader.readuntil(b"data: ")
    writer.write_eof()
    await eventually(lambda: running(live) == 0)
    writer.close()


async def test_a_client_that_does_not_read_its_stream_is_given_up(serve):
    async with serve(api={"stalled_client_timeout": 0.2}) as live:
        body = b'{"model": "letters", "prompt": "hi", "n": 100, "max_tokens": 2000, "stream": true}'
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address(live))
            client.sendall(post(body))
            await eventually(lambda: running(live) > 0)
            await eventually(lambda: running(live) == 0)
        states = {request.state for request in live.daemon.router.requests()}
        assert "cancelled" in states


@pytest.mark.parametrize(("count", "tokens"), [(1, 500_000), (200, 4000)])
async def test_a_client_that_does_not_read_its_answers_is_given_up(serve, count, tokens):
    """One long answer, and many short ones on a connection."""
    async with serve(api={"stalled_client_timeout": 0.2}) as live:
        body = json.dumps({"model": "letters", "tokens": [END_OF_TEXT] * tokens}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address(live))
            client.setblocking(False)
            asking = asyncio.get_running_loop().sock_sendall(client, post(body, "/detokenize") * count)
            sending = asyncio.create_task(asking)
            gone = 'sllmd_client_disconnects_total{endpoint="/detokenize"} 1.0'
            await eventually(lambda: gone in live.daemon.metrics.exposition().decode())
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled() or isinstance(sending.exception(), ConnectionError | None)


@pytest.mark.slow
async def test_a_client_that_reads_slowly_gets_all_of_a_long_answer(serve):
    """Longer than a stall may be, and at no time so long without a byte."""
    async with serve(api={"stalled_client_timeout": 2}) as live:
        tokens = json.dumps({"model": "letters", "tokens": [70] * 500_000}).encode()
        reader, writer = await asyncio.open_connection(*address(live), limit=4096)
        writer.write(post(tokens, "/detokenize"))
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        assert left > 500_000
        while left:
            await asyncio.sleep(0.06)
            left -= len(await reader.read(min(left, 10_000)))
        writer.close()


@pytest.mark.slow
async def test_others_go_on_while_a_large_body_is_read(live):
    """Every kind of body that once held up the event loop for seconds."""
    deep = b"[" * 40 + b"]" * 40
    bodies = {
        "/v1/completions": b'{"model": "letters", "prompt": [' + b"7," * 10_000_000 + b"7]}",
        "/detokenize": b'{"model": "letters", "tokens": [' + b"7," * 10_000_000 + b"7]}",
        "/v1/chat/completions": b'{"model": "letters", "messages": ['
        + b'{"role": "user", "content": "x"},' * 500_000
        + b'{"role": "user", "content": "x"}]}',
        "/tokenize": b'{"model": "letters", "prompt": "x", "y": [' + (deep + b",") * 200_000 + b"1]}",
    }
    for path, body in bodies.items():
        stalls = []
        while len(stalls) < 5 and min(stalls, default=1) >= 0.5:  # the machine may be busy, not each time
            stalls.append(await _longest_stall_seconds(live, path, body))
        assert min(stalls) < 0.5, path


async def _longest_stall_seconds(live, path: str, body: bytes) -> float:
    asking = asyncio.create_task(live.client.post(live.url + path, data=io.BytesIO(body)))
    longest = 0.0
    while not asking.done():
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - before)
    assert asking.result().status == 400, path
    return longest


@pytest.mark.parametrize(
    ("model", "stream"),
    [("never", True), ("never", False), ("building", True), ("building", False), ("slow", True)],
)
async def test_leaving_cancels_in_every_state(live, model, stream):
    body = {"model": model, "prompt": "x", "stream": stream, "max_tokens": 1000, "n": 2}
    asking = asyncio.create_task(live.post("/v1/completions", body))
    await eventually(lambda: running(live) == 2)
    await leave([asking])
    await eventually(lambda: running(live) == 0)
    assert {request.state for request in live.daemon.router.requests()} == {"cancelled"}


@pytest.mark.parametrize("choices", [1, 3])
async def test_leaving_in_the_middle_of_a_fast_stream_leaves_nothing(live, choices):
    """The server meets the closed connection as a failed write and as a cancellation, in either order."""
    body = b'{"model": "letters", "prompt": "x", "stream": true, "max_tokens": 2000, "n": %d}' % choices

    def come_and_go() -> None:
        for _ in range(30):
            with socket.create_connection(address(live)) as client:
                client.sendall(post(body))
                client.recv(64)

    await asyncio.to_thread(come_and_go)
    await eventually(lambda: running(live) == 0)
    assert live.daemon.operator.status().requests_running == 0


async def test_leaving_the_queue_cancels_too(serve):
    async with serve(engine={"batch_max": 1}) as live:
        body = {"model": "never", "prompt": "x", "stream": True}
        asking = [asyncio.create_task(live.post("/v1/completions", body)) for _ in range(5)]
        await eventually(lambda: running(live) == 5)
        await leave(asking)
        await eventually(lambda: running(live) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["slow", "building"])
async def test_a_thousand_clients_that_hang_up_leak_nothing(serve, model):
    body = post(BODY.replace(b"slow", model.encode()))
    async with serve(serving={"queue_max_per_model": 2000}) as live:
        warm = await live.complete("letters", max_tokens=1)
        assert warm["choices"]
        await live.client.close()
        await eventually(lambda: not _connections())
        gc.collect()
        tasks_before, files_before = len(asyncio.all_tasks()), open_files()

        async def come_and_go(number: int) -> None:
            _, writer = await asyncio.open_connection(*address(live))
            writer.write(body)
            await writer.drain()
            if number % 3:
                await eventually(lambda: running(live) > 0)
            if number % 2:
                writer.transport.abort()
            else:
                writer.close()

        for start in range(0, 1000, 250):
            await asyncio.gather(*(come_and_go(number) for number in range(start, start + 250)))
        await eventually(lambda: running(live) == 0)
        status = live.daemon.operator.status()
        assert (status.requests_running, status.requests_waiting) == (0, 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before + 3)
        await eventually(lambda: open_files() <= files_before + 3)
        if model == "slow":
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await _completes(live)


def _connections() -> list[asyncio.Task[object]]:
    """The server's tasks, one for each client that is connected."""
    return [task for task in asyncio.all_tasks() if "RequestHandler" in repr(task.get_coro())]


async def _completes(live) -> bool:
    reader, writer = await asyncio.open_connection(*address(live))
    writer.write(post(b'{"model": "slow", "prompt": "hi", "max_tokens": 2}'))
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head.startswith(b"HTTP/1.1 200")


async def test_malformed_http_does_not_stop_the_server(live):
    for raw in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 5):
        reader, writer = await asyncio.open_connection(*address(live))
        writer.write(raw)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        writer.close()
    assert (await live.get("/healthz")).status == 200


def test_open_files_are_countable():
    before = open_files()
    descriptor = os.open("/", os.O_RDONLY)
    assert open_files() == before + 1
    os.close(descriptor)
