"""Identifiers, as distinct types so that one is never passed for another."""

from typing import NewType

ModelName = NewType("ModelName", str)
"""A name in the catalogue; what a client puts into ``model``."""

Digest = NewType("Digest", str)
"""Names a checkpoint's bytes: hex of a 128-bit hash over its manifest."""

GenerationId = NewType("GenerationId", str)
"""One running inference: one choice of one prompt."""

RequestId = NewType("RequestId", str)
"""One HTTP request; it may own several generations."""

ReplicaId = NewType("ReplicaId", str)
"""A loaded copy of a checkpoint."""

NodeId = NewType("NodeId", str)
"""One member of the cluster: drawn once, kept in its data directory, never reused."""
