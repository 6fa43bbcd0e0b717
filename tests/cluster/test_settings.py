"""Where a node listens, and what is wrong with what somebody wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sllmd.cluster.member.settings import VoterSettings
from sllmd.cluster.settings import RPC_PORT, ClusterSettings, Ports, join_address

ANYWHERE = "0.0.0.0"


@pytest.mark.parametrize(
    ("listen", "others", "ports"),
    [
        ("auto", [], Ports("127.0.0.1", RPC_PORT, exactly=False)),
        ("auto", ["127.0.0.1:9000", "localhost", "[::1]:8344"], Ports("127.0.0.1", RPC_PORT, exactly=False)),
        ("auto", ["127.0.0.1", "10.0.0.1:8344"], Ports(ANYWHERE, RPC_PORT, exactly=False)),
        ("auto", ["gpu1"], Ports(ANYWHERE, RPC_PORT, exactly=False)),
        ("127.0.0.1", ["gpu1"], Ports("127.0.0.1", RPC_PORT, exactly=False)),
        ("10.0.0.1:9000", [], Ports("10.0.0.1", 9000, exactly=True)),
        ("::", [], Ports("::", RPC_PORT, exactly=False)),
        ("[::1]:9000", [], Ports("::1", 9000, exactly=True)),
        ("[::1]:0", [], Ports("::1", 0, exactly=False)),
        ("127.0.0.1:0", [], Ports("127.0.0.1", 0, exactly=False)),
    ],
)
def test_where_a_node_listens(listen: str, others: list[str], ports: Ports) -> None:
    assert ClusterSettings(listen=listen).ports(others) == ports


def test_gossip_and_chunks_follow_the_port_for_calls() -> None:
    ports = ClusterSettings(listen="10.0.0.1:9000").ports()
    assert (ports.gossip, ports.chunks) == (9001, 9002)
    anything = ClusterSettings(listen="10.0.0.1:0").ports()
    assert (anything.gossip, anything.chunks) == (0, 0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"listen": "gpu1"}, "listen needs an IP address"),
        ({"listen": ""}, "listen needs an IP address|not an address"),
        ({"listen": "10.0.0.1:99999"}, "not an address"),
        ({"advertise": "gpu1"}, "advertise needs an IP address"),
        ({"join": ["a:b"]}, "not an address"),
        ({"bootstrap_expect": 3}, "each with the others in join"),
        ({"bootstrap_expect": 3, "join": ["a"]}, "needs a secret_file"),
        ({"bootstrap_expect": 1, "join": ["a"], "secret_file": Path("k")}, "two nodes or more"),
    ],
)
def test_what_cannot_be_is_told(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ClusterSettings(**values)


def test_the_usual_port_is_not_shown() -> None:
    assert join_address("10.0.0.1:8344") == "10.0.0.1"
    assert join_address("10.0.0.1:8345") == "10.0.0.1:8345"
    assert join_address("[fe80::1]:8344") == "[fe80::1]"


def test_chunks_are_encrypted_unless_somebody_says_otherwise() -> None:
    assert ClusterSettings().bulk.encryption == "on"
    assert ClusterSettings(chunk_encryption="off").bulk.encryption == "off"


def test_the_number_of_voters_may_come_from_a_flag_or_the_environment() -> None:
    """Where it is text."""
    assert VoterSettings.model_validate({"count": "5"}).count == 5
    for wrong in ("4", "five", "", "-1"):
        with pytest.raises(ValidationError):
            VoterSettings.model_validate({"count": wrong})
