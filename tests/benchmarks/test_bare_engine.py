"""The engine alone is measured with the forward that a node ends up with."""

import pytest

from benchmarks import bare_engine
from sllmd.engine.fake import FakeEngine, FakeSettings
from sllmd.engine.protocol import EngineOptions


def test_an_engine_that_stays_with_a_slower_forward_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bare_engine, "PREPACK_SECONDS", 0.0)
    engine = FakeEngine(EngineOptions(threads=1), FakeSettings())
    with pytest.raises(RuntimeError, match="still runs fake"):
        bare_engine._until_prepacked(engine, 8)


@pytest.mark.slow  # it imports all that an engine needs
def test_an_engine_that_does_not_come_up_is_an_error():
    with (
        pytest.raises(RuntimeError, match="exit code"),
        bare_engine.BareEngine("no-such-model", threads=1, prompt_tokens=8, new_tokens=1),
    ):
        pytest.fail("it cannot be ready")
