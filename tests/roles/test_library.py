"""What a node says of a name that it does not know, or whose model is nowhere."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sllmd.cluster.catalogue import EMPTY, Command, apply
from sllmd.cluster.catalogue.commands import DeploymentPut
from sllmd.cluster.catalogue.records import DeploymentSpec
from sllmd.cluster.control import View
from sllmd.core.errors import ControlUnavailable, ModelMissing, ModelNotFound, NotHere
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.inventory import CheckpointFact, Inventory
from sllmd.roles.library import Files, Library, Shared
from sllmd.roles.table import Table
from sllmd.store.store import Store


async def nothing(_: Digest) -> Files:
    return {}


@pytest.mark.parametrize(("age_seconds", "error"), [(math.inf, ControlUnavailable), (5.0, ModelNotFound)])
def test_a_name_is_unknown_only_to_who_knows_the_names(
    tmp_path: Path, age_seconds: float, error: type[Exception]
) -> None:
    library = Library(Store(tmp_path / "own"))
    view = View(EMPTY, 0, age_seconds)
    library.share(Shared(NodeId("a"), Store(tmp_path / "adopted"), lambda: view, Table, nothing))
    with pytest.raises(error):
        library.model("somewhere")
    assert library.models() == []


@pytest.mark.parametrize(
    ("had", "words"), [("b", "b had it (start b, import"), (None, "start the node that had it")]
)
async def test_a_model_that_left_with_its_node_is_missing_and_it_is_said_whose_it_was(
    tmp_path: Path, had: str | None, words: str
) -> None:
    async def fetch(digest: Digest) -> Files:
        raise NotHere(f"no node that is here has {digest}")

    spec = DeploymentSpec(Digest("d"), "", (), None, 0, 1, {}, 0)
    catalogue, _ = apply(EMPTY, Command(DeploymentPut(ModelName("m"), spec, None)))
    view = View(catalogue, 1, 0.0)
    tables = [Table()]
    library = Library(Store(tmp_path / "own"))
    library.share(
        Shared(
            NodeId("a"), Store(tmp_path / "adopted"), lambda: view, lambda: tables[0], fetch, lambda _: had
        )
    )
    [stored] = library.models()
    assert library.is_missing(stored)
    assert words in (stored.problem or "")
    with pytest.raises(ModelMissing) as caught:
        await library.obtain("m")
    assert str(caught.value) == stored.problem
    fact = CheckpointFact(Digest("d"), "ssd", 10, "llama", 2048, 1, 5)
    tables[0] = Table(1, 1, {NodeId("b"): Inventory(checkpoints=(fact,))})
    assert not library.is_missing(stored)
    with pytest.raises(NotHere):
        await library.obtain("m")
