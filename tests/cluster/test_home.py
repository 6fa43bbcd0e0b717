"""A node's own files: kept whole, versioned, for one daemon at a time."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from sllmd.cluster.founding import found
from sllmd.cluster.home import VERSION, Belonging, Home, LastPorts, claimed
from sllmd.cluster.passport import KnownPeer
from sllmd.core.errors import ConfigError, Conflict
from sllmd.core.ids import NodeId
from sllmd.wire.seal import Keyring


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "cluster")


def test_an_id_is_drawn_once_and_a_name_may_change(home: Home) -> None:
    assert home.belonging() is None
    first = home.begin("one")
    assert first.joining
    again = Home(home.directory).begin("uno")
    assert (again.node, again.name) == (first.node, "uno")
    assert home.belonging() == again


def test_what_is_kept_comes_back(home: Home) -> None:
    founded = found(home, home.begin("one"), plain=False)
    again = Home(home.directory)
    assert again.belonging() == founded
    assert founded.founding
    identity, authority = again.identity(), again.authority()
    assert identity is not None
    assert identity.node == founded.node
    assert authority is not None
    assert authority.certificate_pem == identity.ca_pem
    ring = Keyring([Keyring.new_key(), Keyring.new_key()])
    again.save_keyring(ring)
    assert again.keyring().keys() == ring.keys()  # type: ignore[union-attr]
    peers = [KnownPeer(NodeId("n"), "10.0.0.1:8344", "10.0.0.1:8345")]
    again.save_peers(peers)
    assert again.peers() == peers
    assert again.ports() == LastPorts()
    again.save_ports(LastPorts(8344, 8345, 8346))
    assert again.ports() == LastPorts(8344, 8345, 8346)
    lost = Belonging(founded.node, "one", founded.cluster_id, lost=(NodeId("x"),))
    again.save_belonging(lost)
    assert again.belonging() == lost


def test_secrets_are_their_owners(home: Home) -> None:
    os.umask(os.umask(0))  # whatever it is, the files say so themselves
    found(home, home.begin("one"), plain=False)
    home.save_joining_key("key")
    assert stat.S_IMODE(home.directory.stat().st_mode) == 0o700
    for file in home.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("name", ["identity.json", "keyring.json", "peers.json"])
def test_a_newer_version_is_refused_and_left_alone(home: Home, name: str) -> None:
    found(home, home.begin("one"), plain=True)
    home.save_peers([])
    path = home.directory / name
    newer = json.dumps(json.loads(path.read_text()) | {"version": VERSION + 1})
    path.write_text(newer)
    read = {"identity.json": home.belonging, "keyring.json": home.keyring, "peers.json": home.peers}[name]
    with pytest.raises(ConfigError, match=r"version 2, written by a newer sllmd") as caught:
        read()
    assert "newer release" in str(caught.value.hint)
    assert path.read_text() == newer


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 0}', '{"version": 1}', '{"version": 1, "node": 7}']
)
def test_what_sllmd_did_not_write_is_refused(home: Home, text: str) -> None:
    home.begin("one")
    (home.directory / "identity.json").write_text(text)
    with pytest.raises(ConfigError, match=r"identity\.json"):
        home.belonging()


def test_a_lost_identity_is_no_new_node(home: Home) -> None:
    found(home, home.begin("one"), plain=False)
    (home.directory / "identity.json").unlink()
    with pytest.raises(ConfigError, match="has lost its"):
        home.belonging()


def test_a_crash_while_founding_founds_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was written by then, the cluster's id comes last."""
    belonging = home.begin("one")

    def crash(_ring: Keyring) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(home, "save_keyring", crash)
        with pytest.raises(OSError, match="no space"):
            found(home, belonging, plain=False)
    after = Home(home.directory).belonging()
    assert after is not None
    assert after.joining
    assert found(home, after, plain=False).node == belonging.node


def test_who_leaves_keeps_no_key_of_the_cluster_and_may_leave_again(home: Home) -> None:
    for _ in range(3):
        found(home, home.begin("one"), plain=False)
        home.forget("c1")
    left = sorted(path.name for path in home.directory.parent.iterdir())
    assert left == [f"{home.directory.name}-left-c1{number}" for number in ("", "-2", "-3")]
    kept = {file.name for path in home.directory.parent.iterdir() for file in path.iterdir()}
    assert kept == {"identity.json", "node.pem"}


def test_a_directory_is_one_daemons(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(Conflict, match="another daemon uses"), claimed(tmp_path):
        raise AssertionError("both have it")
    with claimed(tmp_path):
        pass
