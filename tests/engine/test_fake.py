import asyncio

import pytest

from sllmd.core.errors import InvalidRequest, ModelLoadFailed, WorkerLost
from sllmd.core.ids import GenerationId, ReplicaId
from sllmd.engine.fake import FakeEngine, FakeSettings
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    TokenEvent,
)
from sllmd.engine.replica import LocalReplica
from tests.engine.fakes import manifest, state, tokens

OPTIONS = EngineOptions(threads=1, batch_max=4, prefill_chunk_tokens=8)


def run(engine: FakeEngine, steps_max: int = 1000) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    for _ in range(steps_max):
        if not engine.has_work():
            return events
        events += engine.step()
    raise AssertionError("the engine never ends")


def engine(**fake: object) -> FakeEngine:
    return FakeEngine.build(manifest(**fake), OPTIONS, FakeSettings())


def output_of(given: GenerationState, **fake: object) -> list[int]:
    one = engine(**fake)
    one.add(given)
    return tokens(run(one), given.generation_id)


def test_tokens_depend_on_prompt_seed_and_position_only() -> None:
    alone = output_of(state(max_tokens=20))
    assert alone == output_of(state("other", max_tokens=20))
    assert alone != output_of(state(max_tokens=20, seed=9))
    assert alone != output_of(state(prompt=[3, 2, 1], max_tokens=20))
    assert len(set(alone)) > 10, "positions must be told apart"
    assert all(0 <= token_id < 100 for token_id in alone)


def test_resumed_generation_goes_on_where_it_was() -> None:
    whole = output_of(state(max_tokens=12))
    resumed = engine()
    resumed.add(state(max_tokens=12, output=whole[:7]))
    events = run(resumed)
    assert tokens(events) == whole[7:]
    assert [e.index for e in events if isinstance(e, TokenEvent)] == list(range(7, 12))


def test_batched_equals_alone() -> None:
    prompts = {f"g{i}": [i, i + 1, i + 2] for i in range(9)}
    batched = engine()
    for name, prompt in prompts.items():
        batched.add(state(name, prompt))
    events = run(batched)
    for name, prompt in prompts.items():
        assert tokens(events, name) == output_of(state(name, prompt))


def test_batch_never_exceeds_its_maximum() -> None:
    full = engine()
    for i in range(10):
        full.add(state(f"g{i}", max_tokens=50))
    for _ in range(20):
        full.step()
    assert (full.stats().running, full.stats().waiting) == (4, 6)


@pytest.mark.parametrize(
    ("sampling", "fake", "reason", "count"),
    [
        ({"max_tokens": 3}, {}, FinishReason.LENGTH, 3),
        ({"max_tokens": 9, "stop_token_ids": (7,)}, {"stop_after_tokens": 4}, FinishReason.STOP, 5),
        ({"max_tokens": 9}, {"stop_after_tokens": 4}, FinishReason.LENGTH, 9),
    ],
)
def test_how_generations_end(sampling: dict, fake: dict, reason: FinishReason, count: int) -> None:
    one = engine(**fake)
    one.add(state(**sampling))
    made = [e for e in run(one) if isinstance(e, TokenEvent)]
    assert len(made) == count
    assert [e.finish_reason for e in made] == [None] * (count - 1) + [reason]


def test_stop_ids_are_not_drawn_by_chance() -> None:
    drawn = output_of(state(max_tokens=300, stop_token_ids=tuple(range(90))))
    assert len(drawn) == 300
    assert min(drawn) >= 90


def test_nothing_to_generate_is_prefill_and_end() -> None:
    one = engine()
    one.add(state(max_tokens=0, prompt_logprobs=2))
    prefilled, finished = run(one)
    assert isinstance(prefilled, PrefilledEvent)
    assert prefilled.prompt_logprobs is not None
    assert prefilled.prompt_logprobs[0] is None
    assert len(prefilled.prompt_logprobs) == 3
    assert finished == FinishedEvent(GenerationId("g"), FinishReason.LENGTH)


def test_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    busy = engine(prefill_token_seconds=0.5, token_seconds=0.25)
    busy.add(state("short", max_tokens=50))
    busy.step()
    busy.add(state("long", list(range(20)), max_tokens=1))
    seconds: list[float] = []
    events: list[EngineEvent] = []
    while not any(e.generation_id == "long" for e in events):
        events = busy.step()
        assert tokens(events, "short"), "decoding never waits for a prompt"
        seconds.append(busy.step_seconds)
    assert seconds == [0.25 + 8 * 0.5, 0.25 + 8 * 0.5, 0.25 + 4 * 0.5]
    long = next(e for e in events if isinstance(e, PrefilledEvent))
    assert (long.prompt_tokens, long.reused_tokens, long.seconds) == (20, 0, 10.0)


def test_prefill_warms_the_cache() -> None:
    one = engine()
    prompt = list(range(40))
    one.prefill(state("warm", prompt))
    assert [type(e) for e in run(one)] == [PrefilledEvent]
    one.add(state("g", [*prompt, 99]))
    assert next(e for e in run(one) if isinstance(e, PrefilledEvent)).reused_tokens == 40


@pytest.mark.parametrize(
    ("given", "said", "kind"),
    [
        (GenerationState(GenerationId("g"), [], state().sampling), "the prompt is empty", "request"),
        (state(prompt=[1, 100]), "token ids must be between 0 and 99", "request"),
        (state(output=[-1]), "token ids must be between 0 and 99", "request"),
        (state(prompt=[1] * 20), "20 tokens do not fit into a context of 20", "context"),
    ],
)
def test_what_cannot_run_fails_and_the_others_go_on(given: GenerationState, said: str, kind: str) -> None:
    one = FakeEngine.build(
        manifest(), EngineOptions(threads=1, batch_max=4, context_tokens_max=20), FakeSettings()
    )
    one.add(given)
    one.add(state("fine"))
    events = run(one)
    assert [e for e in events if e.generation_id == "g"] == [FailedEvent(GenerationId("g"), said, kind)]
    assert len(tokens(events, "fine")) == 5


def test_a_generation_ends_with_the_context() -> None:
    given = manifest()
    one = FakeEngine.build(
        given.model_copy(update={"config": {**given.config, "max_position_embeddings": 10}}),
        OPTIONS,
        FakeSettings(),
    )
    one.add(state(max_tokens=50))
    events = run(one)
    assert len(tokens(events)) == 7
    assert isinstance(events[-1], TokenEvent)
    assert events[-1].finish_reason is FinishReason.LENGTH
    assert one.stats().context_tokens == 10


def test_cancel_and_export_leave_a_prefill_of_the_same_id_alone() -> None:
    one = engine()
    one.prefill(state(prompt=list(range(20)), output=[7]))
    assert one.export(GenerationId("g"), stop=True) is None
    one.cancel(GenerationId("g"))
    (prefilled,) = run(one)
    assert isinstance(prefilled, PrefilledEvent)
    assert prefilled.prompt_tokens == 20


def test_export_and_cancel_leave_nothing_behind() -> None:
    one = engine()
    one.add(state("moved", max_tokens=10))
    one.add(state("gone", max_tokens=10))
    made = [*one.step(), *one.step(), *one.step()]
    exported = one.export(GenerationId("moved"), stop=True)
    one.cancel(GenerationId("gone"))
    assert exported is not None
    assert exported.output_ids == tokens(made, "moved")
    assert not one.has_work()
    assert one.export(GenerationId("moved"), stop=False) is None


def test_one_generation_fails_and_the_others_go_on() -> None:
    one = engine(fail_at_token=3)
    one.add(state("long", max_tokens=9))
    one.add(state("short", max_tokens=2))
    events = run(one)
    assert [e.generation_id for e in events if isinstance(e, FailedEvent)] == ["long"]
    assert len(tokens(events, "short")) == 2


async def local(**fake: object) -> LocalReplica:
    replica = LocalReplica(ReplicaId("r"), manifest(**fake), OPTIONS, FakeSettings())
    await replica.begin()
    return replica


async def collect(replica: LocalReplica, given: GenerationState) -> list[EngineEvent]:
    return [event async for event in replica.generate(given)]


async def test_local_replica_runs_generations_side_by_side() -> None:
    replica = await local()
    results = await asyncio.gather(*(collect(replica, state(f"g{i}", [i])) for i in range(20)))
    for i, events in enumerate(results):
        assert tokens(events, f"g{i}") == output_of(state(f"g{i}", [i]))
    stats = await replica.stats()
    assert (stats.running, stats.waiting, stats.decode_tokens) == (0, 0, 100)
    await replica.close()


async def test_local_replica_cancels_on_aclose() -> None:
    replica = await local(token_seconds=0.001)
    stream = replica.generate(state(max_tokens=10**6))
    async for _ in stream:
        break
    await stream.aclose()
    assert (await replica.stats()).running == 0
    await replica.close()


async def test_local_replica_exports_and_the_stream_ends() -> None:
    replica = await local(token_seconds=0.001)
    events: list[EngineEvent] = []
    exported = None
    async for event in replica.generate(state(max_tokens=10**6)):
        events.append(event)
        if len(events) == 4:
            exported = await replica.export(GenerationId("g"), stop=True)
    assert exported is not None
    assert exported.output_ids[: len(tokens(events))] == tokens(events)
    assert (await replica.stats()).running == 0
    await replica.close()


async def test_local_replica_prefills() -> None:
    replica = await local()
    await replica.prefill(state("warm", list(range(30))))
    events = await collect(replica, state("g", list(range(31))))
    assert isinstance(events[0], PrefilledEvent)
    assert events[0].reused_tokens == 30
    await replica.close()


async def test_local_replica_tells_no_event_of_an_earlier_generation_of_the_id() -> None:
    replica = await local(token_seconds=0.01)
    first = replica.generate(state(max_tokens=10**6))
    while not isinstance(await anext(first), TokenEvent):
        pass
    await asyncio.sleep(0)  # the engine has made the next token and takes its time to tell
    await first.aclose()
    again = await collect(replica, state(max_tokens=2))
    assert [type(event) for event in again] == [PrefilledEvent, TokenEvent, TokenEvent]
    await replica.close()


async def test_local_replica_answers_every_prefill() -> None:
    replica = await local()
    async with asyncio.timeout(60):
        await asyncio.gather(*(replica.prefill(state()) for _ in range(3)), collect(replica, state()))
        with pytest.raises(InvalidRequest, match="between 0 and 99"):
            await replica.prefill(state(prompt=[100]))
    await replica.close()


async def test_local_replica_refuses_a_second_generation_of_the_same_id() -> None:
    replica = await local(token_seconds=0.001)
    first = replica.generate(state(max_tokens=10**6))
    await anext(first)
    with pytest.raises(InvalidRequest, match="already runs"):
        await collect(replica, state())
    await first.aclose()
    await replica.close()


async def test_local_replica_build_error_and_crash_are_told() -> None:
    broken = LocalReplica(ReplicaId("r"), manifest(build_error="no such layer"), OPTIONS, FakeSettings())
    with pytest.raises(ModelLoadFailed, match="no such layer"):
        await broken.begin()
    assert broken.lost.result() == "no such layer"
    crashing = await local(crash_at_token=2)
    with pytest.raises(WorkerLost, match="told to crash"):
        await collect(crashing, state())
    with pytest.raises(WorkerLost):
        await crashing.stats()


async def test_local_replica_close_ends_running_generations() -> None:
    replica = await local(token_seconds=0.001)
    stream = replica.generate(state(max_tokens=10**6))
    await anext(stream)
    await replica.close()
    with pytest.raises(WorkerLost, match="closed"):
        async for _ in stream:
            pass
