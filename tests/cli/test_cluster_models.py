"""What the commands on one node tell of a model that only another node of its cluster has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import RunCommand
from tests.live import FAKE, live_daemon, put_model
from tests.waiting import until

pytestmark = pytest.mark.slow


def test_a_node_without_a_store_of_its_own_tells_what_its_cluster_serves(
    sllmd: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(tmp_path / "far", "m")
    with live_daemon(tmp_path / "near", {**FAKE, "node.name": "near"}) as near:
        [member] = near.ask("/sllmd/v1/members").body["members"]
        joining = {**FAKE, "node.name": "far", "cluster.join": json.dumps([member["address"]])}
        with live_daemon(tmp_path / "far", joining):
            monkeypatch.setenv("SLLMD_ADDR", str(near.socket))

            def known() -> bool:
                cards = near.ask("/sllmd/v1/models").body["models"]
                return any(card["name"] == "m" and card["context_tokens"] for card in cards)

            until(known, "the first node knows the model")
            _listed_and_shown(sllmd)
            until(lambda: near.ask("/sllmd/v1/models/m/plan").body.get("plan", {}).get("node"), "a plan")
            _not_in_the_store(sllmd)
            assert "No request is running or remembered" in sllmd("explain").err
            assert [line.split()[:3] for line in sllmd("plan", "m").out.splitlines()[:2]] == [
                ["RANK", "NODE", "FROM"],
                ["1", "far", "ssd"],
            ]
            timed = sllmd("run", "m", "x", "--raw", "--max-tokens", "2", "--timings")
            assert "  on far" in timed.err
            explained = sllmd("explain").out
            assert "  on far" in explained
            assert "near decided (epoch " in explained
            assert "load: chosen" in explained
            assert "m " not in sllmd("list", "--store", str(near.store)).out
            until(lambda: sllmd("rm", "--cluster", "m").code == 0, "nothing of it works any more")
            until(lambda: sllmd("show", "m").code == 4, "the cluster has it no more")


def _listed_and_shown(sllmd: RunCommand) -> None:
    rows = {row["name"]: row for row in json.loads(sllmd("list", "-o", "json").out)}
    assert (rows["m"]["state"], rows["m"]["tier"]) == ("cold", "peer")
    assert "imported_at" in rows["m"]
    [line] = [line for line in sllmd("list").out.splitlines() if line.startswith("m ")]
    assert "on other nodes" in line
    assert "cold, on other nodes" in sllmd("show", "m").out
    assert json.loads(sllmd("show", "m", "-o", "json").out)["digest"] == rows["m"]["digest"]
    assert "directory" in json.loads(sllmd("show", "tiny", "-o", "json").out)


def _not_in_the_store(sllmd: RunCommand) -> None:
    for arguments in (("verify", "m"), ("rm", "m"), ("alias", "n", "m")):
        refused = sllmd(*arguments)
        assert (refused.code, refused.out) == (4, "")
        assert "its cluster has it on far" in refused.err
        assert "sllmd rm --cluster m" in refused.err
    assert "cluster" not in sllmd("rm", "nosuch").err
