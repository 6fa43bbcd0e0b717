import structlog
from structlog.testing import capture_logs


async def test_one_line_per_request_without_what_was_said(serve):
    structlog.reset_defaults()
    async with serve(api={"access_log": True}) as live:
        with capture_logs() as lines:
            await live.complete("letters", "my secret prompt", max_tokens=2)
            await live.get("/healthz")
            await live.get("/sllmd/v1/status")
            await live.post("/v1/completions", {"model": "nope", "prompt": "other secret"})
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["path"], line["status"], line["log_level"]) for line in requests] == [
        ("/v1/completions", 200, "info"),
        ("/healthz", 200, "debug"),
        ("/sllmd/v1/status", 200, "debug"),
        ("/v1/completions", 404, "info"),
    ]
    assert requests[0]["model"] == "letters"
    assert requests[3]["error"] == "model_not_found"
    assert requests[3]["model"] is None
    assert "secret" not in str(lines)
