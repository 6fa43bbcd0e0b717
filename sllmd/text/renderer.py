"""Chat templates rendered in a child process, since whoever wrote a checkpoint wrote its template.

A sandbox bounds what a template may touch, not how long it runs or how much it allocates; a process bounds
both. One child renders one conversation after the other. It starts with the first one, and again after one
that had to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Any

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.text.chat import ChatTemplate
from sllmd.text.render_process import LENGTH

START_SECONDS_MAX = 60.0
"""A child's start takes a tenth of a second; more only on a machine that has no time at all."""


class Renderer:
    """Renders one conversation at a time. ``close`` ends the child."""

    def __init__(self, *, seconds_max: float = 5.0, memory_bytes_max: int = 512 * 1024 * 1024) -> None:
        self._seconds_max = seconds_max
        self._memory_bytes_max = memory_bytes_max
        self._child: Process | None = None
        self._turn = asyncio.Lock()

    async def render(
        self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]
    ) -> str:
        """What ``template.render`` returns and raises; InvalidRequest, too, when it takes too much for it."""
        template.require()
        question = json.dumps([template.source, template.special_tokens, messages, values]).encode()
        async with self._turn:
            if self._child is None:
                self._child = await self._start()
            answered = False
            try:
                async with asyncio.timeout(self._seconds_max):
                    answer = await _ask(self._child, question)
                answered = True
            except TimeoutError:
                raise _refused(f"takes more than {self._seconds_max:g} s for these messages") from None
            except (asyncio.IncompleteReadError, ConnectionError):
                raise _refused("broke the process that renders it") from None
            finally:
                if not answered:  # half an answer may be under way, or the template may never end
                    self._kill()
        return _text(json.loads(answer))

    async def close(self) -> None:
        """Return when the child is gone."""
        async with self._turn:
            child = self._child
            self._kill()
            if child is not None:
                await child.wait()

    async def _start(self) -> Process:
        command = (sys.executable, "-P", "-m", "sllmd.text.render_process")  # -P: no modules of the cwd
        limits = (str(self._seconds_max), str(self._memory_bytes_max))
        child = await asyncio.create_subprocess_exec(
            *command, *limits, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await child.stdout.readexactly(LENGTH.size)
        except BaseException:
            child.kill()
            raise
        return child

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            child.kill()


async def _ask(child: Process, question: bytes) -> bytes:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(LENGTH.pack(len(question)) + question)
    await child.stdin.drain()
    (length,) = LENGTH.unpack(await child.stdout.readexactly(LENGTH.size))
    return await child.stdout.readexactly(length)


def _text(answer: Mapping[str, Any]) -> str:
    """The child's text, or its error raised here."""
    match answer["kind"]:
        case "text":
            return str(answer["text"])
        case "unsupported":
            raise UnsupportedCheckpoint(answer["message"], hint=answer["hint"])
        case _:
            raise InvalidRequest(answer["message"], hint=answer["hint"], param="messages")


def _refused(what: str) -> InvalidRequest:
    return InvalidRequest(f"the model's chat template {what}", param="messages")
