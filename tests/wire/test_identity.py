import ssl
import stat
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from sllmd.core.errors import ConfigError, PeerRefused
from sllmd.core.ids import NodeId
from sllmd.wire.identity import (
    NODE_LIFETIME_SECONDS,
    load_authority,
    load_identity,
    make_identity,
    make_request,
    new_authority,
    new_key,
    pin_of,
    save_authority,
    save_identity,
)
from sllmd.wire.tls import Tls
from tests.wire.conftest import identity_file

NODE = NodeId("node-1")
NOW = 1_800_000_000.0


def test_a_node_gets_its_certificate(authority) -> None:
    key = new_key()
    signed = authority.sign(make_request(NODE, key), NODE, now_seconds=NOW)
    identity = make_identity(key, signed, authority.certificate_pem)
    assert identity.node == NODE
    assert pin_of(identity.ca_pem) == authority.pin
    assert len(identity.fingerprint) == 64


@pytest.mark.parametrize("request_pem", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\n!"])
def test_a_request_that_is_none(authority, request_pem) -> None:
    with pytest.raises(PeerRefused, match="cannot be read"):
        authority.sign(request_pem, NODE, now_seconds=NOW)


def test_a_request_in_another_nodes_name(authority) -> None:
    with pytest.raises(PeerRefused, match="not one of node node-1"):
        authority.sign(make_request(NodeId("node-2"), new_key()), NODE, now_seconds=NOW)


def test_a_request_that_was_changed(authority) -> None:
    request = make_request(NODE, new_key())
    lines = request.splitlines()
    lines[-2] = lines[-2][:4] + ("A" if lines[-2][4] != "A" else "B") + lines[-2][5:]
    with pytest.raises(PeerRefused):
        authority.sign("\n".join(lines), NODE, now_seconds=NOW)


def test_a_request_with_a_key_of_another_kind(authority) -> None:
    request = make_request(NODE, rsa.generate_private_key(65537, 2048))  # type: ignore[arg-type]
    with pytest.raises(PeerRefused, match="elliptic"):
        authority.sign(request, NODE, now_seconds=NOW)


def test_a_certificate_of_another_cluster_or_key_is_not_taken(authority) -> None:
    key, other = new_key(), new_authority("other", now_seconds=NOW)
    signed = other.sign(make_request(NODE, key), NODE, now_seconds=NOW)
    with pytest.raises(PeerRefused, match="not signed by this cluster"):
        make_identity(key, signed, authority.certificate_pem)
    with pytest.raises(PeerRefused, match="another key"):
        make_identity(new_key(), signed, other.certificate_pem)


def test_renewal_is_due_after_two_thirds(authority) -> None:
    key = new_key()
    signed = authority.sign(make_request(NODE, key), NODE, now_seconds=NOW)
    identity = make_identity(key, signed, authority.certificate_pem)
    assert not identity.renewal_due(NOW + 0.66 * NODE_LIFETIME_SECONDS)
    assert identity.renewal_due(NOW + 0.67 * NODE_LIFETIME_SECONDS)


def test_secrets_on_disk(authority, tmp_path: Path) -> None:
    assert load_identity(tmp_path) is None
    assert load_authority(tmp_path) is None
    key = new_key()
    signed = authority.sign(make_request(NODE, key), NODE, now_seconds=NOW)
    paths = [
        save_identity(tmp_path, make_identity(key, signed, authority.certificate_pem)),
        save_authority(tmp_path, authority),
    ]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    loaded = load_identity(tmp_path)
    assert loaded is not None
    assert loaded.node == NODE
    assert loaded.key.private_numbers() == key.private_numbers()
    again = load_authority(tmp_path)
    assert again is not None
    assert again.pin == authority.pin


def test_a_key_that_others_may_read_is_not_used(authority, tmp_path: Path) -> None:
    save_authority(tmp_path, authority).chmod(0o644)
    with pytest.raises(ConfigError, match="others may read it"):
        load_authority(tmp_path)


@pytest.mark.parametrize("cut", [0, 100, 700, 1300])
def test_a_damaged_identity_is_told(authority, tmp_path: Path, cut: int) -> None:
    path = identity_file(tmp_path, authority, NODE)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="cannot be used"):
        load_identity(tmp_path / NODE)


def test_renewed_certificates_are_used_by_new_connections(authority, tmp_path: Path) -> None:
    path = identity_file(tmp_path, authority, NODE)
    tls = Tls(path)
    old = _shake_hands(tls)
    assert _shake_hands(tls) == old
    identity_file(tmp_path, authority, NODE)
    tls.reload()
    assert _shake_hands(tls) != old


def _shake_hands(tls: Tls) -> bytes:
    """The server's certificate as a client sees it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.client.wrap_bio(back, there)
    server = tls.strict_server.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_certificates_do_not_mind_clocks_that_differ_by_minutes(authority, tmp_path: Path) -> None:
    path = identity_file(tmp_path, authority, NODE, now_seconds=time.time() + 600)
    assert _shake_hands(Tls(path))
