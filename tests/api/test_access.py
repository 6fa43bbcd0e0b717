import hashlib

import aiohttp
import pytest
from structlog.testing import capture_logs

from sllmd.api.keys import KeyRing, is_loopback
from sllmd.cluster.catalogue import EMPTY
from sllmd.cluster.catalogue.commands import ApiKeyPut
from sllmd.cluster.control import View
from sllmd.core.errors import ConfigError

KEYS = f"""
[[keys]]
id = "team"
secret = "sk-team"

[[keys]]
id = "boss"
sha256 = "{hashlib.sha256(b"sk-boss").hexdigest()}"
scopes = ["inference", "admin"]
"""


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    return path


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


BODY = {"model": "letters", "prompt": "x", "max_tokens": 1}
NO_KEY = "You didn't provide an API key"
CASES = [
    ("/v1/models", {}, 401),
    ("/v1/models", bearer("sk-wrong"), 401),
    ("/v1/models", {"Authorization": "Basic sk-team"}, 401),
    ("/v1/models", {"Authorization": "Bearer "}, 401),
    ("/v1/models", bearer("sk-team\xe9"), 401),
    ("/v1/models", bearer("sk-team"), 200),
    ("/v1/models", {"x-api-key": "sk-team"}, 200),
    ("/v1/models", {"Authorization": "bearer sk-boss"}, 200),
    ("/sllmd/v1/status", {}, 401),
    ("/sllmd/v1/status", bearer("sk-team"), 403),
    ("/sllmd/v1/status", bearer("sk-boss"), 200),
    ("/openapi.json", {}, 401),
    ("/no/such/page", {}, 401),
    ("/healthz", {}, 200),
    ("/readyz", {}, 200),
    ("/version", {}, 200),
    ("/metrics", {}, 200),
]


async def test_who_may_ask_what(serve, keys_file):
    async with serve(api={"require_key": True}) as live:
        for path, headers, status in CASES:
            response = await live.get(path, headers=headers)
            assert response.status == status, (path, headers)
            if status == 401:
                error = (await response.json())["error"]
                assert (error["code"], error["param"]) == ("invalid_api_key", None)
                assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_metrics_may_need_a_key(serve, keys_file):
    async with serve(api={"require_key": True, "metrics_require_key": True}) as live:
        assert (await live.get("/metrics")).status == 401
        assert (await live.get("/metrics", headers=bearer("sk-team"))).status == 200


async def test_loopback_needs_no_key_whatever_key_is_sent(live):
    assert (await live.get("/v1/models")).status == 200
    assert (await live.get("/v1/models", headers=bearer("dummy"))).status == 200
    assert (await live.get("/sllmd/v1/status")).status == 200


async def test_the_unix_socket_needs_no_key(serve, keys_file, tmp_path):
    async with serve(api={"require_key": True}) as live:
        assert live.daemon.operator.listen[-1] == f"unix:{tmp_path}/sllmd.sock"
        assert (tmp_path / "sllmd.sock").stat().st_mode & 0o777 == 0o660
        connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))
        async with aiohttp.ClientSession(connector=connector) as client:
            assert (await client.get("http://sllmd/sllmd/v1/status")).status == 200
    assert not (tmp_path / "sllmd.sock").exists()


async def test_from_the_first_key_on_loopback_asks_for_one_too(serve, tmp_path):
    """The Unix socket does not: whoever may open it makes keys, and gets in when all are lost."""
    connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))
    async with serve() as live, aiohttp.ClientSession(connector=connector) as owner:
        assert (await live.get("/sllmd/v1/status")).status == 200
        keys = "http://sllmd/sllmd/v1/keys"
        made = await (await owner.post(keys, json={"id": "boss", "scopes": ["admin"]})).json()
        for request in (live.get("/sllmd/v1/status"), live.post("/v1/completions", BODY)):
            refused = await request
            assert refused.status == 401
            assert "sllmd keys create" in (await refused.json())["error"]["message"]
        assert (await live.get("/sllmd/v1/status", headers=bearer(made["secret"]))).status == 200
        narrow = await live.get("/v1/models", headers=bearer(made["secret"]))
        assert (narrow.status, "--scope inference" in await narrow.text()) == (403, True)
        assert (await owner.delete(f"{keys}/boss")).status == 200
        assert (await live.get("/sllmd/v1/status")).status == 200


async def test_a_key_of_the_nodes_file_is_asked_for_on_loopback(serve, keys_file):
    async with serve() as live:
        assert (await live.get("/v1/models")).status == 401
        assert (await live.get("/v1/models", headers=bearer("sk-team"))).status == 200
        assert (await live.get("/v1/models", headers=bearer("sk-boss"))).status == 200
    keys_file.write_text(KEYS)
    async with serve(api={"require_key": False}) as live:
        assert (await live.get("/sllmd/v1/status")).status == 200


async def test_a_node_that_does_not_know_its_clusters_keys_lets_nobody_in(live, monkeypatch):
    """A restarted member, before it has heard anybody: there may be keys that it does not know."""
    node = live.daemon.node
    node.heard.clear()
    for view in (View(EMPTY, 0, float("inf")), node.control.view()):
        monkeypatch.setattr(node.control, "view", lambda view=view: view)
        for headers in ({}, bearer("sk-any")):
            refused = await live.get("/v1/models", headers=headers)
            assert refused.status == 503
            assert "which API keys its cluster has" in (await refused.json())["error"]["message"]
        assert (await live.get("/healthz")).status == 200
    node.heard.set()
    assert (await live.get("/v1/models")).status == 200


async def test_keys_that_a_node_knows_open_before_it_has_heard_its_cluster(live):
    """What was agreed before it started: as on any node that is cut off."""
    node = live.daemon.node
    secret = "sk-known"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    await node.control.propose(ApiKeyPut("known", digest, "inference", None))
    node.heard.clear()
    assert (await live.get("/v1/models", headers=bearer(secret))).status == 200
    assert (await live.get("/v1/models")).status == 401


async def test_a_public_address_without_keys_and_a_way_to_make_one_does_not_start(serve):
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:0.*no API key exists"):
        async with serve(api={"listen": ["127.0.0.1:0", "0.0.0.0:0"], "uds": None}):
            pass


async def test_a_public_address_lets_nobody_in_until_there_is_a_key(serve, tmp_path):
    async with serve(api={"listen": ["0.0.0.0:0"]}) as live:
        local = live.url.replace("0.0.0.0", "127.0.0.1")
        refused = await live.client.get(local + "/v1/models", headers=bearer("sk-any"))
        assert refused.status == 401
        assert "sllmd keys create" in (await refused.json())["error"]["message"]
        connector = aiohttp.UnixConnector(str(tmp_path / "sllmd.sock"))
        async with aiohttp.ClientSession(connector=connector) as client:
            made = await (await client.post("http://sllmd/sllmd/v1/keys", json={"id": "team"})).json()
        key = bearer(made["secret"])
        assert (await live.client.get(local + "/v1/models", headers=key)).status == 200
        assert (await live.client.get(local + "/sllmd/v1/status", headers=key)).status == 403


async def test_a_public_address_with_keys_needs_them_on_loopback_too(serve, keys_file):
    async with serve(api={"listen": ["0.0.0.0:0"]}) as live:
        local = live.url.replace("0.0.0.0", "127.0.0.1")
        assert (await live.client.get(local + "/v1/models")).status == 401
        assert (await live.client.get(local + "/v1/models", headers=bearer("sk-team"))).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://evil.example", 403), ("null", 403), ("https://chat.example", 200)],
)
async def test_pages_of_others_may_not_use_ones_loopback(serve, origin, status):
    async with serve(api={"cors_origins": ["https://chat.example"]}) as live:
        response = await live.get("/v1/models", headers={"Origin": origin})
        assert response.status == status
        allowed = response.headers.get("Access-Control-Allow-Origin")
        assert allowed == (origin if status == 200 else None)


async def test_a_page_that_this_server_serves_may(live):
    assert (await live.get("/v1/models", headers={"Origin": live.url})).status == 200


async def test_a_preflight_is_answered_for_allowed_pages_only(serve):
    async with serve(api={"cors_origins": ["https://chat.example"]}) as live:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        url = live.url + "/v1/chat/completions"
        good = await live.client.options(url, headers={**asked, "Origin": "https://chat.example"})
        assert good.status == 204
        assert good.headers["Access-Control-Allow-Headers"] == "authorization"
        bad = await live.client.options(url, headers={**asked, "Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in bad.headers
        assert bad.status == 403


@pytest.mark.parametrize(
    ("host", "inference", "admin"),
    [
        ("evil.example:8343", 403, 403),
        ("localhost.evil.example", 403, 403),
        ("gateway.internal", 200, 403),
        ("localhost:80", 200, 200),
        ("[::1]:80", 200, 200),
        ("10.1.2.3:8343", 200, 403),
    ],
)
async def test_a_rebound_name_reaches_nothing(serve, host, inference, admin):
    async with serve(api={"hosts": ["gateway.internal"]}) as live:
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert (await live.get("/v1/models", headers=headers)).status == inference
        assert (await live.post("/v1/completions", BODY, headers=headers)).status == inference
        assert (await live.get("/sllmd/v1/status", headers=headers)).status == admin
        del headers["Origin"]
        assert (await live.get("/v1/models", headers=headers)).status == inference


async def test_with_a_key_any_name_will_do(serve, keys_file):
    async with serve(api={"require_key": True}) as live:
        headers = {**bearer("sk-team"), "Host": "gateway.internal"}
        assert (await live.get("/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize("origins", [["https://chat.example"], ["*"]])
async def test_pages_of_others_never_move_models(serve, origins):
    async with serve(api={"cors_origins": origins}) as live:
        headers = {"Origin": "https://chat.example"}
        assert (await live.get("/v1/models", headers=headers)).status == 200
        refused = await live.post("/sllmd/v1/models/letters/unload", headers=headers)
        assert refused.status == 403
        assert "Access-Control-Allow-Origin" not in refused.headers
        asked = {**headers, "Access-Control-Request-Method": "POST"}
        preflight = await live.client.options(live.url + "/sllmd/v1/cache/evict", headers=asked)
        assert preflight.status == 403


def test_keys_are_read_again_when_they_change(keys_file):
    ring = KeyRing(keys_file)
    assert ring.find("sk-team").id == "team"
    assert ring.find("sk-new") is None
    replace(keys_file, '[[keys]]\nid = "new"\nsecret = "sk-new"\n')
    assert ring.find("sk-new").id == "new"
    assert ring.find("sk-team") is None
    replace(keys_file, "broken = ")
    assert ring.find("sk-new").id == "new"


GONE = {
    "removed": lambda file: file.unlink(),
    "emptied": lambda file: file.write_text(""),
    "blank": lambda file: file.write_text(" \n"),
    "broken": lambda file: file.write_text("keys ="),
}


@pytest.mark.parametrize("lose", GONE.values(), ids=GONE)
async def test_a_keys_file_that_is_lost_opens_nothing(serve, keys_file, lose):
    async with serve() as live:
        assert (await live.get("/v1/models")).status == 401
        lose(keys_file)
        with capture_logs() as lines:
            assert (await live.get("/v1/models")).status == 401
        assert [line["event"] for line in lines if line["log_level"] == "error"]
        assert (await live.get("/sllmd/v1/status")).status == 401
        assert (await live.get("/v1/models", headers=bearer("sk-team"))).status == 200
        replace(keys_file, KEYS.replace("sk-team", "sk-other"))
        assert (await live.get("/v1/models", headers=bearer("sk-team"))).status == 401
        assert (await live.get("/v1/models", headers=bearer("sk-other"))).status == 200


@pytest.mark.parametrize("text", ["keys = []\n", "# nobody\n"])
async def test_a_keys_file_that_says_that_there_are_none_lets_nobody_in(serve, keys_file, text):
    async with serve() as live:
        assert (await live.get("/v1/models", headers=bearer("sk-team"))).status == 200
        replace(keys_file, text)
        for headers in ({}, bearer("sk-team")):
            assert (await live.get("/v1/models", headers=headers)).status == 401
    for begins_with in (text, ""):
        keys_file.write_text(begins_with)
        async with serve() as live:
            assert (await live.get("/v1/models")).status == 401, "whoever puts the file there wants keys"


def replace(path, text):
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[keys]]\nid = 'a'\n", "either sha256 or secret"),
        ("[[keys]]\nid = 'a'\nsecret = 'x'\nsha256 = '" + "0" * 64 + "'\n", "either sha256 or secret"),
        ("[[keys]]\nid = 'a'\nsha256 = 'short'\n", "key 1: `sha256` must be 64 digits"),
        ("[[keys]]\nid = 'a'\nsecret = 'x'\nscopes = ['god']\n", "scopes"),
        ("[[keys]]\nid = 'a'\nsecret = 'x'\n" * 2, "the same id"),
        ("[[key]]\nid = 'a'\n", "key"),
        ("keys =", "not valid TOML"),
    ],
)
def test_a_wrong_keys_file_says_where(tmp_path, text, said):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        KeyRing(path)
    assert "secret = " not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:8343", True),
        ("localhost:1", True),
        ("[::1]:8343", True),
        ("::1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("0.0.0.0:8343", False),
        ("[::]:8343", False),
        ("10.0.0.1:8343", False),
        ("example.com:80", False),
        ("localhost.evil.example:80", False),
        ("", False),
    ],
)
def test_what_is_loopback(address, expected):
    assert is_loopback(address) is expected
