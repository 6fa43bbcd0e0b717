"""Reading GGUF faster than the gguf package does, with the same result to the last bit.

Owns: what transformers' loader is given in the converter's process in place of three parts of the package.
They make numpy views of every token of a vocabulary, each time that the file is opened; dequantise sixteen
rows at a time on one core; and make the table of tensor names anew for every module of the model. Each costs
many times what the work itself does.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import quant_shape_from_byte_shape
from numpy.typing import NDArray

_PIECE_BYTES = 128 * 1024
"""Of blocks unpacked at once: the intermediate arrays still fit a core's cache."""
_THREADS = 2
"""numpy lets go of the interpreter while it computes; a converter leaves the rest of the machine alone."""
_LENGTH = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


def read_gguf_faster(on_tensor: Callable[[int], None]) -> None:
    """Have this process read GGUF through this module; ``on_tensor`` gets the bytes of each one."""

    def told(data: NDArray[Any], kind: GGMLQuantizationType) -> NDArray[Any]:
        values = dequantize(data, kind)
        on_tensor(data.nbytes)
        return values

    # transformers' loader takes them from the package each time that it is called.
    mine = {
        "GGUFReader": QuickReader,
        "dequantize": told,
        "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map),
    }
    for name, part in mine.items():
        setattr(gguf, name, part)


class QuickReader(gguf.GGUFReader):
    """The package's reader; arrays in the header (tokens, merges, scores) are walked once, without views."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.endianess != gguf.GGUFEndian.LITTLE:
            parts: tuple[int, list[Any], list[int], list[GGUFValueType]]
            parts = super()._get_field_parts(orig_offs, raw_type)
            return parts
        view = self.data.data
        raw_item, count = _ARRAY_HEAD.unpack_from(view, orig_offs)
        begin = orig_offs + _ARRAY_HEAD.size
        item, types = GGUFValueType(raw_item), [GGUFValueType.ARRAY]
        values: list[Any]
        if item == GGUFValueType.STRING:
            values, end = _strings(view, begin, count)
        elif item in self.gguf_scalar_to_np:
            numbers = np.frombuffer(view, self.gguf_scalar_to_np[item], count, begin)
            values, end = list(numbers.reshape(-1, 1)), begin + numbers.nbytes
        else:
            raise ValueError(f"an array of {item.name} in the header")
        if count:
            types.append(item)
        return end - orig_offs, values, list(range(count)), types


def dequantize(data: NDArray[Any], kind: GGMLQuantizationType) -> NDArray[Any]:
    """What ``gguf.dequantize`` makes of ``data``, in pieces of a better size and on two cores.

    A block is unpacked by itself, so how blocks are grouped changes no bit. Raises NotImplementedError for
    a kind that the package cannot unpack.
    """
    if kind not in GGML_QUANT_SIZES or data.dtype != np.uint8 or data.size <= _PIECE_BYTES:
        return gguf.quants.dequantize(data, kind)
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, block_bytes)
    values = np.empty((len(blocks), block_values), np.float32)
    step = _PIECE_BYTES // block_bytes

    def unpack(begin: int) -> None:
        # One row of many blocks: the package takes its rows sixteen at a time, however short they are.
        piece = blocks[begin : begin + step].reshape(1, -1)
        values[begin : begin + step] = gguf.quants.dequantize(piece, kind).reshape(-1, block_values)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(unpack, range(0, len(blocks), step)))
    return values.reshape(quant_shape_from_byte_shape(data.shape, kind))


def _strings(view: memoryview, begin: int, count: int) -> tuple[list[bytes], int]:
    """``count`` strings that lie one behind the other, and where they end. Raises ValueError."""
    strings = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(view, begin)
        begin += _LENGTH.size
        strings.append(bytes(view[begin : begin + length]))
        begin += length
    if begin > len(view):
        raise ValueError("the header ends inside an array")
    return strings, begin
