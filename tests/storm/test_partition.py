"""Two of five daemons are cut off and come back: everybody serves meanwhile, and they agree again soon."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.live import missing
from tests.storm.fleet import Fleet, fleet
from tests.storm.namespaces import namespaces, why_no_namespaces

HEAL_SECONDS = 40.0
"""For a machine that is slow and busy; a quiet one takes a few seconds."""
ANSWER_SECONDS = 30.0
"""The same for one answer."""


async def both_sides_know(group: Fleet, minority: set[int]) -> None:
    """The majority has a new leader and believes the others dead; the minority says that it has none."""
    majority = {daemon.name for index, daemon in enumerate(group.daemons) if index not in minority}

    def goes_on(body: Any) -> bool:
        lost = {member["name"] for member in body["members"] if member["state"] == "dead"}
        return body["leader"] in majority and len(lost) == len(minority)

    def is_alone(body: Any) -> bool:
        return body["leader"] is None

    await asyncio.gather(
        *(
            daemon.until("/sllmd/v1/members", is_alone, f"{daemon.name} says that it has no leader")
            if index in minority
            else daemon.until("/sllmd/v1/members", goes_on, f"{daemon.name} has a new leader")
            for index, daemon in enumerate(group.daemons)
        )
    )


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
            minority = {leader, (leader + 1) % 5}
            await asyncio.to_thread(network.partition, minority)
            await both_sides_know(group, minority)
            body = {"model": "m", "prompt": "hi", "max_tokens": 4}
            for daemon in group.daemons:
                assert (await daemon.ask("POST", "/v1/completions", body, seconds=ANSWER_SECONDS))[0] == 200
            await asyncio.to_thread(network.heal)
            healed = time.monotonic()
            await group.settled(5, seconds=HEAL_SECONDS)
            write = {"digest": "d", "source": "after"}
            where = "/sllmd/v1/deployments/k"
            status, answer = await group[leader].ask("PUT", where, write, seconds=ANSWER_SECONDS)
            assert status == 200, answer
            assert time.monotonic() - healed < HEAL_SECONDS
