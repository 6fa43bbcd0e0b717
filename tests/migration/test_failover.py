"""Whose fault, how often, how long."""

from __future__ import annotations

import pytest

from sllmd.core.errors import ContextLengthExceeded, NodeDraining, PeerUnreachable, QueueFull, WorkerLost
from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import FailedEvent
from sllmd.migration.failover import Patience, Pulse, is_misfit, is_places_fault, is_worth_waiting
from sllmd.migration.settings import MigrationSettings

SETTINGS = MigrationSettings(attempts_max=2, failovers_max=5, stall_min=5, stall_gaps=10)


@pytest.mark.parametrize(
    ("error", "places", "waits"),
    [
        (ContextLengthExceeded("long"), False, False),
        (WorkerLost("gone"), True, False),
        (PeerUnreachable("away"), True, True),
        (QueueFull("full", retry_after_seconds=1), True, True),
        (NodeDraining("stops", retry_after_seconds=1), True, False),
    ],
)
def test_whose_fault_an_error_is(error, places, waits) -> None:
    assert (is_places_fault(error), is_worth_waiting(error)) == (places, waits)


def test_an_engine_that_refuses_what_another_ran_is_only_too_small() -> None:
    too_long = FailedEvent(GenerationId("g"), "too long", "context")
    assert is_misfit(too_long, tokens=5)
    assert not is_misfit(too_long, tokens=0)
    assert not is_misfit(FailedEvent(GenerationId("g"), "no numbers"), tokens=5)


def test_tries_that_bring_nothing_are_few() -> None:
    patience = Patience(SETTINGS)
    assert [patience.may_resume(7) for _ in range(3)] == [True, True, False]


def test_tokens_renew_patience_but_not_for_ever() -> None:
    patience = Patience(SETTINGS)
    assert [patience.may_resume(tokens) for tokens in range(6)] == [True] * 5 + [False]


def test_a_pause_is_measured_by_those_before_it() -> None:
    pulse = Pulse(SETTINGS, 100.0)
    assert pulse.due_seconds() is None
    pulse.beat(130.0)
    assert pulse.due_seconds() == 135.0
    pulse.beat(132.0)
    assert pulse.due_seconds() == 152.0
    pulse.restart(140.0)
    assert pulse.due_seconds() is None
    pulse.beat(190.0)
    assert pulse.due_seconds() == 210.0


def test_silence_has_an_end_before_and_after_the_first_token() -> None:
    pulse = Pulse(MigrationSettings(silence_max=60, first_token_max=300, stall_gaps=10), 100.0)
    assert pulse.end_seconds() == 400.0
    pulse.beat(130.0)
    assert pulse.end_seconds() == 190.0
    pulse.beat(140.0)
    assert pulse.end_seconds() == 240.0  # ten times the longest pause
    pulse.restart(150.0)
    assert pulse.end_seconds() == 450.0
