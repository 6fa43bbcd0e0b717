import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllmd.core.errors import InvalidRequest, ModelLoadFailed, ProtocolError, WorkerLost
from sllmd.core.ids import GenerationId
from sllmd.core.memory import PartitionMemory
from sllmd.engine import worker_replica
from sllmd.engine.cores import compute_cores
from sllmd.engine.fake import FakeEngine, FakeSettings
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    FailedEvent,
    GenerationState,
    PrefilledEvent,
    TokenEvent,
)
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from sllmd.engine.worker_replica import WorkerReplica
from sllmd.telemetry.cores import usable_cores
from tests.engine.conftest import alive
from tests.engine.fakes import manifest, next_replica_id, state, tokens
from tests.waiting import PATIENCE_SECONDS, eventually

OPTIONS = EngineOptions(threads=1, batch_max=4, prefill_chunk_tokens=8)
FOREVER = 10**6
PAGE = 4096


async def attach(
    supervisor: Supervisor, memory: tuple[PartitionMemory, ...] = (), **fake: object
) -> WorkerReplica:
    replica = await supervisor.attach(next_replica_id(), manifest(**fake), memory, OPTIONS)
    assert isinstance(replica, WorkerReplica)
    return replica


async def serve(supervisor: Supervisor, **fake: object) -> WorkerReplica:
    replica = await attach(supervisor, **fake)
    await replica.begin()
    return replica


async def collect(replica: WorkerReplica, given: GenerationState) -> list[EngineEvent]:
    return [event async for event in replica.generate(given)]


def expected(given: GenerationState, **fake: object) -> list[EngineEvent]:
    engine = FakeEngine.build(manifest(**fake), OPTIONS, FakeSettings())
    engine.add(given)
    events: list[EngineEvent] = []
    while engine.has_work():
        events += engine.step()
    return events


@pytest.mark.parametrize(
    "given",
    [
        state(max_tokens=30),
        state(max_tokens=3, logprobs=2),
        state(max_tokens=0, prompt_logprobs=1),
        state(max_tokens=9, output=[5, 6]),
        state(prompt=list(range(99)), max_tokens=1),
    ],
    ids=["plain", "logprobs", "nothing to generate", "resumed", "long prompt"],
)
async def test_the_process_boundary_changes_no_event(supervisor: Supervisor, given: GenerationState) -> None:
    replica = await serve(supervisor)
    assert await collect(replica, given) == expected(given)


async def test_generations_side_by_side(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    given = [state(f"g{i}", [i], max_tokens=20) for i in range(20)]
    results = await asyncio.gather(*(collect(replica, one) for one in given))
    assert [tokens(events, f"g{i}") for i, events in enumerate(results)] == [
        tokens(expected(one), f"g{i}") for i, one in enumerate(given)
    ]
    stats = await replica.stats()
    assert (stats.running, stats.waiting, stats.decode_tokens) == (0, 0, 400)


async def test_one_generation_fails_and_its_worker_goes_on(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, fail_at_token=3)
    failed, fine = await asyncio.gather(
        collect(replica, state("bad", max_tokens=9)), collect(replica, state("good", max_tokens=2))
    )
    assert isinstance(failed[-1], FailedEvent)
    assert len(tokens(fine, "good")) == 2


async def test_aclose_cancels_and_the_id_may_come_again(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    stream = replica.generate(state(max_tokens=FOREVER))
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    assert (await replica.stats()).running == 0
    again = await collect(replica, state(max_tokens=4))
    assert [event.index for event in again if isinstance(event, TokenEvent)] == [0, 1, 2, 3]


async def test_a_cancelled_consumer_cancels_its_generation(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    task = asyncio.create_task(collect(replica, state(max_tokens=FOREVER)))
    while (await replica.stats()).running == 0:
        pass
    task.cancel()
    await asyncio.wait([task])
    assert (await replica.stats()).running == 0


async def test_the_same_id_twice_is_refused(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    stream = replica.generate(state(max_tokens=FOREVER))
    await anext(stream)
    with pytest.raises(InvalidRequest, match="already runs"):
        await collect(replica, state())
    await stream.aclose()


async def test_a_state_that_cannot_be_sent_leaves_nothing_behind(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    with pytest.raises(ProtocolError, match="cannot be sent"):
        await collect(replica, state(seed=2**70))
    assert len(await collect(replica, state())) == 6


async def test_a_slow_consumer_delays_nobody(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    slow = replica.generate(state("slow", max_tokens=500))
    first = await anext(slow)
    await collect(replica, state("quick", max_tokens=600))
    assert (await replica.stats()).running == 0, "the slow one's tokens wait here, not in the engine"
    rest = [event async for event in slow]
    assert [first, *rest] == expected(state("slow", max_tokens=500))


async def test_an_exported_generation_goes_on_elsewhere(supervisor: Supervisor) -> None:
    source, target = await serve(supervisor, token_seconds=0.001), await serve(supervisor)
    seen: list[EngineEvent] = []
    moved: GenerationState | None = None
    async for event in source.generate(state(max_tokens=60)):
        seen.append(event)
        if len(tokens(seen)) == 10:
            copied = await source.export(GenerationId("g"), stop=False)
            assert copied is not None
            assert copied.output_ids[:10] == tokens(seen)
            moved = await source.export(GenerationId("g"), stop=True)
    assert moved is not None
    assert (await source.stats()).running == 0
    rest = await collect(target, moved)
    whole = tokens(expected(state(max_tokens=60)))
    assert moved.output_ids + tokens(rest) == whole
    assert await source.export(GenerationId("g"), stop=False) is None


async def test_an_export_that_nobody_waits_for_ends_its_generation(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    stream = replica.generate(state(max_tokens=FOREVER))
    await anext(stream)
    export = asyncio.create_task(replica.export(GenerationId("g"), stop=True))
    await asyncio.sleep(0)  # it has asked, and waits
    export.cancel()
    assert [event async for event in stream if not isinstance(event, TokenEvent)] == [
        event for event in expected(state(max_tokens=1)) if isinstance(event, PrefilledEvent)
    ][1:]
    assert not replica._running, "nothing is owed that would look like a hang"


async def test_every_prefill_is_answered_whatever_has_the_same_id(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    prompt = list(range(90))
    async with asyncio.timeout(PATIENCE_SECONDS):
        answers = await asyncio.gather(
            *(replica.prefill(state(prompt=prompt)) for _ in range(3)), collect(replica, state(prompt=prompt))
        )
    assert tokens(answers[-1]) == tokens(expected(state(prompt=prompt)))


async def test_a_prefill_that_cannot_be_is_refused(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    with pytest.raises(InvalidRequest, match="between 0 and 99"):
        await replica.prefill(state(prompt=[100]))


async def test_questions_before_begin_are_refused_and_harm_nothing(supervisor: Supervisor) -> None:
    replica = await attach(supervisor)
    for call in (
        replica.stats(),
        replica.prefill(state()),
        replica.export(GenerationId("g"), stop=True),
        collect(replica, state()),
    ):
        with pytest.raises(ProtocolError, match="before begin"):
            await call
    await replica.begin()
    assert len(await collect(replica, state())) == 6


class TestLongMessages:
    @pytest.fixture
    def worker_settings(self) -> WorkerSettings:
        return WorkerSettings(engine="fake", frame_bytes_max=2**20)

    async def test_events_too_long_for_a_message_fail_their_generation_alone(
        self, supervisor: Supervisor
    ) -> None:
        replica = await serve(supervisor, token_seconds=0.001)
        long = state("long", prompt=list(range(90)) * 60, prompt_logprobs=20)
        fine, failed = await asyncio.gather(
            collect(replica, state("fine", max_tokens=900)), collect(replica, long)
        )
        assert isinstance(failed[-1], FailedEvent)
        assert "over the limit of 1048576" in failed[-1].message
        assert fine == expected(state("fine", max_tokens=900))
        assert len(await collect(replica, state("long"))) == 6


async def test_prefill_warms_the_cache(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    await replica.prefill(state("warm", list(range(30))))
    events = await collect(replica, state("g", list(range(31))))
    assert isinstance(events[0], PrefilledEvent)
    assert events[0].reused_tokens == 30


async def test_progress_before_begin_is_taken(supervisor: Supervisor) -> None:
    replica = await attach(supervisor)
    for ready in range(10):
        replica.progress([ready])
    await replica.begin()
    assert len(await collect(replica, state())) == 6


# -- ends ----------------------------------------------------------------------------------------


async def test_a_worker_killed_in_generation_costs_its_generations_a_clear_error(
    supervisor: Supervisor,
) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    pid = replica.worker.process.pid
    tasks = [asyncio.create_task(collect(replica, state(f"g{i}", [i], max_tokens=FOREVER))) for i in range(3)]
    while (await replica.stats()).running < 3:
        pass
    os.kill(pid, signal.SIGKILL)
    for task in tasks:
        with pytest.raises(WorkerLost, match="SIGKILL") as caught:
            await task
        assert caught.value.hint is not None
        assert "out-of-memory" in caught.value.hint
    assert "SIGKILL" in await replica.lost
    assert not alive(pid)
    for call in (
        replica.stats(),
        replica.prefill(state()),
        replica.export(GenerationId("g"), stop=True),
        collect(replica, state()),
    ):
        with pytest.raises(WorkerLost):
            await call
    again = await serve(supervisor)
    assert len(await collect(again, state())) == 6


@pytest.mark.slow
class TestHang:
    """Long enough that no busy machine makes one of a step."""

    @pytest.fixture
    def worker_settings(self) -> WorkerSettings:
        return WorkerSettings(engine="fake", hang_timeout_seconds=3, refill_delay_seconds=0.05)

    async def test_a_worker_that_hangs_is_killed(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor, token_seconds=0.001)
        stream = replica.generate(state(max_tokens=FOREVER))
        await anext(stream)
        os.kill(replica.worker.process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="completed no step for 3 s"):
            async for _ in stream:
                pass
        assert not alive(replica.worker.process.pid)

    async def test_a_question_without_answer_is_a_hang(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor)
        os.kill(replica.worker.process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="completed no step"):
            await replica.stats()

    async def test_neither_idle_nor_slowly_read_is_a_hang(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor)
        slow = replica.generate(state(max_tokens=50))
        await anext(slow)
        hung = await serve(supervisor)
        os.kill(hung.worker.process.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost):
            await hung.stats()  # the limit has passed, and nothing happened at the first one
        assert len([event async for event in slow]) == 50
        assert len(await collect(replica, state("next"))) == 6

    async def test_slow_steps_are_no_hang(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor, token_seconds=0.6)
        assert len(await collect(replica, state(max_tokens=6))) == 7

    async def test_a_slow_build_is_no_hang(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor, build_seconds=4)
        assert len(await collect(replica, state())) == 6


async def test_a_crash_in_a_step_tells_its_real_error(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, crash_at_token=2)
    with pytest.raises(WorkerLost, match="RuntimeError: the fake engine was told to crash at token 2"):
        await collect(replica, state())
    printed = replica.worker.process.output.lines
    assert printed[0].startswith("Traceback"), "the whole traceback is in the log"


async def test_a_crash_in_the_build_tells_its_real_error(supervisor: Supervisor) -> None:
    replica = await attach(supervisor, build_error="CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(ModelLoadFailed, match="CUDA out of memory") as caught:
        await replica.begin()
    assert caught.value.hint is not None
    assert "cache_tokens" in caught.value.hint
    assert not alive(replica.worker.process.pid)
    await replica.close()


class TestBeginTimeout:
    @pytest.fixture
    def worker_settings(self) -> WorkerSettings:
        return WorkerSettings(engine="fake", begin_timeout_seconds=0.1)

    async def test_a_build_that_never_ends_is_ended(self, supervisor: Supervisor) -> None:
        replica = await attach(supervisor, build_seconds=100)
        with pytest.raises(ModelLoadFailed, match="longer than 0 s to build"):
            await replica.begin()
        assert not alive(replica.worker.process.pid)


async def test_a_worker_that_dies_before_begin_is_told(supervisor: Supervisor) -> None:
    replica = await attach(supervisor)
    os.kill(replica.worker.process.pid, signal.SIGKILL)
    with pytest.raises(ModelLoadFailed, match="SIGKILL"):
        await replica.begin()


async def test_close_ends_generations_and_a_second_close_is_nothing(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    stream = replica.generate(state(max_tokens=FOREVER))
    await anext(stream)
    await replica.close()
    assert not alive(replica.worker.process.pid)
    with pytest.raises(WorkerLost, match="closed"):
        async for _ in stream:
            pass
    await replica.close()
    assert await replica.lost == "it was closed"


async def test_it_sleeps_and_wakes_in_the_same_process(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    pid, given = replica.worker.process.pid, state("g", [1, 2, 3])
    for _ in range(2):
        assert await collect(replica, given) == expected(given)
        await replica.sleep()
        with pytest.raises(ProtocolError, match="cannot serve"):
            await collect(replica, given)
        await replica.wake(["cpu"])
    assert replica.worker.process.pid == pid
    assert await collect(replica, given) == expected(given)


async def test_one_that_dies_asleep_is_told_and_is_not_woken(supervisor: Supervisor) -> None:
    replica = await serve(supervisor)
    await replica.sleep()
    os.kill(replica.worker.process.pid, signal.SIGKILL)
    assert "killed" in (await replica.lost).lower()
    with pytest.raises(ModelLoadFailed):
        await replica.wake(["cpu"])


async def test_a_worker_does_not_sleep_while_something_runs(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    stream = replica.generate(state(max_tokens=FOREVER))
    await anext(stream)
    with pytest.raises(ModelLoadFailed, match="cannot act on Sleep"):
        await replica.sleep()
    with pytest.raises(WorkerLost):
        async for _ in stream:
            pass


class TestStopTimeout:
    @pytest.fixture
    def worker_settings(self) -> WorkerSettings:
        return WorkerSettings(engine="fake", stop_timeout_seconds=0.1)

    async def test_close_does_not_depend_on_the_worker(self, supervisor: Supervisor) -> None:
        replica = await serve(supervisor)
        os.kill(replica.worker.process.pid, signal.SIGSTOP)
        await replica.close()
        assert not alive(replica.worker.process.pid)


# -- memory --------------------------------------------------------------------------------------


@pytest.fixture
def slabs() -> Iterator[tuple[PartitionMemory, ...]]:
    """Two partitions of many small slabs, with a name to look for."""
    writable = [os.memfd_create("test-slab") for _ in range(450)]
    for descriptor in writable:
        os.ftruncate(descriptor, PAGE)
    readable = [os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY) for descriptor in writable]
    yield (
        PartitionMemory(250 * PAGE, PAGE, tuple(readable[:250])),
        PartitionMemory(199 * PAGE + 7, PAGE, tuple(readable[250:])),
    )
    for descriptor in (*writable, *readable):
        os.close(descriptor)


def slabs_mapped_by(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:test-slab")


def slab_descriptors_of(pid: int) -> int:
    return sum(
        "test-slab" in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()
    )


async def test_memory_is_mapped_by_its_worker_alone_and_free_after_close(
    slabs: tuple[PartitionMemory, ...], supervisor: Supervisor
) -> None:
    replica = await attach(supervisor, slabs)
    await replica.begin()
    pid = replica.worker.process.pid
    assert slabs_mapped_by(pid) == 450
    assert slab_descriptors_of(pid) == 0, "mappings are enough"
    others = {process.pid for process in supervisor.stats().processes} - {pid}
    assert [slabs_mapped_by(other) + slab_descriptors_of(other) for other in others] == [0] * len(others)
    await replica.close()
    assert not alive(pid)


async def test_slabs_that_are_too_short_are_an_error(supervisor: Supervisor) -> None:
    descriptor = os.memfd_create("short")
    try:
        with pytest.raises(ModelLoadFailed, match="the slab at byte 0 has 0 bytes"):
            await attach(supervisor, (PartitionMemory(PAGE, PAGE, (descriptor,)),))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("stage", ["attach", "begin"])
async def test_giving_up_a_start_reaps_its_worker(
    slabs: tuple[PartitionMemory, ...], supervisor: Supervisor, stage: str
) -> None:
    await eventually(lambda: supervisor.stats().waiting_workers == 2, "workers wait")
    before = {process.pid for process in supervisor.stats().processes}
    for pid in before:
        if stage == "attach":
            os.kill(pid, signal.SIGSTOP)
    if stage == "attach":
        task = asyncio.create_task(attach(supervisor, slabs))
        await eventually(lambda: supervisor.stats().waiting_workers == 1, "a worker is taken")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        for pid in before:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
    else:
        replica = await attach(supervisor, slabs, build_seconds=100)
        begin = asyncio.create_task(replica.begin())
        await asyncio.sleep(0)  # it has asked, and waits
        begin.cancel()
        await asyncio.wait([begin])
        await replica.close()
    assert len([pid for pid in before if alive(pid)]) == 2
    assert not any(slabs_mapped_by(pid) for pid in before if alive(pid))


async def test_replicas_that_have_work_share_the_cores(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_replica, "SETTLE_SECONDS", 0.0)
    whole = compute_cores(usable_cores())
    replicas = []
    for _ in range(2):
        replica = await supervisor.attach(
            next_replica_id(), manifest(token_seconds=0.001), (), EngineOptions(threads=0)
        )
        await replica.begin()
        replicas.append(replica)
    streams = [replica.generate(state(max_tokens=FOREVER)) for replica in replicas]
    await anext(streams[0])
    assert (await replicas[0].stats()).threads == whole
    await anext(streams[1])
    assert [(await replica.stats()).threads for replica in replicas] == [max(1, whole // 2)] * 2
    await streams[1].aclose()
    assert (await replicas[0].stats()).threads == whole
    await streams[0].aclose()


async def test_a_dead_replica_leaves_its_cores_to_the_others(supervisor: Supervisor) -> None:
    first, second = [
        await supervisor.attach(
            next_replica_id(), manifest(token_seconds=0.001), (), EngineOptions(threads=0)
        )
        for _ in range(2)
    ]
    await first.begin()
    stream = first.generate(state(max_tokens=FOREVER))
    await anext(stream)
    assert isinstance(second, WorkerReplica)  # still being brought up: that computes, too
    assert (await first.stats()).threads == max(1, compute_cores(usable_cores()) // 2)
    second.worker.process.kill()
    await second.lost
    assert (await first.stats()).threads == compute_cores(usable_cores())
    await stream.aclose()
