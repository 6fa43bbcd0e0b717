"""systemd/sllmd.service, as systemd-analyze judges it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sllmd.config.settings import Config
from sllmd.core.units import parse_duration_seconds

UNIT = Path(__file__).parents[2] / "systemd" / "sllmd.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
    reason="systemd-analyze is not installed",
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return value


@needs_systemd
def test_the_unit_is_valid(tmp_path: Path) -> None:
    """The program is replaced by one that exists here; everything else is checked as it stands."""
    unit = tmp_path / "sllmd.service"
    text = UNIT.read_text()
    unit.write_text(text.replace("/usr/bin/sllmd", "/bin/true"))
    result = analyze("verify", "--man=no", str(unit))
    assert (result.returncode, result.stderr) == (0, "")
    unit.write_text(text.replace("/usr/bin/sllmd", "/bin/true").replace("WatchdogSec", "WatchdogSek"))
    assert "WatchdogSek" in analyze("verify", "--man=no", str(unit)).stderr


@needs_systemd
def test_the_unit_is_hardened() -> None:
    result = analyze("security", "--offline=yes", "--threshold=30", str(UNIT))
    assert result.returncode == 0, result.stdout[-2000:]


def test_the_unit_starts_what_exists() -> None:
    program, *arguments = setting("ExecStart").split()
    assert Path(program).name == "sllmd"
    assert arguments == ["start", "--config", "/etc/sllmd/sllmd.toml"]


def test_stopping_may_take_longer_than_draining() -> None:
    assert parse_duration_seconds(setting("TimeoutStopSec")) > Config().serving.drain_timeout
    assert setting("KillMode") == "mixed"
    assert setting("Type") == "notify"
