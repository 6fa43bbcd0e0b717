import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sllmd.core.errors import CheckpointError, MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.header import parse_header, parse_length, read_header


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(entries, data_bytes):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return parse_header(text, file="x.safetensors", file_bytes=8 + len(text) + data_bytes)


def test_a_file_made_by_the_safetensors_library_is_read(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a": np.zeros(0, np.int64),
        "s": np.array(1.5),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    header = read_header(tmp_path / "x.safetensors", "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {"a": (0,), "b": (2, 3), "s": ()}
    for tensor in header.tensors:
        assert content[tensor.offset_bytes :][: tensor.size_bytes] == arrays[tensor.name].tobytes()


@pytest.mark.parametrize(
    ("entries", "data_bytes", "fault"),
    [
        ({"a": entry()}, 3, "truncated"),
        ({"a": entry()}, 5, "1 bytes that its header does not describe"),
        ({"a": entry(), "b": entry(offsets=(2, 6))}, 6, "overlaps"),
        ({"a": entry(), "b": entry(offsets=(5, 9))}, 9, "leaves a hole"),
        ({"a": entry(offsets=(1, 5))}, 5, "leaves a hole"),
        ({"a": entry(offsets=(4, 0))}, 4, "malformed shape or offsets"),
        ({"a": entry(offsets=(-4, 0))}, 4, "malformed shape or offsets"),
        ({"a": entry(offsets=(0, 4, 8))}, 8, "malformed shape or offsets"),
        ({"a": entry(offsets=(0.0, 4.0))}, 4, "malformed shape or offsets"),
        ({"a": entry(offsets=(False, 4))}, 4, "malformed shape or offsets"),
        ({"a": entry(shape=(2**63, 2**63))}, 4, "needs"),
        ({"a": entry(shape=(-1, -4))}, 4, "malformed shape or offsets"),
        ({"a": entry(dtype="F32")}, 4, "needs 16 bytes"),
        ({"a": entry(dtype="U9")}, 4, "dtype 'U9'"),
        ({"a": entry(dtype=None)}, 4, "dtype None"),
        ({"a": entry(dtype=["U8"])}, 4, "dtype"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "needs exactly"),
        ({"a": entry() | {"extra": 1}}, 4, "needs exactly"),
        ({"a": [1, 2]}, 4, "needs exactly"),
        ({"": entry()}, 4, "no tensor name"),
        ({"a\x00b": entry()}, 4, "no tensor name"),
        ({"a" * 2000: entry()}, 4, "no tensor name"),
        (b"[1, 2]", 0, "no JSON object"),
        (b"{not json", 0, "not valid JSON"),
        (b'{"a\xff": 1}', 0, "not valid JSON"),
        (b'{"a":' * 100_000, 0, "not valid JSON"),
        (b'{"a":{},"a":{}}', 0, "twice"),
    ],
)
def test_what_the_format_forbids_is_refused(entries, data_bytes: int, fault: str) -> None:
    with pytest.raises(CheckpointError, match=fault) as caught:
        parse(entries, data_bytes)
    assert "x.safetensors" in caught.value.message


def test_a_known_type_that_is_not_served_is_unsupported_rather_than_malformed() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="F4"):
        parse({"a": entry(dtype="F4")}, 4)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"1234567", "truncated"),
        (b"\x02\0\0\0\0\0\0\0", "truncated"),
        (b"\xff" * 16, "not a safetensors file"),
        (b"\0" * 16, "truncated"),
    ],
)
def test_a_prefix_that_cannot_be(content: bytes, fault: str) -> None:
    with pytest.raises(MalformedCheckpoint, match=fault):
        parse_length(content[:8], file="x", file_bytes=len(content))


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(MalformedCheckpoint, match="not a regular file"):
        read_header(tmp_path / "x", "x")


@given(st.data())
def test_no_damage_makes_anything_but_a_header_or_a_checkpoint_error(data: st.DataObject) -> None:
    text = json.dumps({"a": entry("F16", (2, 3), (0, 12)), "b": entry("U8", (5,), (12, 17))}).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + bytes(17))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        length = parse_length(bytes(content[:8]), file="x", file_bytes=len(content))
        header = parse_header(bytes(content[8 : 8 + length]), file="x", file_bytes=len(content))
    except CheckpointError:
        return
    assert sum(tensor.size_bytes for tensor in header.tensors) == len(content) - 8 - length
    assert all(tensor.offset_bytes + tensor.size_bytes <= len(content) for tensor in header.tensors)
