"""The cluster over /sllmd/v1, of a node that is alone in it."""

from __future__ import annotations

import time

import aiohttp
import pytest

from tests.api.conftest import Live
from tests.waiting import eventually

SPEC = {"digest": "d1", "source": "hf:a/b", "aliases": ["short"], "max_replicas": 2}


async def body(response: aiohttp.ClientResponse, status: int = 200) -> dict:
    answer = await response.json()
    assert response.status == status, answer
    return answer if status == 200 else answer["error"]


@pytest.fixture
async def settled(live: Live) -> Live:
    """This node leads, and stands in the catalogue with its address."""
    desk = live.daemon.operator.cluster
    assert desk is not None
    await eventually(lambda: desk.fleet.summary().leads)
    control = desk.fleet.cluster.control
    await eventually(lambda: any(node.address for node in control.view().catalogue.nodes.values()))
    return live


async def test_members(settled: Live) -> None:
    found = await body(await settled.get("/sllmd/v1/members"))
    [me] = found["members"]
    assert (me["name"], me["state"], me["role"], me["leader"], me["is_me"]) == (
        *("test", "alive", "voter"),
        *(True, True),
    )
    assert abs(me["since"] - time.time()) < 120
    assert (found["leader"], found["leader_id"]) == ("test", me["id"])
    assert found["epoch"] > 0
    assert (found["control"]["store"], found["control"]["voters"]) == ("raft", ["test"])
    assert found["control"]["voters_may_fail"] == 0


async def test_the_status_has_the_cluster_at_a_glance(settled: Live) -> None:
    cluster = (await body(await settled.get("/sllmd/v1/status")))["cluster"]
    assert (cluster["leader"], cluster["members"]) == ("test", {"alive": 1})
    assert isinstance(cluster["degraded"], list)
    fleet = settled.daemon.operator.cluster.fleet
    await eventually(lambda: fleet.summary().degraded == (), "it is well, once it is not too busy to be")


async def test_metrics_of_the_cluster(settled: Live) -> None:
    text = await (await settled.get("/metrics")).text()
    for line in ('sllmd_members{status="alive"} 1.0', 'sllmd_members{status="dead"} 0.0', "sllmd_leader 1.0"):
        assert line in text
    assert "sllmd_epoch" in text
    assert "sllmd_control_age_seconds" in text


async def test_nodes(settled: Live) -> None:
    [node] = (await body(await settled.get("/sllmd/v1/nodes?newest=true")))["nodes"]
    assert node["name"] == "test"
    assert (await body(await settled.get("/sllmd/v1/nodes/test"))) == node
    assert (await body(await settled.get(f"/sllmd/v1/nodes/{node['id']}"))) == node
    assert (await body(await settled.get("/sllmd/v1/nodes/nobody"), 404))["code"] == "not_found"


async def test_deployments_are_put_compared_and_deleted(settled: Live) -> None:
    live, url = settled, f"{settled.url}/sllmd/v1/deployments"
    put = await body(await live.client.put(f"{url}/llama", json={**SPEC, "expected": 0}))
    kept = {"keep_alive_seconds": None, "min_replicas": 0, "placement": {}, "target_running": 0}
    kept["revision"] = put["revision"]
    assert put == {"name": "llama", **SPEC, **kept}
    for name in ("llama", "short"):
        assert await body(await live.client.get(f"{url}/{name}?newest=true")) == put
    assert put in (await body(await live.client.get(url)))["deployments"]
    stale = await live.client.put(f"{url}/llama", json={**SPEC, "expected": 0})
    assert (await body(stale, 409))["code"] == "conflict"
    taken = await live.client.put(f"{url}/other", json=SPEC)
    assert "short is a name of llama" in (await body(taken, 409))["message"]
    assert (await body(await live.client.put(f"{url}/x", json={"digest": 1}), 400))["param"] == "digest"
    for wrong in (
        {"digest": ""},
        {"keep_alive_seconds": -5},
        {"min_replicas": 3, "max_replicas": 2},
        {"aliases": ["a"] * 65},
        {"placement": {"zone": "z" * 300}},
    ):
        refused = await live.client.put(f"{url}/x", json={**SPEC, "aliases": [], **wrong})
        assert (await body(refused, 400))["type"] == "invalid_request_error", wrong
    assert (await body(await live.client.delete(f"{url}/llama")))["deleted"]
    assert (await body(await live.client.delete(f"{url}/llama"), 404))["code"] == "not_found"


async def test_keys_are_told_once_and_end_when_they_are_revoked(serve, tmp_path) -> None:
    async with serve(api={"require_key": True}) as live:
        connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))
        async with aiohttp.ClientSession(connector=connector) as socket:
            keys = "http://sllmd/sllmd/v1/keys"
            made = await body(await socket.post(keys, json={"id": "boss", "scopes": ["admin"]}))
            listed = await socket.get(keys)
            assert made["secret"] not in await listed.text()
            assert (await body(listed))["keys"] == [{"id": "boss", "scopes": ["admin"], "source": "cluster"}]
            key = {"Authorization": f"Bearer {made['secret']}"}
            assert (await live.get("/sllmd/v1/status", headers=key)).status == 200
            assert (await live.get("/v1/models", headers=key)).status == 403
            assert (await body(await socket.post(keys, json={"id": "boss"}), 409))["code"] == "conflict"
            assert (await body(await socket.post(keys, json={"scopes": ["all"]}), 400))["code"]
            assert (await body(await socket.delete(f"{keys}/boss")))["revoked"]
            assert (await live.get("/sllmd/v1/status", headers=key)).status == 401
            assert (await body(await socket.delete(f"{keys}/boss"), 404))["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("DELETE", "/sllmd/v1/nodes/test", 409, "sllmd leave"),
        ("DELETE", "/sllmd/v1/nodes/nobody", 404, "sllmd members"),
        ("DELETE", "/sllmd/v1/nodes/nobody?force=maybe", 400, "neither true nor false"),
        ("POST", "/sllmd/v1/leave", 409, "no other node"),
        ("GET", "/sllmd/v1/events?node=nobody", 404, "sllmd members"),
        ("GET", "/sllmd/v1/events?since=yesterday", 400, "10m"),
        ("GET", "/sllmd/v1/logs?level=loud", 400, "warning"),
        ("GET", "/sllmd/v1/logs?newest=-1", 400, "newest"),
    ],
)
async def test_what_cannot_be_says_why_and_what_to_do(
    live: Live, method: str, path: str, status: int, words: str
) -> None:
    response = await live.client.request(method, live.url + path)
    assert words in (await body(response, status))["message"]
    assert (await live.get("/readyz")).status == 200


async def test_what_signs_a_deployments_address_is_kept_and_not_told(settled: Live) -> None:
    live, url = settled, f"{settled.url}/sllmd/v1/deployments/signed"
    source = "https://host/m?X-Amz-Signature=5ecret"
    for told in (source, "https://host/m?X-Amz-Signature=***"):
        put = await live.client.put(url, json={**SPEC, "aliases": [], "source": told})
        assert (await body(put))["source"] == "https://host/m?X-Amz-Signature=***"
        known = live.daemon.node.control.view().catalogue.deployments.get("signed")
        assert known is not None
        assert known.spec.source == source
    assert "5ecret" not in await (await live.client.get(f"{live.url}/sllmd/v1/deployments")).text()
    for stars in ("https://other/m?X-Amz-Signature=***", "https://other/m?***"):
        unknown = await live.client.put(url, json={**SPEC, "source": stars})
        assert "whole address" in str(await body(unknown, 400))
    refused = await live.client.put(url, json={**SPEC, "source": "https://me:hunter2@host/m"})
    error = await body(refused, 400)
    assert error["param"] == "source"
    assert "hunter2" not in error["message"]
