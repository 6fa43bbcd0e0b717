import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from urllib.parse import urlsplit

import pytest

import sllmd
from sllmd.api.health import process_label
from sllmd.core.errors import ConfigError
from tests.api.spec import check
from tests.waiting import PATIENCE_SECONDS, eventually


async def test_models_are_listed_as_openai_lists_them(live):
    body = await (await live.get("/v1/models")).json()
    check(body, "ListModelsResponse")
    assert "letters" in [model["id"] for model in body["data"]]
    one = await (await live.get("/v1/models/letters")).json()
    check(one, "Model")
    assert "gpt-3.5-turbo-instruct" in one["aliases"]
    assert one["max_model_len"] == 2048
    assert (await (await live.get("/v1/models/gpt-3.5-turbo-instruct")).json())["id"] == "letters"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_wrong_places_have_the_envelope_too(live, method, path, status, code):
    response = await live.client.request(method, live.url + path)
    assert response.status == status
    body = await response.json()
    check(body, "ErrorResponse")
    assert body["error"]["code"] == code
    if status == 405:
        assert response.headers["Allow"]
    assert response.headers["x-request-id"]


async def test_probes(live):
    assert await (await live.get("/healthz")).json() == {"status": "ok"}
    assert (await live.get("/readyz")).status == 200
    assert (await (await live.get("/version")).json())["version"] == sllmd.__version__
    await live.daemon.agent.drain(0)
    ready = await live.get("/readyz")
    assert ready.status == 503
    told = await ready.json()
    assert told["state"] == "drained"
    assert "nothing runs here" in told["reason"]
    status = await (await live.get("/sllmd/v1/status")).json()
    assert (status["state"], status["drained_since"] <= time.time()) == ("drained", True)
    live.daemon.agent.resume()
    assert (await (await live.get("/readyz")).json())["state"] == "ready"
    await live.daemon.agent.drain(0)
    assert (await live.get("/healthz")).status == 200
    refused = await live.post("/v1/completions", {"model": "letters", "prompt": "x", "stream": True})
    assert refused.status == 503
    assert refused.headers["Retry-After"] == "1"
    assert (await refused.json())["error"]["code"] == "node_draining"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a/b"])
async def test_request_ids_that_could_harm_are_replaced(live, given):
    response = await live.get("/healthz", headers={"x-request-id": given})
    assert response.headers["x-request-id"].startswith("req_")


def test_workers_that_come_and_go_leave_no_series_without_end():
    roles = ("daemon", "zygote", "waiting", "tiny-1", "tiny-2")
    assert [process_label(role) for role in roles] == ["daemon", "zygote", "waiting", "replica", "replica"]


async def test_metrics_count_requests_and_pass_promtool(live):
    await live.complete("letters", max_tokens=5)
    await live.post("/v1/completions", {"model": "made-up-by-a-client", "prompt": "x"})
    text = await (await live.get("/metrics")).text()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    wanted = {
        'sllmd_requests_total{code="200",endpoint="/v1/completions",model="letters"}': 1,
        'sllmd_requests_total{code="404",endpoint="/v1/completions",model="unknown"}': 1,
        'sllmd_prompt_tokens_total{model="letters"}': 2,
        'sllmd_generation_tokens_total{model="letters"}': 5,
        'sllmd_request_finished_total{model="letters",reason="length"}': 1,
        'sllmd_time_to_first_token_seconds_count{cold="1",model="letters"}': 1,
        'sllmd_cold_starts_total{from_tier="ssd",model="letters"}': 1,
        'sllmd_replicas{model="letters",state="serving"}': 1,
        "sllmd_node_draining": 0,
    }
    assert {name: float(samples[name]) for name in wanted} == wanted
    assert "made-up" not in text
    await asyncio.to_thread(ask_promtool, text)


def ask_promtool(text):
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_full_queue_says_when_to_come_back(serve):
    async with serve(serving={"queue_max_per_model": 0}, engine={"batch_max": 1}) as live:
        body = {"model": "slow", "prompt": "x", "stream": True, "max_tokens": 1000}
        running = await live.post("/v1/completions", body)
        refused = await live.post("/v1/completions", body)
        assert refused.status == 503
        error = (await refused.json())["error"]
        assert (error["code"], error["param"]) == ("queue_full", "model")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert "x-should-retry" not in refused.headers
        running.close()


async def test_a_port_in_use_is_named(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use"):
            async with serve(api={"listen": [f"127.0.0.1:{port}"]}):
                pass


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:http", "300.1.1.1:1"])
async def test_addresses_that_are_none(serve, address, tmp_path):
    (tmp_path / "keys.toml").write_text("[[keys]]\nid = 'a'\nsecret = 'x'\n")
    with pytest.raises(ConfigError, match="cannot listen on"):
        async with serve(api={"listen": [address]}):
            pass


async def test_a_socket_that_a_crash_left_is_replaced_and_a_live_one_is_not(serve, tmp_path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "sllmd.sock"))
    async with serve():
        other = tmp_path / "other"
        with pytest.raises(ConfigError, match="another daemon listens on"):
            async with serve(node={"name": "other", "data_dir": other}, cluster_directory=other / "cluster"):
                pass
        assert (tmp_path / "sllmd.sock").exists()


async def test_a_file_in_the_sockets_place_stays(serve, tmp_path):
    precious = tmp_path / "sllmd.sock"
    precious.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        async with serve():
            pass
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_what_is_no_http_has_the_envelope_and_no_stack_trace(live, caplog, raw):
    parts = urlsplit(live.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(raw)
    head, _, body = (await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.")
    assert b" 400 " in head.splitlines()[0]
    assert b"Server: sllmd/" in head
    check(json.loads(body), "ErrorResponse")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert caplog.records == []


async def test_metrics_count_those_who_wait_for_a_model_without_a_replica(serve):
    one_place = {"replicas_max": 1, "cpu_devices": 1}
    async with serve(devices=one_place) as live:
        body = {"model": "never", "prompt": "x"}
        first = asyncio.create_task(live.post("/v1/completions", body))
        await eventually(
            lambda: [r.state for r in live.daemon.router.requests()] in (["prefill"], ["decode"])
        )
        second = asyncio.create_task(live.post("/v1/completions", {**body, "model": "gpt-6-astra"}))
        await eventually(lambda: live.daemon.operator.status().requests_waiting == 1)
        text = await (await live.get("/metrics")).text()
        assert 'sllmd_requests_waiting{model="letters"} 1.0' in text
        assert 'sllmd_requests_waiting{model="never"} 0.0' in text
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])


async def test_several_addresses(serve):
    async with serve(api={"listen": ["127.0.0.1:0", "[::1]:0"]}) as live:
        for url in live.daemon.operator.listen[:2]:
            assert (await live.client.get(url + "/healthz")).status == 200


async def test_tokens_there_and_back(live):
    body = {"model": "letters", "prompt": "é🙂x", "return_token_strs": True}
    answer = await (await live.post("/tokenize", body)).json()
    assert answer["count"] == len(answer["tokens"]) == 7
    assert answer["max_model_len"] == 2048
    assert answer["token_strs"][-1] == "x"
    back = await live.post("/detokenize", {"model": "letters", "tokens": answer["tokens"]})
    assert await back.json() == {"prompt": "é🙂x"}
    odd = await live.post("/tokenize", {"model": "letters", "prompt": "x", "zeta": 1})
    assert odd.headers["X-Sllmd-Ignored-Params"] == "zeta"
    for path, wrong in (
        ("/tokenize", {"model": "letters"}),
        ("/tokenize", {"model": "letters", "prompt": "x", "messages": []}),
        ("/tokenize", {"model": "chatless", "messages": [{"role": "user", "content": "x"}]}),
        ("/detokenize", {"model": "letters", "tokens": [99999]}),
        ("/detokenize", {"model": "letters", "tokens": ["a"]}),
        ("/tokenize", {"model": "letters", "prompt": "x" * 100_000}),
        ("/tokenize", {"model": "letters", "prompt": "x", "tools": [{"type": "function"}]}),
    ):
        assert (await live.post(path, wrong)).status == 400, wrong
