"""Running the converter child and reporting what it says; see ``convert`` for what it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

from sllmd.core.errors import MalformedCheckpoint, SllmdError, StoreError, UnsupportedCheckpoint
from sllmd.store.durable import store_error

_ERRORS: dict[str, type[SllmdError]] = {
    kind.__name__: kind for kind in (MalformedCheckpoint, UnsupportedCheckpoint, StoreError)
}
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
"""A converter opens no connections, and says what matters itself."""


def convert(
    kind: Literal["torch", "gguf", "tokenizer"],
    source: Path,
    staging: Path,
    *,
    dtype: str,
    on_progress: Callable[[int, int], None],
) -> None:
    """Convert ``source`` into the directory ``staging``, in a child process.

    ``on_progress`` gets bytes done and in all. Raises what the child reports, and MalformedCheckpoint when
    it dies without a word, which is what a parser does on bytes that were made to hurt it.
    """
    # -P: the working directory is no place to look for modules.
    command = [sys.executable, "-P", "-m", "sllmd.store.convert", kind, str(source), str(staging)]
    command += ["--dtype", dtype, "--until-stdin-closes"]
    with tempfile.TemporaryFile() as errors:
        # Its stdin closes when this process ends, however that happens.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | _ENVIRONMENT,
        )
        try:
            failure = _follow(child, on_progress)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if failure is not None:
            raise failure
        if code != 0:
            raise _sudden_death(source, code, errors)


def _follow(child: subprocess.Popen[bytes], on_progress: Callable[[int, int], None]) -> SllmdError | None:
    assert child.stdout is not None
    failure: SllmdError | None = None
    for line in child.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # something a library printed
        if not isinstance(message, dict):
            continue
        if "done" in message:
            on_progress(message["done"], message["total"])
        elif message.get("error") == "OSError":
            failure = store_error("convert the model", OSError(message["errno"], message["message"]))
        elif message.get("error") in _ERRORS:
            failure = _ERRORS[message["error"]](message["message"], hint=message["hint"])
    return failure


def _sudden_death(source: Path, code: int, errors: IO[bytes]) -> MalformedCheckpoint:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    last = f": {lines[-1].strip()[:300]}" if lines else ""
    return MalformedCheckpoint(f"{source.name} could not be converted; the converter {how}{last}")
