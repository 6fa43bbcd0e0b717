"""Reading GGUF quickly changes no bit of what the gguf package and transformers make of a file."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sllmd.store.gguf_reading import QuickReader, dequantize
from tests.store.ggufs import write_gguf
from tests.store.models import snapshot

KINDS = GGMLQuantizationType
AS_THE_PACKAGE_DOES = """
import sys
from sllmd.store import convert, gguf_reading
gguf_reading.read_gguf_faster = lambda on_tensor: None
sys.exit(convert.main())
"""


def unpackable() -> list[GGMLQuantizationType]:
    """Every kind whose blocks the package can unpack."""
    kinds = []
    for kind, (_, block_bytes) in GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return kinds


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bits: some scales are infinite
@pytest.mark.parametrize("kind", unpackable(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [(3,), (7, 300)], ids=["small", "in pieces"])
def test_blocks_of_every_kind_are_unpacked_as_the_package_does(kind, rows: tuple[int, ...]) -> None:
    _, block_bytes = GGML_QUANT_SIZES[kind]
    row_bytes = block_bytes * -(-600 // block_bytes)
    data = np.random.default_rng(5).integers(0, 256, (*rows, row_bytes), np.uint8)
    expected, found = gguf.quants.dequantize(data, kind), dequantize(data, kind)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def test_plain_numbers_pass_as_they_are() -> None:
    for kind, dtype in ((KINDS.F32, np.float32), (KINDS.F16, np.float16)):
        data = (np.arange(200_000) % 999).astype(dtype).reshape(4, -1)
        assert dequantize(data, kind).tobytes() == gguf.quants.dequantize(data, kind).tobytes()


def test_a_header_says_the_same_to_both_readers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"blk.0.ffn_up": KINDS.Q8_0})
    expected, found = gguf.GGUFReader(tmp_path / "m.gguf"), QuickReader(tmp_path / "m.gguf")
    assert list(found.fields) == list(expected.fields)
    for name, field in expected.fields.items():
        quick = found.fields[name]
        assert quick.types == field.types, name
        parts = [bytes(field.parts[index]) for index in field.data]
        assert [bytes(quick.parts[index]) for index in quick.data] == parts, name
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        assert one.name == other.name
        assert one.data.tobytes() == other.data.tobytes()


def test_a_header_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {})
    content = (tmp_path / "m.gguf").read_bytes()
    inside_the_tokens = content.index(b"tokenizer.ggml.tokens") + 300
    (tmp_path / "m.gguf").write_bytes(content[:inside_the_tokens])
    with pytest.raises((ValueError, struct.error)):
        QuickReader(tmp_path / "m.gguf")


@pytest.mark.slow  # two children that import transformers
@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("llama", {"token_embd": KINDS.Q8_0, "blk.0.attn_q": KINDS.Q4_1, "blk.0.ffn_down": KINDS.Q5_0}),
        ("qwen2", {"token_embd": KINDS.F16, "blk.0.attn_k": KINDS.Q4_0, "blk.0.ffn_up": KINDS.BF16}),
    ],
)
def test_an_import_is_the_same_to_the_last_bit(tmp_path: Path, architecture: str, kinds: dict) -> None:
    write_gguf(tmp_path / "m.gguf", kinds, architecture=architecture)
    for how, name in ((("-m", "sllmd.store.convert"), "quick"), (("-c", AS_THE_PACKAGE_DOES), "slow")):
        subprocess.run(
            [sys.executable, *how, "gguf", str(tmp_path / "m.gguf"), str(tmp_path / name)],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    quick, slow = (snapshot(tmp_path / name) for name in ("quick", "slow"))
    assert "model.safetensors" in quick
    assert quick == slow
