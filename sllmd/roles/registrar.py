"""Makes the models that the configuration names be there: imported, known by their aliases, lifted to their tier.

An import runs in a child process, so that a conversion neither blocks the daemon nor brings numpy into it.
A model that cannot be brought in is an event in the log, never the end of the daemon.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping

import structlog

from sllmd.core.errors import ModelNotFound, SllmdError
from sllmd.roles.operator import Operator
from sllmd.roles.settings import ModelSettings
from sllmd.store.store import Store

_BUILTIN_PREFIX = "builtin:"
_REPORT_CHARACTERS_MAX = 2000
"""Of a failed import's last words, for the log."""

_log = structlog.get_logger(__name__)


class Registrar:
    """Works through ``[models."name"]``, one model after the other."""

    def __init__(self, models: Mapping[str, ModelSettings], store: Store, operator: Operator) -> None:
        self._models = models
        self._store = store
        self._operator = operator

    async def register_builtin(self) -> None:
        """The built-in models, which take no time: awaited before the daemon says that it is ready."""
        for name, model in self._models.items():
            if model.source is not None and model.source.startswith(_BUILTIN_PREFIX):
                await self._register(name, model)

    async def register_all(self) -> None:
        """Everything else, and what takes long: beside a daemon that already serves."""
        for name, model in self._models.items():
            await self._register(name, model)
            if model.preload != "none":
                await self._preload(name, model)

    async def _register(self, name: str, model: ModelSettings) -> None:
        try:
            if not self._known(name):
                if model.source is None or not await self._import(name, model.source):
                    return
            for alias in model.aliases:
                await asyncio.to_thread(self._store.alias, alias, name)
        except SllmdError as error:
            _log.error("model not registered", model=name, reason=str(error))

    def _known(self, name: str) -> bool:
        try:
            self._store.resolve(name)
        except ModelNotFound:
            return False
        return True

    async def _import(self, name: str, source: str) -> bool:
        """Import in a child process; whether it worked."""
        _log.info("importing", model=name, source=source)
        command = (
            "-m",
            "sllmd",
            "import",
            source,
            "--name",
            name,
            "--store",
            str(self._store.root),
            "--quiet",
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, told = await child.communicate()
        except asyncio.CancelledError:
            child.kill()
            await child.wait()
            raise
        if child.returncode != 0:
            reason = told.decode("utf-8", "replace").strip()[-_REPORT_CHARACTERS_MAX:]
            _log.error("import failed", model=name, source=source, reason=reason)
        return child.returncode == 0

    async def _preload(self, name: str, model: ModelSettings) -> None:
        tier = "dram" if model.preload == "dram" else "device"
        try:
            async for step in self._operator.load(name, tier):
                if step.status == "error":
                    _log.error("model not preloaded", model=name, tier=tier, reason=step.message)
        except SllmdError as error:
            _log.error("model not preloaded", model=name, tier=tier, reason=str(error))
