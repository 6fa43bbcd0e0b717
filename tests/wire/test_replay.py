from hypothesis import given
from hypothesis import strategies as st

from sllmd.wire.replay import ReplayWindow


def test_numbers_come_once_and_may_overtake_each_other() -> None:
    window = ReplayWindow(8)
    assert [window.admit(number) for number in (0, 2, 1, 1, 5, 2, 4, 5, 3)] == [
        True, True, True, False, True, False, True, False, True,
    ]  # fmt: skip


def test_what_is_below_the_window_is_refused() -> None:
    window = ReplayWindow(8)
    assert window.admit(100)
    assert not window.admit(92)
    assert window.admit(93)


def test_a_leap_forgets_all_before_it() -> None:
    window = ReplayWindow(8)
    assert window.admit(3)
    assert window.admit(10_000_000)
    assert not window.admit(3)
    assert window.admit(10_000_000 - 7)
    assert not window.admit(10_000_000)


@given(st.lists(st.integers(0, 60)), st.integers(1, 20))
def test_never_twice_and_never_refused_within_the_window(numbers: list[int], size: int) -> None:
    window, seen, highest = ReplayWindow(size), set(), -1
    for number in numbers:
        fits = number > highest - size and number not in seen
        assert window.admit(number) is (number > highest or fits)
        seen.add(number)
        highest = max(highest, number)
