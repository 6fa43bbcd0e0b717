"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllmd.telemetry.systemd import STATUS_INTERVAL_SECONDS, ServiceManager


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[dict[str, str]]:
        messages = []
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return messages
            messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    path = str(tmp_path / "notify")
    manager = Systemd(path if request.param == "path" else f"@{path}")
    yield manager
    manager.close()


@pytest.fixture
def manager(systemd: Systemd) -> Iterator[ServiceManager]:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": systemd.address})
    yield manager
    manager.close()


def test_a_life(systemd: Systemd, manager: ServiceManager) -> None:
    manager.ready("2 models")
    manager.stopping(30.0)
    ready, stopping = systemd.heard()
    assert ready == {"READY": "1", "STATUS": "2 models"}
    assert stopping["STOPPING"] == "1"
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 30_000_000
    assert "30 s" in stopping["STATUS"]


def test_a_drain_without_end_still_has_a_number(systemd: Systemd, manager: ServiceManager) -> None:
    manager.stopping(float("inf"))
    (stopping,) = systemd.heard()
    assert 0 < int(stopping["EXTEND_TIMEOUT_USEC"]) < 2**63


def test_the_watchdog_is_fed_twice_per_time_out(systemd: Systemd) -> None:
    clock = Clock()
    manager = ServiceManager(systemd.address, watchdog_seconds=10.0, clock=clock)
    fed = []
    for _ in range(200):
        manager.alive(lambda: "")
        fed += [clock.seconds for message in systemd.heard() if "WATCHDOG" in message]
        clock.seconds += 0.1
    manager.close()
    assert fed == pytest.approx([100.0, 105.0, 110.0, 115.0], abs=0.5)


def test_the_status_line_is_sent_when_it_changed_and_not_too_often(systemd: Systemd) -> None:
    clock = Clock()
    manager = ServiceManager(systemd.address, clock=clock)
    manager.ready("a")
    asked = 0

    def summary() -> str:
        nonlocal asked
        asked += 1
        return "a" if clock.seconds < 105 else "b\nc"

    for _ in range(100):
        manager.alive(summary)
        clock.seconds += 0.1
    manager.close()
    assert [message.get("STATUS") for message in systemd.heard()] == ["a", "b c"]
    assert asked <= 10 / STATUS_INTERVAL_SECONDS + 1


def test_after_stopping_the_status_stays_and_the_watchdog_is_still_fed(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.address, watchdog_seconds=10.0, clock=Clock())
    manager.stopping(1.0)
    manager.alive(lambda: "running")
    manager.close()
    assert systemd.heard()[1:] == [{"WATCHDOG": "1"}]


@pytest.mark.parametrize(
    ("environ", "fed"),
    [
        ({"WATCHDOG_USEC": "1000000"}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "nonsense"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({}, False),
    ],
)
def test_the_watchdog_is_ours_only_when_systemd_says_so(
    systemd: Systemd, environ: dict[str, str], fed: bool
) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": systemd.address, **environ})
    manager.alive(lambda: "")
    manager.close()
    assert any("WATCHDOG" in message for message in systemd.heard()) is fed


def test_without_systemd_nothing_happens() -> None:
    manager = ServiceManager.from_environment({})
    manager.ready("x")
    manager.alive(lambda: pytest.fail("nobody listens, so nobody is asked"))
    manager.stopping(1.0)
    manager.close()


def test_a_systemd_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    manager = ServiceManager(str(tmp_path / "absent"))
    manager.ready("x")
    manager.close()
