"""The metrics of a node: names, help, labels, bucket edges.

Base units, no colons, bounded labels (``model`` is a name of the catalogue or ``unknown``). Bucket edges are
vLLM's, so that dashboards carry over. An own registry, so that several daemons fit into one process.
"""

from __future__ import annotations

import platform

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

import sllmd

FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
OUTPUT_TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5))
LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Metrics:
    """Every metric of this node. Whoever knows a figure sets it."""

    content_type = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info("sllmd_build", "The running version.", registry=self.registry)
        build.info({"version": sllmd.__version__, "python": platform.python_version()})
        self._requests()
        self._cold_starts()
        self._node()
        self._cluster()
        self._migrations()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)

    def _requests(self) -> None:
        self.requests_total = self._counter(
            "sllmd_requests_total", "Requests answered.", "model", "endpoint", "code"
        )
        self.requests_rejected_total = self._counter(
            "sllmd_requests_rejected_total", "Requests refused, by error code.", "reason"
        )
        self.client_disconnects_total = self._counter(
            "sllmd_client_disconnects_total", "Requests whose client left before the end.", "endpoint"
        )
        self.request_finished_total = self._counter(
            "sllmd_request_finished_total", "Choices completed, by finish reason.", "model", "reason"
        )
        self._generations()

    def _generations(self) -> None:
        self.prompt_tokens_total = self._counter("sllmd_prompt_tokens_total", "Prompt tokens.", "model")
        self.generation_tokens_total = self._counter(
            "sllmd_generation_tokens_total", "Tokens generated.", "model"
        )
        self.request_prompt_tokens = self._histogram(
            "sllmd_request_prompt_tokens", "Prompt tokens of a choice.", TOKENS, "model"
        )
        self.request_generation_tokens = self._histogram(
            "sllmd_request_generation_tokens", "Tokens generated for a choice.", TOKENS, "model"
        )
        self.request_duration_seconds = self._histogram(
            "sllmd_request_duration_seconds", "From a request to its last byte.", REQUEST_SECONDS, "model"
        )
        self.time_to_first_token_seconds = self._histogram(
            "sllmd_time_to_first_token_seconds",
            "From a request to its first token.",
            FIRST_TOKEN_SECONDS,
            "model",
            "cold",
        )
        self.time_per_output_token_seconds = self._histogram(
            "sllmd_time_per_output_token_seconds",
            "Mean time between two tokens of a choice.",
            OUTPUT_TOKEN_SECONDS,
            "model",
        )
        self.queue_time_seconds = self._histogram(
            "sllmd_queue_time_seconds", "Wait for a replica beyond its load.", REQUEST_SECONDS, "model"
        )

    def _cold_starts(self) -> None:
        self.cold_starts_total = self._counter(
            "sllmd_cold_starts_total", "Requests that had a model started.", "model", "from_tier"
        )
        self.cold_start_seconds = self._histogram(
            "sllmd_cold_start_seconds", "Time a cold start took.", FIRST_TOKEN_SECONDS, "from_tier"
        )
        self.load_stage_seconds = self._histogram(
            "sllmd_load_stage_seconds", "Parts of a cold start.", FIRST_TOKEN_SECONDS, "stage"
        )
        self.startup_estimate_error_seconds = self._histogram(
            "sllmd_startup_estimate_error_seconds",
            "How far the leader's estimate was from what a cold start took.",
            FIRST_TOKEN_SECONDS,
            "from_tier",
        )
        self.load_failures_total = self._counter(
            "sllmd_load_failures_total", "Requests that failed because a model could not start.", "reason"
        )

    def _node(self) -> None:
        self.requests_running = self._gauge("sllmd_requests_running", "Choices being generated.", "model")
        self.requests_waiting = self._gauge("sllmd_requests_waiting", "Choices waiting.", "model")
        self.replicas = self._gauge("sllmd_replicas", "Replicas, by state.", "model", "state")
        self.loads_in_progress = self._gauge("sllmd_loads_in_progress", "Replicas on their way up.")
        self.load_bandwidth = self._gauge(
            "sllmd_load_bandwidth_bytes_per_second", "Bandwidth measured, by hop.", "hop"
        )
        self.tier_capacity_bytes = self._gauge("sllmd_tier_capacity_bytes", "Budget of a tier.", "tier")
        self.tier_used_bytes = self._gauge("sllmd_tier_used_bytes", "Bytes a tier holds.", "tier")
        self.node_draining = self._gauge("sllmd_node_draining", "1 while no new work is taken.")
        self.worker_memory_bytes = self._gauge(
            "sllmd_worker_memory_bytes", "Resident memory of the daemon and its workers.", "role"
        )
        self.event_loop_lag_seconds = self._histogram(
            "sllmd_event_loop_lag_seconds", "How late the event loop wakes.", LAG_SECONDS
        )

    def _cluster(self) -> None:
        self.members = self._gauge("sllmd_members", "Nodes of the cluster, by what is believed.", "status")
        self.leader = self._gauge("sllmd_leader", "1 while this node leads.")
        self.epoch = self._gauge("sllmd_epoch", "Grows with every change of leader.")
        self.voters_may_fail = self._gauge(
            "sllmd_voters_may_fail", "Voters that may fail before nothing can be changed."
        )
        self.control_age_seconds = self._gauge(
            "sllmd_control_age_seconds", "Since this node last heard from whoever decides."
        )

    def _migrations(self) -> None:
        self.migrations_total = self._counter(
            "sllmd_migrations_total", "Changes of a generation's place, and tries at one.", "kind", "result"
        )
        self.migration_pause_seconds = self._histogram(
            "sllmd_migration_pause_seconds",
            "Between the last token of the old place and the first of the new one.",
            FIRST_TOKEN_SECONDS,
            "kind",
        )
        self.migration_rounds = self._histogram(
            "sllmd_migration_rounds", "Rounds of a planned move.", (1, 2, 3, 4, 5, 8)
        )
        self.migration_tokens_total = self._counter(
            "sllmd_migration_tokens_total", "Tokens that new places went on from.", "kind"
        )
        self.migrations_under_way = self._gauge(
            "sllmd_migrations_under_way", "Planned moves under way, or waiting for their turn."
        )
        self.mirror_total = self._counter(
            "sllmd_mirror_total",
            "Of streams that can be resumed: times that nobody was there to keep a copy (alone), that the"
            " keeper was late, that it had no room (refused), and streams taken over here (resumed).",
            "outcome",
        )
        self.mirror_copies = self._gauge("sllmd_mirror_copies", "Copies of other nodes' streams.")
        self.mirror_copies_bytes = self._gauge("sllmd_mirror_copies_bytes", "Bytes that they take.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, edges: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=edges)
