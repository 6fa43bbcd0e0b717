"""Is there an order of operations that explains a history? Wing and Gong's search with Lowe's memory.

A history is checked key by key: a register with read, write and compare-and-set. An operation without an
answer may have taken effect at any time after it was invoked, or never. Values are written once each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Operation:
    key: str
    kind: str
    """``read``, ``write``, or ``cas``."""
    invoked: float
    returned: float
    """Infinity if no answer came."""
    value: object = None
    """What was written, or what was read."""
    expected: object = None
    succeeded: bool = True

    @property
    def open(self) -> bool:
        return math.isinf(self.returned)


def explain(history: list[Operation]) -> str | None:
    """None if the history is linearizable, else the key whose history is not, and its operations."""
    ordered = sorted(history, key=lambda one: one.key)
    for key, group in groupby(ordered, key=lambda one: one.key):
        operations = _relevant(list(group))
        if not _linearizable(operations):
            lines = [f"  {one}" for one in sorted(operations, key=lambda one: one.invoked)]
            return f"no order explains the history of {key}:\n" + "\n".join(lines)
    return None


def _relevant(operations: list[Operation]) -> list[Operation]:
    """Without what may just as well have never happened: reads without an answer, and changes without one
    that nobody ever saw (values are written once). Each of those would double the search.
    """
    seen = {one.value for one in operations if one.kind == "read" and not one.open}
    seen |= {one.expected for one in operations if one.kind == "cas"}
    return [one for one in operations if not one.open or (one.kind != "read" and one.value in seen)]


def _step(state: object, one: Operation) -> tuple[bool, object]:
    """Whether the operation could have ended so in this state, and the state after it."""
    if one.kind == "read":
        return one.value == state, state
    if one.kind == "write":
        return True, one.value
    matched = state == one.expected
    if one.open:
        return True, one.value if matched else state
    return matched == one.succeeded, one.value if matched else state


def _linearizable(operations: list[Operation]) -> bool:
    operations = sorted(operations, key=lambda one: one.invoked)
    must = sum(1 << place for place, one in enumerate(operations) if not one.open)
    seen: set[tuple[int, object]] = set()
    stack: list[tuple[int, object]] = [(0, None)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        for place in _candidates(operations, done):
            possible, after = _step(state, operations[place])
            following = (done | 1 << place, after)
            if possible and following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def _candidates(operations: list[Operation], done: int) -> list[int]:
    """Operations that no other one, not yet done, must come before."""
    found, first_return = [], math.inf
    for place, one in enumerate(operations):
        if done >> place & 1:
            continue
        if one.invoked > first_return:
            break
        found.append(place)
        first_return = min(first_return, one.returned)
    return found
