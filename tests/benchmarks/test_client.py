"""What the client makes of arrivals and headers, and the bench of a histogram."""

import pytest

from benchmarks.client import BadAnswer, longest_gap_seconds, parse_server_timing
from benchmarks.node import quantile_seconds


@pytest.mark.parametrize(
    ("begin", "end", "longest"),
    [(0.2, 0.9, 0.5), (1.1, 1.3, 0.25), (0.5, 0.6, 0.5)],
)
def test_a_gap_counts_when_it_overlaps_the_window(begin, end, longest):
    arrivals = (0.0, 0.25, 0.5, 1.0, 1.25, 1.5)
    assert longest_gap_seconds(arrivals, begin, end) == longest


@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.3), (0.2, 2.0)])
def test_a_stream_that_does_not_span_the_window_proves_nothing(begin, end):
    with pytest.raises(BadAnswer):
        longest_gap_seconds((0.1, 0.2, 0.4, 1.0), begin, end)


@pytest.mark.parametrize(
    ("header", "timing"),
    [
        ("", {}),
        (
            'queue;dur=3, load;dur=812.5;desc="ssd→dram", prefill;dur=41',
            {"queue": 3, "load": 812.5, "prefill": 41},
        ),
        ('cache;desc="x"', {}),
    ],
)
def test_server_timing(header, timing):
    assert parse_server_timing(header) == timing


def test_a_quantile_is_of_what_was_counted_in_between():
    inf = float("inf")
    before = {0.01: 1000.0, 0.02: 1000.0, inf: 1000.0}
    after = {0.01: 1090.0, 0.02: 1100.0, inf: 1100.0}
    assert quantile_seconds(before, after, 0.5) == pytest.approx(0.01 * 50 / 90)
    assert quantile_seconds(before, after, 0.99) == pytest.approx(0.019)


def test_a_quantile_beyond_the_last_edge_is_that_edge():
    assert quantile_seconds({}, {0.01: 1.0, float("inf"): 100.0}, 0.99) == 0.01


def test_an_empty_histogram_has_no_quantile():
    with pytest.raises(RuntimeError):
        quantile_seconds({}, {0.01: 0.0, float("inf"): 0.0}, 0.99)
