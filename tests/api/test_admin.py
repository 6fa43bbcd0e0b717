import json

import pytest

from tests.api.conftest import events_of
from tests.api.spec import check


async def test_status_tells_the_node_at_a_glance(live):
    await live.complete("letters", max_tokens=1)
    status = await (await live.get("/sllmd/v1/status")).json()
    assert status["node"] == "test"
    assert status["state"] == "ready"
    assert status["listen"][0] == live.url
    [replica] = status["replicas"]
    assert (replica["model"], replica["state"], replica["running"]) == ("letters", "serving", 0)


async def test_models_and_one_model(live):
    models = (await (await live.get("/sllmd/v1/models")).json())["models"]
    assert {"tiny", "letters"} <= {model["name"] for model in models}
    one = await (await live.get("/sllmd/v1/models/gpt-3.5-turbo-instruct")).json()
    assert (one["name"], one["state"], one["tier"]) == ("letters", "cold", "ssd")
    assert (await live.get("/sllmd/v1/models/nope")).status == 404


async def test_load_tells_every_step_and_unload_what_it_freed(live):
    response = await live.post("/sllmd/v1/models/letters/load")
    assert response.headers["Content-Type"].startswith("text/event-stream")
    *steps, done = events_of(await response.read())
    assert done == "[DONE]"
    assert steps[-1]["status"] == "ready"
    assert steps[-1]["current_bytes"] == steps[-1]["total_bytes"] > 0
    assert (await (await live.get("/v1/models/letters")).json())["state"] == "serving"
    report = await (await live.post("/sllmd/v1/models/letters/unload")).json()
    assert report["device_replicas"] == 1
    assert report["dram_bytes"] > 0
    assert (await (await live.get("/v1/models/letters")).json())["state"] == "cold"


async def test_load_to_dram_leaves_no_replica_and_evict_frees_it(live):
    response = await live.post("/sllmd/v1/models/letters/load", {"tier": "dram", "stream": False})
    assert (await response.json())["status"] == "ready"
    assert (await (await live.get("/sllmd/v1/replicas")).json())["replicas"] == []
    cache = await (await live.get("/sllmd/v1/cache")).json()
    assert [copy["model"] for copy in cache["copies"]] == ["letters"]
    freed = await (await live.post("/sllmd/v1/cache/evict", {"model": "letters"})).json()
    assert freed["freed_bytes"] > 0
    again = await (await live.post("/sllmd/v1/cache/evict", {"model": "letters"})).json()
    assert again["freed_bytes"] == 0


async def test_a_load_that_fails_ends_with_its_reason(live):
    response = await live.post("/sllmd/v1/models/unbuildable/load")
    *steps, _ = events_of(await response.read())
    assert steps[-1]["status"] == "error"
    assert "the weights make no sense" in steps[-1]["message"]


async def test_a_load_that_fails_without_a_stream_has_a_status(live):
    response = await live.post("/sllmd/v1/models/unbuildable/load", {"stream": False})
    assert response.status == 503
    assert response.headers["x-should-retry"] == "false"
    body = await response.json()
    check(body, "ErrorResponse")
    assert body["error"]["code"] == "model_load_failed"
    assert "the weights make no sense" in body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/sllmd/v1/models/nope/load", None, 404),
        ("/sllmd/v1/models/nope/unload", None, 404),
        ("/sllmd/v1/models/letters/load", {"tier": "cloud"}, 400),
        ("/sllmd/v1/models/letters/load", {"teir": "dram"}, 400),
        ("/sllmd/v1/cache/evict", None, 400),
        ("/sllmd/v1/cache/evict", {"model": "nope"}, 404),
    ],
)
async def test_wrong_orders(live, path, body, status):
    response = await live.post(path, body)
    assert response.status == status
    check(await response.json(), "ErrorResponse")


async def test_requests_tell_where_time_went(live):
    response = await live.post(
        "/v1/completions",
        {"model": "letters", "prompt": "my secret", "max_tokens": 3, "n": 2},
        headers={"x-request-id": "job-7"},
    )
    assert response.headers["x-request-id"] == "job-7"
    entry = await (await live.get("/sllmd/v1/requests/job-7")).json()
    assert len(entry["generations"]) == 2
    for generation in entry["generations"]:
        assert generation["state"] == "finished"
        assert generation["finish_reason"] == "length"
        assert generation["completion_tokens"] == 3
        parts = sum(generation[name] for name in ("queue_ms", "load_ms", "prefill_ms", "decode_ms"))
        assert 0 <= parts <= generation["total_ms"] + 5
    last = await (await live.get("/sllmd/v1/requests/last")).json()
    assert last["request_id"] == "job-7"
    everything = await (await live.get("/sllmd/v1/requests")).json()
    assert "my secret" not in json.dumps(everything)
    assert (await live.get("/sllmd/v1/requests/unknown")).status == 404
