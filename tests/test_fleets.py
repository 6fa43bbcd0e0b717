"""Ways to begin that take more than one command, with real daemons: a key that a fleet shares, an etcd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.etcd_process import etcd_cluster, why_no_etcd
from tests.live import END_SECONDS, LiveDaemon, announced, clean_environment, missing, put_model, start
from tests.storm.fleet import _free_ports
from tests.waiting import until

pytestmark = pytest.mark.slow

QUICK = {"workers.engine": "fake", "workers.in_process": True}


@contextmanager
def ended() -> Iterator[list[LiveDaemon]]:
    """Daemons that are put into the list have ended afterwards."""
    daemons: list[LiveDaemon] = []
    try:
        yield daemons
    finally:
        for daemon in daemons:
            for pid in daemon.family():
                os.kill(pid, signal.SIGTERM)
        for daemon in daemons:
            daemon.process.wait(END_SECONDS)


def sllmd(*arguments: str | Path) -> str:
    """What a command says."""
    done = subprocess.run(
        [sys.executable, "-m", "sllmd", *map(str, arguments)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=END_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def alive(daemon: LiveDaemon) -> set[str]:
    members: list[dict[str, Any]] = daemon.ask("/sllmd/v1/members").body["members"]
    return {member["name"] for member in members if member["state"] == "alive"}


def test_three_new_nodes_with_one_key_found_a_cluster_and_one_leaves(tmp_path: Path) -> None:
    """As a script would start them: the same file everywhere. Weights travel unencrypted, and one leaves."""
    key = tmp_path / "cluster.key"
    sllmd("token", "keyfile", key)
    where = {name: f"127.0.0.1:{_free_ports(3)}" for name in "abc"}
    config = (
        f'[cluster]\nsecret_file = "{key}"\nbootstrap_expect = 3\nchunk_encryption = "off"\n'
        f"join = {list(where.values())}\n"
    )
    put_model(tmp_path / "a", "m", {})
    with ended() as daemons:
        for name, address in where.items():
            own = {"node.name": name, "cluster.listen": address}
            daemons.append(start(tmp_path / name, QUICK | own, config=config, dev=False))
        for daemon in daemons:
            announced(daemon)
        for daemon in daemons:
            until(lambda daemon=daemon: alive(daemon) == set("abc"), "all are members")  # type: ignore[misc]
        assert sum("founded now" in "\n".join(daemon.lines) for daemon in daemons) == 1
        a, _, c = daemons
        load = "/sllmd/v1/models/m/load", {"tier": "device", "stream": False}
        until(lambda: c.ask(*load).status == 200, "it has heard who holds the model")
        assert c.complete("m", max_tokens=2).status == 200
        sllmd("--addr", f"unix:{c.socket}", "leave")
        assert c.process.wait(END_SECONDS) == 0
        until(lambda: alive(a) == set("ab"), "it is no member any more")
        assert a.complete("m", max_tokens=2).status == 200


def test_two_nodes_agree_by_an_etcd_and_serve_without_it(tmp_path: Path) -> None:
    reason = why_no_etcd()
    if reason is not None:
        missing(reason)
    with etcd_cluster(tmp_path / "etcd") as etcd, ended() as daemons:
        config = f'[cluster]\nstore = "etcd"\n[cluster.etcd]\nendpoints = {list(etcd.endpoints)}\n'
        put_model(tmp_path / "a", "m", {})
        a = start(tmp_path / "a", QUICK | {"node.name": "a"}, config=config, dev=False)
        daemons.append(a)
        announced(a)
        token = tmp_path / "token"
        sllmd("--addr", f"unix:{a.socket}", "token", "create", "--file", token)
        me = a.ask("/sllmd/v1/members").body["members"][0]["address"]
        join = {"node.name": "b", "cluster.join": me, "cluster.token_file": token}
        b = start(tmp_path / "b", QUICK | join, config=config, dev=False)
        daemons.append(b)
        announced(b)
        for daemon in daemons:
            until(lambda daemon=daemon: alive(daemon) == set("ab"), "both are members")  # type: ignore[misc]
        until(lambda: b.complete("m", max_tokens=2).status == 200, "it has heard who holds the model")
        etcd.stop()
        assert b.complete("m", max_tokens=2).status == 200
        etcd.resume()
        sllmd("--addr", f"unix:{b.socket}", "leave")
        assert b.process.wait(END_SECONDS) == 0
        until(lambda: alive(a) == {"a"}, "it is no member any more")
