"""A real model: SmolLM2 in float32 says token for token what transformers says.

``SLLMD_DEMO_MODEL`` names its directory; ``scripts/quickstart`` puts it where the default points.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from sllmd.core.ids import Digest
from sllmd.engine.protocol import EngineOptions, PrefilledEvent
from sllmd.engine.transformer import TransformerEngine, build_engine
from sllmd.engine.weights import Weights
from sllmd.store.manifest import DataFile, Manifest, Partition, Source, Tensor
from tests.engine.driving import diverged, drain, outputs, prompts, reference, runner_up_gap, state

DIRECTORY = Path(
    os.environ.get("SLLMD_DEMO_MODEL", Path.home() / ".cache/sllmd-demo/SmolLM2-135M-Instruct")
).expanduser()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (DIRECTORY / "model.safetensors").exists() and not os.environ.get("CI"),
        reason=f"no demo model in {DIRECTORY}: scripts/quickstart makes it, SLLMD_DEMO_MODEL names another",
    ),
]

LENGTHS = (5, 40, 300, 17)
MAX_TOKENS = 32


def in_place() -> tuple[Manifest, Weights]:
    """The safetensors file mapped as one partition, as when it is served in place."""
    path = DIRECTORY / "model.safetensors"
    size = path.stat().st_size
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    (header_bytes,) = struct.unpack("<Q", pages[:8])
    header = json.loads(pages[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    config = json.loads((DIRECTORY / "config.json").read_text())
    tensors = tuple(
        Tensor(
            name=name,
            dtype=entry["dtype"],
            shape=entry["shape"],
            partition=0,
            offset_bytes=8 + header_bytes + entry["data_offsets"][0],
            size_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    )
    file_entry = DataFile(path=path.name, base_bytes=0, size_bytes=size)
    manifest = Manifest(
        format_version=1,
        digest=Digest("0" * 32),
        source=Source(kind="safetensors", location=str(DIRECTORY), fingerprint=""),
        architecture=config["architectures"][0],
        config=config,
        tensors=tensors,
        ties={},
        partitions=(Partition(span_bytes=size, files=(file_entry,)),),
    )
    return manifest, Weights.over_memory(manifest, [pages])


@pytest.fixture(scope="module")
def engine() -> TransformerEngine:
    manifest, weights = in_place()
    built = build_engine(manifest, weights, EngineOptions(threads=1, dtype="float32"))
    assert isinstance(built, TransformerEngine)
    return built


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    return prompts(LENGTHS, 49_000)


@pytest.fixture(scope="module")
def expected(asked: list[list[int]]) -> Iterator[dict[str, list[int]]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    yield {str(i): reference(model, prompt, MAX_TOKENS) for i, prompt in enumerate(asked)}
    del model


def test_equal_alone_while_the_fast_forward_takes_over(
    engine: TransformerEngine, asked: list[list[int]], expected: dict[str, list[int]]
) -> None:
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, MAX_TOKENS))
        assert outputs(drain(engine))[str(number)] == expected[str(number)]
    while engine._upgrade._pieces is not None:
        engine.step()
    assert engine.stats().runner in ("fused", "prepacked")


def test_equal_batched(
    engine: TransformerEngine, asked: list[list[int]], expected: dict[str, list[int]]
) -> None:
    engine._slots._prefixes._retained.clear()
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, MAX_TOKENS))
    assert outputs(drain(engine)) == expected


def test_equal_resumed_and_with_reused_prefixes(
    engine: TransformerEngine, asked: list[list[int]], expected: dict[str, list[int]]
) -> None:
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt, MAX_TOKENS, output=expected[str(number)][:10]))
    events = drain(engine)
    assert outputs(events) == {name: tokens[10:] for name, tokens in expected.items()}
    reused = {e.generation_id: e.reused_tokens for e in events if isinstance(e, PrefilledEvent)}
    assert reused["2"] == LENGTHS[2]


def test_drawn_texts_go_on_when_they_are_moved(engine: TransformerEngine) -> None:
    """But where two tokens are as good as equal, which is rare."""
    asked = prompts(range(5, 29), 49_000, seed=6)
    given = [state(str(i), prompt, 64, seed=i, temperature=0.8) for i, prompt in enumerate(asked)]
    parted = diverged(engine, engine._slots._prefixes._retained.clear, given, moved_at=24)
    assert len(parted) <= 1
    if parted:
        model = transformers.AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32).eval()
        assert runner_up_gap(model, parted[0]) < 1e-3
