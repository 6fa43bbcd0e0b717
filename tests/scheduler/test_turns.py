"""Keys take turns: nobody's thousand requests keep anybody else's only one waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.scheduler.turns import Turns, weight


@dataclass(frozen=True)
class Asked:
    key: str
    priority: int = 0
    name: str = ""


def crowd(key: str, count: int, priority: int = 0) -> list[Asked]:
    return [Asked(key, priority, f"{key}{number}") for number in range(count)]


def serve(turns: Turns, waiting: list[Asked], count: int, may: Callable[[Asked], bool] = lambda _: True):
    """Who is served in so many turns; ``waiting`` loses them."""
    served = []
    for _ in range(count):
        one = next((each for each in turns.order(waiting) if may(each)), None)
        if one is None:
            break
        turns.served(one)
        waiting.remove(one)
        served.append(one)
    return served


def test_a_key_with_a_thousand_requests_delays_another_by_one() -> None:
    turns, waiting = Turns(), crowd("big", 1000)
    serve(turns, waiting, 300)
    waiting += crowd("small", 1)
    assert [one.key for one in serve(turns, waiting, 3)].index("small") <= 1


def test_within_a_key_priority_goes_first_then_who_came_first() -> None:
    waiting = [Asked("a", 0, "1"), Asked("a", 1, "2"), Asked("a", 0, "3"), Asked("a", 1, "4")]
    assert [one.name for one in Turns().order(waiting)] == ["2", "4", "1", "3"]


def test_without_keys_it_is_a_line() -> None:
    waiting = crowd("", 50)
    assert serve(Turns(), list(waiting), 50) == waiting


@pytest.mark.parametrize(("priority", "share"), [(0, 50), (1, 67), (2, 80), (-1, 33)])
def test_priority_is_a_share_and_nobody_starves(priority: int, share: int) -> None:
    waiting = crowd("one", 500, priority) + crowd("other", 500)
    served = Counter(one.key for one in serve(Turns(), waiting, 100))
    assert abs(served["one"] - share) <= 2


def test_what_could_not_be_had_is_not_owed_for_long() -> None:
    """A key waits for a model that loads while another is served three hundred times."""
    turns, waiting = Turns(), crowd("patient", 400) + crowd("other", 700)
    serve(turns, waiting, 300, lambda one: one.key == "other")
    assert Counter(one.key for one in serve(turns, waiting, 100))["other"] >= 48


def test_who_rests_neither_saves_turns_nor_owes_them_for_ever() -> None:
    turns, waiting = Turns(), crowd("a", 500)
    serve(turns, waiting, 250)
    waiting += crowd("b", 500)
    assert Counter(one.key for one in serve(turns, waiting, 100)) == {"a": 50, "b": 50}
    waiting[:] = crowd("c", 10)
    serve(turns, waiting, 10)
    assert not turns.order(crowd("a", 1))[1:]
    assert len(turns._clocks) <= 2, "keys that wait no more are forgotten"


keys = st.sampled_from("abcde")
events = st.lists(
    st.one_of(
        st.tuples(st.just("come"), keys, st.integers(-2, 2), st.integers(1, 30)),
        st.tuples(st.just("serve"), st.integers(1, 10)),
        st.tuples(st.just("serve only"), keys, st.integers(1, 10)),
        st.tuples(st.just("leave"), st.integers(0, 40)),
    ),
    max_size=25,
)


@given(events, st.integers(-2, 2))
def test_whatever_happened_before_one_request_waits_for_few_of_each_key(history, priority: int) -> None:
    turns, waiting, number = Turns(), [], 0
    for event in history:
        match event:
            case ("come", key, own, count):
                waiting += [Asked(key, own, f"{number}.{place}") for place in range(count)]
                number += 1
            case ("serve", count):
                serve(turns, waiting, count)
            case ("serve only", key, count):
                serve(turns, waiting, count, lambda one, key=key: one.key == key)
            case ("leave", place):
                del waiting[place : place + 3]
    newcomer = Asked("new", priority, "new")
    waiting.append(newcomer)
    ordered = turns.order(waiting)
    assert Counter(ordered) == Counter(waiting), "nobody is lost or doubled"
    before = serve(turns, waiting, ordered.index(newcomer) + 1)
    assert newcomer in before
    for key, count in Counter(one.key for one in before if one is not newcomer).items():
        most = max(weight(one.priority) for one in before if one.key == key)
        assert count <= most / weight(priority) + 2


@given(st.lists(st.tuples(keys, st.integers(-2, 2)), min_size=1, max_size=60))
def test_everybody_is_served_in_the_end(asked) -> None:
    waiting = [Asked(key, priority, f"{number}") for number, (key, priority) in enumerate(asked)]
    turns, left = Turns(), list(waiting)
    served = serve(turns, left, len(waiting))
    assert not left
    assert Counter(served) == Counter(waiting)
