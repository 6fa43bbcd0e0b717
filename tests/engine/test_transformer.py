"""The engine says what transformers' generate says: alone, batched, chunked, resumed, moved, reused."""

from __future__ import annotations

import math
import mmap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sllmd.core.errors import UnsupportedCheckpoint
from sllmd.engine.fused import FusedRunner
from sllmd.engine.protocol import (
    FailedEvent,
    FinishedEvent,
    FinishReason,
    PrefilledEvent,
    TokenEvent,
)
from sllmd.engine.sizing import layer_width
from tests.engine.driving import diverged, drain, outputs, prompts, reference, runner_up_gap, state
from tests.engine.models import ARCHITECTURES, VOCABULARY, InMemory, checkpoint, random_model

LENGTHS = (5, 21, 13, 1, 34)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def any_model(request: pytest.FixtureRequest) -> InMemory:
    return checkpoint(random_model(request.param))


@pytest.fixture(scope="module")
def llama() -> InMemory:
    return checkpoint(random_model("LlamaForCausalLM"))


@pytest.fixture(scope="module")
def expected(any_model: InMemory) -> dict[str, list[int]]:
    return {
        str(i): reference(any_model.model, prompt) for i, prompt in enumerate(prompts(LENGTHS, VOCABULARY))
    }


def test_alone_and_in_chunks(any_model: InMemory, expected: dict[str, list[int]]) -> None:
    engine = any_model.engine(prefill_chunk_tokens=8, fast_path=False)
    for number, prompt in enumerate(prompts(LENGTHS, VOCABULARY)):
        engine.add(state(str(number), prompt))
        assert outputs(drain(engine)) == {str(number): expected[str(number)]}


def test_batched(any_model: InMemory, expected: dict[str, list[int]]) -> None:
    engine = any_model.engine()
    for number, prompt in enumerate(prompts(LENGTHS, VOCABULARY)):
        engine.add(state(str(number), prompt))
    assert outputs(drain(engine)) == expected


def test_batched_after_the_fast_forward_took_over(
    any_model: InMemory, expected: dict[str, list[int]]
) -> None:
    engine = any_model.engine(prefill_chunk_tokens=24)
    engine.add(state("first", prompts((9,), VOCABULARY, seed=4)[0]))
    drain(engine)
    while engine._upgrade._pieces is not None:
        engine.step()
    for number, prompt in enumerate(prompts(LENGTHS, VOCABULARY)):
        engine.add(state(str(number), prompt))
    assert outputs(drain(engine)) == expected


def test_moved_to_another_engine_in_the_middle(any_model: InMemory, expected: dict[str, list[int]]) -> None:
    source, target = any_model.engine(), any_model.engine()
    for number, prompt in enumerate(prompts(LENGTHS, VOCABULARY)):
        source.add(state(str(number), prompt))
    before = outputs([event for _ in range(6) for event in source.step()])
    for number in before:
        moved = source.export(number, stop=True)
        assert moved is not None
        assert moved.output_ids == before[number]
        target.add(moved)
    assert not source.stats().running
    after = outputs(drain(target))
    assert {number: before[number] + after[number] for number in before} == expected


def test_a_prefix_is_reused(any_model: InMemory) -> None:
    (shared, one, other) = prompts((24, 5, 9), VOCABULARY)
    engine = any_model.engine()
    engine.add(state("first", shared + one))
    first = outputs(drain(engine))["first"]
    assert first == reference(any_model.model, shared + one)
    engine.add(state("second", shared + other))
    engine.add(state("third", shared + one + first[:4]))
    events = drain(engine)
    assert outputs(events)["second"] == reference(any_model.model, shared + other)
    assert outputs(events)["third"] == reference(any_model.model, shared + one + first[:4])
    reused = {e.generation_id: e.reused_tokens for e in events if isinstance(e, PrefilledEvent)}
    assert reused == {"second": 24, "third": 32}


def test_choices_of_one_prompt_compute_it_once(llama: InMemory) -> None:
    (prompt,) = prompts((40,), VOCABULARY)
    engine = llama.engine()
    for number in range(4):
        engine.add(state(str(number), prompt, temperature=1.0, seed=number))
    events = engine.step()
    reused = [event.reused_tokens for event in events if isinstance(event, PrefilledEvent)]
    assert reused == [0, 39, 39, 39]
    assert engine.stats().prefill_tokens == 43


def test_short_prompts_go_in_together(llama: InMemory) -> None:
    asked = prompts((7, 1, 8, 5), VOCABULARY)
    engine = llama.engine(prefill_chunk_tokens=18)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt))
    first = engine.step()
    assert set(outputs(first)) == {"0", "1", "2"}
    assert engine.stats().prefill_tokens == 18
    assert outputs(first + drain(engine)) == {str(i): reference(llama.model, p) for i, p in enumerate(asked)}


def test_rows_that_leave_at_once_do_not_disturb_their_neighbours(llama: InMemory) -> None:
    asked = prompts((7, 6, 8, 5, 9), VOCABULARY)
    engine = llama.engine()
    engine.add(state("0", asked[0], max_tokens=0))
    engine.add(state("1", asked[1], max_tokens=1))
    engine.prefill(state("2", asked[2]))
    engine.add(state("3", asked[3]))
    engine.add(state("4", asked[4]))
    found = outputs(drain(engine))
    assert {name: len(tokens) for name, tokens in found.items()} == {"1": 1, "3": 12, "4": 12}
    assert found["3"] == reference(llama.model, asked[3])
    assert found["4"] == reference(llama.model, asked[4])


def test_partitions_give_identical_logits(any_model: InMemory) -> None:
    prompt = torch.tensor(prompts((9,), VOCABULARY))
    logits = []
    for count in (1, 2):
        engine = checkpoint(any_model.model, partition_count=count).engine()
        with torch.inference_mode():
            logits.append(engine._upgrade.runner.forward(0, prompt, [0]))
    assert torch.equal(*logits)


def test_a_full_cache_preempts_and_comes_back(llama: InMemory) -> None:
    asked = prompts((20, 20, 20), VOCABULARY)
    engine = llama.engine(cache_tokens=100)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, max_tokens=40))
    most = 0
    events = []
    while engine.has_work():
        events += engine.step()
        most = max(most, engine.stats().cache_tokens_used)
    assert outputs(events) == {str(i): reference(llama.model, p, 40) for i, p in enumerate(asked)}
    assert most <= 100 + 2
    assert sum(isinstance(event, PrefilledEvent) for event in events) == 3


def test_rows_beyond_the_batch_wait(llama: InMemory) -> None:
    asked = prompts((7,) * 6, VOCABULARY)
    engine = llama.engine(batch_max=2)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, max_tokens=3 + number))
    first = engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 4)
    found = outputs(first + drain(engine))
    for number, prompt in enumerate(asked):
        assert found[str(number)] == reference(llama.model, prompt, 3 + number)


def test_cancel_silences_one_row_only(llama: InMemory) -> None:
    one, other = prompts((6, 11), VOCABULARY)
    engine = llama.engine()
    engine.add(state("one", one))
    engine.add(state("other", other))
    before = engine.step() + engine.step()
    engine.cancel("one")
    engine.cancel("unknown")
    after = drain(engine)
    assert not any(event.generation_id == "one" for event in after)
    assert outputs(before + after)["other"] == reference(llama.model, other)


def test_export_without_stopping_is_a_snapshot(llama: InMemory) -> None:
    (prompt,) = prompts((6,), VOCABULARY)
    engine = llama.engine()
    engine.add(state("one", prompt))
    engine.step()
    snapshot = engine.export("one", stop=False)
    rest = outputs(drain(engine))["one"]
    assert snapshot is not None
    assert snapshot.output_ids + rest == reference(llama.model, prompt)
    assert engine.export("one", stop=False) is None


def test_prefill_warms_the_cache_for_a_later_add(llama: InMemory) -> None:
    (prompt,) = prompts((40,), VOCABULARY)
    engine = llama.engine()
    arriving = state("moving", prompt, output=reference(llama.model, prompt)[:4])
    engine.prefill(arriving)
    assert [type(event) for event in drain(engine)] == [PrefilledEvent]
    assert engine.stats().running == 0
    engine.add(arriving)
    events = drain(engine)
    (prefilled,) = [event for event in events if isinstance(event, PrefilledEvent)]
    assert prefilled.reused_tokens == 40
    assert outputs(events)["moving"] == reference(llama.model, prompt)[4:]


def test_the_state_given_is_not_touched(llama: InMemory) -> None:
    given = state("one", prompts((6,), VOCABULARY)[0])
    engine = llama.engine()
    engine.add(given)
    drain(engine)
    assert given.output_ids == []


def test_a_stop_id_ends_a_generation_and_is_told(llama: InMemory) -> None:
    (prompt,) = prompts((6,), VOCABULARY)
    plain = reference(llama.model, prompt)
    stop = plain[5]
    engine = llama.engine()
    engine.add(state("stops", prompt, stop_token_ids=(stop,)))
    engine.add(state("ignores", prompt))
    events = [event for event in drain(engine) if isinstance(event, TokenEvent)]
    last = {event.generation_id: event for event in events}
    first_place = plain.index(stop)
    assert (last["stops"].index, last["stops"].finish_reason) == (first_place, FinishReason.STOP)
    assert (last["ignores"].index, last["ignores"].finish_reason) == (11, FinishReason.LENGTH)


def test_the_context_ends_a_generation(llama: InMemory) -> None:
    (prompt,) = prompts((30,), VOCABULARY)
    engine = llama.engine(context_tokens_max=36)
    engine.add(state("one", prompt, max_tokens=100))
    events = [event for event in drain(engine) if isinstance(event, TokenEvent)]
    assert len(events) == 6
    assert events[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([5, VOCABULARY], "token ids must be between 0 and 127"),
        ([5, -1], "token ids must be between 0 and 127"),
        ([5] * 256, "257 tokens|256 tokens do not fit into a context of 256"),
    ],
)
def test_what_cannot_run_fails_alone(llama: InMemory, prompt: list[int], message: str) -> None:
    (good,) = prompts((6,), VOCABULARY)
    engine = llama.engine()
    engine.add(state("bad", prompt))
    engine.add(state("good", good))
    events = drain(engine)
    (failed,) = [event for event in events if isinstance(event, FailedEvent)]
    assert failed.generation_id == "bad"
    assert any(part in failed.message for part in message.split("|"))
    good_events = [event for event in events if event is not failed]
    assert outputs(good_events)["good"] == reference(llama.model, good)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_a_bias_on_no_token_fails_alone(llama: InMemory, token: int) -> None:
    engine = llama.engine()
    engine.add(state("bad", [5, 6], logit_bias=((token, 1.0),)))
    (failed,) = drain(engine)
    assert isinstance(failed, FailedEvent)
    assert "logit_bias" in failed.message


def test_cancelling_what_failed_silences_it(llama: InMemory) -> None:
    engine = llama.engine()
    engine.add(state("bad", []))
    engine.cancel("bad")
    assert drain(engine) == []


def test_prompt_logprobs_without_output(llama: InMemory) -> None:
    (prompt,) = prompts((19,), VOCABULARY)
    engine = llama.engine(prefill_chunk_tokens=8)
    engine.add(state("scored", prompt, max_tokens=0, prompt_logprobs=2))
    prefilled, finished = drain(engine)[:2]
    assert isinstance(prefilled, PrefilledEvent)
    assert finished == FinishedEvent("scored", FinishReason.LENGTH)
    with torch.no_grad():
        expected = llama.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert prefilled.prompt_logprobs is not None
    assert prefilled.prompt_logprobs[0] is None
    for position, given in enumerate(prefilled.prompt_logprobs[1:]):
        assert given is not None
        assert given.token_id == prompt[position + 1]
        assert given.logprob == pytest.approx(float(expected[position, given.token_id]), abs=1e-4)
        values, ids = expected[position].topk(2)
        assert [token for token, _ in given.top] == ids.tolist()
        assert [value for _, value in given.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert len(prefilled.prompt_logprobs) == len(prompt)


def test_logprobs_are_the_models(llama: InMemory) -> None:
    (prompt,) = prompts((9,), VOCABULARY)
    engine = llama.engine()
    engine.add(state("one", prompt, max_tokens=3, logprobs=1, temperature=0.0))
    events = [event for event in drain(engine) if isinstance(event, TokenEvent)]
    tokens = prompt + [event.token_id for event in events]
    with torch.no_grad():
        expected = llama.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    for number, event in enumerate(events):
        assert event.logprob is not None
        assert event.logprob.logprob == pytest.approx(
            float(expected[len(prompt) - 1 + number, event.token_id]), abs=1e-4
        )
        assert event.logprob.top[0][0] == event.token_id


def _sampled(engine: Any, prompt: list[int], name: str, **rules: Any) -> list[int]:
    engine.add(state(name, prompt, temperature=1.0, **rules))
    return outputs(drain(engine))[name]


def test_sampling_does_not_depend_on_company_or_place(llama: InMemory) -> None:
    one, other = prompts((9, 14), VOCABULARY)
    rules = {"seed": 77, "top_p": 0.9, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    alone = _sampled(llama.engine(), one, "one", **rules)
    engine = llama.engine()
    engine.add(state("other", other, temperature=0.7))
    assert _sampled(engine, one, "one", **rules)[: len(alone)] == alone
    moved = state("one", one, output=alone[:5], temperature=1.0, **rules)
    target = llama.engine()
    target.add(moved)
    assert outputs(drain(target))["one"] == alone[5:]
    assert _sampled(llama.engine(), one, "two", **{**rules, "seed": 78}) != alone


def test_drawn_texts_go_on_when_they_are_moved() -> None:
    """From a flat distribution, where a draw by cumulated probability has a border at every turn."""
    flat = checkpoint(random_model("LlamaForCausalLM", vocab_size=4096))
    engine = flat.engine()
    given = [
        state(str(i), prompt, 64, seed=i, temperature=0.8)
        for i, prompt in enumerate(prompts(range(1, 25), 4096))
    ]
    parted = diverged(engine, engine._slots._prefixes._retained.clear, given, moved_at=24)
    assert len(parted) <= 1
    assert all(runner_up_gap(flat.model, one) < 1e-3 for one in parted)


def test_a_vocabulary_beyond_the_noise_is_refused(llama: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sllmd.engine.transformer.VOCABULARY_MAX", VOCABULARY - 1)
    with pytest.raises(UnsupportedCheckpoint, match=f"{VOCABULARY} tokens"):
        llama.engine()


def test_another_type_is_converted(llama: InMemory) -> None:
    (prompt,) = prompts((9,), VOCABULARY)
    half = checkpoint(random_model("LlamaForCausalLM", torch.bfloat16))
    engine = half.engine(dtype="float32")
    engine.add(state("one", prompt))
    assert outputs(drain(engine))["one"] == reference(half.model.float(), prompt)


def test_the_fast_forward_takes_over_in_the_middle() -> None:
    model = checkpoint(random_model("LlamaForCausalLM"))
    asked = prompts((9, 30), VOCABULARY)
    engine = model.engine()
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, max_tokens=60))
    runners, events = [], []
    while engine.has_work():
        events += engine.step()
        runners.append(engine.stats().runner)
    assert runners[0] == "transformers"
    assert "fused" in runners
    assert outputs(events) == {str(i): reference(model.model, p, 60) for i, p in enumerate(asked)}


def test_threads_and_options_are_told(llama: InMemory) -> None:
    engine = llama.engine(cache_tokens=1000)
    stats = engine.stats()
    assert (stats.threads, stats.cache_tokens_total, stats.runner) == (1, 1000, "transformers")


def test_the_prepacked_forward_takes_over_with_rows_running() -> None:
    model = checkpoint(random_model("LlamaForCausalLM"))
    asked = prompts((9, 30), VOCABULARY)
    engine = model.engine()
    packed = threading.Event()
    engine.on_work(packed.set)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, max_tokens=60))
    runners, events = [], []
    while engine.has_work():
        events += engine.step()
        runners.append(engine.stats().runner)
        if runners[-1] == "fused":
            assert packed.wait(60)
    assert runners[-2:] == ["prepacked"] * 2
    assert outputs(events) == {str(i): reference(model.model, p, 60) for i, p in enumerate(asked)}


def test_an_idle_engine_is_woken_to_go_on_with_its_upgrade(
    llama: InMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = FusedRunner.pack
    idle, packed = threading.Event(), threading.Event()

    def pack_later(runner: FusedRunner) -> None:
        assert idle.wait(60)
        pack(runner)

    monkeypatch.setattr(FusedRunner, "pack", pack_later)
    engine = llama.engine()
    engine.on_work(packed.set)
    engine.add(state("one", [5, 6], max_tokens=1))
    drain(engine)
    assert engine.stats().runner == "fused"
    idle.set()
    assert packed.wait(60)
    assert engine.has_work()
    drain(engine)
    assert engine.stats().runner == "prepacked"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_long_row_commits_memory_for_its_own_tokens_only() -> None:
    model = checkpoint(random_model("LlamaForCausalLM", max_position_embeddings=16_384))
    engine = model.engine(batch_max=64, fast_path=False)
    engine.add(state("short", prompts((40,), VOCABULARY)[0], max_tokens=1))
    drain(engine)
    before = _resident_bytes()
    engine.add(state("long", prompts((2100,), VOCABULARY)[0], max_tokens=1))
    for _ in range(3):
        engine.step()
    engine._slots._cache.reserve(1, 2100)
    slots_bytes = 3 * 2 * 2 * 16 * 4 * 2048 * 65
    assert _resident_bytes() - before < slots_bytes / 4


def test_a_layer_caches_as_much_per_token_as_the_budget_counts(any_model: InMemory) -> None:
    engine = any_model.engine(fast_path=False)
    engine.add(state("one", [5, 6, 7], max_tokens=1))
    drain(engine)
    config = engine._upgrade._model.config.get_text_config()
    kept = engine._slots._cache.read_row(0, 1)
    assert sum(store.numel() for store in kept) == config.num_hidden_layers * layer_width(config)


def test_longrope_ends_where_its_frequencies_change() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
    model = checkpoint(random_model("LlamaForCausalLM", rope_parameters=rope))
    engine = model.engine()
    assert engine.stats().context_tokens == 64
    engine.add(state("long", prompts((64,), VOCABULARY)[0]))
    (failed,) = drain(engine)
    assert isinstance(failed, FailedEvent)
    assert failed.kind == "context"


def test_memory_bounds_the_context_and_says_so(llama: InMemory) -> None:
    assert llama.engine(cache_tokens=100).stats().context_tokens == 100
    assert llama.engine().stats().context_tokens == 256


def test_a_preempted_row_finds_its_cache_again(llama: InMemory) -> None:
    asked, most = prompts((100, 60, 20), VOCABULARY), (22, 40, 40)
    engine = llama.engine(cache_tokens=240, fast_path=False)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, max_tokens=most[number]))
    events = drain(engine)
    assert outputs(events) == {
        str(i): reference(llama.model, prompt, most[i]) for i, prompt in enumerate(asked)
    }
    assert engine.stats().prefill_tokens == 180 + 1, (
        "the youngest left, came back, and computed one token anew"
    )


@pytest.mark.parametrize("rules", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}])
def test_a_row_without_numbers_fails_alone_and_leaves_nothing_behind(rules: dict[str, Any]) -> None:
    model = checkpoint(random_model("LlamaForCausalLM"))
    good, bad = prompts((20, 19), VOCABULARY)
    bad = [token for token in bad if token != 9] + [9] + good
    good = [token if token != 9 else 10 for token in good]
    expected = reference(model.model, good)
    engine = model.engine(prefill_chunk_tokens=100, fast_path=False)
    with torch.inference_mode():
        engine._upgrade._model.get_input_embeddings().weight[9] = math.nan
    engine.add(state("bad", bad, **rules))
    events = drain(engine)
    (failed,) = [event for event in events if isinstance(event, FailedEvent)]
    assert (failed.generation_id, failed.kind, len(events)) == ("bad", "internal", 1)
    engine.add(state("good", good, logit_bias=((9, -100.0),)))
    assert outputs(drain(engine))["good"] == expected
    assert not any(store.isnan().any() for layer in engine._slots._cache.layers for store in layer.stores)


def test_a_row_that_runs_into_no_numbers_fails(llama: InMemory) -> None:
    engine = llama.engine(fast_path=False)
    (prompt,) = prompts((20,), VOCABULARY)
    engine.add(state("one", prompt, max_tokens=50))
    assert isinstance(engine.step()[-1], TokenEvent)
    with torch.inference_mode():
        engine._slots._cache.layers[0].keys[0, :, 3] = math.nan
    (failed,) = engine.step()
    assert isinstance(failed, FailedEvent)
    assert drain(engine) == []
