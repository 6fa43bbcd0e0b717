"""What may be written into ``[loader]``."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sllmd.core.units import GIB
from sllmd.loader.settings import LoaderSettings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%", 8 * GIB),
        ("12.5 %", 2 * GIB),
        ("3GiB", 3 * GIB),
        ("1000", 1000),
        (4096, 4096),
        ("100%", 16 * GIB),
    ],
)
def test_budget(text, expected):
    assert LoaderSettings(dram_budget=text).budget_bytes(16 * GIB) == expected


@pytest.mark.parametrize("text", ["0%", "101%", "much", "", "-5%"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ValidationError, match="dram_budget"):
        LoaderSettings(dram_budget=text)


@pytest.mark.parametrize("size", [0, 1000, 4097])
def test_slabs_are_whole_pages(size):
    with pytest.raises(ValidationError, match="slab_bytes must be a multiple of 4096"):
        LoaderSettings(slab_bytes=size)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="slab_size"):
        LoaderSettings.model_validate({"slab_size": 1})


def test_durations_are_read_as_people_write_them():
    assert LoaderSettings.model_validate({"stall_timeout_seconds": "1m30s"}).stall_timeout_seconds == 90
