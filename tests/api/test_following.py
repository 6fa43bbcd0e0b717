"""Events as a client follows, leaves and resumes them."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import structlog

from sllmd.telemetry.feed import Place
from tests.api.conftest import Live, serving
from tests.waiting import PATIENCE_SECONDS, eventually


async def remembered(live: Live, query: str = "since=0", **headers: str) -> list[dict]:
    response = await live.get(f"/sllmd/v1/events?follow=false&{query}", headers=headers)
    assert response.status == 200
    blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    assert (blocks[0], blocks[-1]) == ("retry: 1000", "data: [DONE]")
    entries = [json.loads(block.split("data: ", 1)[1]) for block in blocks[1:-1]]
    ids = [f"id: {entry['id']}\n" if entry["id"] else "" for entry in entries]
    assert [block.split("data: ")[0] for block in blocks[1:-1]] == ids
    return entries


async def test_a_replicas_life(live: Live) -> None:
    await live.complete("letters", max_tokens=1)
    assert (await live.post("/sllmd/v1/models/letters/unload")).status == 200
    failed = await live.post("/v1/completions", {"model": "unbuildable", "prompt": "x"})
    assert failed.status == 503
    events = await remembered(live)
    assert "node.started" in [event["kind"] for event in events]
    kinds = [event["kind"] for event in events if event.get("model") == "letters"]
    life = [kind for kind in kinds if kind.startswith("replica.")]  # its deployment comes when it comes
    assert life == ["replica.starting", "replica.serving", "replica.stopped"]
    [failure] = [event for event in events if event["kind"] == "replica.failed"]
    assert "the weights make no sense" in failure["reason"]
    times = [event["time"] for event in events]
    assert times == sorted(times)


async def test_resuming_goes_on_behind_the_last_one_read(live: Live) -> None:
    events = await remembered(live)
    rest = await remembered(live, "", **{"Last-Event-ID": events[0]["id"]})
    assert rest[: len(events) - 1] == events[1:]
    newest = await remembered(live, "newest=1")  # and what happens while they are told
    assert newest
    assert events[-2] not in newest


async def test_another_daemons_place_is_a_gap_and_then_everything(live: Live) -> None:
    gap, *rest = await remembered(live, "", **{"Last-Event-ID": "0badc0de-3"})
    assert (gap["kind"], gap["lost"]) == ("gap", None)
    assert rest == (await remembered(live))[: len(rest)]


async def test_a_follower_whose_key_is_revoked_hears_no_more(serve, tmp_path) -> None:
    async with serve(api={"require_key": True}) as live:
        connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))
        async with aiohttp.ClientSession(connector=connector) as owner:
            keys = "http://sllmd/sllmd/v1/keys"
            made = await (await owner.post(keys, json={"id": "spy", "scopes": ["admin"]})).json()
            headers = {"Authorization": f"Bearer {made['secret']}"}
            response = await live.get("/sllmd/v1/events", headers=headers)
            assert await response.content.readline() == b"retry: 1000\n"
            assert (await owner.delete(f"{keys}/spy")).status == 200
            async with asyncio.timeout(PATIENCE_SECONDS):
                rest = (await response.read()).decode()
            assert "key.revoked" not in rest
            assert '"code":"invalid_api_key"' in rest


async def test_followers_hear_at_once_and_are_let_go_when_the_daemon_stops(data_directory, tmp_path) -> None:
    connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))  # asks for no key once there is one
    async with aiohttp.ClientSession(connector=connector) as client:
        async with serving(data_directory, tmp_path, api={"shutdown_timeout": 50}):
            response = await client.get("http://sllmd/sllmd/v1/events")
            assert (await client.post("http://sllmd/sllmd/v1/keys", json={"id": "team"})).status == 200
            async with asyncio.timeout(PATIENCE_SECONDS):
                while b"key.created" not in (line := await response.content.readline()):
                    assert line
            assert b"sk-sllm" not in line
            began = asyncio.get_running_loop().time()
        # The API waits 50 s for connections that do not end by themselves.
        assert asyncio.get_running_loop().time() - began < 40
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_a_follower_that_hangs_up_is_forgotten(live: Live) -> None:
    feed = live.daemon.operator.following.feed
    response = await live.get("/sllmd/v1/events")
    await response.content.readline()
    await eventually(lambda: feed.readers == 1)
    response.close()
    await eventually(lambda: feed.readers == 0)
    structlog.get_logger().info("nobody listens")
    assert [entry async for entry in feed.read(Place(), follow=False)] == []
