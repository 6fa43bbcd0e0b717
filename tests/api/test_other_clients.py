"""Clients that others wrote, run as a person runs them: ``llm`` and OpenAI's package for Node."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NODE_PROGRAM = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 2 });
const options = { model: "letters", messages: [{ role: "user", content: "hi" }], max_tokens: 5, seed: 1 };
const whole = await client.chat.completions.create(options);
let said = "";
let usage = null;
const stream = await client.chat.completions.create(
  { ...options, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  said += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
const text = await client.completions.create({ model: "letters", prompt: "hi", max_tokens: 3 });
const failures = [];
for (const body of [{ model: "nope", prompt: "x" }, { model: "unbuildable", prompt: "x" }]) {
  try { await client.completions.create(body); } catch (error) {
    failures.push([error.constructor.name, error.status, error.code]);
  }
}
let broken = null;
try {
  for await (const _ of await client.completions.create({ model: "breaks", prompt: "x", stream: true }));
} catch (error) { broken = error.message; }
console.log(JSON.stringify({
  same: said === whole.choices[0].message.content,
  length: text.choices[0].text.length,
  usage, failures, broken,
}));
"""


async def run(*command: str, **options) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()[-4000:]
    return output.decode()


@pytest.mark.slow
async def test_llm(live, tmp_path):
    program = str(Path(sys.executable).parent / "llm")
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    said = await run(program, "openai", "endpoint", f"{live.url}/v1", "-m", "stops", "hi", env=env)
    assert len(said.strip()) == 5
    assert "letters" in await run(program, "openai", "endpoint", f"{live.url}/v1", "--models", env=env)


@pytest.fixture(scope="session")
def node_directory(request) -> Path:
    """A directory with the ``openai`` package, kept between runs."""
    npm = shutil.which("npm")
    absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    if npm is None or request.config.cache is None:
        absent("npm is not installed")
    directory = Path(request.config.cache.mkdir("openai-node"))
    if not (directory / "node_modules" / "openai").exists():
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "openai@>=6 <8"]
        done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
        if done.returncode != 0:
            absent(f"the openai package cannot be installed: {done.stderr.decode()[-300:]}")
    (directory / "program.mjs").write_text(NODE_PROGRAM)
    return directory


@pytest.mark.slow
async def test_openais_package_for_node(live, node_directory):

    told = json.loads(await run("node", "program.mjs", f"{live.url}/v1", cwd=node_directory))
    assert told["same"] is True
    assert told["usage"]["completion_tokens"] == 5
    assert told["length"] == 3
    assert told["failures"] == [
        ["NotFoundError", 404, "model_not_found"],
        ["InternalServerError", 503, "model_load_failed"],
    ]
    assert "told to fail at token 3" in told["broken"]
