"""What lies beside the weights, from node to node: whole, bounded, or an error that says why."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sllmd.core.errors import NotHere
from sllmd.core.ids import Digest, NodeId
from sllmd.roles.files import METHOD, PIECE_BYTES, FileFetch, serve_files
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import MANIFEST_FILE
from sllmd.store.store import Store
from sllmd.wire.rpc.methods import Caller, Methods
from tests.roles.rpc import Network, speaking

HOLDER = NodeId("holder")


@pytest.fixture
def checkpoint(store_root: Path, tmp_path: Path) -> Checkpoint:
    """One whose files a test may change."""
    found = Store(store_root).resolve("a")
    shutil.copytree(found.directory, tmp_path / "copy")
    return replace(found, directory=tmp_path / "copy")


async def fetched(methods: Methods, digest: Digest) -> dict[str, bytes]:
    network = Network()
    async with speaking(network, HOLDER, methods), speaking(network, "asker") as asker:
        return await FileFetch(asker.connection, holder).fetch(digest)


async def holder(_digest: Digest) -> list[NodeId]:
    return [HOLDER]


def serving(checkpoint: Checkpoint) -> Methods:
    methods = Methods()
    digest = checkpoint.manifest.digest
    serve_files(methods, lambda wanted: checkpoint if wanted == digest else None)
    return methods


async def test_all_small_files_arrive_whole_also_long_and_empty_ones(checkpoint: Checkpoint) -> None:
    long, empty = checkpoint.manifest.small_files[:2]
    (checkpoint.directory / long).write_bytes(bytes(range(256)) * (PIECE_BYTES // 100))
    (checkpoint.directory / empty).write_bytes(b"")
    files = await fetched(serving(checkpoint), checkpoint.manifest.digest)
    names = (MANIFEST_FILE, *checkpoint.manifest.small_files)
    assert files == {name: (checkpoint.directory / name).read_bytes() for name in names}


async def test_a_file_that_is_gone_and_a_checkpoint_that_is_not_there_are_said_to_be(
    checkpoint: Checkpoint,
) -> None:
    with pytest.raises(NotHere, match="is not on this node"):
        await fetched(serving(checkpoint), Digest("../../etc/passwd"))
    (checkpoint.directory / checkpoint.manifest.small_files[0]).unlink()
    with pytest.raises(NotHere, match="cannot be read on this node: No such file"):
        await fetched(serving(checkpoint), checkpoint.manifest.digest)


@pytest.mark.parametrize(
    ("name", "piece", "words"),
    [
        ("../config.json", b"x", "something else than files"),
        ("model.safetensors", b"x", "something else than files"),
        ("config.json", bytes(PIECE_BYTES), "more than small files"),
    ],
)
async def test_a_node_that_sends_what_nobody_asked_for_is_not_listened_to(
    name: str, piece: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllmd.roles.files.SMALL_FILE_BYTES_MAX", PIECE_BYTES)

    async def files(_body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        for _ in range(3):
            yield name, piece

    methods = Methods()
    methods.stream(METHOD, files)
    with pytest.raises(NotHere, match=words):
        await fetched(methods, Digest("d"))
