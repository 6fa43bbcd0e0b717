"""Runs on virtual nodes: they repeat, lose nobody, and the policies do what they are named for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmd.core.ids import ModelName
from sllmd.scheduler.facts import Model
from sllmd.simulator.hardware import GB, KINDS, Hardware, Kind
from sllmd.simulator.policies import POLICIES
from sllmd.simulator.results import Result
from sllmd.simulator.simulation import Simulation, simulate
from sllmd.simulator.traces import LENGTHS, Arrival, gamma_bursts

STEADY = Hardware(noise=0.0)
KIND = KINDS["opt-6.7b"]


def served(count: int, kind: Kind = KIND) -> list[tuple[Kind, Model]]:
    return [(kind, kind.model(index)) for index in range(count)]


def bursts(models: list[tuple[Kind, Model]], seed: int = 0, rate: float = 1.0) -> list[Arrival]:
    return gamma_bursts(
        [model.name for _, model in models],
        requests_per_second=rate,
        cv=8.0,
        seconds=200,
        lengths=LENGTHS["gsm8k"],
        seed=seed,
    )


@pytest.mark.parametrize("policy", [*POLICIES, "oracle", "waiting"])
def test_a_seed_gives_one_run_and_nobody_is_lost(policy: str) -> None:
    models = served(12)
    trace = bursts(models)
    first, second = (simulate(Hardware(nodes=2), models, trace, policy, 3) for _ in range(2))
    assert first == second
    assert first.failed == 0
    assert len(first.startup_seconds) == len(trace) > 50
    assert all(seconds >= 0 for seconds in first.startup_seconds)


def test_another_seed_gives_another_run() -> None:
    models = served(12)
    runs = [simulate(Hardware(nodes=2), models, bursts(models), "startup", seed) for seed in (1, 2)]
    assert runs[0].startup_seconds != runs[1].startup_seconds


def test_one_cold_start_takes_what_the_bandwidths_say() -> None:
    models = served(1)
    trace = [Arrival(0.0, models[0][1].name, 10, 10), Arrival(100.0, models[0][1].name, 10, 10)]
    result = simulate(STEADY, models, trace, "reactive", 0)
    from_ssd, from_dram = 13.4 / 5 + 0.1, 13.4 / 20 + 0.1
    assert result.startup_seconds == pytest.approx([from_ssd, from_dram])
    assert (result.cold, result.loads) == (2, {"ssd": 1, "dram": 1})


def test_within_its_keep_alive_a_replica_is_still_there() -> None:
    models = served(1)
    trace = [Arrival(at, models[0][1].name, 10, 10) for at in (0.0, 10.0)]
    result = simulate(STEADY, models, trace, "reactive", 0)
    assert result.startup_seconds[1] == 0
    assert result.cold == 1


def test_an_idle_replica_sleeps_before_it_goes_and_is_woken_faster_than_loaded() -> None:
    models = served(1)
    keep = 30.0
    for rest, woken, start in ((1.5 * keep, 1, STEADY.wake_seconds), (2.5 * keep, 0, STEADY.start_seconds)):
        trace = [Arrival(at, models[0][1].name, 10, 10) for at in (0.0, rest + 5)]
        result = simulate(STEADY, models, trace, "reactive", 0)
        assert result.startup_seconds[1] == pytest.approx(13.4 / 20 + start)
        assert result.woken == woken


def test_a_sleeping_replica_goes_with_its_copy() -> None:
    """Two models, and memory for one: the one that sleeps makes room, and is loaded anew."""
    models = served(2)
    hardware = replace(STEADY, nodes=1, devices=1, dram_bytes=20 * GB)
    trace = [Arrival(at, models[index][1].name, 10, 10) for at, index in ((0.0, 0), (10.0, 1), (20.0, 0))]
    result = simulate(hardware, models, trace, "reactive", 0)
    assert (result.woken, result.loads) == (0, {"ssd": 3})


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.sampled_from(("startup", "reactive", "waiting")), st.data())
def test_two_hot_models_that_share_a_device_batch_their_queues(rows_max, tokens, policy, data) -> None:
    """Each asks faster than the device serves, in any order. Nobody fails, and no more than half of the time
    goes into switching."""
    models = served(2, replace(KIND, rows=rows_max))
    chance = data.draw(st.randoms(use_true_random=False))
    trace = [Arrival(number * 0.02, models[chance.randrange(2)][1].name, 20, tokens) for number in range(300)]
    hardware = replace(STEADY, nodes=1, devices=1)
    result = simulate(hardware, models, trace, policy, 0)
    assert (result.failed, len(result.startup_seconds)) == (0, len(trace))
    switch = 13.4 / 20 + STEADY.evict_seconds + STEADY.wake_seconds
    assert sum(result.loads.values()) * switch <= 0.5 * result.seconds + 2 * 13.4 / 5


def test_a_downloaded_model_comes_over_the_network_every_time() -> None:
    models = served(1)
    trace = [Arrival(at, models[0][1].name, 10, 10) for at in (0.0, 100.0)]
    result = simulate(STEADY, models, trace, "download", 0)
    assert result.startup_seconds == pytest.approx([13.4 / 1.25 + 0.1] * 2)


def test_a_lift_ahead_of_need_makes_the_first_request_warm_in_dram() -> None:
    models = served(1)
    trace = [Arrival(10.0, models[0][1].name, 10, 10)]
    assert simulate(STEADY, models, trace, "startup", 0).loads == {"dram": 1}
    assert simulate(STEADY, models, trace, "reactive", 0).loads == {"ssd": 1}


def test_locality_waits_where_startup_moves() -> None:
    """Two nodes of one device; B lies in the DRAM of the node where A runs for long, and nowhere else nearly
    as quick: locality waits for A, Shepherd stops it, and startup lets it go on elsewhere."""
    hardware = replace(STEADY, nodes=2, devices=1, from_ssd=0.5e9, network=0.1e9)
    models = served(2)
    first, other = (model.name for _, model in models)
    trace = [
        Arrival(0.0, first, 10, 1),
        Arrival(0.1, other, 10, 1),
        Arrival(400.0, first, 10, 1),
        Arrival(800.0, first, 10, 4000),
        Arrival(810.0, other, 10, 10),
    ]
    results = {policy: simulate(hardware, models, trace, policy, 0) for policy in ("reactive", "locality")}
    assert (
        max(results["reactive"].startup_seconds[-2:]) < max(results["locality"].startup_seconds[-2:]) + 1e-9
    )


def test_shepherd_stops_and_startup_does_not() -> None:
    hardware = replace(STEADY, nodes=2, devices=2)
    models = served(10)
    trace = bursts(models, rate=2.0)
    assert simulate(hardware, models, trace, "shepherd", 0).preempted > 0
    assert simulate(hardware, models, trace, "startup", 0).preempted == 0


def test_what_fits_nowhere_fails_and_nothing_else_does() -> None:
    small, huge = served(1), [(KINDS["opt-30b"], KINDS["opt-30b"].model(0))]
    trace = [Arrival(0.0, huge[0][1].name, 1, 1), Arrival(1.0, small[0][1].name, 1, 1)]
    result = simulate(replace(STEADY, devices=1), [*small, *huge], trace, "startup", 0)
    assert (result.failed, len(result.startup_seconds)) == (1, 1)


def test_ten_models_that_rush_one_device_are_all_served() -> None:
    models = served(10)
    trace = [Arrival(0.0, model.name, 50, 20) for _, model in models for _ in range(3)]
    result = simulate(Hardware(nodes=1, devices=1), models, trace, "startup", 0)
    assert (result.failed, len(result.startup_seconds)) == (0, 30)
    assert result.loads["ssd"] + result.loads.get("dram", 0) <= 20, "they batch their queues"


@pytest.mark.slow
def test_a_thousand_cold_requests_for_two_hundred_models_are_all_served() -> None:
    models = served(200)
    trace = [Arrival(n / 1000, models[n % 200][1].name, 50, 50) for n in range(1000)]
    result = simulate(Hardware(nodes=8, devices=8), models, trace, "startup", 0)
    assert (result.failed, len(result.startup_seconds)) == (0, 1000)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 60), st.integers(0, 5), st.integers(1, 300)), min_size=1, max_size=40),
    st.sampled_from(POLICIES),
    st.integers(1, 3),
)
def test_any_trace_ends_with_everybody_served(rows, policy: str, rows_max: int) -> None:
    models = served(6, replace(KIND, rows=rows_max))
    trace = sorted(
        (Arrival(at, models[index][1].name, 20, tokens) for at, index, tokens in rows),
        key=lambda arrival: arrival.seconds,
    )
    simulation = Simulation(Hardware(nodes=2, devices=2), models, trace, policy, seed=0)
    result = simulation.run()
    assert (result.failed, len(result.startup_seconds)) == (0, len(trace))
    check_nothing_is_left(simulation)


def check_nothing_is_left(simulation: Simulation) -> None:
    """After the last keep-alive all devices are free, and no row is reserved for anybody."""
    for node in simulation.view.nodes.values():
        assert node.running == 0
        assert node.replicas == {}
        assert node.free == node.capacities
    assert all(not known.waiting for known in simulation.view.models.values())


def test_utilisation_is_device_time() -> None:
    models = served(1)
    trace = [Arrival(0.0, models[0][1].name, 1, 1000)]
    result: Result = simulate(replace(STEADY, nodes=1, devices=1), models, trace, "reactive", 0)
    assert sum(result.busy_device_seconds) == pytest.approx(1000 * KIND.pace.token_seconds)
    assert 0.5 < result.utilisation() < 1
    assert ModelName("opt-6.7b-0") == models[0][1].name
