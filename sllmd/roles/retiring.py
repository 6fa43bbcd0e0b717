"""Deleting a deployment whose replicas are still there: they go first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sllmd.cluster.catalogue.commands import Body, DeploymentDelete
from sllmd.cluster.catalogue.results import Denied, Reason, Result
from sllmd.cluster.control import ControlStore
from sllmd.core.ids import ModelName

Retire = Callable[[ModelName], Awaitable[None]]


async def propose_retiring(control: ControlStore, command: Body, retire: Retire) -> Result:
    """Propose ``command``; of a deletion that replicas stand against, once more when they have gone.

    Raises as ``ControlStore.propose`` does. Denied as IN_USE: some still finish what they run.
    """
    result = await control.propose(command)
    in_use = isinstance(result, Denied) and result.reason is Reason.IN_USE
    if not in_use or not isinstance(command, DeploymentDelete):
        return result
    await retire(command.name)
    return await control.propose(command)
