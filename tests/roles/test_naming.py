"""What a name stands for where a node's store and the cluster differ, rule by rule."""

from __future__ import annotations

from dataclasses import replace

from sllmd.cluster.catalogue import apply
from sllmd.cluster.catalogue.commands import Command, DeploymentDelete, DeploymentPut
from sllmd.cluster.catalogue.records import DeploymentSpec
from sllmd.cluster.catalogue.state import EMPTY, Catalogue
from sllmd.core.ids import Digest, ModelName
from sllmd.roles.naming import Deployed, Offer, Own, Steps, conflict_of, reconcile, serves_own

X = ModelName("x")
OURS, THEIRS = Digest("1" * 32), Digest("2" * 32)
OWN = Own(X, OURS, 100.0)
SPEC = DeploymentSpec(OURS, "", (ModelName("nick"),))
OFFER = {X: Offer(OWN, SPEC)}
KNOWN = {X: Deployed(OURS, 100.0)}


def agreed(*bodies: DeploymentPut | DeploymentDelete) -> Catalogue:
    state = EMPTY
    for body in bodies:
        state, _ = apply(state, Command(body))
    return state


def put(digest: Digest, *aliases: str) -> Catalogue:
    return agreed(DeploymentPut(X, DeploymentSpec(digest, "", tuple(map(ModelName, aliases))), None))


def steps(catalogue: Catalogue, *, offers=OFFER, known=KNOWN, gone=(), elsewhere=()) -> Steps:
    return reconcile(offers, catalogue, known, gone=gone, elsewhere=elsewhere)


def test_1_a_new_model_is_deployed_and_served_meanwhile() -> None:
    assert steps(EMPTY, known={}).commands == (DeploymentPut(X, SPEC, 0),)
    assert serves_own(OWN, None, None)


def test_2_the_same_checkpoint_on_two_nodes_is_one_deployment_with_all_aliases() -> None:
    catalogue = put(OURS, "other")
    taken = steps(catalogue, known={})
    (command,) = taken.commands
    assert isinstance(command, DeploymentPut)
    assert command.spec.aliases == ("other", "nick")
    assert command.expected == catalogue.deployments.get(X).revision  # type: ignore[union-attr]
    assert taken.deployed == KNOWN
    assert steps(put(OURS, "nick", "other")).commands == ()


def test_3_what_this_node_deployed_and_imported_anew_takes_the_place_of_the_old() -> None:
    catalogue = put(THEIRS)
    known = {X: Deployed(THEIRS, 50.0)}
    (command,) = steps(catalogue, known=known).commands
    assert isinstance(command, DeploymentPut)
    assert command.spec.digest == OURS
    assert serves_own(OWN, catalogue.deployments.get(X), known[X])


def test_4_another_nodes_checkpoint_of_the_name_wins_and_the_loser_says_so() -> None:
    catalogue = put(THEIRS)
    assert steps(catalogue, known={}).commands == ()
    deployment = catalogue.deployments.get(X)
    assert not serves_own(OWN, deployment, None)
    reason = conflict_of(OWN, deployment, None)
    assert reason is not None
    assert OURS[:12] in reason
    assert THEIRS[:12] in reason
    assert conflict_of(OWN, put(OURS).deployments.get(X), None) is None


def test_4_a_deployment_that_another_node_changed_is_not_changed_back() -> None:
    """This node deployed it first; another node had the same and imported anew."""
    assert steps(put(THEIRS)).commands == ()
    assert not serves_own(OWN, put(THEIRS).deployments.get(X), KNOWN[X])


def test_5_what_the_cluster_deleted_stays_withdrawn_until_it_is_imported_again() -> None:
    taken = steps(EMPTY)
    assert taken.commands == ()
    assert taken.deployed[X].withdrawn
    assert not serves_own(OWN, None, taken.deployed[X])
    assert "deleted" in (conflict_of(OWN, None, taken.deployed[X]) or "")
    assert steps(EMPTY, known=taken.deployed).commands == ()
    anew = replace(OWN, imported_at=200.0)
    assert serves_own(anew, None, taken.deployed[X])
    offers = {X: Offer(anew, SPEC)}
    assert steps(EMPTY, known=taken.deployed, offers=offers).commands == (DeploymentPut(X, SPEC, 0),)


def test_6_what_this_node_removed_is_deleted_unless_others_have_it() -> None:
    catalogue = put(OURS)
    revision = catalogue.deployments.get(X).revision  # type: ignore[union-attr]
    assert steps(catalogue, offers={}, gone={X}).commands == (DeploymentDelete(X, revision),)
    kept = steps(catalogue, offers={}, gone={X}, elsewhere={OURS})
    assert (kept.commands, dict(kept.deployed)) == ((), {})
    assert steps(put(THEIRS), offers={}, gone={X}).commands == ()


def test_6_what_cannot_be_read_is_not_gone() -> None:
    taken = steps(put(OURS), offers={}, gone=())
    assert (taken.commands, dict(taken.deployed)) == ((), KNOWN)


def test_7_an_alias_that_was_removed_here_is_taken_from_the_cluster() -> None:
    catalogue = put(OURS, "nick", "old", "other")
    known = {X: Deployed(OURS, 100.0, aliases=(ModelName("nick"), ModelName("old")))}
    taken = steps(catalogue, known=known)
    (command,) = taken.commands
    assert isinstance(command, DeploymentPut)
    assert command.spec.aliases == ("nick", "other")
    assert taken.deployed == known, "until the cluster has followed"
    followed = steps(put(OURS, "nick", "other"), known=known)
    assert followed.commands == ()
    assert followed.deployed[X].aliases == ("nick",)
