"""What the configuration says of models, made true at start: imported, named, lifted.

Imports run as ``sllmd import`` in a child, so that nothing they load stays in the daemon.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Literal

import structlog

from sllmd.core.errors import ModelNotFound, SllmdError, StoreError
from sllmd.roles.operator import Operator
from sllmd.roles.settings import ModelSettings
from sllmd.store.credentials import shown_url
from sllmd.store.store import Store

BUILT_IN_PREFIX = "builtin:"

_log = structlog.get_logger(__name__)


def is_built_in(settings: ModelSettings) -> bool:
    """Whether the model is made on the spot rather than fetched."""
    return settings.source is not None and settings.source.startswith(BUILT_IN_PREFIX)


async def provision(store: Store, operator: Operator, models: Mapping[str, ModelSettings]) -> None:
    """Import what is missing, set aliases, preload; one model's trouble is logged and stops no other."""
    for name, settings in models.items():
        try:
            await _provide(store, name, settings)
            if settings.preload != "none":
                await _preload(operator, name, settings)
        except (SllmdError, OSError) as error:
            _log.error("model of the configuration is not available", model=name, error=str(error))


async def _provide(store: Store, name: str, settings: ModelSettings) -> None:
    try:
        store.resolve(name)
    except ModelNotFound:
        if settings.source is None:
            raise
        await _import(store, name, settings.source)
    for alias in settings.aliases:
        await asyncio.to_thread(store.alias, alias, name)


async def _import(store: Store, name: str, source: str) -> None:
    _log.info("importing", model=name, source=shown_url(source))
    command = ("import", "-", "--name", name, "--store", str(store.root), "--quiet")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "sllmd", *command,  # -P: no modules of the working directory
        stdin=asyncio.subprocess.PIPE,  # its arguments are for everybody to see
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, said = await child.communicate(source.encode())
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode != 0:
        raise StoreError(
            f"`{shown_url(source)}` could not be imported: {said.decode(errors='replace').strip()}"
        )


async def _preload(operator: Operator, name: str, settings: ModelSettings) -> None:
    tier: Literal["dram", "device"] = "dram" if settings.preload == "dram" else "device"
    async for step in operator.load(name, tier):
        if step.status != "loading":
            _log.info("preload", model=name, tier=tier, status=step.status, message=step.message)
