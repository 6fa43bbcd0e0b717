"""The first frame: who one is, of which cluster, and which protocol versions one speaks. Pure.

The frame's layout and this map never change meaning; keys are only ever added. That is how nodes of
different releases can tell each other why they will not talk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sllmd.core.errors import PeerRefused, ProtocolError
from sllmd.core.ids import NodeId

VERSIONS = (1, 1)
"""Least and most protocol version that this release speaks."""
HELLO_BYTES_MAX = 4096
"""A stranger may send no more before it is known."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says of itself."""

    cluster: str
    """Empty: not of any cluster yet."""
    node: NodeId
    """Empty: a node that wants to join."""
    versions: tuple[int, int] = VERSIONS
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Small things a peer should know, such as the port that serves chunks."""

    def to_wire(self) -> dict[str, Any]:
        """As a msgpack value."""
        return {
            "cluster": self.cluster,
            "node": self.node,
            "versions": self.versions,
            "facts": dict(self.facts),
        }


def parse_hello(value: Any) -> Hello:
    """The inverse of ``Hello.to_wire``; raises ProtocolError."""
    match value:
        case {
            "cluster": str(cluster),
            "node": str(node),
            "versions": (int(least), int(most)),
            "facts": dict(facts),
        } if least <= most:
            return Hello(cluster, NodeId(node), (least, most), facts)
    raise ProtocolError(f"the other side's hello is none: {value!r:.80}")


def agree(ours: Hello, theirs: Hello) -> int:
    """The version to talk in. Raises PeerRefused: no common version, or another cluster's node."""
    least = max(ours.versions[0], theirs.versions[0])
    most = min(ours.versions[1], theirs.versions[1])
    if least > most:
        older = "we are" if ours.versions[1] < theirs.versions[0] else f"{_who(theirs)} is"
        raise PeerRefused(
            f"{_who(theirs)} speaks protocol versions {_span(theirs.versions)}, "
            f"{_who(ours)} speaks {_span(ours.versions)}",
            hint=f"upgrade sllmd: {older} too old",
        )
    if ours.cluster and theirs.cluster and ours.cluster != theirs.cluster:
        raise PeerRefused(
            f"node {theirs.node} is of cluster {theirs.cluster}, node {ours.node} of {ours.cluster}",
            hint="check the address; a node that shall change clusters must leave the old one first",
        )
    return most


def _who(hello: Hello) -> str:
    return f"node {hello.node}" if hello.node else "the node that wants to join"


def _span(versions: tuple[int, int]) -> str:
    least, most = versions
    return str(least) if least == most else f"{least} to {most}"
