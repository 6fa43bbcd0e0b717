"""Commands on their way, without an etcd: what the log brings decides how they end."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from sllmd.cluster.catalogue import EMPTY, Catalogue, apply_bytes
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.catalogue.results import Done, Result
from sllmd.cluster.catalogue.state import OPEN_MAX
from sllmd.cluster.etcd.keys import Keys, unpack_batch
from sllmd.cluster.etcd.proposals import BATCH_COMMANDS_MAX, QUEUE_MAX, Batch, Proposal, Proposals
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown
from tests.waiting import PATIENCE_SECONDS


class Order:
    """What etcd would do, at once."""

    def __init__(self) -> None:
        self.catalogue: Catalogue = EMPTY
        self.proposals = Proposals(Keys("/test"), "me")

    def carry_out(self, batch: Batch) -> list[Result]:
        results = []
        for command in unpack_batch(batch.value):
            self.catalogue, result = apply_bytes(self.catalogue, command)
            results.append(result)
        return results

    def agree(self, batch: Batch) -> None:
        self.proposals.applied(batch.key, self.carry_out(batch))

    async def open(self) -> None:
        """The first batch asks for a client number."""
        batch = await self.next()
        assert batch.proposals == ()
        self.agree(batch)

    async def next(self) -> Batch:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.proposals.next_batch()

    async def idle(self) -> bool:
        waiting = asyncio.create_task(self.proposals.next_batch())
        for _ in range(3):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return waiting.cancelled()

    def submit(self, key: str) -> Proposal:
        return self.proposals.submit(SettingPut(key, b"", None), None)


@pytest.fixture
async def order() -> Order:
    order = Order()
    first = order.submit("first")
    await order.open()
    order.agree(await order.next())
    assert isinstance(first.outcome.result(), Done)
    return order


async def test_what_waits_goes_together_and_each_gets_its_result(order: Order) -> None:
    proposals = [order.submit(f"{number}") for number in range(10)]
    order.agree(await order.next())
    revisions = [proposal.outcome.result().revision for proposal in proposals]
    assert revisions == list(range(revisions[0], revisions[0] + 10))
    assert await order.idle()


async def test_a_batch_has_a_limit(order: Order) -> None:
    for number in range(BATCH_COMMANDS_MAX + 1):
        order.submit(f"{number}")
    assert len((await order.next()).proposals) == BATCH_COMMANDS_MAX
    assert len((await order.next()).proposals) == 1


async def test_no_more_are_open_than_the_catalogue_remembers(order: Order) -> None:
    batches = []
    for number in range(OPEN_MAX + 10):
        order.submit(f"{number}")
    while not await order.idle():
        batches.append(order.proposals._sent[list(order.proposals._sent)[-1]])
    assert sum(len(batch.proposals) for batch in batches) == OPEN_MAX
    for batch in batches:
        order.agree(batch)
    assert len((await order.next()).proposals) == 10


async def test_the_queue_has_a_limit(order: Order) -> None:
    for number in range(QUEUE_MAX):
        order.submit(f"{number}")
    with pytest.raises(ControlUnavailable, match="wait for etcd already"):
        order.submit("one more")


async def test_what_was_put_back_is_sent_again_or_never(order: Order) -> None:
    stays, leaves = order.submit("stays"), order.submit("leaves")
    batch = await order.next()
    assert stays.begun
    order.proposals.put_back(batch)
    assert not stays.begun
    order.proposals.leave(leaves)
    again = await order.next()
    assert again.proposals == (stays,)
    order.agree(again)
    assert order.catalogue.settings.get("leaves") is None
    assert order.catalogue.settings.get("stays") is not None


async def test_what_nobody_waits_for_is_answered_as_far_as_the_catalogue_is_concerned(order: Order) -> None:
    given_up = order.submit("given up")
    late = await order.next()
    order.proposals.leave(given_up)
    assert not late.wanted
    order.submit("next")
    order.agree(await order.next())
    order.carry_out(late)
    assert order.catalogue.settings.get("given up") is None, "a later command had fenced it off"


async def test_a_snapshot_tells_how_those_ended_that_are_in_it(order: Order) -> None:
    inside = order.submit("inside")
    carried_out = await order.next()
    outside = order.submit("outside")
    not_yet = await order.next()
    (expected,) = order.carry_out(carried_out)
    order.proposals.restored(order.catalogue)
    assert inside.outcome.result() == expected
    assert not outside.outcome.done()
    order.agree(not_yet)
    assert isinstance(outside.outcome.result(), Done)


async def test_a_snapshot_tells_our_client_number(order: Order) -> None:
    fresh = Order()
    proposal = fresh.submit("x")
    opening = await fresh.next()
    fresh.carry_out(opening)
    fresh.proposals.restored(fresh.catalogue)
    fresh.agree(await fresh.next())
    assert isinstance(proposal.outcome.result(), Done)


async def test_a_client_that_was_forgotten_opens_again_and_sends_again(order: Order) -> None:
    order.catalogue = forget_clients(order.catalogue)
    proposals = [order.submit(f"{number}") for number in range(3)]
    order.agree(await order.next())
    assert not any(proposal.outcome.done() for proposal in proposals)
    await order.open()
    order.agree(await order.next())
    assert all(isinstance(proposal.outcome.result(), Done) for proposal in proposals)


async def test_in_a_snapshot_without_our_client_the_outcome_is_unknown(order: Order) -> None:
    proposal = order.submit("x")
    await order.next()
    order.proposals.restored(forget_clients(order.catalogue))
    with pytest.raises(OutcomeUnknown):
        proposal.outcome.result()
    later = order.submit("y")
    await order.open()
    order.agree(await order.next())
    assert isinstance(later.outcome.result(), Done)


async def test_the_same_batch_again_changes_nothing(order: Order) -> None:
    order.submit("x")
    batch = await order.next()
    order.agree(batch)
    settings = order.catalogue.settings
    for _ in range(2):
        order.agree(batch)
    assert order.catalogue.settings == settings


def forget_clients(catalogue: Catalogue) -> Catalogue:
    """As if thousands of others had come since."""
    from dataclasses import replace

    from sllmd.cluster.catalogue.table import Table

    return replace(catalogue, clients=Table(itertools.islice(catalogue.clients.items(), 0)))
