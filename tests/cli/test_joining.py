"""Commands about how nodes come in, against real daemons and without any."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from sllmd.cli.joining import how_to_join
from sllmd.wire.cluster_key import parse_cluster_key
from sllmd.wire.token import parse_token
from tests.cli.conftest import RunCommand, RunningDaemon
from tests.live import FAKE, live_daemon


def test_a_dev_cluster_needs_no_tokens(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    outcome = sllmd("token", "create")
    assert outcome.code == 2
    assert "needs no tokens" in outcome.err
    assert "--dev --join" in outcome.err


@pytest.mark.parametrize("join", ["127.0.0.1:9414", "127.0.0.1", "[::1]:9414"])
def test_that_other_machines_cannot_reach_a_node_is_said_first(join: str) -> None:
    first, *rest = how_to_join(join, "--token x")
    assert first.startswith(f"This node listens at {join}: other machines cannot reach it.")
    assert "On the new machine:" not in rest
    assert rest[-1] == f"  sllmd start --join {join} --token x"


def test_a_node_that_can_be_reached_says_only_what_to_type() -> None:
    lines = list(how_to_join("gpu1", "--token x"))
    assert lines == ["On the new machine:", "  sllmd start --join gpu1 --token x"]


def test_the_keyring_is_shown_and_replaced(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    [before] = json.loads(sllmd("keyring", "list", "-o", "json").out)
    rotated = sllmd("keyring", "rotate")
    assert rotated.code == 0, rotated.err
    [after] = json.loads(sllmd("keyring", "list", "-o", "json").out)
    assert before["keys"] != after["keys"]
    assert after["keys"][0] in rotated.out


def test_a_key_file_is_made_once_and_for_its_owner(sllmd: RunCommand, tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    assert sllmd("token", "keyfile", str(path)).code == 0
    text = path.read_text()
    parse_cluster_key(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = sllmd("token", "keyfile", str(path))
    assert again.code == 7
    assert "is there already" in again.err
    assert path.read_text() == text


def test_recover_says_what_it_means_and_needs_a_cluster(sllmd: RunCommand, tmp_path: Path) -> None:
    outcome = sllmd("recover", "--data-dir", str(tmp_path))
    assert outcome.code == 2
    assert "--force-new-cluster" in outcome.err
    outcome = sllmd("recover", "--force-new-cluster", "--data-dir", str(tmp_path))
    assert outcome.code == 4
    assert "no node of a cluster" in outcome.err
    nowhere = tmp_path / "nowhere"
    assert sllmd("recover", "--force-new-cluster", "--data-dir", str(nowhere)).code == 4
    assert not nowhere.exists()


@pytest.mark.slow
def test_tokens_are_made_shown_once_and_revoked(
    sllmd: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live_daemon(tmp_path, {**FAKE, "workers.in_process": "true"}, dev=False) as one:
        monkeypatch.setenv("SLLMD_ADDR", str(one.socket))
        made = sllmd("token", "create", "--ttl", "1h", "--uses", "3")
        token = parse_token(made.out)
        assert "3 nodes" in made.err
        assert f"--token {token}" in made.err
        [row] = json.loads(sllmd("token", "list", "-o", "json").out)
        assert (row["id"], row["uses_left"], row["used"]) == (token.token_id, 3, 0)
        assert token.secret not in sllmd("token", "list", "-o", "wide").out
        assert sllmd("token", "revoke", token.token_id).code == 0
        assert sllmd("token", "revoke", token.token_id).code == 4
        assert sllmd("token", "list").out == ""
        kept = sllmd("token", "create", "--file", str(tmp_path / "token"))
        assert kept.out.strip() == str(tmp_path / "token")
        assert parse_token((tmp_path / "token").read_text()).secret not in kept.out + kept.err
