"""What each command does, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sllmd.cluster.catalogue import EMPTY, Catalogue, apply, apply_bytes, pack_command
from sllmd.cluster.catalogue.commands import (
    ApiKeyDelete,
    ApiKeyPut,
    ClientOpen,
    Command,
    DeploymentDelete,
    DeploymentPut,
    EpochBegin,
    NodeAdmit,
    NodeCordon,
    NodeRemove,
    ReplicaGone,
    ReplicaIntent,
    ReplicaMove,
    ReplicaPlan,
    SettingPut,
    TokenConsume,
    TokenCreate,
    TokenRevoke,
)
from sllmd.cluster.catalogue.records import DeploymentSpec, ReplicaState
from sllmd.cluster.catalogue.results import Denied, Done, PlanResult, Reason
from sllmd.cluster.catalogue.state import CLAIMS_MAX, CLIENTS_MAX, OPEN_MAX
from sllmd.core.ids import Digest, ModelName, NodeId, ReplicaId


class Play:
    """A catalogue, and commands one after another."""

    def __init__(self) -> None:
        self.state: Catalogue = EMPTY

    def __call__(self, body: Any, **envelope: Any) -> Any:
        self.state, result = apply(self.state, Command(body, **envelope))
        return result

    def reason(self, body: Any, **envelope: Any) -> Reason:
        before = self.state
        result = self(body, **envelope)
        assert isinstance(result, Denied), result
        for name in (
            "nodes",
            "deployments",
            "names",
            "replicas",
            "used",
            "api_keys",
            "tokens",
            "settings",
            "removed",
        ):
            assert getattr(self.state, name) == getattr(before, name), "what is refused changes nothing"
        return result.reason


def node(
    name: str = "n1", *, expected: int | None = 0, bytes_free: int = 100, called: str | None = None
) -> NodeAdmit:
    return NodeAdmit(
        NodeId(name), called or f"host-{name}", "10.0.0.1:8400", "ab", {"cuda:0": bytes_free}, {}, expected
    )


def deployment(name: str = "m", *aliases: str, expected: int | None = 0) -> DeploymentPut:
    spec = DeploymentSpec(Digest("d"), "store", tuple(ModelName(alias) for alias in aliases))
    return DeploymentPut(ModelName(name), spec, expected)


def intent(
    replica: str, *, on: str = "n1", size: int = 40, device: str = "cuda:0", of: str = "m"
) -> ReplicaIntent:
    return ReplicaIntent(ReplicaId(replica), ModelName(of), NodeId(on), {device: size})


@pytest.fixture
def play() -> Play:
    return Play()


@pytest.fixture
def fleet(play: Play) -> Play:
    """One node with one device of 100 bytes, and one deployment."""
    play(node())
    play(deployment())
    return play


# --- compare-and-set ---


def test_a_put_names_the_revision_that_it_saw(play: Play) -> None:
    first = play(SettingPut("k", b"1", 0))
    assert first == Done(1)
    assert play.reason(SettingPut("k", b"2", 0)) is Reason.CONFLICT
    assert play(SettingPut("k", b"2", first.revision)) == Done(3)
    assert play(SettingPut("k", b"3", None)) == Done(4)
    assert play.reason(SettingPut("other", b"", 7)) is Reason.CONFLICT


# --- deployments and names ---


def test_a_name_belongs_to_one_deployment(play: Play) -> None:
    play(deployment("m", "small"))
    assert play.reason(deployment("small")) is Reason.NAME_TAKEN
    assert play.reason(deployment("other", "m")) is Reason.NAME_TAKEN
    play(deployment("m", "tiny", expected=None))
    assert play.state.names.get("small") is None
    assert isinstance(play(deployment("small")), Done)


def test_a_deployment_with_replicas_stays(fleet: Play) -> None:
    fleet(ReplicaPlan((intent("r1"),)))
    assert fleet.reason(DeploymentDelete(ModelName("m"), None)) is Reason.IN_USE
    revision = fleet.state.replicas.get("r1").revision  # type: ignore[union-attr]
    fleet(ReplicaGone(ReplicaId("r1"), revision, "test"))
    assert isinstance(fleet(DeploymentDelete(ModelName("m"), None)), Done)
    assert fleet.state.names.get("m") is None
    assert fleet.reason(DeploymentDelete(ModelName("m"), None)) is Reason.UNKNOWN


# --- nodes ---


def test_two_nodes_with_one_name(play: Play) -> None:
    play(node("n1", called="box"))
    assert play.reason(node("n2", called="box")) is Reason.NAME_TAKEN
    assert isinstance(play(node("n1", called="box", expected=None)), Done)


def test_a_removed_node_takes_its_intents_with_it(fleet: Play) -> None:
    fleet(ReplicaPlan((intent("r1"),)))
    fleet(NodeRemove(NodeId("n1"), None))
    assert len(fleet.state.replicas) == len(fleet.state.used) == 0


# --- plans: each item on its own ---


def test_a_plan_is_taken_item_by_item(fleet: Play) -> None:
    items = (
        intent("r1", size=60),
        intent("r2", size=60),
        intent("r3", size=40),
        intent("r4", on="n9"),
        intent("r5", of="nothing"),
        intent("r6", device="cuda:7"),
        intent("r1", size=1),
    )
    result = fleet(ReplicaPlan(items))
    assert isinstance(result, PlanResult)
    reasons = [item.reason for item in result.items]
    full, conflict = Reason.DEVICE_FULL, Reason.CONFLICT
    unknown, no_device = Reason.UNKNOWN, Reason.NO_SUCH_DEVICE
    assert reasons == [None, full, None, unknown, unknown, no_device, conflict]
    assert [key for key, _ in fleet.state.replicas.items()] == ["r1", "r3"]
    assert fleet.state.used.get("n1/cuda:0") == 100


def test_a_cordoned_node_takes_nothing_new(fleet: Play) -> None:
    fleet(NodeCordon(NodeId("n1"), True))
    assert [item.reason for item in fleet(ReplicaPlan((intent("r1"),))).items] == [Reason.CORDONED]
    fleet(NodeCordon(NodeId("n1"), False))
    assert [item.reason for item in fleet(ReplicaPlan((intent("r1"),))).items] == [None]


def test_a_replica_goes_forward_at_the_right_revision(fleet: Play) -> None:
    planned = fleet(ReplicaPlan((intent("r1"),))).items[0]
    ready = fleet(ReplicaMove(ReplicaId("r1"), ReplicaState.READY, planned.revision))
    assert (
        fleet.reason(ReplicaMove(ReplicaId("r1"), ReplicaState.DRAINING, planned.revision)) is Reason.CONFLICT
    )
    assert (
        fleet.reason(ReplicaMove(ReplicaId("r1"), ReplicaState.REQUESTED, ready.revision))
        is Reason.WRONG_STATE
    )
    draining = fleet(ReplicaMove(ReplicaId("r1"), ReplicaState.DRAINING, ready.revision))
    assert fleet.reason(ReplicaGone(ReplicaId("r1"), ready.revision, "drained")) is Reason.CONFLICT
    assert isinstance(fleet(ReplicaGone(ReplicaId("r1"), draining.revision, "drained")), Done)
    assert fleet.state.used.get("n1/cuda:0") is None


# --- epochs ---


def test_an_order_of_another_epoch_is_refused(fleet: Play) -> None:
    fleet(EpochBegin(4))
    assert fleet.reason(ReplicaPlan((intent("r1"),)), epoch=3) is Reason.STALE_EPOCH
    assert isinstance(fleet(ReplicaPlan((intent("r1"),)), epoch=4), PlanResult)
    fleet(EpochBegin(6))
    assert fleet.reason(ReplicaPlan((intent("r2"),)), epoch=4) is Reason.STALE_EPOCH
    assert fleet.reason(EpochBegin(5)) is Reason.STALE_EPOCH
    assert fleet.state.epoch == 6


# --- keys and tokens ---


def test_a_token_is_good_as_often_as_it_says_and_until_then(play: Play) -> None:
    play(TokenCreate("t", "hash", 100.0, 2))
    assert play.reason(TokenConsume("t", "another", 1.0)) is Reason.UNKNOWN
    assert play.reason(TokenConsume("t", "hash", 100.0)) is Reason.EXPIRED
    assert isinstance(play(TokenConsume("t", "hash", 99.0)), Done)
    assert isinstance(play(TokenConsume("t", "hash", 99.0)), Done)
    assert play.reason(TokenConsume("t", "hash", 99.0)) is Reason.UNKNOWN


def test_who_used_a_token_up_may_ask_again_until_it_expires_and_nobody_else(play: Play) -> None:
    play(TokenCreate("t", "hash", 100.0, 1))
    play(TokenCreate("other", "hash", 300.0, 1))
    assert isinstance(play(TokenConsume("t", "hash", 1.0, "one")), Done)
    assert isinstance(play(TokenConsume("t", "hash", 2.0, "one")), Done)
    assert play.reason(TokenConsume("t", "hash", 2.0, "two")) is Reason.UNKNOWN
    assert play.reason(TokenConsume("t", "another", 2.0, "one")) is Reason.UNKNOWN
    assert play.reason(TokenConsume("t", "hash", 100.0, "one")) is Reason.EXPIRED
    play(TokenConsume("other", "hash", 200.0, "two"))
    assert "t" not in play.state.tokens, "what has expired goes"


def test_who_used_a_token_long_ago_is_forgotten(play: Play) -> None:
    """The cluster key is a token that never ends."""
    play(TokenCreate("key", "hash", 1e9, 10 * CLAIMS_MAX))
    for number in range(CLAIMS_MAX + 5):
        play(TokenConsume("key", "hash", 1.0, f"node-{number}"))
    token = play.state.tokens.get("key")
    assert token is not None
    assert (len(token.claims), token.claims[0]) == (CLAIMS_MAX, "node-5")


def test_a_revoked_token_is_not_known(play: Play) -> None:
    play(TokenCreate("t", "hash", 100.0, 1))
    play(TokenConsume("t", "hash", 1.0, "one"))
    play(TokenRevoke("t"))
    assert play.reason(TokenConsume("t", "hash", 1.0, "one")) is Reason.UNKNOWN
    assert play.reason(TokenRevoke("t")) is Reason.UNKNOWN


def test_a_revoked_token_is_never_made_good_again(play: Play) -> None:
    play(TokenCreate("t", "hash", 100.0, 1))
    play(TokenRevoke("t"))
    assert play.reason(TokenCreate("t", "hash", 100.0, 1)) is Reason.CONFLICT
    play(TokenCreate("other", "hash", 300.0, 1))
    play(TokenConsume("other", "hash", 200.0, "two"))
    assert "t" not in play.state.tokens, "until it would have expired"


def test_a_removed_node_is_remembered_and_its_id_never_comes_back(play: Play) -> None:
    play(node("n1"))
    play(NodeRemove(NodeId("n1"), None))
    assert "n1" in play.state.removed
    assert play.reason(node("n1", expected=None)) is Reason.REMOVED
    assert isinstance(play(node("n2", called="host-n1")), Done), "its name may be taken again"


def test_keys_come_and_go(play: Play) -> None:
    play(ApiKeyPut("k", "hash", "infer", 0))
    assert play.state.api_keys.get("k").sha256 == "hash"  # type: ignore[union-attr]
    play(ApiKeyDelete("k"))
    assert play.reason(ApiKeyDelete("k")) is Reason.UNKNOWN


# --- clients ---


def test_a_repeated_command_is_answered_and_not_repeated(play: Play) -> None:
    client = play(ClientOpen("c")).revision
    first = play(SettingPut("k", b"1", 0), client=client, seq=1)
    play(SettingPut("k", b"2", None))
    assert play(SettingPut("k", b"1", 0), client=client, seq=1) == first
    assert play.state.settings.get("k").value == b"2"  # type: ignore[union-attr]


def test_a_refusal_is_remembered_too(play: Play) -> None:
    client = play(ClientOpen("c")).revision
    denied = play(SettingPut("k", b"1", 9), client=client, seq=1)
    play(SettingPut("k", b"0", None))
    assert play(SettingPut("k", b"1", 9), client=client, seq=1) == denied


def test_commands_under_way_may_overtake_each_other(play: Play) -> None:
    client = play(ClientOpen("c")).revision
    play(SettingPut("b", b"", 0), client=client, seq=2, answered_below=1)
    assert isinstance(play(SettingPut("a", b"", 0), client=client, seq=1, answered_below=1), Done)


def test_an_answered_command_that_comes_again_is_refused(play: Play) -> None:
    client = play(ClientOpen("c")).revision
    play(SettingPut("k", b"1", None), client=client, seq=1, answered_below=1)
    play(SettingPut("k", b"2", None), client=client, seq=2, answered_below=2)
    assert play.reason(SettingPut("k", b"1", None), client=client, seq=1, answered_below=1) is Reason.ANSWERED
    assert play.state.clients.get(str(client)).results.keys() == {2}  # type: ignore[union-attr]


def test_a_forgotten_client_is_not_a_new_one(play: Play) -> None:
    first = play(ClientOpen("first")).revision
    play(SettingPut("k", b"1", None), client=first, seq=1)
    for number in range(CLIENTS_MAX):
        play(ClientOpen(f"c{number}"))
    assert len(play.state.clients) == CLIENTS_MAX
    assert play.reason(SettingPut("k", b"1", None), client=first, seq=1) is Reason.UNKNOWN_CLIENT


def test_one_client_has_so_many_commands_open(play: Play) -> None:
    client = play(ClientOpen("c")).revision
    for seq in range(OPEN_MAX):
        play(SettingPut("k", b"", None), client=client, seq=seq)
    assert play.reason(SettingPut("k", b"", None), client=client, seq=OPEN_MAX) is Reason.TOO_MANY_OPEN
    acknowledged = {"client": client, "seq": OPEN_MAX + 1, "answered_below": OPEN_MAX}
    assert isinstance(play(SettingPut("k", b"", None), **acknowledged), Done)


def test_what_cannot_be_read_has_a_number_and_no_effect() -> None:
    state, result = apply_bytes(EMPTY, b"from the future")
    assert isinstance(result, Denied)
    assert (result.reason, state.revision) == (Reason.UNREADABLE, 1)
    state, result = apply_bytes(state, pack_command(Command(EpochBegin(1))))
    assert result == Done(2)
