"""Two states, and what happened between them."""

from __future__ import annotations

import pytest

from sllmd.cluster.catalogue import EMPTY
from sllmd.cluster.catalogue.commands import (
    ApiKeyDelete,
    ApiKeyPut,
    DeploymentDelete,
    DeploymentPut,
    NodeCordon,
    NodeRemove,
    ReplicaIntent,
    ReplicaPlan,
    SettingPut,
    TokenConsume,
    TokenCreate,
)
from sllmd.cluster.catalogue.records import DeploymentSpec
from sllmd.cluster.gossip import Meta
from sllmd.cluster.gossip.messages import Status
from sllmd.core.ids import Digest, ModelName, ReplicaId
from sllmd.roles.happenings import (
    CHANGES_MAX,
    Happening,
    of_catalogue,
    of_leadership,
    of_member,
    of_move,
    of_replica,
    of_stream,
)
from sllmd.roles.status import MoveStatus
from tests.roles.test_members import A, B, C, admit, agreed, view


def name_of(node: str) -> str:
    return node.removeprefix("id-")


@pytest.mark.parametrize(
    ("before", "after", "kind", "text"),
    [
        (None, view(B), "member.joined", "b (b:8344) joined"),
        (view(B, Status.LEFT), view(B), "member.joined", "b (b:8344) joined"),
        (view(B), view(B, Status.SUSPECT, suspected_by=(A,)), "member.suspect", "no answer to probes of a"),
        (view(B, Status.SUSPECT), view(B), "member.alive", "b is alive: it answered after all"),
        (view(B, Status.DEAD), view(B), "member.alive", "b is back"),
        (view(B, Status.SUSPECT), view(B, Status.DEAD), "member.dead", "b is dead"),
        (view(B), view(B, Status.LEFT), "member.left", "b left"),
        (view(B), None, "member.forgotten", "b is no longer listed"),
        (view(B), view(B, meta=Meta("b:8344", "0.2.0")), "member.version", "b runs 0.2.0 now, before 0.1.0"),
    ],
)
def test_members(before, after, kind: str, text: str) -> None:
    [happening] = of_member(before, after, name_of)
    assert happening.kind == kind
    assert text in happening.text
    assert happening.facts["node_id"] == B


def test_what_nobody_needs_to_know_of_a_member_is_not_told() -> None:
    newer_epoch = view(B, meta=Meta("b:8344", "0.1.0", epoch=9))
    assert list(of_member(view(B), newer_epoch, name_of)) == []
    assert list(of_member(None, None, name_of)) == []


def test_leadership() -> None:
    [elected] = of_leadership((1, None), (2, A), name_of)
    assert (elected.kind, elected.facts["leader"], elected.facts["epoch"]) == ("leader.elected", "a", 2)
    assert elected.facts["node"] == "a"
    [lost] = of_leadership((2, A), (3, None), name_of)
    assert lost.kind == "leader.lost"
    assert list(of_leadership((2, A), (2, A), name_of)) == []
    assert list(of_leadership((2, None), (3, None), name_of)) == []


PUT = DeploymentPut(ModelName("m"), DeploymentSpec(Digest("d"), "s", max_replicas=2), None)
INTENT = ReplicaPlan((ReplicaIntent(ReplicaId("r"), ModelName("m"), B, {"cpu:0": 0}),))
CHANGES = [
    ((), admit(B), "node.admitted"),
    ((admit(B),), NodeCordon(B, cordoned=True), "node.draining"),
    ((admit(B), NodeCordon(B, cordoned=True)), NodeCordon(B, cordoned=False), "node.undrained"),
    ((admit(B),), NodeRemove(B, None), "node.removed"),
    ((), PUT, "deployment.created"),
    ((PUT,), PUT, "deployment.changed"),
    ((PUT,), DeploymentDelete(ModelName("m"), None), "deployment.deleted"),
    ((admit(B), PUT), INTENT, "intent.requested"),
    ((), ApiKeyPut("k", "secret-hash", "inference", None), "key.created"),
    ((ApiKeyPut("k", "secret-hash", "inference", None),), ApiKeyDelete("k"), "key.revoked"),
    ((), TokenCreate("t", "secret-hash", 9.0, 2), "token.created"),
    ((TokenCreate("t", "secret-hash", 9.0, 2),), TokenConsume("t", "secret-hash", 1.0), "token.used"),
    ((), SettingPut("gossip.keyring", b"secret-hash", None), "setting.changed"),
]


@pytest.mark.parametrize(("before", "command", "kind"), CHANGES, ids=[kind for _, _, kind in CHANGES])
def test_catalogue_without_its_secrets(before, command, kind: str) -> None:
    happened = list(of_catalogue(agreed(*before), agreed(*before, command), name_of))
    assert [happening.kind for happening in happened] == [kind]
    assert "secret-hash" not in repr(happened)


def test_many_changes_at_once_are_told_as_one() -> None:
    keys = [ApiKeyPut(f"k{number}", "h", "inference", None) for number in range(CHANGES_MAX + 1)]
    [happening] = of_catalogue(EMPTY, agreed(*keys), name_of)
    assert (happening.kind, happening.facts["changes"]) == ("catalogue.caught_up", CHANGES_MAX + 1)


def test_replicas() -> None:
    serving = of_replica("one", "m", "m-1", ["cpu:0"], "serving", None)
    assert (serving.kind, serving.text) == ("replica.serving", "m serves on one (cpu:0)")
    assert serving.facts["node"] == "one"
    failed = of_replica("one", "m", "m-1", ["cpu:0"], "failed", "no such tensor")
    assert failed.text == "m failed on one (cpu:0): no such tensor"
    assert failed.facts["reason"] == "no such tensor"


def test_the_other_nodes_of_a_catalogue_are_not_told_again() -> None:
    [happening] = of_catalogue(agreed(admit(A), admit(B)), agreed(admit(A), admit(B), admit(C)), name_of)
    assert happening.facts["node"] == "c"


def moved(**changes: object) -> MoveStatus:
    status = {"kind": "move", "reason": "it drains", "source": "n1", "target": "n2", "result": "done"}
    return MoveStatus(**{**status, "rounds": 2, "tokens": 90, "pause_ms": 12.3, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("move", "kind", "node", "text"),
    [
        (
            moved(),
            "generation.moved",
            "N2",
            "a generation of m moved: N1 → N2 (pause 12 ms, 90 tokens computed): it drains",
        ),
        (
            moved(kind="failover", reason="N1 is gone"),
            "generation.resumed",
            "N2",
            "a generation of m resumed: N1 → N2 (pause 12 ms, 90 tokens computed): N1 is gone",
        ),
        (
            moved(result="called_off", outcome="nearly over"),
            "generation.not_moved",
            "N1",
            "a generation of m was not moved from N1: nearly over (it drains)",
        ),
    ],
)
def test_a_change_of_place(move: MoveStatus, kind: str, node: str, text: str) -> None:
    told = of_move("req", "m", move, str.upper)
    assert (told.kind, told.facts["node"], told.text) == (kind, node, text)
    assert (told.facts["request"], told.facts["target"], told.facts["tokens"]) == ("req", "N2", 90)


def test_a_move_that_found_no_target_names_none() -> None:
    told = of_move("req", "m", moved(target="", result="failed", outcome="no room"), str.upper)
    assert (told.facts["node"], told.facts["source"], "target" in told.facts) == ("N1", "N1", False)


def test_a_node_that_has_no_id_yet_is_named_by_who_records() -> None:
    told = of_move("req", "m", moved(source="", result="failed", outcome="no room"), str.upper)
    assert told.facts.keys().isdisjoint({"node", "source"})
    assert "from this node" in told.text


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [("resumed", "stream.resumed"), ("refused", "stream.unmirrored"), ("late", None), ("alone", None)],
)
def test_streams_are_told_of_and_tokens_only_counted(outcome: str, kind: str | None) -> None:
    told = of_stream("n1", outcome)
    assert (told.kind if told else None) == kind
    assert told is None or told.facts["node"] == "n1"


def test_what_nobody_documented_cannot_happen() -> None:
    with pytest.raises(AssertionError, match="documented nowhere"):
        Happening("replica.exploded", "")
