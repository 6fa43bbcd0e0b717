"""Every node is asked what it has loaded and remembers; who is silent is named."""

from __future__ import annotations

from typing import Any

from sllmd.core.errors import PeerUnreachable
from sllmd.core.ids import NodeId
from sllmd.roles.status import LoadedStatus, RequestStatus
from sllmd.roles.survey import LOADED, Survey
from sllmd.wire.rpc.methods import Methods

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def request(request_id: str, node: str) -> RequestStatus:
    return RequestStatus(
        request_id=request_id,
        generation_id=f"{request_id}-0",
        model="m",
        state="finished",
        cold=False,
        tier="device",
        node=node,
        queue_ms=0,
        load_ms=0,
        load_estimate_ms=0,
        stages_ms={},
        prefill_ms=0,
        decode_ms=0,
        total_ms=0,
        prompt_tokens=1,
        completion_tokens=1,
        finish_reason="stop",
        error=None,
    )


def loaded(name: str) -> LoadedStatus:
    return LoadedStatus(node=name, replicas=(), copies=())


class Others:
    """b answers, c is away."""

    async def call(
        self, node: NodeId, method: str, body: Any, *, deadline_seconds: float | None = None
    ) -> Any:
        if node == C:
            raise PeerUnreachable("c is away")
        if method == LOADED:
            return loaded("b").model_dump()
        return [request("there", B).model_dump()] if body == "there" else []


def survey() -> Survey:
    asked = Survey(lambda: loaded("a"), lambda: [request("here", A)])
    asked.join(Methods(), Others(), lambda: [C, B])
    return asked


async def test_what_all_nodes_have_loaded() -> None:
    found, silent = await survey().loaded()
    assert [each.node for each in found] == ["a", "b"]
    assert silent == {C: "c is away"}


async def test_a_request_is_found_where_it_is_remembered() -> None:
    for wanted, nodes in (("here", [A]), ("there", [B]), ("nowhere", [])):
        assert [each.node for each in await survey().request(wanted)] == nodes


async def test_a_node_that_has_not_joined_tells_of_itself() -> None:
    alone = Survey(lambda: loaded("a"), list)
    assert await alone.loaded() == ([loaded("a")], {})
    assert await alone.request("there") == []
