"""A generation's life, from prompt ids to text and an account of its time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sllmd.core.errors import ChecksumMismatch, ContextLengthExceeded, ModelNotFound, ModelReplaced
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import FinishReason, Sampling
from sllmd.roles.generation import Delta
from tests.roles.conftest import MakeNode, Node, request

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


async def test_what_does_not_fit_the_engine_is_the_callers_error(make_node: MakeNode) -> None:
    async with make_node() as node:
        await collect(node)
        (residence,) = node.agent.residences()
        assert residence.replica is not None
        tokens = residence.replica.context_tokens
        assert tokens > 0
        with pytest.raises(ContextLengthExceeded):
            await collect(node, prompt_ids=(5,) * (tokens + 1))
        residence.replica.context_tokens = 7
        assert node.agent.context_tokens(residence.checkpoint, 2048) == 7


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


async def test_a_model_imported_anew_meanwhile_is_not_fed_old_ids(make_node: MakeNode) -> None:
    async with make_node() as node:
        with pytest.raises(ModelReplaced):
            await collect(node, digest="0" * 32)
        digest = node.store.resolve("a").manifest.digest
        assert (await collect(node, digest=digest))[-1].finish_reason is FinishReason.LENGTH


async def test_one_bad_model_hides_no_other(make_node: MakeNode, store_root: Path, tmp_path: Path) -> None:
    shutil.copytree(store_root, tmp_path / "store")
    async with make_node(root=tmp_path / "store") as node:
        bad = node.store.resolve("b")
        node.store.quarantine(bad, bad.manifest.partitions[0].files[0].path, 0)
        cards = {card.name: card for card in node.router.models()}
        assert set(cards) == {"a", "b", "c"}
        assert cards["a"].problem is None
        assert cards["b"].problem is not None
        assert node.operator.status().models == 3
        assert (await collect(node, model="a"))[-1].finish_reason is FinishReason.LENGTH
        with pytest.raises(ChecksumMismatch):
            node.router.model("b")
