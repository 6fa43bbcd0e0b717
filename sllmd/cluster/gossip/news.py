"""News waiting to be told: one piece per member, the newest, a limited number of times each. Pure.

Whatever was told least goes first, and of those the newest, so that a change is through the cluster in a
logarithm of its size and no change starves another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

from sllmd.cluster.gossip.messages import Claim, packed_bytes
from sllmd.core.ids import NodeId

MISSES_MAX = 8
"""Pieces that did not fit before a packet counts as full: a long queue is not searched for a small one."""


@dataclass(slots=True)
class _Piece:
    claim: Claim
    size_bytes: int
    told: int = 0


def retransmit_limit(multiplier: int, members: int) -> int:
    """How often one member tells one piece (SWIM §4.1).

    Told k times by each, a piece misses a member with a chance of about e^-k. The logarithm alone would miss
    one in fifty in a cluster of nine, hence the three. Where one round reaches everybody, four rounds do.
    """
    return multiplier * min(max(1, members - 1), max(3, math.ceil(math.log10(members + 1))))


class News:
    """The queue, as one shelf per number of times told."""

    def __init__(self, pieces_max: int) -> None:
        self._pieces_max = pieces_max
        self._shelves: list[dict[NodeId, _Piece]] = [{}]
        self._shelf_of: dict[NodeId, int] = {}

    def __len__(self) -> int:
        return len(self._shelf_of)

    def has(self, node: NodeId) -> bool:
        """Whether something about this member is still to be told."""
        return node in self._shelf_of

    def add(self, claim: Claim) -> None:
        """Tell this, and no longer what was to be told about the same member."""
        self.drop(claim.node)
        if len(self._shelf_of) >= self._pieces_max:
            self._drop_most_told()
        self._shelves[0][claim.node] = _Piece(claim, packed_bytes(claim))
        self._shelf_of[claim.node] = 0

    def drop(self, node: NodeId) -> None:
        """No longer tell anything about this member."""
        shelf = self._shelf_of.pop(node, None)
        if shelf is not None:
            del self._shelves[shelf][node]

    def take(self, room_bytes: int, limit: int) -> list[Claim]:
        """What fits into a packet; each counts as told once more, and is dropped after ``limit`` times."""
        taken: list[_Piece] = []
        misses = 0
        for piece in chain.from_iterable(reversed(shelf.values()) for shelf in self._shelves):
            if piece.size_bytes <= room_bytes:
                room_bytes -= piece.size_bytes
                taken.append(piece)
            else:
                misses += 1
                if misses == MISSES_MAX:
                    break
        for piece in taken:
            self._told(piece, limit)
        return [piece.claim for piece in taken]

    def _told(self, piece: _Piece, limit: int) -> None:
        node = piece.claim.node
        del self._shelves[self._shelf_of[node]][node]
        piece.told += 1
        if piece.told >= limit:
            del self._shelf_of[node]
            return
        while len(self._shelves) <= piece.told:
            self._shelves.append({})
        self._shelves[piece.told][node] = piece
        self._shelf_of[node] = piece.told

    def _drop_most_told(self) -> None:
        for shelf in reversed(self._shelves):
            if shelf:
                self.drop(next(iter(shelf)))
                return
