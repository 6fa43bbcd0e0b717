"""The far end of the relay bench, a process of its own: generations that step together, served to a router.

``python -m benchmarks.cluster.relay_source IDENTITY`` prints its port and serves until its input ends. There
is no engine: each step hands every running generation its next token, as an engine's process does.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import uvloop

from sllmd.core.ids import GenerationId, NodeId
from sllmd.engine.protocol import PrefilledEvent, TokenEvent
from sllmd.roles.relay import serve_generations
from sllmd.roles.work import Granted, Happening, Work
from sllmd.wire.rpc.connection import Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import Tls

SOURCE = NodeId("source")
BATCH = 16
STEP_SECONDS = 0.001
"""Between two steps: each crosses on its own, as an engine's would, not lumped with those before it."""


class Stepping:
    """A place whose generations all get a token at a time."""

    def __init__(self) -> None:
        self.node = SOURCE
        self._queues: dict[GenerationId, asyncio.Queue[TokenEvent]] = {}
        self._begun = 0

    async def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        """Tokens up to the number asked for, once a whole batch is there."""
        generation = work.state.generation_id
        queue = self._queues[generation] = asyncio.Queue()
        yield Granted(self.node, cold=False, tier="device")
        yield PrefilledEvent(generation, len(work.state.prompt_ids), 0, 0.0)
        self._begun += 1
        if self._begun == BATCH:
            self._begun = 0
            asyncio.get_running_loop().create_task(self._step(work.state.sampling.max_tokens))
        while True:
            event = await queue.get()
            yield event
            if event.finish_reason is not None:
                return

    async def _step(self, tokens: int) -> None:
        batch, self._queues = self._queues, {}
        for index in range(tokens):
            finish = "length" if index == tokens - 1 else None
            for generation, queue in batch.items():
                queue.put_nowait(TokenEvent(generation, index, 1000 + index, finish))
            await asyncio.sleep(STEP_SECONDS)


async def main(identity: Path) -> None:
    """Serve until whoever started this leaves."""
    methods = Methods()
    serve_generations(methods, Stepping())

    async def spent(_body: Any, _caller: Caller) -> float:
        return cpu_seconds()

    methods.unary("spent", spent)
    local = Local(lambda: Hello("bench", SOURCE), methods, RpcSettings(), Tls(identity))
    listener = Listener(local)
    print(await listener.start("127.0.0.1", 0), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await listener.close()


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
