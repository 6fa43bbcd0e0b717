"""The ways into this node's memory: which one a checkpoint would come, in whose queue, how fast.

Owns the lanes. Knows nothing of memory. A *way* is where bytes come from: this node's disk, another node, or
the checkpoint's own server; a *lane* is the queue of one disk, of one server, or of all other nodes together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from sllmd.core.errors import SourceUnavailable
from sllmd.loader.arriving import ArrivingSource, CompleteRemote
from sllmd.loader.disk import DISK_PREFIX, DiskSource, disk_of
from sllmd.loader.partial import Partial
from sllmd.loader.peer import PEERS_ONLY_URL, PeerAccess, PeerFetch
from sllmd.loader.pipeline import Lane, Source
from sllmd.loader.remote import HttpFetch, server_of
from sllmd.loader.settings import LoaderSettings
from sllmd.store.checkpoint import Checkpoint

Way = Literal["ssd", "peer", "remote"]
Quarantine = Callable[[Checkpoint, str, int], str]

_PEERS_LANE = "peers"
"""All other nodes share a lane: what limits them is this node's network."""


class Ways:
    """Sources and lanes for checkpoints. ``quarantine`` and ``complete_remote``: as in ``DramTier``."""

    def __init__(
        self,
        settings: LoaderSettings,
        *,
        quarantine: Quarantine,
        complete_remote: CompleteRemote,
        peers: PeerAccess | None,
    ) -> None:
        self._settings = settings
        self._quarantine = quarantine
        self._complete_remote = complete_remote
        self._peers = peers
        self._lanes: dict[str, Lane] = {}

    def way(self, checkpoint: Checkpoint) -> Way:
        """1. the disk, if the bytes are there  2. another node  3. the checkpoint's own server."""
        if checkpoint.remote_url is None:
            return "ssd"
        if self._peers is not None and self._peers.holders(checkpoint.manifest.digest):
            return "peer"
        return "remote"

    def source(self, checkpoint: Checkpoint) -> Source:
        """What reads the checkpoint. Raises StoreError, SourceUnavailable."""
        way = self.way(checkpoint)
        if way == "ssd":
            return DiskSource(
                checkpoint, verify=self._settings.verify == "always", quarantine=self._quarantine
            )
        partial, settings = Partial(checkpoint), self._settings
        own_server = checkpoint.remote_url != PEERS_ONLY_URL
        http = HttpFetch(checkpoint, settings, partial) if own_server else None
        if http is not None and way == "remote":
            return ArrivingSource(checkpoint, partial, http, "remote→dram", self._complete_remote)
        if self._peers is None:
            raise SourceUnavailable(f"{checkpoint.name} is on other nodes only, and this node knows none")
        peer = PeerFetch(checkpoint, self._peers, http)
        return ArrivingSource(checkpoint, partial, peer, "peer→dram", self._complete_remote)

    def lane(self, checkpoint: Checkpoint) -> Lane:
        """The queue that a load of the checkpoint stands in; made when it is the first there."""
        settings = self._settings
        name = self._lane_name(checkpoint)
        if name not in self._lanes:
            if name == _PEERS_LANE:
                threads, bandwidth_max = settings.peer_connections, settings.peer_bandwidth_max_bytes
            elif checkpoint.remote_url is None:
                threads, bandwidth_max = settings.disk_threads, settings.disk_bandwidth_max_bytes
            else:
                threads, bandwidth_max = settings.http_connections, settings.remote_bandwidth_max_bytes
            self._lanes[name] = Lane(name, threads=threads, bandwidth_max_bytes=bandwidth_max)
        return self._lanes[name]

    def known_lane(self, checkpoint: Checkpoint) -> Lane | None:
        """As ``lane``, if anything stood in it before."""
        return self._lanes.get(self._lane_name(checkpoint))

    def _lane_name(self, checkpoint: Checkpoint) -> str:
        match self.way(checkpoint):
            case "ssd":
                return disk_of(checkpoint.data_directory)
            case "peer":
                return _PEERS_LANE
        assert checkpoint.remote_url is not None
        return _PEERS_LANE if checkpoint.remote_url == PEERS_ONLY_URL else server_of(checkpoint.remote_url)

    def bandwidth(self, checkpoint: Checkpoint, lane: Lane | None) -> float:
        """Bytes per second that a load over ``lane`` can expect: measured, else assumed."""
        measured = lane.gauge.bytes_per_second if lane else None
        if measured is not None:
            return measured
        match self.way(checkpoint):
            case "ssd":
                return self._settings.disk_bandwidth_guess_bytes
            case "peer":
                return self._settings.peer_bandwidth_guess_bytes
        return self._settings.remote_bandwidth_guess_bytes

    def rates(self) -> dict[str, float]:
        """Bytes per second of each way into memory: measured, or as assumed until then; within its cap. And
        of the way on to a device, ``dram``, if it has a cap."""
        settings = self._settings
        found = {
            "ssd": _capped(settings.disk_bandwidth_guess_bytes, settings.disk_bandwidth_max_bytes),
            "peer": _capped(settings.peer_bandwidth_guess_bytes, settings.peer_bandwidth_max_bytes),
            "remote": _capped(settings.remote_bandwidth_guess_bytes, settings.remote_bandwidth_max_bytes),
        }
        for name, measured in self.measured().items():
            found[_way_of_lane(name)] = measured
        if settings.dram_bandwidth_max_bytes:
            found["dram"] = float(settings.dram_bandwidth_max_bytes)
        return found

    def measured(self) -> dict[str, float]:
        """Bytes per second of the lanes that carried any, by name."""
        return {
            lane.name: rate
            for lane in self._lanes.values()
            if (rate := lane.gauge.bytes_per_second) is not None
        }

    def close(self) -> bool:
        """Stop all lanes and wait for their threads; blocks. False: some are stuck in a read."""
        for lane in self._lanes.values():
            lane.stop()
        deadline = time.monotonic() + self._settings.close_timeout_seconds
        left = [lane.join(deadline) for lane in self._lanes.values()]
        return all(left)


def _capped(bytes_per_second: int, most: int) -> float:
    return float(min(bytes_per_second, most) if most else bytes_per_second)


def _way_of_lane(name: str) -> Way:
    if name == _PEERS_LANE:
        return "peer"
    return "ssd" if name.startswith(DISK_PREFIX) else "remote"
