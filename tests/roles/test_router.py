"""A generation's life, from prompt ids to text and an account of its time."""

from __future__ import annotations

import asyncio

import pytest

from sllmd.core.errors import ModelNotFound
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import FinishReason, Sampling
from sllmd.roles.generation import Delta
from tests.roles.conftest import MakeNode, Node, request, until

SLOW = FakeSettings(token_seconds=0.05)


async def collect(node: Node, **changes: object) -> list[Delta]:
    async with node.router.generate(request(**changes)) as generation:  # type: ignore[arg-type]
        return [delta async for delta in generation]


async def test_deltas_end_with_a_reason_and_count_every_token(make_node: MakeNode) -> None:
    async with make_node() as node:
        deltas = await collect(node, max_tokens=6)
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert sum(delta.token_count for delta in deltas) == 6


async def test_a_stop_string_ends_it_and_is_not_in_the_text(make_node: MakeNode) -> None:
    async with make_node() as node:
        text = "".join(delta.text for delta in await collect(node, max_tokens=40))
        stop = text[5:8]
        stopped = await collect(node, max_tokens=40, stop=(stop,))
        assert "".join(delta.text for delta in stopped) == text[: text.index(stop)]
        assert stopped[-1].finish_reason is FinishReason.STOP


async def test_timing_tells_cold_from_warm(make_node: MakeNode) -> None:
    async with make_node() as node:
        for cold in (True, False):
            async with node.router.generate(request()) as generation:
                async for _ in generation:
                    pass
            assert generation.timing.cold is cold
            assert (generation.timing.load_ms > 0) is cold
            assert generation.timing.tier == ("ssd" if cold else "device")
            assert generation.timing.queue_ms >= 0
        recent = node.router.requests()
        assert [status.cold for status in recent] == [False, True]
        assert {status.state for status in recent} == {"finished"}
        assert set(recent[1].stages_ms) == {"ssd→dram", "attach"}


async def test_an_unknown_model_fails_while_iterating_and_is_remembered(make_node: MakeNode) -> None:
    async with make_node() as node:
        with pytest.raises(ModelNotFound):
            await collect(node, model="nope")
        assert node.router.requests()[0].state == "failed"


async def test_leaving_early_cancels_the_row(make_node: MakeNode) -> None:
    async with make_node(fake=SLOW) as node:
        async with node.router.generate(request(max_tokens=1000)) as generation:
            async for _ in generation:
                break
        (residence,) = node.agent.residences()
        assert residence.running == 0
        assert residence.replica is not None
        assert (await residence.replica.stats()).running == 0
        assert node.router.requests()[0].state == "cancelled"


async def test_cancel_by_request_id(make_node: MakeNode) -> None:
    async with make_node(fake=SLOW) as node:
        running = asyncio.create_task(collect(node, max_tokens=1000))
        await until(node.router.requests)
        assert node.router.cancel("req-1") == 1
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_logprobs_come_as_text_and_bytes(make_node: MakeNode) -> None:
    async with make_node() as node:
        sampling = Sampling(seed=1, max_tokens=3, temperature=0.0, logprobs=2, prompt_logprobs=2)
        async with node.router.generate(request(sampling=sampling)) as generation:
            tokens = [token async for delta in generation for token in delta.tokens]
        assert len(tokens) == 3
        assert all(token.raw and len(token.top) == 2 for token in tokens)
        assert generation.prompt_logprobs is not None
        assert generation.prompt_logprobs[0] is None
        assert len(generation.prompt_logprobs) == 3
