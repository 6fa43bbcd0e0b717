"""What a checkpoint's digest covers. Pure.

Everything that decides what a model says: config, tensors, ties, layout, chunk checksums, small files.
Not where it came from, so the same model imported on two nodes has the same digest. A remote checkpoint is
registered before its bytes are known: its digest covers the source's fingerprint (ETags) in place of the
checksums, and stays the same when the bytes have arrived.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import xxhash

from sllmd.core.ids import Digest
from sllmd.store.manifest import Manifest

UNNAMED = Digest("")
"""Stands in a manifest whose digest is not computed yet."""


def manifest_digest(manifest: Manifest, small_digests: Mapping[str, str]) -> Digest:
    """The digest of ``manifest``, whatever it says itself; ``small_digests``: xxh3-128 per small file."""
    content = manifest.model_dump(mode="json", exclude={"digest"})
    source = content.pop("source")
    if source["kind"] == "http":
        content["fingerprint"] = source["fingerprint"]
        for partition in content["partitions"]:
            for file in partition["files"]:
                del file["chunk_digests"]
    content["small_files"] = {name: small_digests[name] for name in manifest.small_files}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Digest(xxhash.xxh3_128_hexdigest(text.encode()))


def with_digest(manifest: Manifest, small_digests: Mapping[str, str]) -> Manifest:
    """``manifest`` with the digest it should have."""
    return manifest.model_copy(update={"digest": manifest_digest(manifest, small_digests)})
