"""``llm``, a person's command line, with no configuration and with the one that its manual describes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.judges.conftest import run
from tests.live import LiveDaemon

LLM = Path(sys.executable).parent / "llm"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A person who never used it before."""
    return os.environ | {"LLM_USER_PATH": str(tmp_path)}


@pytest.mark.slow
def test_without_configuration(real: LiveDaemon, environment: dict[str, str]) -> None:
    url = f"{real.url}/v1"
    options = ("-o", "max_tokens", "12", "-o", "seed", "1", "-o", "temperature", "0")
    streamed = run(LLM, "openai", "endpoint", url, "-m", "tiny", *options, "hi", env=environment)
    whole = run(LLM, "openai", "endpoint", url, "-m", "tiny", "--no-stream", *options, "hi", env=environment)
    assert streamed == whole != ""
    assert run(LLM, "openai", "endpoint", url, "--models", env=environment).split() == ["tiny"]


@pytest.mark.slow
def test_as_a_model_of_its_own_with_a_conversation(
    acting: LiveDaemon, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: letters\n  api_base: {acting.url}/v1\n"
    )
    options = ("-m", "mine", "-o", "max_tokens", "7")
    said = run(LLM, *options, "-s", "Be short.", "hi", env=environment)
    assert len(said.strip()) == 7
    again = run(LLM, *options, "-c", "and then?", env=environment)
    assert len(again.strip()) == 7
    [last, *_] = acting.requests()
    # The conversation so far is in the prompt.
    assert last["prompt_tokens"] > len("Be short." + "hi" + said.strip() + "and then?")
