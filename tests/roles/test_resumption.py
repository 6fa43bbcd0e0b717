"""Streams that outlive a connection and a router: resumed anywhere, exactly where they broke off, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.roles.test_cluster import A_ONLY, MakeMember, Member, make_member
from tests.waiting import PATIENCE_SECONDS, eventually

__all__ = ["make_member"]

STEADY = {"token_seconds": 0.01}
ASKED = {"X-Sllmd-Resumable": "1"}


@dataclass
class Heard:
    """What a client has of a stream."""

    path: str = ""
    last_id: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def texts(self, choices: int = 1) -> list[str]:
        said = [""] * choices
        for event in self.events:
            for choice in event.get("choices", ()):
                said[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
        return said

    @property
    def error(self) -> str | None:
        return next((event["error"]["code"] for event in self.events if "error" in event), None)


@asynccontextmanager
async def listening(
    where: Member, heard: Heard, body: dict[str, Any] | None = None, chat: bool = False
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Begin a stream, or go on with one; leaving hangs up."""
    url = where.daemon.operator.listen[0]
    async with aiohttp.ClientSession() as session:
        if body is not None:
            path = "/v1/chat/completions" if chat else "/v1/completions"
            asking = session.post(url + path, json={**body, "stream": True}, headers=ASKED)
        else:
            headers = {"Last-Event-ID": heard.last_id} if heard.last_id else {}
            asking = session.get(url + heard.path, headers=headers)
        async with asking as response:
            assert response.status == 200, await response.text()
            heard.path = response.headers["X-Sllmd-Generation"]
            yield _events(response, heard)
            response.close()


async def _events(response: aiohttp.ClientResponse, heard: Heard) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"id: "):
            heard.last_id = line[4:].decode().strip()
        elif line == b"data: [DONE]\n":
            heard.done = True
        elif line.startswith(b"data: "):
            heard.events.append(json.loads(line[6:]))
            yield heard.events[-1]


async def hear(where: Member, heard: Heard, body: dict[str, Any] | None = None, **options: bool) -> None:
    """To the end."""
    async with listening(where, heard, body, **options) as events:
        async for _ in events:
            pass


def running(*members: Member) -> int:
    return sum(each.running for member in members for each in member.daemon.agent.residences())


COMPLETION = {
    "model": "m",
    "prompt": "hi",
    "max_tokens": 60,
    "seed": 5,
    "stream_options": {"include_usage": True},
}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "seed": 5, "n": 2}


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        (COMPLETION, False),
        pytest.param(CHAT, True, marks=pytest.mark.slow),
        pytest.param({**COMPLETION, "n": 3, "echo": True, "stop": ["zq"]}, False, marks=pytest.mark.slow),
        pytest.param({**COMPLETION, "logprobs": 2}, False, marks=pytest.mark.slow),
    ],
)
async def test_a_stream_goes_on_where_it_broke_off_on_any_node(
    make_member: MakeMember, body: dict[str, Any], chat: bool
) -> None:
    """Hung up again and again, resumed at one node and another while the first router lives."""
    choices = int(body.get("n", 1))
    async with (
        make_member("a", models={"m": STEADY}) as a,
        make_member("b", models={"m": STEADY}, join=a) as b,
    ):
        await b.knows("m")
        await eventually(lambda: b.node.identity.node in a.daemon.plane.table.inventories)
        whole = Heard()
        await hear(a, whole, body, chat=chat)
        assert whole.done
        broken = Heard()
        async with listening(a, broken, body, chat=chat) as events:
            for _ in range(9):
                await anext(events)
        for where, count in ((a, 7), (b, 11), (b, 3), (a, 8)):
            async with listening(where, broken) as events:
                for _ in range(count):
                    await anext(events)
        await hear(b, broken)
        assert broken.done
        assert broken.texts(choices) == whole.texts(choices)
        if choices == 1:  # the events of several may come in another order
            assert _without_names(broken.events) == _without_names(whole.events)
        assert len(broken.events) == len(whole.events)
        await eventually(lambda: not running(a, b))


def _without_names(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{key: value for key, value in event.items() if key not in ("id", "created")} for event in events]
    for event in kept:
        if event.get("usage"):
            event["usage"] = {**event["usage"], "prompt_tokens_details": None}
    return kept


@pytest.mark.slow
async def test_a_dead_router_costs_a_reconnect_only(make_member: MakeMember) -> None:
    body = {**COMPLETION, "max_tokens": 120}
    async with make_member("b", models={"m": STEADY}) as b, make_member("c", join=b) as c:
        whole, broken = Heard(), Heard()
        async with make_member("a", join=b) as a:
            await a.knows("m")
            await c.knows("m")
            await hear(a, whole, body)
            async with listening(a, broken, body) as events:
                for _ in range(20):
                    await anext(events)
                stream_id = broken.path.rpartition("/")[2]
                shelves = [member.daemon.plane.resumption.mirror.shelf for member in (b, c)]
                [copy] = [copy for shelf in shelves if (copy := shelf.find(stream_id)) is not None]
                assert copy.counts[0] >= 20, "the keeper has what the client has"
                await a.daemon.operator.resumption.close()
        await eventually(lambda: not running(b))
        await hear(c, broken)
        assert (broken.done, broken.texts()) == (True, whole.texts())
        mirror = c.daemon.operator.status().mirror
        assert (mirror.resumed, mirror.refused) == (1, 0)
        assert b'sllmd_mirror_total{outcome="resumed"} 1.0' in c.daemon.metrics.exposition()


async def test_who_lost_the_stream_is_shut_out_by_its_keeper(make_member: MakeMember) -> None:
    """A router that cannot be asked, and lives: it hears from the keeper that the stream is not its own."""
    body = {**COMPLETION, "max_tokens": 500}
    async with (
        make_member("b", models={"m": STEADY}) as b,
        make_member("c", join=b) as c,
        make_member("a", join=b) as a,
    ):
        await a.knows("m")
        await c.knows("m")
        await eventually(lambda: len(a.daemon.plane.resumption.mirror.others) == 2)
        first, second = Heard(), Heard()
        async with listening(a, first, body) as events:
            for _ in range(5):
                await anext(events)
            resumption = a.daemon.plane.resumption
            stream_id = first.path.rpartition("/")[2]
            hidden = resumption._living.pop(stream_id)
            assert hidden is not None
            second.path, second.last_id = first.path, first.last_id
            async with listening(c, second) as others:
                await anext(others)
                async for _ in events:
                    pass
                assert first.error == "resumed_elsewhere"
                await eventually(lambda: running(b) == 1)
                await anext(others)


async def test_what_cannot_be_joined_is_an_error_and_what_is_unknown_too(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": {"token_ids": A_ONLY}}) as a:
        heard = Heard()
        await hear(a, heard, {**COMPLETION, "max_tokens": 5})
        at = heard.last_id
        for wrong in ("5f~00000000", "9~12345678"):
            again = Heard(heard.path, wrong)
            await hear(a, again)
            assert again.error == "resume_gap"
        again = Heard(heard.path, at)
        await hear(a, again)
        assert [event["choices"] for event in again.events] == [[]], "only the usage was left"
        url = a.daemon.operator.listen[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(url + heard.path + "0") as response:
                assert response.status == 404
            async with session.get(url + heard.path, headers={"Last-Event-ID": "what.ever"}) as response:
                assert response.status == 400


@pytest.mark.slow
async def test_nobody_coming_back_ends_it(make_member: MakeMember) -> None:
    mirror = {"grace": 3.0, "kept": 0.05}
    async with make_member("a", models={"m": STEADY}, mirror=mirror) as a:
        heard = Heard()
        async with listening(a, heard, {**COMPLETION, "max_tokens": 1000}) as events:
            await anext(events)
        assert running(a) == 1
        await eventually(lambda: not running(a))
        await hear(a, Heard(), {**COMPLETION, "max_tokens": 2})
        await eventually(lambda: not a.daemon.plane.resumption._living)


async def test_no_stream_waits_for_a_keeper_that_hangs(make_member: MakeMember) -> None:
    async with (
        make_member("a", models={"m": STEADY}) as a,
        make_member("b", join=a) as b,
    ):
        await eventually(lambda: a.daemon.plane.resumption.mirror.others)
        never = asyncio.Event()

        async def hang(*_: Any) -> None:
            await never.wait()

        b.node.methods.unary("mirror.put", hang)
        heard = Heard()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await hear(a, heard, COMPLETION)
        assert heard.done
        assert a.daemon.plane.resumption.mirror.counts["late"] > 10
        never.set()
