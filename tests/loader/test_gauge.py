"""Bandwidth, smoothed and capped."""

from __future__ import annotations

import pytest

from sllmd.loader.gauge import Gauge, Throttle


def test_unknown_until_something_passed():
    assert Gauge().bytes_per_second is None


def test_a_steady_hop_is_measured_exactly():
    gauge = Gauge()
    for _ in range(50):
        gauge.observe(100, 0.1)
    assert gauge.bytes_per_second == pytest.approx(1000)


def test_after_a_half_life_the_past_counts_half():
    gauge = Gauge(half_life_seconds=1.0)
    gauge.observe(1000, 1.0)
    gauge.observe(3000, 1.0)
    assert gauge.bytes_per_second == pytest.approx((500 + 3000) / 1.5)


def test_a_short_transfer_hardly_counts():
    gauge = Gauge(half_life_seconds=2.0)
    gauge.observe(2000, 2.0)
    gauge.observe(1, 0.01)
    assert gauge.bytes_per_second == pytest.approx(1000, rel=0.02)


def test_no_cap_never_waits():
    throttle = Throttle(0)
    assert [throttle.book(10**12, 5.0) for _ in range(3)] == [(5, 5)] * 3


def test_a_cap_spaces_transfers_and_forgets_idle_time():
    throttle = Throttle(100)
    assert throttle.book(50, 10.0) == (10, pytest.approx(10.5))
    assert throttle.book(50, 10.0) == pytest.approx((10.5, 11))
    assert throttle.book(50, 10.5) == pytest.approx((11, 11.5))
    assert throttle.book(50, 99.0) == pytest.approx((99, 99.5))
