"""Two of five daemons are cut off and come back: everybody serves meanwhile, and they agree again soon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.live import missing
from tests.storm.fleet import fleet
from tests.storm.namespaces import namespaces, why_no_namespaces

CUT_SECONDS = 8.0
"""TCP has become patient by then, and members are believed dead."""
HEAL_SECONDS = 40.0
"""For a machine that is slow and busy; a quiet one takes a few seconds."""


@pytest.mark.slow
async def test_a_minority_serves_and_is_back_soon_after_the_partition_healed(tmp_path: Path) -> None:
    reason = why_no_namespaces()
    if reason is not None:
        missing(reason)
    settings = {"cluster.voters.count": 5, "cluster.voters.settle_seconds": 1.0}
    with namespaces(5) as network:
        async with fleet(tmp_path, 5, settings, network=network, models={"m": range(5)}) as group:
            await group.settled(5)
            await group.warm("m")
            leader = group.daemons.index(await group.leader())
            await asyncio.to_thread(network.partition, {leader, (leader + 1) % 5})
            await asyncio.sleep(CUT_SECONDS)
            body = {"model": "m", "prompt": "hi", "max_tokens": 4}
            for daemon in group.daemons:
                assert (await daemon.ask("POST", "/v1/completions", body))[0] == 200
            await asyncio.to_thread(network.heal)
            healed = time.monotonic()
            await group.settled(5, seconds=HEAL_SECONDS)
            write = {"digest": "d", "source": "after"}
            status, answer = await group[leader].ask("PUT", "/sllmd/v1/deployments/k", write)
            assert status == 200, answer
            assert time.monotonic() - healed < HEAL_SECONDS
