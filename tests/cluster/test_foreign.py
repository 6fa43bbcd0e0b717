"""A node that is told to join a cluster and is a member of another one already."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.cluster.nodes import nodes
from tests.waiting import eventually

NOT_JOINED = "not joined: "


@pytest.mark.parametrize("dev", [True, False])
async def test_it_says_once_what_is_wrong_and_serves_on(tmp_path: Path, dev: bool) -> None:
    async with nodes(tmp_path) as fleet:
        one = await fleet.found("one", dev=dev)
        two = await fleet.found("two", dev=dev)
        own = two.identity.cluster_id
        await two.close()
        with capture_logs() as logs:
            again = await fleet.start(fleet.make("two", dev=dev, join=[one]))
            told = await _told(logs)
            assert await again.calls.gossip_address(one.address) is None  # as it asks again and again
        assert again.identity.cluster_id == own
        assert [entry for entry in logs if entry["event"].startswith(NOT_JOINED)] == [told]
        assert told["log_level"] == "error"
        assert told["address"] == one.address
        assert "--data-dir" in told["hint"]
        refusals = [entry for entry in logs if entry["event"] == "node refused"]
        loud = [entry["reason"] for entry in refusals if entry["log_level"] == "warning"]
        assert len(loud) == len(set(loud))


async def _told(logs: list) -> dict:
    def found() -> list:
        return [entry for entry in logs if entry["event"].startswith(NOT_JOINED)]

    await eventually(found, "it is told")
    return found()[0]
