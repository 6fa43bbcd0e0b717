"""Who leaves DRAM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import Digest
from sllmd.loader.tiers import Copy, Shortage, chance_of_idle, make_room


def copy(
    name: str,
    slabs: int = 1,
    *,
    leased: bool = False,
    idle: float = 1.0,
    chance: float | None = None,
    reload: float | None = None,
) -> Copy:
    chance = chance_of_idle(idle) if chance is None else chance
    return Copy(Digest(name), slabs, leased, idle, chance, reload if reload is not None else slabs * 1.0)


OLD, NEW = copy("old", idle=100), copy("new", idle=1)
LEASED = copy("leased", idle=0, leased=True)
RARE, LIKELY = copy("rare", idle=1, chance=0.01), copy("likely", idle=3000, chance=0.9)
BIG = copy("big", 4, idle=50)


@pytest.mark.parametrize(
    ("copies", "needed", "room", "expected"),
    [
        ([OLD], 2, 2, ()),
        ([OLD], 0, 0, ()),
        ([NEW, OLD], 1, 0, ("old",)),
        ([NEW, OLD], 2, 0, ("old", "new")),
        ([NEW, OLD], 2, 1, ("old",)),
        ([LEASED, NEW], 1, 0, ("new",)),
        ([LEASED], 1, 0, Shortage(1)),
        ([LEASED, NEW], 5, 1, Shortage(3)),
        ([], 3, 1, Shortage(2)),
        ([LIKELY, RARE], 1, 0, ("rare",)),
        ([copy("far", reload=200, chance=0.01), LIKELY], 1, 0, ("likely",)),
        ([copy("far", reload=50, chance=0.01), LIKELY], 1, 0, ("far",)),
        ([OLD, BIG], 4, 0, ("big",)),
        ([OLD, BIG], 5, 0, ("old", "big")),
        ([copy("b"), copy("a")], 1, 0, ("a",)),
    ],
    ids=[
        "room is there",
        "nothing needed",
        "least recently used first",
        "both when both are needed",
        "only what is missing",
        "a leased one stays",
        "nothing idle",
        "nobody goes when it would not help",
        "nothing there",
        "what is likely to be asked for stays, however long ago it was used",
        "one that is dear to bring back stays",
        "unless nobody is likely to ask for it",
        "a small one stays when a larger one has to go anyway",
        "unless both are needed",
        "equals go by name",
    ],
)
def test_make_room(copies, needed, room, expected):
    assert make_room(copies, needed, room) == expected


@given(
    st.lists(
        st.builds(
            Copy,
            digest=st.uuids().map(lambda unique: Digest(str(unique))),
            slabs=st.integers(0, 5),
            leased=st.booleans(),
            idle_seconds=st.floats(0, 1e6),
            chance=st.floats(0, 1),
            reload_seconds=st.floats(0, 1e6),
        ),
        max_size=8,
    ),
    st.integers(0, 30),
    st.integers(0, 10),
)
def test_it_is_enough_and_nobody_goes_for_nothing(copies, needed, room):
    by_digest = {each.digest: each for each in copies}
    idle_slabs = sum(each.slabs for each in copies if not each.leased)
    match make_room(copies, needed, room):
        case Shortage(missing):
            assert missing == needed - room - idle_slabs > 0
        case victims:
            gone = [by_digest[digest] for digest in victims]
            freed = sum(each.slabs for each in gone)
            assert room + freed >= needed
            assert not any(each.leased for each in gone)
            assert all(room + freed - each.slabs < needed for each in gone)
