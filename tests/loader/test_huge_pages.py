"""What the kernel's switch means for slabs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sllmd.loader.huge_pages import page_state


@pytest.mark.parametrize(
    ("switch", "state"),
    [
        ("always within_size [advise] never deny force\n", "huge"),
        ("[always] within_size advise never deny force\n", "huge"),
        ("always within_size advise [never] deny force\n", "small"),
        ("always within_size advise never [deny] force\n", "small"),
    ],
)
def test_state_follows_the_switch(tmp_path: Path, switch: str, state: str) -> None:
    path = tmp_path / "shmem_enabled"
    path.write_text(switch)
    said = page_state(path)
    assert said.partition(":")[0] == state
    if state == "small":
        assert f"echo advise > {path}" in said


def test_a_kernel_without_the_switch_says_so(tmp_path: Path) -> None:
    assert page_state(tmp_path / "absent").startswith("small: this kernel")
