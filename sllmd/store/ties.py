"""Tensors that need not be stored, because they equal another one: heads of language models, mostly."""

from __future__ import annotations

from pathlib import Path

from sllmd.store.layout import absent_heads, possible_twins
from sllmd.store.source import SourceCheckpoint, SourceTensor
from sllmd.store.writing import COPY_BYTES


def absent_ties(found: SourceCheckpoint) -> dict[str, str]:
    """Ties by absence, for classes that have a head at all."""
    return (
        {}
        if found.architecture.endswith("Model") and "LMHead" not in found.architecture
        else absent_heads(found.tensors, found.config)
    )


def find_ties(found: SourceCheckpoint, root: Path) -> dict[str, str]:
    """Tensors not to store: heads that are absent, and heads whose bytes are the embedding's."""
    ties = absent_ties(found)
    for head, embedding in possible_twins(found.tensors):
        if _same_bytes(root, head, embedding):
            ties[head.name] = embedding.name
    return ties


def _same_bytes(root: Path, one: SourceTensor, other: SourceTensor) -> bool:
    with (
        (root / one.file).open("rb", buffering=0) as first,
        (root / other.file).open("rb", buffering=0) as second,
    ):
        first.seek(one.offset_bytes)
        second.seek(other.offset_bytes)
        left = one.size_bytes
        while left:
            count = min(left, COPY_BYTES)
            block = first.read(count)
            if not block or block != second.read(len(block)):
                return False
            left -= len(block)
    return True
