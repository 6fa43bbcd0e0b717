import json

import jsonschema
import pytest

from sllmd.api.schema import openapi_document
from sllmd.api.server import build_app
from sllmd.roles.kinds import KINDS
from tests.waiting import eventually

DOCUMENT = openapi_document()


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


async def test_the_document_is_served(live):
    assert (await (await live.get("/openapi.json")).json()) == DOCUMENT


async def test_every_route_is_documented_and_nothing_else(live):
    app = build_app(
        router=live.daemon.router,
        operator=live.daemon.operator,
        settings=live.daemon.config.api,
        metrics=live.daemon.metrics,
    )
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    short = {(method, path) for method, path in routes if (method, f"/v1{path}") in routes}
    documented = {(method, path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert documented == routes - short
    assert len(short) == 4


def test_every_operation_has_a_name_of_its_own_and_says_what_it_answers():
    operations = [each for methods in DOCUMENT["paths"].values() for each in methods.values()]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names)
    for each in operations:
        assert each["summary"]
        assert each["responses"]["200"]["content"], each["operationId"]
        assert "X-Sllmd-Node" in each["responses"]["200"]["headers"]
    assert "X-Sllmd-Ran-On" in DOCUMENT["paths"]["/v1/completions"]["post"]["responses"]["200"]["headers"]


def test_every_kind_of_event_is_documented():
    told = DOCUMENT["paths"]["/sllmd/v1/events"]["get"]["description"]
    assert all(f"`{kind}`" in told for kind in KINDS)


def answer_of(method: str, path: str, kind: str = "application/json") -> jsonschema.Draft202012Validator:
    schema = DOCUMENT["paths"][path][method]["responses"]["200"]["content"][kind]["schema"]
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


async def exchanged(
    live, method: str, path: str, body: object = None, *, secret: str | None = None, **names: str
) -> dict:
    """An answer, which fits what the document says of it."""
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    url = live.url + path.format(**names)
    response = await live.client.request(method, url, json=body, headers=headers)
    answer = await response.json()
    assert response.status == 200, (path, answer)
    answer_of(method, path).validate(answer)
    return answer


async def test_what_an_operator_is_answered_fits_the_document(live):
    await live.complete("letters", max_tokens=2)
    desk = live.daemon.operator.cluster
    await eventually(lambda: desk.fleet.summary().leads)
    control = desk.fleet.cluster.control
    await eventually(lambda: any(node.address for node in control.view().catalogue.nodes.values()))
    v1 = "/sllmd/v1"
    for path in ("healthz", "readyz", "version"):
        await exchanged(live, "get", f"/{path}")
    for path in (
        "status",
        "cache",
        "models",
        "replicas",
        "loaded",
        "requests",
        "members",
        "nodes",
        "deployments",
    ):
        await exchanged(live, "get", f"{v1}/{path}")
    await exchanged(live, "get", v1 + "/models/{model}", model="letters")
    await exchanged(live, "get", v1 + "/requests/{request_id}", request_id="last")
    await exchanged(live, "get", v1 + "/nodes/{node}", node="test")
    await exchanged(live, "post", v1 + "/models/{model}/load", {"stream": False}, model="letters")
    await exchanged(live, "post", v1 + "/models/{model}/migrate", {}, model="letters")
    await exchanged(live, "post", v1 + "/models/{model}/unload", {"keep_dram": True}, model="letters")
    await exchanged(live, "post", v1 + "/cache/evict", {"model": "letters"})
    put = {"digest": "d1", "source": "hf:a/b"}
    await exchanged(live, "put", v1 + "/deployments/{name}", put, name="llama")
    await exchanged(live, "get", v1 + "/deployments/{name}", name="llama")
    await exchanged(live, "delete", v1 + "/deployments/{name}", name="llama")
    made = await exchanged(live, "post", v1 + "/keys", {"id": "team", "scopes": ["admin"]})
    await exchanged(live, "get", v1 + "/keys", secret=made["secret"])
    await exchanged(live, "delete", v1 + "/keys/{key}", key="team", secret=made["secret"])
    await exchanged(live, "get", v1 + "/keyring")
    await exchanged(live, "post", v1 + "/nodes/{node}/undrain", {}, node="test")


@pytest.mark.parametrize("path", ["/sllmd/v1/events", "/sllmd/v1/logs"])
async def test_what_happens_fits_the_document(live, path: str):
    raw = await (await live.get(f"{path}?since=0&follow=false")).text()
    entries = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert entries or path.endswith("logs")
    event = answer_of("get", path, "text/event-stream").schema
    told = {"components": event["components"], **event["properties"]["data"]["contentSchema"]}
    for entry in entries:
        jsonschema.Draft202012Validator(told).validate(entry)


async def test_a_drained_nodes_refusal_fits_the_document(live):
    await live.daemon.agent.drain(0)
    validator("Readiness").validate(await (await live.get("/readyz")).json())


def test_every_reference_points_somewhere():
    def references(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for item in node:
                yield from references(item)

    names = DOCUMENT["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(DOCUMENT)} <= set(names)
    for name in names:
        jsonschema.Draft202012Validator.check_schema(names[name])


async def test_answers_fit_the_document(live):
    body = await live.complete("letters", max_tokens=2, logprobs=1)
    validator("Completion").validate(body)
    chat = {
        "model": "letters",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "logprobs": True,
    }
    validator("ChatCompletion").validate(await (await live.post("/v1/chat/completions", chat)).json())
    validator("ModelList").validate(await (await live.get("/v1/models")).json())
    validator("NodeStatus").validate(await (await live.get("/sllmd/v1/status")).json())
    validator("CacheStatus").validate(await (await live.get("/sllmd/v1/cache")).json())
    error = await live.post("/v1/completions", {})
    validator("ErrorEnvelope").validate(await error.json())


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"model": "m"}, True),
        ({"model": "m", "prompt": [[1]]}, True),
        ({"model": "m", "prompt": []}, False),
        ({"model": "m", "temperature": 3}, False),
        ({"model": "m", "logit_bias": {"5": 1.5}}, True),
        ({"model": "m", "logit_bias": {"x": 1}}, False),
        ({"model": "m", "stop": ["a"] * 5}, False),
    ],
)
def test_the_document_says_what_is_refused(body, good):
    assert validator("CompletionRequest").is_valid(body) is good
