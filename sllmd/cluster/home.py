"""This node's own files: who it is, of which cluster, what it needs to take part again after a restart.

::

    <data_dir>/lock               held by the daemon that uses the directory
    <data_dir>/cluster/           0700; --dev has its own, dev-cluster, so that playing leaves no trace
        identity.json             node id, name, cluster id; there from the first start on, also while joining
        node.pem, authority.pem   this node's key and certificate; the CA, on nodes that keep it
        joining.pem               the key that a node joins with, until it is in
        keyring.json              the gossip keys
        peers.json                where other members were last seen
        ports.json                where this node was: others remember it there
        journal/                  raft's; or, where an etcd agrees:
        catalogue                 the newest that it told

Invariants: files are replaced whole, synced before anything relies on them; each says its version, and one of
a version that is not known here is left alone, with a message. Secrets are readable by their owner only.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from sllmd.cluster.passport import KnownPeer
from sllmd.core.errors import ConfigError, Conflict
from sllmd.core.ids import NodeId
from sllmd.store.durable import replace_file, store_errors
from sllmd.wire.identity import (
    Authority,
    Identity,
    forget_authority,
    load_authority,
    load_identity,
    save_authority,
    save_identity,
)
from sllmd.wire.seal import Keyring

VERSION = 1
"""Of every file here that is not PEM."""
ID_BYTES = 8
"""Random: two nodes with one id would need 10^9 nodes."""

_LOCK = "lock"
_IDENTITY = "identity.json"
_KEYRING = "keyring.json"
_PEERS = "peers.json"
_PORTS = "ports.json"
_JOINING = "joining.pem"
_CATALOGUE = "catalogue"


@dataclass(frozen=True, slots=True)
class Belonging:
    """Who this node is. ``cluster_id`` empty: it is still on its way in."""

    node: NodeId
    name: str
    cluster_id: str = ""
    founding: bool = False
    """It founded the cluster, and nothing has been agreed in it yet."""
    lost: tuple[NodeId, ...] = ()
    """It goes on without these since ``sllmd recover``, and the catalogue has not been told yet."""

    @property
    def joining(self) -> bool:
        """Whether it is not a member yet."""
        return not self.cluster_id


@dataclass(frozen=True, slots=True)
class LastPorts:
    """Where a node listened; 0: nowhere."""

    rpc: int = 0
    gossip: int = 0
    chunks: int = 0


def new_id() -> str:
    """For a node or a cluster."""
    return secrets.token_hex(ID_BYTES)


@contextmanager
def claimed(data_directory: Path) -> Iterator[None]:
    """Have the directory for this process alone.

    Raises Conflict: another has it; StoreError: it cannot be made.
    """
    with store_errors("create the data directory"):
        data_directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another daemon uses {data_directory}",
                hint="stop it, or give this one a directory of its own with --data-dir (or, with --dev, a "
                "--name)",
            ) from None
        yield
    finally:
        os.close(descriptor)


class Home:
    """The directory. Every method but the constructor reads or writes; all are short."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def journal_directory(self) -> Path:
        """Raft's."""
        return self.directory / "journal"

    @property
    def catalogue_file(self) -> Path:
        """What an etcd told last."""
        return self.directory / _CATALOGUE

    @property
    def identity_file(self) -> Path:
        """What TLS contexts are made from."""
        return self.directory / "node.pem"

    # --- who ---

    def belonging(self) -> Belonging | None:
        """What this node is; None: nothing yet. Raises ConfigError when it cannot be told."""
        found = self._read(_IDENTITY)
        if found is None:
            if self.identity_file.exists() or self.journal_directory.exists():
                raise ConfigError(
                    f"{self.directory} has lost its {_IDENTITY}",
                    hint="restore it; or move the directory away and join anew",
                )
            return None
        match found:
            case {
                "node": str(node),
                "name": str(name),
                "cluster": str(cluster),
                "founding": bool(founding),
                "lost": [*lost],
            }:
                return Belonging(NodeId(node), name, cluster, founding, tuple(map(NodeId, lost)))
        raise self._unreadable(_IDENTITY)

    def save_belonging(self, belonging: Belonging) -> None:
        """Keep it. Raises OSError, as all that follow."""
        self._write(
            _IDENTITY,
            {
                "node": belonging.node,
                "name": belonging.name,
                "cluster": belonging.cluster_id,
                "founding": belonging.founding,
                "lost": belonging.lost,
            },
        )

    def begin(self, name: str) -> Belonging:
        """This node's id from now on, drawn once; its name may change."""
        known = self.belonging()
        belonging = Belonging(NodeId(new_id()), name) if known is None else replace(known, name=name)
        if belonging != known:
            self.save_belonging(belonging)
        return belonging

    def forget(self, cluster_id: str) -> None:
        """This node is of no cluster any more. What it had lies beside, for whoever wants to look, except for
        what would let it in as anybody."""
        self.forget_authority()
        for name in (_KEYRING, _CATALOGUE):
            (self.directory / name).unlink(missing_ok=True)
        beside = self.directory.with_name(f"{self.directory.name}-left-{cluster_id}")
        again = (beside.with_name(f"{beside.name}-{number}") for number in count(2))
        free = next(path for path in chain([beside], again) if not path.exists())
        self.directory.rename(free)

    # --- keys ---

    def identity(self) -> Identity | None:
        """Key and certificate."""
        return load_identity(self.directory)

    def save_identity(self, identity: Identity) -> None:
        """Keep it, in place of an older one."""
        save_identity(self.directory, identity)

    def authority(self) -> Authority | None:
        """The CA, if this node keeps it."""
        return load_authority(self.directory)

    def save_authority(self, authority: Authority) -> None:
        """Keep the CA."""
        save_authority(self.directory, authority)

    def forget_authority(self) -> None:
        """Keep it no longer."""
        forget_authority(self.directory)

    def joining_key(self) -> str | None:
        """PEM of the key that this node asked to join with."""
        path = self.directory / _JOINING
        return path.read_text(encoding="ascii") if path.exists() else None

    def save_joining_key(self, pem: str) -> None:
        """Keep it until this node is in: who asks again with the same key uses no second token."""
        self._write_bytes(_JOINING, pem.encode())

    def forget_joining_key(self) -> None:
        """It is in ``node.pem`` now."""
        (self.directory / _JOINING).unlink(missing_ok=True)

    def keyring(self) -> Keyring | None:
        """The gossip keys."""
        match self._read(_KEYRING):
            case None:
                return None
            case {"keys": [str(), *_] as keys}:
                return Keyring([bytes.fromhex(key) for key in keys])
        raise self._unreadable(_KEYRING)

    def save_keyring(self, keyring: Keyring) -> None:
        """Keep them, the one that seals first."""
        keys = keyring.keys()
        self._write(_KEYRING, {"keys": [key.hex() for key in keys]})

    # --- others ---

    def peers(self) -> list[KnownPeer]:
        """Where other members were last seen."""
        match self._read(_PEERS):
            case None:
                return []
            case {"peers": [*peers]}:
                return [KnownPeer(**peer) for peer in peers]
        raise self._unreadable(_PEERS)

    def save_peers(self, peers: Sequence[KnownPeer]) -> None:
        """Keep them for the next start."""
        self._write(_PEERS, {"peers": [asdict(peer) for peer in peers]})

    def ports(self) -> LastPorts:
        """Where this node listened when it last ran; zeros: it never did."""
        match self._read(_PORTS):
            case None:
                return LastPorts()
            case {"rpc": int(rpc), "gossip": int(gossip), "chunks": int(chunks)}:
                return LastPorts(rpc, gossip, chunks)
        raise self._unreadable(_PORTS)

    def save_ports(self, ports: LastPorts) -> None:
        """Keep them for the next start, if they are others than last time."""
        if ports != self.ports():
            self._write(_PORTS, asdict(ports))

    # --- files ---

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.directory / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{path} cannot be read: {error}", hint=_RESTORE) from None
        match value:
            case {"version": int(version)} if version > VERSION:
                raise ConfigError(
                    f"{path} is of version {version}, written by a newer sllmd; this one knows {VERSION}",
                    hint="use the newer release again; it was left as it is",
                )
            case {"version": 1}:
                return dict(value)
        raise self._unreadable(name)

    def _unreadable(self, name: str) -> ConfigError:
        return ConfigError(f"{self.directory / name} is not what sllmd wrote there", hint=_RESTORE)

    def _write(self, name: str, fields: Mapping[str, Any]) -> None:
        self._write_bytes(name, json.dumps({"version": VERSION, **fields}, indent=1).encode() + b"\n")

    def _write_bytes(self, name: str, data: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.directory / name, data, mode=0o600)


_RESTORE = "restore it; or move the directory away and join anew"
