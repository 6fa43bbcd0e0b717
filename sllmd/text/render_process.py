"""The process that renders chat templates: ``python -m sllmd.text.render_process SECONDS BYTES``.

Reads a question from stdin, writes an answer to stdout, until stdin ends. Memory is bounded for its whole
life; processor time for each question, in case nobody is left to kill it.
"""

from __future__ import annotations

import json
import math
import resource
import struct
import sys
import time
from functools import lru_cache
from typing import Any

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.text.chat import ChatTemplate

LENGTH = struct.Struct(">I")
"""Before every question and answer: how long it is."""
PROMPT_BYTES_MAX = 64 * 1024 * 1024
"""Longest answer; no prompt that a model could take comes near it."""


def main() -> None:
    """Serve until nobody asks any more."""
    seconds_max, memory_bytes_max = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(LENGTH.pack(0))
    answers.flush()
    while head := questions.read(LENGTH.size):
        question = questions.read(*LENGTH.unpack(head))
        cpu_seconds = math.ceil(time.process_time() + seconds_max) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, resource.RLIM_INFINITY))
        answer = _answer(question)
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


def _answer(question: bytes) -> bytes:
    try:
        source, special_tokens, messages, values = json.loads(question)
        template = _template(source, tuple(special_tokens.items()))
        answer = json.dumps({"kind": "text", "text": template.render(messages, **values)}).encode()
        if len(answer) > PROMPT_BYTES_MAX:
            raise MemoryError
    except InvalidRequest as error:
        answer = _error("refused", error.message, error.hint)
    except UnsupportedCheckpoint as error:
        answer = _error("unsupported", error.message, error.hint)
    except MemoryError:
        answer = _error("refused", "the model's chat template takes too much memory")
    return answer


def _error(kind: str, message: str, hint: str | None = None) -> bytes:
    return json.dumps({"kind": kind, "message": message, "hint": hint}).encode()


@lru_cache(maxsize=8)
def _template(source: str, special_tokens: tuple[tuple[str, Any], ...]) -> ChatTemplate:
    """Compiled once for many conversations."""
    return ChatTemplate(source, dict(special_tokens))


if __name__ == "__main__":
    main()
