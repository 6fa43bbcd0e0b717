"""What a node says of a name before it has heard anything of its cluster."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sllmd.cluster.catalogue.state import EMPTY
from sllmd.cluster.control import View
from sllmd.core.errors import ControlUnavailable, ModelNotFound
from sllmd.core.ids import Digest, NodeId
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
