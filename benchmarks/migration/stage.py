"""Three daemons with a real engine, and clients that note when each token came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
from tests.live import LiveDaemon, announced, start
from tests.waiting import until

MODEL = "small"
OPEN = "it ended without [DONE]"
CONTEXT_TOKENS = 16384
LOAD_SECONDS = 120.0
"""For a model to be loaded; only what is broken takes so long."""
SETTINGS: dict[str, object] = {
    "engine.threads": 1,
    "engine.cache_tokens": 65536,
    "serving.drain_timeout": "60s",
    "cluster.voters.settle_seconds": 1.0,
}


@dataclass
class Server:
    """A node that is started and killed."""

    name: str
    directory: Path
    join: Server | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    """Beside those of every server here."""
    core: int | None = None
    """All of its processes run on this core alone: servers share nothing then but the memory bus."""
    daemon: LiveDaemon | None = None
    address: str = ""

    @property
    def live(self) -> LiveDaemon:
        """Its process now."""
        assert self.daemon is not None, "it runs"
        return self.daemon

    def start(self) -> None:
        """Returns when it serves."""
        join = [self.join.address] if self.join is not None else []
        named = {"node.name": self.name, "cluster.join": json.dumps(join)}
        with _on_core(self.core):
            self.daemon = start(self.directory, {**SETTINGS, **self.settings, **named})
        announced(self.daemon)
        mine = [each for each in self.daemon.ask("/sllmd/v1/members").body["members"] if each["is_me"]]
        self.address = mine[0]["address"]

    def kill(self) -> None:
        """SIGKILL, the daemon first: what it started follows."""
        self.live.process.kill()
        for pid in self.live.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.live.process.wait()

    def stop(self) -> float:
        """SIGTERM; seconds until it has ended."""
        begun = time.monotonic()
        self.live.process.terminate()
        self.live.process.wait(120)
        return time.monotonic() - begun

    def load(self, model: str = MODEL) -> None:
        """A replica stands ready here."""
        until(lambda: self._loaded(model), f"{self.name} has {model} loaded", LOAD_SECONDS)

    def _loaded(self, model: str) -> bool:
        answer = self.live.ask(f"/sllmd/v1/models/{model}/load", {"stream": False})
        return answer.status == 200 and any(
            each["model"] == model and each["state"] == "serving" for each in self.live.status()["replicas"]
        )

    def drain(self) -> None:
        """Nothing runs here from now on, also after a restart; requests are taken, for others to run."""
        answer = self.live.ask(f"/sllmd/v1/nodes/{self.name}/drain", {"deadline_seconds": 60})
        if answer.status != 200 or b'"drained"' not in answer.raw:
            raise RuntimeError(f"{self.name} did not drain: {answer.raw[-300:]!r}")

    @property
    def running(self) -> int:
        """Generations that run here."""
        return sum(each["running"] for each in self.live.status()["replicas"])

    @property
    def waits(self) -> bool:
        """Whether a worker waits for a model here."""
        return any(each["role"] == "waiting" for each in self.live.status()["processes"])


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """What this thread starts meanwhile runs there."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def stage(*, loaded: bool = True) -> Iterator[tuple[Server, Server, Server]]:
    """Two that serve, and a router that is drained from the start: it never has a replica."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        a = Server("a", Path(directory) / "a")
        b = Server("b", Path(directory) / "b", join=a)
        router = Server("router", Path(directory) / "router", join=a)
        for server in (a, b):
            put_small(server.directory)
        try:
            for server in (a, b, router):
                server.start()
            until(lambda: knows(router), "the router knows the model")
            router.drain()
            if loaded:
                a.load()
                b.load()
                _both_known(router)
            yield a, b, router
        finally:
            for server in (router, b, a):
                if server.daemon is not None:
                    server.kill()


def put_small(directory: Path) -> None:
    """Into this server's store: a tiny llama in float32 whose context is long enough."""
    source = directory / "source"
    source.parent.mkdir(parents=True)
    make_builtin("tiny", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT_TOKENS}))
    store = Store(directory / "data" / "store")
    import_checkpoint(store, str(source), name=MODEL, on_progress=lambda _: None)


def knows(router: Server) -> bool:
    """Whether it has heard of the model."""
    cards = router.live.ask("/sllmd/v1/models").body["models"]
    return any(card["name"] == MODEL and card["context_tokens"] for card in cards)


def _both_known(router: Server) -> None:
    """The routing table tells of both replicas."""
    until(
        lambda: sum(each["replicas"] for each in router.live.ask("/sllmd/v1/members").body["members"]) >= 2,
        "both replicas are known",
    )


@dataclass
class Heard:
    """A stream as its client had it."""

    prompt: str
    seed: int
    temperature: float
    text: str = ""
    came: list[float] = field(default_factory=list)
    """Monotonic seconds of each token."""
    gaps: list[float] = field(default_factory=list)
    """Of each token: how much likelier it was than the second."""
    request_id: str = ""
    error: str | None = None
    over: bool = False
    """It came to its end, without an error."""

    @property
    def longest_seconds(self) -> float:
        """The longest silence after the first token."""
        return max((b - a for a, b in zip(self.came, self.came[1:], strict=False)), default=0.0)


def plans(count: int) -> list[Heard]:
    """Streams to ask for: every second one greedy, the others drawn by seed."""
    return [Heard(f"Story {number} of {count}: ", number, float(number % 2)) for number in range(count)]


async def listen(
    url: str, heard: Heard, *, tokens: int, prompt: object = None, timed_only: bool = False
) -> Heard:
    """One stream to its end, or to what broke it.

    ``timed_only``: no text and no gaps, for streams so fast that reading them would take a core.
    """
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": heard.prompt if prompt is None else prompt,
        "max_tokens": tokens,
        "seed": heard.seed,
        "temperature": heard.temperature,
        "ignore_eos": True,
        "logprobs": 0 if timed_only else 2,  # with any, each token is an event of its own
        "stream": True,
    }
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as session,
            session.post(url + "/v1/completions", json=body) as response,
        ):
            heard.request_id = response.headers.get("x-request-id", "")
            if response.status != 200:
                heard.error = await response.text()
                return heard
            await _read(response, heard, timed_only=timed_only)
    except (aiohttp.ClientError, TimeoutError) as error:
        heard.error = repr(error)
    return heard


async def _read(response: aiohttp.ClientResponse, heard: Heard, *, timed_only: bool) -> None:
    heard.error = OPEN
    async for line in response.content:
        if line == b"data: [DONE]\n":
            if heard.error == OPEN:
                heard.error, heard.over = None, True
        elif timed_only and line.startswith(b"data: ") and b'"error"' not in line:
            heard.came.append(time.monotonic())
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                heard.error = event["error"]["message"]
                continue
            heard.came.append(time.monotonic())
            choice = event["choices"][0]
            heard.text += choice["text"]
            for top in (choice["logprobs"] or {}).get("top_logprobs") or ():
                first, second = ([*sorted(top.values(), reverse=True), 0.0, 0.0])[:2]
                heard.gaps.append(first - second)


async def tokens_come(heard: Sequence[Heard], count: int) -> None:
    """Until each has so many tokens, or has ended."""

    def waits(each: Heard) -> bool:
        return len(each.came) < count and not each.over and each.error in (None, OPEN)

    while any(map(waits, heard)):  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def move(router: Server, request_id: str, to: str) -> dict[str, Any] | None:
    """Order a move through the node that its client asked; how it went, None: there was nothing to move."""
    async with aiohttp.ClientSession() as session:
        path = f"/sllmd/v1/requests/{request_id}/migrate"
        async with session.post(router.live.url + path, json={"to": to}) as response:
            body = await response.json()
    generations = body.get("generations") or []
    return generations[0]["move"] if generations else None


async def busier(servers: Sequence[Server]) -> Server:
    """The one that runs more."""
    return await asyncio.to_thread(max, servers, key=lambda server: server.running)


async def ends(servers: tuple[Server, Server]) -> tuple[Server, Server]:
    """Where the only generation runs, and where it may go."""
    source = await busier(servers)
    [target] = [each for each in servers if each is not source]
    return source, target


def new_prompt(tokens: int, chance: random.Random) -> list[int]:
    """Letters that no engine has computed before."""
    return [chance.randrange(97, 123) for _ in range(tokens)]


def wrong(heard: Sequence[Heard], references: Sequence[Heard], near_tie: float = 1e-3) -> tuple[int, int]:
    """Streams that differ from the unmoved run, and those of them that a near tie of two tokens excuses."""
    differing = excused = 0
    for one, reference in zip(heard, references, strict=True):
        if one.text == reference.text:
            continue
        differing += 1
        same = sum(1 for _ in _common(one.text, reference.text))
        around = reference.gaps[max(0, same - 2) : same + 2]  # a letter is a token, but for a few bytes
        excused += one.temperature == 0 and min(around, default=1.0) < near_tie
    return differing, excused


def _common(left: str, right: str) -> Iterator[str]:
    for a, b in zip(left, right, strict=False):
        if a != b:
            return
        yield a


async def prefill_rate(router: Server) -> float:
    """Tokens/s of a long prompt that is new."""
    heard = Heard("", 0, 0.0)
    await listen(router.live.url, heard, tokens=2, prompt=[time.time_ns() % 200] + [65] * 2000)
    [generation] = router.live.ask(f"/sllmd/v1/requests/{heard.request_id}").body["generations"]
    return float(generation["prompt_tokens"] / (generation["prefill_ms"] / 1000))
