import socket

import pytest

from sllmd.core.errors import ConfigError
from sllmd.wire.addresses import format_address, is_loopback, is_numeric, split_address
from sllmd.wire.ports import PORTS_END, bind_port, candidates
from sllmd.wire.route import advertised_host


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("10.0.0.1:80", "10.0.0.1", 80), ("[::1]:8345", "::1", 8345), ("node-3.lan:1", "node-3.lan", 1)],
)
def test_there_and_back(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert format_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:x", "host:0", "host:65536", "::1", "::1:80"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        split_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", ("host", 8345)),
        ("host:1", ("host", 1)),
        ("::1", ("::1", 8345)),
        ("[::1]", ("::1", 8345)),
        ("[::1]:1", ("::1", 1)),
        ("10.0.0.1", ("10.0.0.1", 8345)),
    ],
)
def test_the_port_may_be_absent(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text, default_port=8345) == expected


def test_numeric() -> None:
    assert is_numeric("10.0.0.1")
    assert is_numeric("::1")
    assert not is_numeric("localhost")


def test_the_next_free_port_is_taken_for_both() -> None:
    first = bind_port("127.0.0.1", 0, exactly=False)
    second = bind_port("127.0.0.1", first.port, exactly=False)
    try:
        assert first.port < second.port
        assert second.datagrams.getsockname()[1] == second.streams.getsockname()[1] == second.port
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_with_half_of_it_taken_is_not_free(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot bind port {port}"):
            bind_port("127.0.0.1", port, exactly=True)
        bound = bind_port("127.0.0.1", port, exactly=False)
        bound.close()
        assert bound.port > port


def test_a_host_of_another_machine() -> None:
    with pytest.raises(ConfigError, match="cannot bind"):
        bind_port("192.0.2.77", 0, exactly=True)


def test_bind_and_advertise_are_separate() -> None:
    assert advertised_host("127.0.0.1", None) == "127.0.0.1"
    assert advertised_host("0.0.0.0", "10.1.2.3") == "10.1.2.3"
    with pytest.raises(ConfigError, match="cannot be advertised"):
        advertised_host("127.0.0.1", "0.0.0.0")
    with pytest.raises(ConfigError, match="not an IP address"):
        advertised_host("127.0.0.1", "my host")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("10.0.0.1", "0.0.0.0", "::", "gpu1", "localhost.example.com")],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_ports_are_tried_from_that_of_last_time_on_and_others_are_left_alone() -> None:
    assert candidates(9000, exactly=False, last=9002, avoid={9000, 9002})[:3] == [9002, 9001, 9003]
    assert candidates(9000, exactly=True, last=9002, avoid={9000}) == [9000]
    assert candidates(0, exactly=False, last=9002) == [0]
    assert candidates(PORTS_END - 1, exactly=False) == [PORTS_END - 1]
