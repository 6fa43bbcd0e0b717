import jsonschema
import pytest

from sllmd.api.schema import openapi_document

DOCUMENT = openapi_document()


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


async def test_the_document_is_served_and_what_it_names_is_there(live):
    served = await (await live.get("/openapi.json")).json()
    assert served["openapi"] == "3.1.0"
    for path in served["paths"]:
        response = await live.get(path.replace("{model}", "letters"))
        assert response.status in (200, 405), path


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
