"""An immutable map that is cheap to change: a change copies one bucket, not the map. Pure.

``apply`` returns a new state for every command; copying a plain dict of ten thousand clients each time
would cost more than all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar
from zlib import crc32

Value = TypeVar("Value")

BUCKETS = 64


class Table(Generic[Value]):
    """String keys; iteration is in the keys' order, so that it is the same on every node."""

    __slots__ = ("_buckets",)

    def __init__(self, items: Iterable[tuple[str, Value]] = ()) -> None:
        buckets: list[dict[str, Value]] = [{} for _ in range(BUCKETS)]
        for key, value in items:
            buckets[_place(key)][key] = value
        self._buckets = tuple(buckets)

    def get(self, key: str) -> Value | None:
        """The value, or None."""
        return self._buckets[_place(key)].get(key)

    def put(self, key: str, value: Value) -> Table[Value]:
        """A table in which ``key`` has this value."""
        place = _place(key)
        return self._with(place, {**self._buckets[place], key: value})

    def without(self, key: str) -> Table[Value]:
        """A table in which ``key`` has no value."""
        place = _place(key)
        return self._with(place, {name: value for name, value in self._buckets[place].items() if name != key})

    def items(self) -> Iterator[tuple[str, Value]]:
        """Everything, in the keys' order."""
        for key in sorted(key for bucket in self._buckets for key in bucket):
            yield key, self._buckets[_place(key)][key]

    def values(self) -> Iterator[Value]:
        """Every value, in the keys' order."""
        return (value for _, value in self.items())

    def changes(self, before: Table[Value]) -> Iterator[tuple[str, Value | None, Value | None]]:
        """Keys whose values differ, with the value before and now; what was not touched costs nothing."""
        for old, new in zip(before._buckets, self._buckets, strict=True):
            if old is new:
                continue
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) is not new.get(key) and old.get(key) != new.get(key):
                    yield key, old.get(key), new.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._buckets[_place(key)]

    def __len__(self) -> int:
        return sum(map(len, self._buckets))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._buckets == other._buckets

    def __hash__(self) -> int:
        return hash(tuple(key for key, _ in self.items()))

    def __repr__(self) -> str:
        return f"Table({dict(self.items())!r})"

    def _with(self, place: int, bucket: dict[str, Value]) -> Table[Value]:
        table: Table[Value] = Table.__new__(Table)
        table._buckets = (*self._buckets[:place], bucket, *self._buckets[place + 1 :])
        return table


def _place(key: str) -> int:
    return crc32(key.encode()) % BUCKETS
