"""The whole way with real processes and torch: zygote, waiting worker, mapped slabs, tokens."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from sllmd.core.errors import ModelLoadFailed
from sllmd.core.ids import GenerationId
from sllmd.core.memory import PartitionMemory
from sllmd.engine.protocol import EngineOptions, GenerationState, Sampling, TokenEvent
from sllmd.engine.replica import Replica
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from sllmd.engine.transformer import TransformerEngine
from tests.engine.conftest import descriptors_of
from tests.engine.fakes import next_replica_id
from tests.engine.models import InMemory, checkpoint, random_model
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SLAB = 64 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def supervisor() -> AsyncIterator[Supervisor]:
    """One for all: its zygote takes seconds to import torch."""
    running = Supervisor(WorkerSettings())
    await running.start()
    yield running
    await running.close()


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Closed in the end."""
    held: list[int] = []
    yield held
    for descriptor in held:
        os.close(descriptor)


def in_slabs(given: InMemory, descriptors: list[int]) -> tuple[PartitionMemory, ...]:
    memory = []
    for buffer in given.buffers:
        partition = []
        for start in range(0, len(buffer), SLAB):
            writable = os.memfd_create("slab")
            os.ftruncate(writable, SLAB)
            os.pwrite(writable, buffer[start : start + SLAB], 0)
            partition.append(os.open(f"/proc/self/fd/{writable}", os.O_RDONLY))
            os.close(writable)
        descriptors += partition
        memory.append(PartitionMemory(len(buffer), SLAB, tuple(partition)))
    return tuple(memory)


def states() -> list[GenerationState]:
    sampling = [
        Sampling(seed=3, max_tokens=12, temperature=0.0, logprobs=2),
        Sampling(seed=4, max_tokens=12, temperature=0.9, top_p=0.9),
        Sampling(seed=5, max_tokens=12, temperature=0.7, prompt_logprobs=1),
    ]
    return [
        GenerationState(GenerationId(f"g{i}"), list(range(5 + i, 25)), one) for i, one in enumerate(sampling)
    ]


def run(engine: TransformerEngine) -> dict[str, list[int]]:
    output: dict[str, list[int]] = {}
    for state in states():
        engine.add(state)
    while len(output) < 3 or any(len(ids) < 12 for ids in output.values()):
        for event in engine.step():
            if isinstance(event, TokenEvent):
                output.setdefault(event.generation_id, []).append(event.token_id)
    return output


async def ask(replica: Replica) -> dict[str, list[int]]:
    async def one(state: GenerationState) -> list[int]:
        return [e.token_id async for e in replica.generate(state) if isinstance(e, TokenEvent)]

    given = states()
    answers = await asyncio.gather(*(one(state) for state in given))
    return {state.generation_id: ids for state, ids in zip(given, answers, strict=True)}


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def maps_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_worker_over_slabs_says_what_the_engine_says(
    supervisor: Supervisor, descriptors: list[int], threads: int, partitions: int
) -> None:
    given = checkpoint(random_model("LlamaForCausalLM"), partitions)
    options = EngineOptions(threads=threads, batch_max=8)
    replica = await supervisor.attach(
        next_replica_id(),
        given.manifest,
        in_slabs(given, descriptors),
        options,
        devices=["cpu:0", "cpu:1"][:partitions],
    )
    replica.progress([len(buffer) // 2 for buffer in given.buffers])
    await replica.begin()
    assert await ask(replica) == run(given.engine(threads=threads))
    assert (await replica.stats()).threads == threads
    await replica.sleep()
    await replica.wake(["cpu:1", "cpu:0"][:partitions])
    assert await ask(replica) == run(given.engine(threads=threads)), "woken, it says the same"
    await replica.close()


async def test_the_zygote_stays_single_threaded_and_knows_no_device(supervisor: Supervisor) -> None:
    await eventually(lambda: supervisor.stats().waiting_workers == 2, "two workers wait")
    (zygote,) = [process.pid for process in supervisor.stats().processes if process.role == "zygote"]
    assert threads_of(zygote) == 1
    assert "libtorch_cpu" in maps_of(zygote)
    assert "libcuda.so" not in maps_of(zygote)
    assert not any("nvidia" in target for target in descriptors_of(zygote))


async def test_weights_that_do_not_fit_are_told_in_words(
    supervisor: Supervisor, descriptors: list[int]
) -> None:
    given = checkpoint(random_model("LlamaForCausalLM"))
    fewer = given.manifest.model_copy(update={"tensors": given.manifest.tensors[:-1]})
    replica = await supervisor.attach(
        next_replica_id(), fewer, in_slabs(given, descriptors), EngineOptions(threads=1)
    )
    with pytest.raises(ModelLoadFailed, match="is missing from the checkpoint"):
        await replica.begin()


async def test_an_unknown_architecture_is_told_in_words(
    supervisor: Supervisor, descriptors: list[int]
) -> None:
    given = checkpoint(random_model("LlamaForCausalLM"))
    other = given.manifest.model_copy(update={"architecture": "NobodyForCausalLM"})
    replica = await supervisor.attach(
        next_replica_id(), other, in_slabs(given, descriptors), EngineOptions(threads=1)
    )
    with pytest.raises(ModelLoadFailed, match="no architecture NobodyForCausalLM") as caught:
        await replica.begin()
    assert caught.value.hint
