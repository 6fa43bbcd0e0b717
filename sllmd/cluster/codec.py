"""Frozen dataclasses to msgpack and back, strictly. Pure.

A value is an array of its fields in order; a top-level value is preceded by its type's tag. Whatever does
not fit a field's declared type is a ``ProtocolError``, never a guess. Trailing fields that have a default
may be absent (they were added later); surplus fields are refused, because a node that ignores half of a
command no longer applies the same command as the others.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from sllmd.core.errors import ProtocolError

Convert = Callable[[Any], Any]

MAX_ITEMS = 1 << 20
"""Items of one array or map; msgpack refuses more before it allocates them."""


class Codec:
    """The wire form of a closed set of dataclasses, each under a tag that never changes its meaning."""

    def __init__(self, tags: Mapping[int, type]) -> None:
        self._types = {tag: _Shape(kind) for tag, kind in tags.items()}
        self._tags = {kind: tag for tag, kind in tags.items()}

    def encode(self, value: Any) -> list[Any]:
        """The value as a msgpack array, its tag first."""
        tag = self._tags[type(value)]
        return [tag, *self._types[tag].encode(value)]

    def decode(self, items: Any) -> Any:
        """The inverse of ``encode``; raises ProtocolError."""
        if not isinstance(items, list) or not items or type(items[0]) is not int:
            raise ProtocolError("expected an array that begins with a type's tag")
        shape = self._types.get(items[0])
        if shape is None:
            raise ProtocolError(f"no message has the tag {items[0]}")
        return shape.decode(items[1:])

    def pack(self, value: Any) -> bytes:
        """The value as bytes."""
        return pack(self.encode(value))

    def unpack(self, data: bytes) -> Any:
        """The inverse of ``pack``; raises ProtocolError."""
        return self.decode(unpack(data))


def pack(value: Any) -> bytes:
    """Plain msgpack: the one set of options that all of the room's bytes are written with."""
    return typing.cast("bytes", msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes) -> Any:
    """Plain msgpack; raises ProtocolError for anything that is not exactly one value."""
    try:
        return msgpack.unpackb(
            data, raw=False, strict_map_key=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not msgpack: {error}") from error


class _Shape:
    """How one dataclass is laid out: field order, converters, and how many fields must be there."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        self._names = tuple(field.name for field in fields)
        self._encoders = tuple(_encoder(hints[name]) for name in self._names)
        self._decoders = tuple(_decoder(hints[name]) for name in self._names)
        self._needed = sum(
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            for field in fields
        )

    def encode(self, value: Any) -> list[Any]:
        return [
            getattr(value, name) if encoder is None else encoder(getattr(value, name))
            for name, encoder in zip(self._names, self._encoders, strict=True)
        ]

    def decode(self, items: Any) -> Any:
        if not isinstance(items, list) or not self._needed <= len(items) <= len(self._names):
            raise ProtocolError(f"{self._kind.__name__} has {len(self._names)} fields, not {items!r:.80}")
        return self._kind(*(decoder(item) for decoder, item in zip(self._decoders, items, strict=False)))


def _encoder(hint: Any) -> Convert | None:
    """None where a value is its own wire form."""
    if dataclasses.is_dataclass(hint):
        return _Shape(typing.cast("type", hint)).encode
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = _encoder(arguments[0])
        return list if inner is None else _list_of(inner)
    if origin in (types.UnionType, typing.Union):
        inner = _encoder(_the_other(arguments))
        return None if inner is None else _optional(inner)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return int
    return None


def _decoder(hint: Any) -> Convert:
    hint = getattr(hint, "__supertype__", hint)  # a NewType is, on the wire, what it is made of
    if dataclasses.is_dataclass(hint):
        return _Shape(typing.cast("type", hint)).decode
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _tuple_of(_decoder(arguments[0]))
    if origin is dict:
        return _dict_of(_decoder(arguments[0]), _decoder(arguments[1]))
    if origin in (types.UnionType, typing.Union):
        return _optional(_decoder(_the_other(arguments)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_of(hint)
    if hint is float:
        return _float
    return _exactly(hint)


def _list_of(inner: Convert) -> Convert:
    return lambda items: [inner(item) for item in items]


def _optional(inner: Convert) -> Convert:
    return lambda item: None if item is None else inner(item)


def _the_other(arguments: tuple[Any, ...]) -> Any:
    (other,) = (argument for argument in arguments if argument is not type(None))
    return other


def _exactly(kind: type) -> Convert:
    def convert(item: Any) -> Any:
        if type(item) is not kind:
            raise ProtocolError(f"expected {kind.__name__}, not {item!r:.80}")
        return item

    return convert


def _float(item: Any) -> float:
    if type(item) not in (int, float):
        raise ProtocolError(f"expected a number, not {item!r:.80}")
    return float(item)


def _tuple_of(inner: Convert) -> Convert:
    def convert(items: Any) -> tuple[Any, ...]:
        if not isinstance(items, list):
            raise ProtocolError(f"expected an array, not {items!r:.80}")
        return tuple(inner(item) for item in items)

    return convert


def _dict_of(key: Convert, value: Convert) -> Convert:
    def convert(items: Any) -> dict[Any, Any]:
        if not isinstance(items, dict):
            raise ProtocolError(f"expected a map, not {items!r:.80}")
        return {key(name): value(item) for name, item in items.items()}

    return convert


def _enum_of(kind: type[enum.Enum]) -> Convert:
    def convert(item: Any) -> Any:
        try:
            return kind(item)
        except ValueError as error:
            raise ProtocolError(f"no {kind.__name__} is {item!r:.80}") from error

    return convert
