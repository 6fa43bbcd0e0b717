"""The scripts that a newcomer runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO_MODEL = "sllmd-demo/SmolLM2-135M-Instruct"
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").iterdir())]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_stop_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "\nset -euo pipefail\n" in text
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_an_unknown_argument_is_a_usage_error() -> None:
    result = subprocess.run(
        ["scripts/quickstart", "--twice"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert "--once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "model"),
    [((), "/made"), (("--slow",), "/made"), (("--fast",), ""), (("tests/store",), "")],
    ids=str,
)
def test_a_run_of_all_tests_makes_the_demo_model(
    tmp_path: Path, arguments: tuple[str, ...], model: str
) -> None:
    said = {
        "scripts/setup": "",
        "scripts/demo-model": "echo /made",
        ".venv/bin/python": 'echo "model=${SLLMD_DEMO_MODEL:-}"',
    }
    for name, line in said.items():
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)
    shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts")
    clean = {name: value for name, value in os.environ.items() if name != "SLLMD_DEMO_MODEL"}
    result = subprocess.run(
        [tmp_path / "scripts" / "test", *arguments],
        env=clean, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout == f"model={model}\n"


def _cache_of_tests() -> Path:
    """Not the user's, whose quickstart may be up; a demo model that was made there is used all the same."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    ours = users / "sllmd-tests"
    made = users / DEMO_MODEL
    if made.is_dir() and not (ours / DEMO_MODEL).exists():
        (ours / DEMO_MODEL).parent.mkdir(parents=True, exist_ok=True)
        (ours / DEMO_MODEL).symlink_to(made)
    return ours


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "sllmd").exists(), reason="not set up with scripts/setup")
def test_quickstart_answers_from_a_cold_start_and_cleans_up(tmp_path: Path) -> None:
    """The first run downloads the demo model and converts it; later ones find both in the tests' cache."""
    result = subprocess.run(
        ["scripts/quickstart", "--once"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(_cache_of_tests())},
        capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    answer = result.stdout.splitlines()[-1]
    assert "server" in answer.lower()
    for word in ("COLD from ssd", "ssd→dram", "prefill", "decode"):
        assert word in result.stderr
    assert list(tmp_path.glob("sllmd-*")) == []
