"""Certificates for processes of a bench, and such processes: they say a line and serve until left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sllmd.core.ids import NodeId
from sllmd.wire.identity import make_identity, make_request, new_authority, new_key, save_identity


@contextmanager
def identities(names: Sequence[str]) -> Iterator[list[Path]]:
    """Identity files signed by one authority."""
    authority = new_authority("bench", now_seconds=time.time())
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for name in names:
            key, node = new_key(), NodeId(name)
            signed = authority.sign(make_request(node, key), node, now_seconds=time.time())
            home = Path(directory) / name
            home.mkdir()
            files.append(save_identity(home, make_identity(key, signed, authority.certificate_pem)))
        yield files


@contextmanager
def saying(module: str, *arguments: object) -> Iterator[str]:
    """A module of this package as a process; the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.cluster.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
