"""Private models over real HTTP: who is told what, and that nobody else is told it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sllmd.cli.models import checkpoint_json
from sllmd.core.errors import InvalidRequest, SllmdError, SourceUnavailable
from sllmd.store.credentials import authorization, hub_url, names_user, shown_url
from sllmd.store.store import Store
from tests.store.models import run_import, write_model
from tests.store.serving import Manners, serve


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which nobody has any credentials."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def manners() -> Manners:
    return Manners()


@pytest.fixture
def hub(tmp_path: Path, manners: Manners, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that has Org/Private for those who have the token."""
    write_model(tmp_path / "hub" / "Org" / "Private" / "resolve" / "main")
    with serve(tmp_path / "hub", manners) as url:
        manners.wants = "Bearer hf_secret"
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield url


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize("how", ["variable", "file"])
def test_a_private_model_of_the_hub_comes_with_the_token(
    store: Store, tmp_path: Path, hub: str, manners: Manners, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
    else:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "token").write_text("hf_secret\n")
    with serve(tmp_path / "hub", seen := Manners()) as storage:
        manners.storage = storage
        checkpoint = run_import(store, "hf://Org/Private", None)
    assert checkpoint.name == "private"
    assert checkpoint.remote_url == f"{hub}/Org/Private/resolve/main"
    assert seen.told == {""}, "the storage was told the hub's token"
    assert seen.requests
    assert "hf_secret" not in (store.root / "names" / "private.json").read_text()


def test_without_the_token_it_says_what_is_needed(store: Store, hub: str) -> None:
    with pytest.raises(SourceUnavailable, match=r"answers 401 .*HF_TOKEN"):
        run_import(store, "hf://Org/Private")


def test_another_server_never_sees_the_hubs_token(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(write_model(tmp_path / "m"), manners := Manners()) as url:
        run_import(store, url)
    assert manners.told == {""}


def test_other_servers_get_what_netrc_has_for_them(store: Store, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password w0rd\n")
    with serve(write_model(tmp_path / "m"), Manners(wants=basic("me:w0rd"))) as url:
        assert run_import(store, url).remote_url == url
    assert authorization(urlsplit("https://elsewhere.example/m")) == {}


@pytest.mark.parametrize("who", ["me:hunter2@", "me:hun/ter2@", "me:hunter2#?@", "hunter2@"])
def test_a_url_does_not_say_who_asks(store: Store, tmp_path: Path, who: str) -> None:
    """It would be kept, shown and sent to every node."""
    with (
        serve(write_model(tmp_path / "m"), manners := Manners()) as url,
        pytest.raises(InvalidRequest, match="names a user") as caught,
    ):
        run_import(store, url.replace("//", f"//{who}"))
    assert "netrc" in str(caught.value.hint)
    assert "ter2" not in f"{caught.value} {caught.value.hint}"
    assert manners.requests == []


SIGNED = "X-Amz-Signature=5ecret&sig=5ecret&5ecret"


def test_what_signs_a_url_opens_the_model_and_is_shown_nowhere(store: Store, tmp_path: Path) -> None:
    with serve(write_model(tmp_path / "m"), manners := Manners()) as url:
        checkpoint = run_import(store, f"{url}?{SIGNED}")
        assert set(manners.queries) == {SIGNED}
        assert checkpoint.remote_url == f"{url}?{SIGNED}"
        assert checkpoint.manifest.source.location == f"{url}?X-Amz-Signature=***&sig=***&***"
        assert "5ecret" not in (checkpoint.directory / "manifest.json").read_text()
        assert "5ecret" not in json.dumps(checkpoint_json(checkpoint))
        assert "5ecret" not in repr(store.model("m"))
        again = run_import(store, f"{url}?sig=n3w")
    assert again.remote_url == f"{url}?sig=n3w", "a new signature takes the old one's place"
    assert again.manifest.digest == checkpoint.manifest.digest


FAULTS = [
    {"status": {"config.json": 404}},
    {"status": {"config.json": 403}},
    {"status": {"model.safetensors": 404}},
    {"cuts_off": "model.safetensors"},
    {"short": "model.safetensors"},
    {"no_ranges": True},
]


@pytest.mark.parametrize("faults", FAULTS)
def test_errors_do_not_tell_what_signs_a_url(store: Store, tmp_path: Path, faults: dict[str, Any]) -> None:
    with (
        serve(write_model(tmp_path / "m"), Manners(**faults)) as url,
        pytest.raises(SllmdError) as caught,
    ):
        run_import(store, f"{url}?{SIGNED}")
    assert "5ecret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "url", ["http://host:x/m", "http://ho st/m", "http://host/m m", "http://h\u00f6st/m"]
)
def test_what_is_no_url_is_told_without_its_query(store: Store, url: str) -> None:
    with pytest.raises(SourceUnavailable, match=r"no http\(s\) URL") as caught:
        run_import(store, f"{url}?{SIGNED}")
    assert "5ecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/m", "https://host/m"),
        ("https://host:8/a@b/m?x=1#y", "https://host:8/a@b/m?x=***"),
        ("https://me:pw@[::1]:8/m", "https://[::1]:8/m"),
        ("HTTPS://me:pw@host/m?x=1", "HTTPS://host/m?x=***"),
        ("https://me:p?w=#@host?a=b&c", "https://host?a=***&***"),
        ("/srv/what?=", "/srv/what?="),
        ("builtin:tiny", "builtin:tiny"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert names_user(url) == ("me:" in url)


def test_a_netrc_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("nonsense\n")
    with pytest.raises(SourceUnavailable, match="netrc"):
        authorization(urlsplit("https://elsewhere.example/m"))


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("hf://Org/Name", "https://huggingface.co/Org/Name/resolve/main"),
        ("hf://Org/Name@refs/pr/1", "https://huggingface.co/Org/Name/resolve/refs%2Fpr%2F1"),
    ],
)
def test_a_model_of_the_hub_has_an_address(source: str, url: str) -> None:
    assert hub_url(source) == url


@pytest.mark.parametrize("source", ["hf://", "hf://Name", "hf://a/b/c"])
def test_what_names_no_model_of_the_hub(source: str) -> None:
    with pytest.raises(InvalidRequest, match="names no model"):
        hub_url(source)
