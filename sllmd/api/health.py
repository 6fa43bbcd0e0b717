"""GET /healthz, /readyz, /version, /metrics: for probes, load balancers and Prometheus."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import get_args

from aiohttp import web

import sllmd
from sllmd.api.rooms import ROOMS
from sllmd.core.units import format_age
from sllmd.roles.status import ClusterSummary, MemberState, NodeStatus, Readiness
from sllmd.telemetry.metrics import Metrics

WAITING_STATES = ("queued", "loading")
"""Of a generation that has no replica yet."""


async def healthz(_request: web.Request) -> web.Response:
    """Handler: the process answers."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Handler: the node takes work; 503 and why when it does not."""
    operator = request.app[ROOMS].operator
    reason = None
    if operator.state != "ready":
        reason = _drain_text(operator.status())
    elif operator.cluster is None:
        reason = "this node has not joined its cluster yet"
    body = Readiness(status="ready" if reason is None else "not ready", state=operator.state, reason=reason)
    return web.json_response(text=body.model_dump_json(), status=200 if reason is None else 503)


def _drain_text(node: NodeStatus) -> str:
    """Balancers heed it; who asks all the same is answered by other nodes through this one."""
    if node.drained_since is None:
        state = f"draining: {node.requests_running} still run here"
    else:
        state = f"drained for {format_age(time.time() - node.drained_since)}: nothing runs here"
    return f"this node is {state}; no new work: requests that come run on other nodes, if there are any"


async def version(_request: web.Request) -> web.Response:
    """Handler."""
    return web.json_response({"version": sllmd.__version__})


async def metrics(request: web.Request) -> web.Response:
    """Handler: what is counted as it happens, and the node's state as of now."""
    rooms = request.app[ROOMS]
    status = rooms.operator.status()
    _note_status(rooms.metrics, status)
    if status.cluster is not None:
        _note_cluster(rooms.metrics, status.cluster)
    waiting = Counter(entry.model for entry in rooms.router.requests() if entry.state in WAITING_STATES)
    for model, count in waiting.items():
        rooms.metrics.requests_waiting.labels(model).set(count)
    return web.Response(body=rooms.metrics.exposition(), headers={"Content-Type": rooms.metrics.content_type})


def _note_status(metrics: Metrics, status: NodeStatus) -> None:
    """Set the gauges; what is gone leaves no series behind."""
    for gauge in (metrics.requests_running, metrics.requests_waiting, metrics.replicas):
        gauge.clear()
    for replica in status.replicas:
        metrics.requests_running.labels(replica.model).set(replica.running)
        metrics.requests_waiting.labels(replica.model).set(0)
    for (model, state), count in Counter((r.model, r.state) for r in status.replicas).items():
        metrics.replicas.labels(model, state).set(count)
    metrics.loads_in_progress.set(sum(replica.state == "starting" for replica in status.replicas))
    metrics.node_draining.set(status.state != "ready")
    metrics.tier_capacity_bytes.labels("dram").set(status.cache.budget_bytes)
    metrics.tier_used_bytes.labels("dram").set(status.cache.used_bytes)
    for hop, bandwidth in status.cache.bandwidth_bytes_per_second.items():
        metrics.load_bandwidth.labels(hop).set(bandwidth)
    metrics.migrations_under_way.set(status.moves.under_way)
    metrics.mirror_copies.set(status.mirror.copies)
    metrics.mirror_copies_bytes.set(status.mirror.copies_bytes)
    metrics.worker_memory_bytes.clear()
    for process in status.processes:
        metrics.worker_memory_bytes.labels(process_label(process.role)).inc(process.rss_bytes)


def process_label(role: str) -> str:
    """What metrics call a process: workers come and go, and their ids would be series without end."""
    return role if role in ("daemon", "zygote", "waiting") else "replica"


def _note_cluster(metrics: Metrics, cluster: ClusterSummary) -> None:
    """Every state has its series, so that one that nobody is in says 0."""
    for state in get_args(MemberState):
        metrics.members.labels(state).set(cluster.members.get(state, 0))
    metrics.leader.set(cluster.leads)
    metrics.epoch.set(cluster.epoch)
    metrics.voters_may_fail.set(cluster.control.voters_may_fail)
    age_seconds = cluster.control.age_seconds
    metrics.control_age_seconds.set(math.inf if age_seconds is None else age_seconds)
