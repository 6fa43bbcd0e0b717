"""What is asked of etcd and how it answers, in the JSON of its gateway. Pure.

Bytes travel as base64, 64-bit numbers as strings; fields that are zero are left out.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


def text(data: bytes) -> str:
    """Bytes as JSON."""
    return b64encode(data).decode("ascii")


@dataclass(frozen=True, slots=True)
class Pair:
    """A key with its value and history."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a range: what was found, at which revision of the whole store."""

    pairs: tuple[Pair, ...]
    more: bool
    revision: int
    raft_term: int

    @property
    def only(self) -> Pair | None:
        """The pair, where one key was asked for."""
        return self.pairs[0] if self.pairs else None


@dataclass(frozen=True, slots=True)
class Ended:
    """A transaction's answer: whether its comparisons held, and what its ranges found."""

    held: bool
    revision: int
    pages: tuple[Page, ...]


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with ``prefix`` (which ends in no 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def get(key: bytes, *, revision: int = 0) -> Json:
    """One key, now or at a revision."""
    return {"key": text(key), "revision": str(revision)}


def page(
    prefix: bytes,
    *,
    limit: int,
    revision: int = 0,
    after: int = 0,
    until: int = 0,
    keys_only: bool = False,
) -> Json:
    """Keys under ``prefix`` in the order in which they were written last, after and until a revision."""
    return {
        "key": text(prefix),
        "range_end": text(prefix_end(prefix)),
        "limit": str(limit),
        "revision": str(revision),
        "min_mod_revision": str(after + 1),
        "max_mod_revision": str(until),
        "sort_target": "MOD",
        "sort_order": "ASCEND",
        "keys_only": keys_only,
    }


def put(key: bytes, value: bytes, *, lease: int = 0) -> Json:
    """A step of a transaction."""
    return {"request_put": {"key": text(key), "value": text(value), "lease": str(lease)}}


def delete(key: bytes) -> Json:
    """A step of a transaction."""
    return {"request_delete_range": {"key": text(key)}}


def look(key: bytes) -> Json:
    """A step of a transaction."""
    return {"request_range": get(key)}


def created(key: bytes, revision: int) -> Json:
    """Holds if the key was created at this revision; 0: there is no such key."""
    return {"key": text(key), "target": "CREATE", "result": "EQUAL", "create_revision": str(revision)}


def written(key: bytes, revision: int) -> Json:
    """Holds if the key was last written at this revision; 0: there is no such key."""
    return {"key": text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def written_until(key: bytes, revision: int) -> Json:
    """Holds if the key was last written at this revision or before, or does not exist."""
    return {"key": text(key), "target": "MOD", "result": "LESS", "mod_revision": str(revision + 1)}


def txn(compare: list[Json], then: list[Json], otherwise: list[Json] | None = None) -> Json:
    """All of ``then`` if all of ``compare`` holds, else all of ``otherwise``."""
    return {"compare": compare, "success": then, "failure": otherwise or []}


def watch(key: bytes, range_end: bytes | None, *, start_revision: int, deletes: bool) -> Json:
    """Changes from a revision on."""
    request: Json = {"key": text(key), "start_revision": str(start_revision)}
    if range_end is not None:
        request["range_end"] = text(range_end)
    if not deletes:
        request["filters"] = ["NODELETE"]
    return {"create_request": request}


def read_pair(item: Json) -> Pair:
    """A ``KeyValue``. Raises KeyError, ValueError, TypeError for what is none."""
    return Pair(
        b64decode(item["key"]),
        b64decode(item.get("value", "")),
        int(item.get("create_revision", 0)),
        int(item.get("mod_revision", 0)),
        int(item.get("lease", 0)),
    )


def read_page(answer: Json) -> Page:
    """A ``RangeResponse``."""
    header = answer["header"]
    pairs = tuple(read_pair(item) for item in answer.get("kvs", ()))
    return Page(pairs, bool(answer.get("more")), int(header["revision"]), int(header.get("raft_term", 0)))


def read_ended(answer: Json) -> Ended:
    """A ``TxnResponse``."""
    responses = answer.get("responses", ())
    pages = tuple(read_page(item["response_range"]) for item in responses if "response_range" in item)
    return Ended(bool(answer.get("succeeded")), int(answer["header"]["revision"]), pages)
