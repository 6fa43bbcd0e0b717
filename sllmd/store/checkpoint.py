"""A checkpoint that this node knows: its manifest and where its bytes can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sllmd.core.ids import ModelName
from sllmd.store.manifest import DataFile, Manifest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A catalogue entry resolved to bytes.

    ``directory`` holds the manifest and the small files. Data files lie in ``data_directory`` (the same,
    or the user's own directory when served in place) or, while ``remote_url`` is set and they are not all
    there yet, at ``remote_url``; the loader then writes them to ``data_directory`` as they pass.
    """

    name: ModelName
    manifest: Manifest
    directory: Path
    data_directory: Path
    remote_url: str | None = None

    def missing_files(self) -> Iterator[DataFile]:
        """Data files that do not lie in ``data_directory`` as large as they should be. Raises OSError."""
        for file in self.manifest.data_files:
            path = self.data_directory / file.path
            if not path.is_file() or path.stat().st_size != file.size_bytes:
                yield file

    def validators(self) -> Mapping[str, str]:
        """ETag (or Last-Modified) of each remote file when it was registered; empty where unknown.

        A load holds every answer against them, so that it never mixes two versions.
        """
        source = self.manifest.source
        return cast("dict[str, str]", json.loads(source.fingerprint)) if source.kind == "http" else {}
