"""What the API can be asked, as ``/openapi.json`` tells it: one entry for each route.

Invariant: it is the routes that there are, no more and no less (but for OpenAI's without ``/v1``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from sllmd.api import admin, answers, cluster, draining, joining, openai
from sllmd.roles import status
from sllmd.roles.kinds import KINDS


@dataclass(frozen=True, slots=True)
class Operation:
    """A method on a path."""

    method: str
    path: str
    name: str
    summary: str
    answers: type[BaseModel] | None = None
    """None: not JSON."""
    asks: type[BaseModel] | None = None
    asks_always: bool = False
    """False: no body asks for the defaults."""
    streams: type[BaseModel] | None = None
    """The data of each server-sent event, where the answer is a stream, or may be one."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> what it does."""
    description: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other statuses than 200, 4XX and 5XX -> when."""


_NEWEST = {"newest": "`true`: no older than the question; asks the cluster, and fails while nobody leads"}
_FOLLOW = {
    "node": "another node's, by name or id",
    "since": "begin with what happened then: Unix seconds, or a duration ago, such as 10m",
    "after": "begin after the entry with this id, as `Last-Event-ID` does",
    "newest": "begin with so many of the remembered ones",
    "follow": "`false`: end with what is remembered",
}
_RESUMABLE = (
    "`X-Sllmd-Resumable: 1` on a stream: its events get ids, and `X-Sllmd-Generation` says where any node"
    " goes on with it."
)
_KINDS = "\n".join(f"* `{kind}`: {told}" for kind, told in KINDS.items())
_DRAINS = (
    "The last step has `status` `drained`, or `timeout` when something still runs; nothing is cut short."
)

_V1 = "/sllmd/v1"
OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "createCompletion",
        "Complete a prompt",
        openai.Completion,
        openai.CompletionRequest,
        True,
        openai.Completion,
        description=_RESUMABLE,
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer in a conversation",
        openai.ChatCompletion,
        openai.ChatRequest,
        True,
        openai.ChatCompletion,
        description=_RESUMABLE,
    ),
    Operation("get", "/v1/models", "listModels", "List models", openai.ModelList),
    Operation("get", "/v1/models/{model}", "retrieveModel", "Show a model", openai.ModelObject),
    Operation(
        "post",
        "/tokenize",
        "tokenize",
        "Turn text into token ids",
        openai.TokenizeResponse,
        openai.TokenizeRequest,
        True,
    ),
    Operation(
        "post",
        "/detokenize",
        "detokenize",
        "Turn token ids into text",
        openai.DetokenizeResponse,
        openai.DetokenizeRequest,
        True,
    ),
    Operation("get", "/healthz", "health", "Whether the process answers", answers.Health),
    Operation(
        "get",
        "/readyz",
        "readiness",
        "Whether a balancer should send requests here",
        status.Readiness,
        description="503 while the node drains, is drained, stops, or has not joined. A request that comes"
        " all the same is not refused: it runs on another node, and its client notices nothing. Only where"
        " there is no other node is the answer 503 `node_draining`.",
        more={"503": "It should not; `reason` says why"},
    ),
    Operation("get", "/version", "version", "Show the version", answers.Version),
    Operation("get", "/metrics", "metrics", "Metrics, for Prometheus"),
    Operation("get", "/openapi.json", "openapi", "This document"),
    Operation("get", f"{_V1}/status", "nodeStatus", "Show the answering node", status.NodeStatus),
    Operation("get", f"{_V1}/cache", "cacheStatus", "Show its DRAM tier", status.CacheStatus),
    Operation(
        "post",
        f"{_V1}/cache/evict",
        "evict",
        "Free a model's copy in DRAM",
        answers.Freed,
        admin.EvictOrder,
        True,
    ),
    Operation("get", f"{_V1}/models", "listModelCards", "List models and where they are", answers.ModelCards),
    Operation("get", f"{_V1}/models/{{model}}", "modelCard", "Show a model", status.ModelCard),
    Operation(
        "get", f"{_V1}/models/{{model}}/plan", "planModel", "Show where it would start soonest", answers.Plan
    ),
    Operation(
        "post",
        f"{_V1}/models/{{model}}/load",
        "loadModel",
        "Load a model here ahead of need",
        status.LoadStatus,
        admin.LoadOrder,
        streams=status.LoadStatus,
        description="An event for each step, the last one with `status` `ready` or `error`.",
    ),
    Operation(
        "post",
        f"{_V1}/models/{{model}}/unload",
        "unloadModel",
        "Stop its replica here once it is idle",
        status.UnloadReport,
        admin.UnloadOrder,
    ),
    Operation(
        "post",
        f"{_V1}/models/{{model}}/migrate",
        "migrateModel",
        "Move all that runs of a model",
        answers.Moves,
        admin.MigrateOrder,
    ),
    Operation("get", f"{_V1}/replicas", "listReplicas", "List replicas of this node", answers.Replicas),
    Operation("get", f"{_V1}/loaded", "listLoaded", "List what every node has loaded", answers.Loaded),
    Operation("get", f"{_V1}/requests", "listRequests", "List running and recent requests", answers.Requests),
    Operation(
        "get",
        f"{_V1}/requests/{{request_id}}",
        "requestStatus",
        "Show where a request's time went",
        answers.Request,
        description="On whichever node it is remembered. `last` is the latest one of the answering node.",
    ),
    Operation(
        "post",
        f"{_V1}/requests/{{request_id}}/migrate",
        "migrateRequest",
        "Move what runs of a request",
        answers.Moves,
        admin.MigrateOrder,
    ),
    Operation(
        "get",
        f"{_V1}/generations/{{id}}",
        "resumeGeneration",
        "Go on with a stream that was cut off",
        streams=openai.Completion,
        description="From `Last-Event-ID` on, with the key that it began with.",
    ),
    Operation(
        "get",
        f"{_V1}/members",
        "clusterMembers",
        "Show the cluster's nodes",
        status.ClusterStatus,
        description="As the answering node sees them. Who left for good is listed for an hour, without"
        " being `admitted`.",
    ),
    Operation("get", f"{_V1}/nodes", "listNodes", "List admitted nodes", status.NodeRecords, query=_NEWEST),
    Operation("get", f"{_V1}/nodes/{{node}}", "node", "Show one", status.NodeRecord, query=_NEWEST),
    Operation(
        "delete",
        f"{_V1}/nodes/{{node}}",
        "removeNode",
        "Remove a node that is dead",
        answers.RemovedNode,
        query={"force": "`true`: although it lives"},
    ),
    Operation(
        "post",
        f"{_V1}/nodes/{{node}}/drain",
        "drainNode",
        "Empty a node: no new work, what runs moves",
        asks=draining.DrainOrder,
        streams=status.DrainStep,
        description=_DRAINS,
    ),
    Operation(
        "post", f"{_V1}/nodes/{{node}}/undrain", "undrainNode", "Let it take work again", answers.Undrained
    ),
    Operation(
        "post",
        f"{_V1}/leave",
        "leave",
        "Let the answering node leave for good; its daemon ends",
        status.LeaveReport,
        cluster.LeaveOrder,
    ),
    Operation(
        "get",
        f"{_V1}/deployments",
        "listDeployments",
        "List deployments",
        status.DeploymentRecords,
        query=_NEWEST,
    ),
    Operation(
        "get", f"{_V1}/deployments/{{name}}", "deployment", "Show one", status.DeploymentRecord, query=_NEWEST
    ),
    Operation(
        "put",
        f"{_V1}/deployments/{{name}}",
        "putDeployment",
        "Deploy a model, or change how",
        status.DeploymentRecord,
        cluster.DeploymentOrder,
        True,
        description="409 when it is not at the `expected` revision, or a name is taken.",
    ),
    Operation(
        "delete",
        f"{_V1}/deployments/{{name}}",
        "deleteDeployment",
        "Deploy it no longer",
        answers.DeletedDeployment,
    ),
    Operation("get", f"{_V1}/keys", "listKeys", "List API keys", status.KeyRecords),
    Operation("post", f"{_V1}/keys", "createKey", "Make an API key", answers.MadeKey, cluster.KeyOrder),
    Operation("delete", f"{_V1}/keys/{{key}}", "revokeKey", "End an API key", answers.Revoked),
    Operation("get", f"{_V1}/tokens", "listTokens", "List join tokens", answers.TokenRecords),
    Operation(
        "post", f"{_V1}/tokens", "createToken", "Make a join token", answers.MadeToken, joining.TokenOrder
    ),
    Operation("delete", f"{_V1}/tokens/{{token_id}}", "revokeToken", "End a join token", answers.Revoked),
    Operation("get", f"{_V1}/keyring", "keyring", "Show which gossip keys nodes have", answers.KeyringReport),
    Operation(
        "post", f"{_V1}/keyring/rotate", "rotateKeyring", "Replace it everywhere", answers.RotatedKeyring
    ),
    Operation(
        "get",
        f"{_V1}/events",
        "followEvents",
        "Follow what happens",
        streams=answers.Event,
        query=_FOLLOW,
        description=f"Without end, unless `follow=false`. Kinds:\n\n{_KINDS}",
    ),
    Operation(
        "get",
        f"{_V1}/logs",
        "followLogs",
        "Follow the log",
        streams=answers.LogLine,
        query=_FOLLOW
        | {
            "level": "the least serious lines: debug, info, warning, error",
            "model": "only lines about this model",
            "request": "only lines about this request",
        },
    ),
)
