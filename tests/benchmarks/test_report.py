"""A target that was not measured is a miss; ratios are taken within a round."""

import json

import pytest

from benchmarks.report import Goal, Report, ratios, rotated

GOALS = (Goal("a.small", "s", "<=", 2.0), Goal("a.large", "ratio", ">=", 1.2))


def test_a_target_without_a_value_is_a_miss():
    report = Report(GOALS)
    report.value("a.small", [1.0], 1)
    report.value("a.large", [], 1)
    assert [target["ok"] for target in report.targets()] == [True, False]
    assert not report.passed()


@pytest.mark.parametrize(
    ("small", "large", "passed"),
    [([2.0], [1.2], True), ([2.1], [1.2], False), ([2.0], [1.19], False), ([9.0, 1.0, 1.5], [3.0], True)],
)
def test_medians_are_held_against_the_bounds(small, large, passed):
    report = Report(GOALS)
    report.value("a.small", small, len(small))
    report.value("a.large", large, len(large))
    assert report.passed() is passed


def test_a_target_with_a_failed_round_is_a_miss():
    report = Report(GOALS)
    report.value("a.small", [1.0, 1.0], 3)
    report.value("a.large", [2.0] * 3, 3)
    assert [target["ok"] for target in report.targets()] == [False, True]


def test_a_name_that_is_no_target_is_refused():
    with pytest.raises(KeyError):
        Report(GOALS).value("a.typo", [1.0], 1)


def test_the_json_and_the_table_have_the_agreed_form(tmp_path):
    report = Report(GOALS)
    report.row("something", [3.0, 1.0, 2.0], "s", note="n")
    report.value("a.small", [2.5], 1)
    report.write(tmp_path / "out" / "report.json")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["targets"][0] == {
        "name": "a.small",
        "value": 2.5,
        "unit": "s",
        "target": "<= 2",
        "ok": False,
    }
    assert found["rows"][0] == {
        "what": "something",
        "unit": "s",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "rounds": 3,
        "note": "n",
    }
    table = report.text().split("\n\n")[1].splitlines()
    assert [line.split() for line in table] == [
        ["name", "value", "unit", "target", "pass|miss"],
        ["a.small", "2.5", "s", "<=", "2", "miss"],
        ["a.large", "-", "ratio", ">=", "1.2", "miss"],
    ]


def test_only_rounds_that_both_have_are_compared():
    assert ratios({0: 4.0, 1: 9.0, 2: 1.0}, {0: 2.0, 2: 4.0, 3: 5.0}) == [2.0, 0.25]


def test_every_name_is_first_in_turn():
    assert [rotated("abc", index)[0] for index in range(4)] == ["a", "b", "c", "a"]
