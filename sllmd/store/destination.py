"""The name that an import is for: free, held by the same model, or held by another one.

A name that is held is not taken away without being told to: the same model again is there already, any other
is a Conflict. A model that cannot be served any more (quarantined, damaged, changed where it lay) holds none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sllmd.core.errors import CheckpointError, Conflict, ModelNotFound
from sllmd.core.ids import ModelName
from sllmd.core.units import format_bytes
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.credentials import shown_url
from sllmd.store.manifest import Manifest, Source
from sllmd.store.source import SourceCheckpoint
from sllmd.store.store import Kind, Store

AS = " as "
"""In the fingerprint of a GGUF file: between what identifies it and what its weights were unpacked to."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A name in a store, and the model that holds it unless it is to be replaced."""

    store: Store
    name: ModelName
    held: Checkpoint | None = None

    @classmethod
    def of(cls, store: Store, name: ModelName, *, replace: bool) -> Destination:
        """The destination ``name``; with ``replace``, whatever has that name goes."""
        return cls(store, name, None if replace else _holder(store, name))

    def there_already(self, origin: Source, partitions: int, chunk_bytes: int) -> Checkpoint | None:
        """The held model, if it was imported from ``origin`` as it is now, in the same way.

        Raises Conflict if it was cut in another way: then it is another one whatever ``origin`` holds.
        """
        if self.held is None:
            return None
        manifest = self.held.manifest
        if (len(manifest.partitions), manifest.chunk_bytes) != (partitions, chunk_bytes):
            raise self._conflict(self.held)
        return self.store.confirm(self.name) if manifest.source == origin else None

    def refuse_other_place(self, origin: Source) -> None:
        """Raise Conflict if the held model came from elsewhere, or something else was made of the same files:
        before minutes of converting, not after."""
        if self.held is None:
            return
        held = self.held.manifest.source
        files, _, dtype = origin.fingerprint.partition(AS)
        held_files, made_to, held_dtype = held.fingerprint.partition(AS)
        other = bool(made_to) and files == held_files and dtype != held_dtype
        if held.location != origin.location or other:
            raise self._conflict(self.held)

    def refuse_other_tensors(self, found: SourceCheckpoint) -> None:
        """Raise Conflict if headers alone tell that ``found`` is not the held model."""
        if self.held is None:
            return
        manifest = self.held.manifest
        stored = {tensor.name: (tensor.dtype, tensor.shape) for tensor in manifest.tensors}
        offered = {tensor.name: (tensor.dtype, tensor.shape) for tensor in found.tensors}
        same = all(offered.get(name) == facts for name, facts in stored.items())
        if (
            not same
            or offered.keys() - stored.keys() - manifest.ties.keys()
            or found.config != manifest.config
        ):
            raise self._conflict(self.held)

    def publish(
        self,
        directory: Path,
        manifest: Manifest,
        *,
        kind: Kind,
        data_directory: Path | None = None,
        remote_url: str | None = None,
    ) -> Checkpoint:
        """Publish what was imported, or confirm the held model if it is the same. Raises Conflict."""
        if self.held is None:
            return self.store.publish(
                directory,
                manifest,
                name=self.name,
                kind=kind,
                data_directory=data_directory,
                remote_url=remote_url,
            )
        if self.held.manifest.digest != manifest.digest:
            raise self._conflict(self.held)
        return self.store.confirm(self.name, remote_url=remote_url)

    def _conflict(self, held: Checkpoint) -> Conflict:
        manifest = held.manifest
        return Conflict(
            f"`{self.name}` is another model already: {format_bytes(manifest.size_bytes)}"
            f" from {shown_url(manifest.source.location)} (digest {manifest.digest[:8]})",
            param="name",
            hint="`--replace` puts the new one in its place, `--name` gives it another name",
        )


def _holder(store: Store, name: ModelName) -> Checkpoint | None:
    try:
        checkpoint = store.resolve(name)
    except (ModelNotFound, CheckpointError):
        return None
    whole = checkpoint.remote_url is not None or not any(checkpoint.missing_files())
    return checkpoint if whole else None
