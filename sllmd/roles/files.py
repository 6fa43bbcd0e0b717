"""A checkpoint's manifest and small files from node to node: what routing a model takes.

Owns: the method ``files.checkpoint``. Weights do not come this way: those are chunks (``wire.bulk``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import aiofiles
import structlog

from sllmd.core.errors import NotHere, ProtocolError, SllmdError
from sllmd.core.ids import Digest, NodeId
from sllmd.core.units import KIB
from sllmd.roles.relay import Connect
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import MANIFEST_FILE
from sllmd.store.source import SMALL_FILE_BYTES_MAX, SMALL_FILES
from sllmd.wire.rpc.methods import Caller, Methods

METHOD = "files.checkpoint"
PIECE_BYTES = 512 * KIB
"""Half of what an item of a stream may have."""
FETCH_SECONDS = 60.0
"""For all files of one checkpoint from one node: some tens of MB at most."""
_NAMES = frozenset({MANIFEST_FILE, *SMALL_FILES})

_log = structlog.get_logger(__name__)

Find = Callable[[Digest], Checkpoint | None]
Holders = Callable[[Digest], Awaitable[Sequence[NodeId]]]
"""Raises NotHere when there are none."""


def serve_files(methods: Methods, find: Find) -> None:
    """Let other nodes read what lies beside the weights."""

    async def files(body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        checkpoint = find(Digest(str(body)))
        if checkpoint is None:
            raise NotHere(f"checkpoint {body} is not on this node")
        try:
            for name in (MANIFEST_FILE, *checkpoint.manifest.small_files):
                yield name, b""  # so that an empty file is one, too
                async with aiofiles.open(checkpoint.directory / name, "rb") as file:
                    while piece := await file.read(PIECE_BYTES):
                        yield name, piece
        except OSError as error:
            raise NotHere(f"checkpoint {body} cannot be read on this node: {error.strerror}") from error

    methods.stream(METHOD, files)


class FileFetch:
    """Gets them from the first node that gives them."""

    def __init__(self, connect: Connect, holders: Holders) -> None:
        self._connect = connect
        self._holders = holders

    async def fetch(self, digest: Digest) -> dict[str, bytes]:
        """Files by name, whatever they are: whoever asked checks them. Raises NotHere."""
        reason = "no node that is here has it"
        for node in await self._holders(digest):
            try:
                return await self._fetch_from(node, digest)
            except SllmdError as error:
                reason = str(error)
                _log.warning("node gives no files", node=node, checkpoint=digest, reason=reason)
        raise NotHere(f"the files of checkpoint {digest[:12]} could not be had: {reason}")

    async def _fetch_from(self, node: NodeId, digest: Digest) -> dict[str, bytes]:
        connection = await self._connect(node)
        pieces: dict[str, list[bytes]] = {}
        size_bytes = 0
        async with connection.stream(METHOD, digest, deadline_seconds=FETCH_SECONDS) as stream:
            async for item in stream:
                match item:
                    case (str(name), bytes(piece)) if name in _NAMES:
                        pieces.setdefault(name, []).append(piece)
                        size_bytes += len(piece)
                    case _:
                        raise ProtocolError(f"node {node} sends something else than files")
                if size_bytes > 2 * SMALL_FILE_BYTES_MAX:
                    raise ProtocolError(f"node {node} sends more than small files")
        return {name: b"".join(parts) for name, parts in pieces.items()}
