"""Certificates, passwords and other servers: who is let in, and what is said to who is not."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.catalogue.results import Done
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.cluster.etcd.requests import prefix_end, text
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ConfigError, ControlUnavailable, OutcomeUnknown
from sllmd.core.ids import NodeId
from tests.cluster.etcd_process import Certificates, EtcdCluster, etcd_cluster
from tests.waiting import eventually

CLUSTER = "let-in"


@asynccontextmanager
async def a_node(cluster_id: str = CLUSTER, **settings: Any) -> AsyncIterator[EtcdControl]:
    settings = {
        "propose_seconds": 60.0,
        "read_seconds": 60.0,
        "retry_seconds": 0.05,
        "pulse_seconds": 0.2,
        **settings,
    }
    node = await EtcdControl.start(node=NodeId("a"), cluster_id=cluster_id, settings=EtcdSettings(**settings))
    try:
        yield node
    finally:
        await node.close()


async def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        async with a_node(**settings):
            pass
    return str(caught.value)


class Authority:
    """Signs for 127.0.0.1."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key.public_key(), is_authority=True)
        self.ca = directory / f"{name}-ca.pem"
        self.ca.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str) -> Certificates:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key.public_key(), is_authority=False)
        files = Certificates(self.ca, self._directory / f"{name}.pem", self._directory / f"{name}.key")
        files.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files

    def _signed(self, subject: x509.Name, key: Any, *, is_authority: bool) -> x509.Certificate:
        today = dt.datetime.now(dt.UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(today - dt.timedelta(hours=1))
            .not_valid_after(today + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            builder = builder.add_extension(names, critical=False).add_extension(uses, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def secured(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """An etcd that wants client certificates."""
    files = authority.sign("etcd")
    with etcd_cluster(tmp_path_factory.mktemp("secured"), 1, certificates=files) as cluster:
        yield cluster


async def test_mutual_tls(secured: EtcdCluster, authority: Authority) -> None:
    mine = authority.sign("node")
    files = {"ca_file": mine.ca, "cert_file": mine.cert, "key_file": mine.key}
    async with a_node(endpoints=secured.endpoints, **files) as node:
        assert isinstance(await node.propose(SettingPut("x", b"", None)), Done)
        await eventually(lambda: node.leadership().is_me)


async def test_without_a_certificate_nobody_is_let_in(secured: EtcdCluster, authority: Authority) -> None:
    said = await refusal(endpoints=secured.endpoints, ca_file=authority.ca)
    assert "certificate" in said
    assert secured.endpoints[0] in said


async def test_a_certificate_of_another_authority_is_not_accepted(
    secured: EtcdCluster, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path, "foreign")
    theirs = foreign.sign("stranger")
    said = await refusal(
        endpoints=secured.endpoints, ca_file=authority.ca, cert_file=theirs.cert, key_file=theirs.key
    )
    assert "certificate" in said
    said = await refusal(
        endpoints=secured.endpoints, ca_file=foreign.ca, cert_file=theirs.cert, key_file=theirs.key
    )
    assert "its certificate is not accepted" in said


async def test_http_where_etcd_speaks_https_and_the_other_way_round(
    secured: EtcdCluster, etcd: EtcdCluster
) -> None:
    """etcd hangs up without a word, as one that is ill does: so the node waits, and says what it may be."""
    for endpoint, wrong in ((secured.endpoints[0], "http"), (etcd.endpoints[0], "https")):
        endpoints = (endpoint.replace(endpoint.split(":")[0], wrong),)
        async with a_node(endpoints=endpoints, propose_seconds=0.3, read_seconds=0.3) as node:
            with pytest.raises((ControlUnavailable, OutcomeUnknown)):
                await node.propose(SettingPut("x", b"", None))
            with pytest.raises(ControlUnavailable, match="http or https"):
                await node.read()


async def test_files_that_are_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    assert "gone.pem" in await refusal(endpoints=("https://127.0.0.1:1",), ca_file=gone)
    assert "gone.pem" in await refusal(username="u", password_file=gone)


async def test_another_server_at_the_endpoint() -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="welcome to nginx")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        said = await refusal(endpoints=(f"http://127.0.0.1:{port}",))
        assert "not as etcd's JSON gateway does (HTTP 200)" in said
    finally:
        await runner.cleanup()


async def test_an_endpoint_of_another_etcd_is_not_used(etcd: EtcdCluster, tmp_path: Path) -> None:
    with etcd_cluster(tmp_path, 1) as other:
        async with a_node(endpoints=(*etcd.endpoints, *other.endpoints)) as node:
            node._gateway.avoid(etcd.endpoints[0])
            for number in range(3):
                assert isinstance(await node.propose(SettingPut(f"{number}", b"", None)), Done)
            assert node._gateway.endpoint == etcd.endpoints[0], (
                "the first that answered says whose etcd it is"
            )
            assert len((await node.read()).settings) == 3


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(url, json=body) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        assert response.status == 200, answer
        return answer


@pytest.fixture
async def with_users(tmp_path: Path) -> AsyncIterator[EtcdCluster]:
    """An etcd in which ``sllmd`` may use ``/sllmd`` and ``guest`` may not."""
    with etcd_cluster(tmp_path, 1) as cluster:
        url = cluster.endpoints[0] + "/v3/auth"
        async with aiohttp.ClientSession() as session:
            for user in ("root", "sllmd", "guest"):
                await ask(session, f"{url}/user/add", {"name": user, "password": f"{user}-secret"})
            for role in ("root", "ours"):
                await ask(session, f"{url}/role/add", {"name": role})
            key = b"/sllmd/"
            permission = {"permType": "READWRITE", "key": text(key), "range_end": text(prefix_end(key))}
            await ask(session, f"{url}/role/grant", {"name": "ours", "perm": permission})
            await ask(session, f"{url}/user/grant", {"user": "root", "role": "root"})
            await ask(session, f"{url}/user/grant", {"user": "sllmd", "role": "ours"})
            await ask(session, f"{url}/enable", {})
        yield cluster


async def test_users_and_passwords(with_users: EtcdCluster, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("sllmd-secret\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("secret")
    guest = tmp_path / "guest"
    guest.write_text("guest-secret")
    endpoints = with_users.endpoints
    assert "set [cluster.etcd] username" in await refusal(endpoints=endpoints)
    said = await refusal(endpoints=endpoints, username="sllmd", password_file=wrong)
    assert "authentication failed" in said
    assert "secret" not in said
    said = await refusal(endpoints=endpoints, username="guest", password_file=guest)
    assert "permission denied" in said
    assert "readwrite" in said
    settings = {"endpoints": endpoints, "username": "sllmd", "password_file": password}
    async with a_node(**settings, snapshot_commands=10) as node:
        await eventually(lambda: node.leadership().is_me)
        for number in range(30):
            await node.propose(SettingPut(f"{number}", b"", None))
        with_users.members[0].kill()  # and with it the tokens it gave out
        await asyncio.to_thread(with_users.members[0].start)
        await eventually(lambda: node.leadership().is_me)
        assert isinstance(await node.propose(SettingPut("after", b"", None)), Done)
        assert len((await node.read()).settings) == 31


async def test_a_user_where_etcd_knows_none(etcd: EtcdCluster, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    said = await refusal(endpoints=etcd.endpoints, username="u", password_file=password)
    assert "unset [cluster.etcd] username" in said
