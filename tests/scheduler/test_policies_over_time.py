"""Turns, scaling, eviction, prefetch, arrivals: tables, and that nothing thrashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.scheduler.arrivals import Arrivals
from sllmd.scheduler.eviction import Copy, NoRoom, choose, copies_of, worth_seconds
from sllmd.scheduler.facts import Rules, Tier
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.learning import Learned
from sllmd.scheduler.prefetch import prefetch
from sllmd.scheduler.scaling import Idle, Steady, further, idle_action, keep_alive_seconds, scale, wanted
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.turns import must_yield
from sllmd.scheduler.view import ModelView
from tests.scheduler.cluster import GB, NOW, inventory, keeper, model, replica

SETTINGS = SchedulerSettings()
DAY = 86_400.0

# --- turns ---


def test_two_hot_models_on_one_device_take_turns_and_spend_at_most_half_on_switching() -> None:
    """A thousand seconds of two models that always have requests waiting."""
    switch = 2.0
    made = keeper([model("a"), model("b")], inventory("one", replica("r", "a", 0), gb=12))
    seen = made.view.replicas[ReplicaId("r")]
    now, switches, served = NOW, 0, {"a": 0, "b": 0}
    current, other = "a", "b"
    since = {"a": NOW, "b": NOW}
    seen.since_seconds = now
    while now < NOW + 1000:
        if must_yield(seen, now - since[current], now - since[other], switch, SETTINGS, now):
            current, other = other, current
            now += switch
            switches += 1
            seen.since_seconds = now
        served[current] += 1
        since[current] = now  # its oldest was served; the next has just come
        now += 0.5
    assert switches * switch <= 500
    assert min(served.values()) > 0.4 * max(served.values())


def test_a_replica_that_has_just_come_does_not_yield() -> None:
    made = keeper([model("a")], inventory("one", replica("r", "a", 0)), now=NOW - 1)
    assert not must_yield(made.view.replicas[ReplicaId("r")], 0, 1000, 0.5, SETTINGS, NOW)


# --- scaling ---


@pytest.mark.parametrize(
    ("running", "queued", "rules", "count"),
    [
        (0, 0, {}, 0),
        (0, 1, {}, 1),
        (4, 0, {}, 1),
        (4, 1, {}, 2),
        (4, 5, {"target_running": 2.0}, 5),
        (4, 100, {"max_replicas": 3}, 3),
        (0, 0, {"min_replicas": 2}, 2),
    ],
)
def test_replicas_follow_running_and_waiting(running: int, queued: int, rules: dict, count: int) -> None:
    made = keeper([model("a", rows=4, rules=rules)], inventory("one", replica("r", "a", 0, running=running)))
    made.waiting(ModelName("a"), queued)
    assert wanted(made.view.models[ModelName("a")]) == count


def test_more_come_at_once_and_fewer_only_after_a_while() -> None:
    steady = Steady()
    targets = [steady.target(wish, NOW + t, 30.0) for t, wish in ((0, 1), (1, 4), (2, 0), (30, 0), (33, 0))]
    assert targets == [1, 4, 4, 4, 0]


def test_a_clock_that_jumps_back_does_not_hold_on_to_the_future() -> None:
    steady = Steady()
    steady.target(9, NOW + 1000, 30.0)
    assert steady.target(1, NOW, 30.0) == 1


@given(st.lists(st.tuples(st.floats(0.1, 5), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_target_is_the_largest_wish_within_the_delay(steps: list[tuple[float, int]]) -> None:
    steady, now, told = Steady(), NOW, []
    for gap, wish in steps:
        now += gap
        told.append((now, wish))
        lately = [w for t, w in told if t >= now - 30.0]
        assert steady.target(wish, now, 30.0) == max(lately)


def crowd(
    *running: int, queued: int = 0, nodes: int = 4, gb: float = 24, **rules: object
) -> tuple[Keeper, ModelView]:
    """A model of four rows on the first nodes, running so many there; all nodes have it on SSD."""
    a = model("a", rows=4, rules=rules)
    placed = [(replica(f"r{i}", "a", 0, running=count),) for i, count in enumerate(running)]
    placed += [()] * (nodes - len(placed))
    made = keeper([a, model("b")], *(inventory(f"n{i}", *r, gb=gb, ssd="a") for i, r in enumerate(placed)))
    made.waiting(ModelName("a"), queued)
    return made, made.view.models[ModelName("a")]


@pytest.mark.parametrize(
    ("running", "more", "missing"),
    [
        ((4,), {}, 0),
        ((4,), {"queued": 1}, 1),
        ((4, 4), {"queued": 9}, 3),
        ((4,), {"queued": 99, "max_replicas": 2}, 1),
        ((4, 4), {"queued": 99, "max_replicas": 2}, 0),
        ((3,), {"target_running": 2}, 1),
        ((), {"queued": 9}, 0),
        ((), {"min_replicas": 2}, 2),
        ((0,), {"min_replicas": 2}, 1),
    ],
)
def test_replicas_are_missing_when_more_is_asked_for_than_they_run(running, more, missing: int) -> None:
    made, known = crowd(*running, **more)
    step = scale(made.view, known, Steady(), NOW)
    assert (step.missing, step.surplus) == (missing, None)


def test_the_least_busy_one_too_many_goes_after_the_keep_alive_and_the_last_never() -> None:
    made, known = crowd(4, 1, 2, keep_alive_seconds=50.0)
    steady = Steady()
    assert scale(made.view, known, steady, NOW).surplus is None, (
        "whether it was needed, a new leader cannot know"
    )
    step = scale(made.view, known, steady, NOW + 1)
    assert (step.surplus, step.again_seconds) == (None, NOW + 50)
    assert scale(made.view, known, steady, NOW + 49).surplus is None
    assert scale(made.view, known, steady, NOW + 51).surplus == "r1"


@pytest.mark.parametrize(
    ("running", "rules", "surplus"),
    [((0, 0), {}, "r0"), ((0,), {}, None), ((0, 0), {"min_replicas": 2}, None)],
)
def test_what_is_left_of_replicas_without_work(running, rules: dict, surplus: str | None) -> None:
    made, known = crowd(*running, **rules)
    steady = Steady()
    scale(made.view, known, steady, NOW)
    assert scale(made.view, known, steady, NOW + 1e6).surplus == surplus


def test_a_load_that_comes_and_goes_starts_and_stops_nothing_in_turns() -> None:
    made, known = crowd(3, 3)
    steady, steps = Steady(), []
    for second in range(300):
        made.waiting(ModelName("a"), 2 if second % 20 == 0 else 0)
        steps.append(scale(made.view, known, steady, NOW + second))
    assert not any(step.missing or step.surplus for step in steps)


def test_one_more_goes_to_free_room_or_that_of_idle_replicas_and_only_if_it_helps() -> None:
    def where(made: Keeper, known: ModelView, *only: str) -> tuple[str, list[str]] | None:
        load = further(made.view, known, NOW, [NodeId(each) for each in only])
        return None if load is None else (load.node, [victim.replica for victim in load.victims])

    made, known = crowd(4, queued=1)
    assert where(made, known, "n1") == ("n1", [])
    assert where(made, known) is None
    for node in made.view.nodes.values():
        node.from_ssd = node.from_peer = node.from_remote = Learned(1e7)
    assert where(made, known, "n1") is None, "a row is free before a load is done"
    made, known = crowd(1, queued=1)
    assert where(made, known, "n1") is None, "a row is free"
    for running, rules, victims in ((0, {}, ["v"]), (1, {}, None), (0, {"min_replicas": 1}, None)):
        b = model("b", rules=rules)
        full = inventory("n1", replica("v", "b", 0, running=running), gb=12, ssd="a")
        held = inventory("n0", replica("r", "a", 0, running=4), gb=12, ssd="a")
        made = keeper([model("a", rows=4), b], held, full)
        made.waiting(ModelName("a"), 1)
        found = where(made, made.view.models[ModelName("a")], "n1")
        assert found == (None if victims is None else ("n1", victims)), (running, rules)


def test_keep_alive_is_about_the_time_of_a_load_unless_set() -> None:
    assert keep_alive_seconds(Rules(), 5.0, SETTINGS) == 40
    assert keep_alive_seconds(Rules(), 0.01, SETTINGS) == SETTINGS.keep_alive_min
    assert keep_alive_seconds(Rules(), 1e6, SETTINGS) == SETTINGS.keep_alive_max
    assert keep_alive_seconds(Rules(keep_alive_seconds=0.0), 5.0, SETTINGS) == 0


def test_an_idle_replica_sleeps_before_it_goes() -> None:
    made = keeper([model("a")], inventory("one", replica("r", "a", 0)), now=NOW)

    def action(now: float, ready: int = 1, target: int = 0) -> Idle:
        return idle_action(made.view.replicas[ReplicaId("r")], ready, target, 5.0, now, SETTINGS)

    assert action(NOW + 39) is Idle.STAY
    assert action(NOW + 41) is Idle.SLEEP
    assert action(NOW + 41, target=1) is Idle.STAY
    made.apply(_asleep(), NOW + 41)
    assert action(NOW + 80) is Idle.STAY
    assert action(NOW + 82) is Idle.GO


def _asleep():
    from sllmd.scheduler import reports

    return reports.Report(NodeId("one"), 1, (reports.ReplicaAsleep(ReplicaId("r"), ModelName("a")),))


# --- eviction ---


def copies(*worths: float, size: int = 10) -> list[Copy]:
    return [Copy(ModelName(f"m{i}"), size, held=False, worth_seconds=worth) for i, worth in enumerate(worths)]


def test_the_least_worth_goes_and_no_more_than_needed() -> None:
    assert choose(copies(3, 1, 2), 0) == ()
    assert choose(copies(3, 1, 2), 10) == ("m1",)
    assert set(choose(copies(3, 1, 2), 11)) == {"m1", "m2"}
    assert choose([Copy(ModelName("m"), 10, held=True, worth_seconds=0)], 5) == NoRoom(5)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans(), st.floats(0, 100)), max_size=12),
    st.integers(0, 300),
)
def test_an_eviction_is_enough_minimal_and_spares_what_is_held(rows, needed: int) -> None:
    all_copies = [Copy(ModelName(f"m{i}"), *row) for i, row in enumerate(rows)]
    going = choose(all_copies, needed)
    free = {copy.model: copy.size_bytes for copy in all_copies if not copy.held}
    if isinstance(going, NoRoom):
        assert going.missing_bytes == needed - sum(free.values())
        return
    freed = [free[name] for name in going]
    assert sum(freed) >= needed
    assert all(sum(freed) - size < needed for size in freed)


def test_worth_is_cost_times_chance() -> None:
    made = keeper([model("a"), model("b")], inventory("one", dram="a b", ssd="a b"))
    node = made.view.nodes[NodeId("one")]
    made.arrived(ModelName("a"), NOW)
    worth = {
        name: worth_seconds(made.view, node, made.view.models[name], Tier.DRAM, NOW) for name in ("a", "b")
    }
    assert worth["a"] == pytest.approx(10 / 5 - 10 / 20)
    assert worth["b"] == 0
    only = worth_seconds(made.view, node, made.view.models[ModelName("a")], Tier.SSD, NOW)
    assert only > worth["a"], "the remote source is slower than the SSD"
    assert [copy.model for copy in copies_of(made.view, node, Tier.DRAM, NOW)] == ["a", "b"]


# --- prefetch ---


def test_empty_memory_is_filled_the_likeliest_first_and_busy_paths_are_left_alone() -> None:
    made = keeper([model("a"), model("b")], inventory("one", ssd="a b"))
    node = made.view.nodes[NodeId("one")]
    made.arrived(ModelName("b"), NOW)
    lift = prefetch(made.view, node, NOW)
    assert lift is not None
    assert (lift.model, lift.evict) == ("b", ())
    assert lift.saves_seconds == pytest.approx(1.5)
    node.ssd_path.until = NOW + 1
    assert prefetch(made.view, node, NOW) is None


def test_empty_memory_may_be_kept_for_what_is_likely_to_be_used() -> None:
    made = keeper([model("a"), model("b")], inventory("one", ssd="a b"))
    node = made.view.nodes[NodeId("one")]
    assert prefetch(made.view, node, NOW, chance_min=0.5) is None
    made.arrived(ModelName("b"), NOW - 1)
    lift = prefetch(made.view, node, NOW, chance_min=0.5)
    assert lift is not None
    assert lift.model == "b"


def test_a_full_memory_is_changed_only_for_something_worth_more() -> None:
    models = [model("a", 300), model("b", 300)]
    made = keeper(models, inventory("one", dram="a", ssd="a b", gb=400))
    node = made.view.nodes[NodeId("one")]
    assert prefetch(made.view, node, NOW) is None
    made.arrived(ModelName("b"), NOW)
    lift = prefetch(made.view, node, NOW)
    assert lift is not None
    assert (lift.model, lift.evict) == ("b", ("a",))
    made.arrived(ModelName("a"), NOW)
    assert prefetch(made.view, node, NOW) is None, "two hot models do not throw each other out"


def test_nodes_lift_different_models_first() -> None:
    models = [model(f"m{i}", 1) for i in range(20)]
    names = " ".join(each.name for each in models)
    made = keeper(models, *(inventory(f"n{i}", ssd=names) for i in range(4)))
    lifts = [prefetch(made.view, node, NOW) for node in made.view.nodes.values()]
    assert len({lift.model for lift in lifts if lift}) >= 3


# --- arrivals ---


def test_the_chance_of_use_falls_with_silence() -> None:
    arrivals = Arrivals()
    assert arrivals.chance(NOW, 60) == 0
    arrivals.record(NOW)
    chances = [arrivals.chance(NOW + silence, 60) for silence in (0, 60, 600, 6000)]
    assert chances[0] == 1
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.02


def test_after_a_burst_the_next_burst_counts_not_the_rate_in_the_burst() -> None:
    arrivals = Arrivals()
    for burst in range(10):
        for request in range(60):
            arrivals.record(NOW + burst * 1000 + request * 0.01)
    end = NOW + 9000.6
    assert arrivals.chance(end + 10, 60) < 0.35
    assert arrivals.chance(end + 950, 100) > 0.5


def test_a_daily_peak_is_expected_after_two_days() -> None:
    arrivals = Arrivals()
    nine = 9 * 3600.0
    for day in range(3):
        for request in range(20):
            arrivals.record(day * DAY + nine + request * 10)
    assert arrivals.chance(3 * DAY + nine - 60, 120) > 0.9
    assert arrivals.chance(3 * DAY + 3 * 3600, 120) < 0.1


def test_a_clock_that_goes_back_is_no_arrival_from_the_future() -> None:
    arrivals = Arrivals()
    arrivals.record(NOW + 1000)
    arrivals.record(NOW)
    assert 0 <= arrivals.chance(NOW, 60) <= 1
    assert arrivals.last_seconds == NOW + 1000


def test_held_copies_are_those_of_replicas_here() -> None:
    made = keeper([model("a"), model("b")], inventory("one", replica("r", "a", 0), dram="a b"))
    held = {c.model: c.held for c in copies_of(made.view, made.view.nodes[NodeId("one")], Tier.DRAM, NOW)}
    assert held == {"a": True, "b": False}
    assert made.view.nodes[NodeId("one")].dram_used_bytes == 20 * GB
