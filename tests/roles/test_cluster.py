"""Whole nodes in one process: any of them serves any model, whoever has it, leads, drains or goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sllmd.cluster.catalogue.commands import DeploymentDelete, DeploymentPut
from sllmd.cluster.node import ClusterNode
from sllmd.config.settings import Config
from sllmd.core.errors import ControlUnavailable, ModelNotFound, NodeDraining
from sllmd.core.ids import ModelName
from sllmd.daemon import Daemon
from sllmd.engine.protocol import Sampling
from sllmd.roles.generation import Timing
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
from tests.live import put_model
from tests.roles.conftest import request
from tests.waiting import PATIENCE_SECONDS, eventually

A_ONLY = [32, 33]
"""Token ids that a model chooses from: the letter A alone."""


@dataclass
class Member:
    """A node with everything but HTTP clients."""

    daemon: Daemon
    directory: Path
    rooms: AsyncExitStack

    @property
    def node(self) -> ClusterNode:
        return self.daemon.node

    def models(self) -> dict[str, str | None]:
        """Names, and what is wrong with them."""
        return {card.name: card.problem for card in self.daemon.router.models()}

    def replicas(self) -> list[str]:
        return [each.checkpoint.name for each in self.daemon.agent.residences()]

    async def complete(self, model: str, **changes: object) -> tuple[str, Timing]:
        sampling = Sampling(seed=1, max_tokens=8, temperature=0.0)
        wanted = request(model, **({"sampling": sampling} | changes))  # type: ignore[arg-type]
        async with self.daemon.router.generate(wanted) as generation:
            return "".join([delta.text async for delta in generation]), generation.timing

    async def knows(self, model: str) -> None:
        await eventually(lambda: self.models().get(model, "missing") is None)


MakeMember = Callable[..., AbstractAsyncContextManager[Member]]


@pytest.fixture
def make_member(tmp_path: Path) -> MakeMember:
    """``async with make_member("a", models={"m": {}}, join=other) as member``."""

    @asynccontextmanager
    async def make(
        name: str,
        *,
        models: Mapping[str, Mapping[str, object]] = {},
        join: Member | None = None,
        encrypted: bool = False,
        **sections: Any,
    ) -> AsyncIterator[Member]:
        directory = tmp_path / name
        for model, behaviour in models.items():
            put_model(directory, model, behaviour)
        cluster = {"join": [join.node.address] if join else [], **sections.pop("cluster", {})}
        values = {
            "node": {"name": name, "data_dir": directory / "data"},
            "cluster": cluster,
            "workers": {"engine": "fake", "in_process": True},
            "loader": {"dram_budget": "64MiB", "slab_bytes": "1MiB", "pin": False, "headroom_bytes": 0},
            "api": {"listen": ["127.0.0.1:0"], "uds": directory / "s", "keys_file": directory / "keys"},
            **sections,
        }
        async with AsyncExitStack() as rooms:
            config = Config.model_validate(values)
            node = ClusterNode(config.cluster, directory=directory / "cluster", name=name, dev=not encrypted)
            if encrypted and join is not None:
                assert join.node.tokens is not None
                node.token, _ = await join.node.tokens.create()
            daemon = await Daemon.start(config, node, rooms)
            yield Member(daemon, directory, rooms)

    return make


async def test_any_node_serves_a_model_that_one_has(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        await a.knows("m")
        card = a.daemon.router.model("m")
        assert (card.context_tokens, card.tier, card.kind) == (2048, "peer", "remote")
        text, timing = await a.complete("m")
        assert timing.node == b.node.identity.node
        assert timing.cold
        assert text == (await b.complete("m"))[0]
        assert (a.replicas(), b.replicas()) == ([], ["m"])
        await eventually(lambda: a.daemon.router.model("m").state == "serving")
        assert (await a.daemon.router.tokenizer("m")).encode("hi") == [71, 72]
        assert not (await a.complete("m"))[1].cold


async def test_weights_come_from_a_node_that_does_not_want_to_run_them(make_member: MakeMember) -> None:
    async with make_member("a") as a:
        async with make_member("b", models={"m": {}}, join=a) as b:
            await a.knows("m")
            b.daemon.agent.draining = True
            b.daemon.agent.changed()
            me = b.node.identity.node
            await eventually(lambda: a.daemon.plane.table.inventories[me].draining)
            text, timing = await a.complete("m")
            assert (timing.node, timing.tier) == (a.node.identity.node, "peer")
            assert set(timing.stages) == {"peer→dram", "attach"}
            await eventually(lambda: a.daemon.router.checkpoint("m").remote_url is None)
            # Who drains still answers its own clients: from elsewhere, now.
            assert await b.complete("m") is not None
        await eventually(lambda: me not in a.daemon.plane.table.inventories)
        assert (await a.complete("m"))[0] == text
        assert a.daemon.router.model("m").problem is None


@pytest.mark.parametrize("chunk_encryption", ["on", "off"])
async def test_all_of_it_over_tls_and_chunks_also_without(
    make_member: MakeMember, chunk_encryption: str
) -> None:
    tls = {"encrypted": True, "cluster": {"chunk_encryption": chunk_encryption}}
    async with (
        make_member("a", **tls) as a,
        make_member("b", models={"m": {}}, join=a, **tls) as b,
    ):
        await a.knows("m")
        text, timing = await a.complete("m")
        assert timing.node == b.node.identity.node
        b.daemon.agent.draining = True
        b.daemon.agent.changed()
        await eventually(lambda: a.daemon.plane.table.inventories[b.node.identity.node].draining)
        assert (await a.complete("m"))[0] == text
        assert a.replicas() == ["m"]
        await eventually(lambda: a.daemon.router.checkpoint("m").remote_url is None)


@pytest.mark.slow
async def test_a_full_node_gets_help(make_member: MakeMember) -> None:
    slow = {"token_seconds": 0.02}
    one_row = {"engine": {"batch_max": 1}}
    async with (
        make_member("a", **one_row) as a,
        make_member("b", models={"m": slow}, join=a, **one_row) as b,
    ):
        await a.knows("m")
        async with b.daemon.router.generate(request("m", max_tokens=1000)) as generation:
            await anext(aiter(generation))
            full = b.node.identity.node
            inventories = a.daemon.plane.reporter
            await eventually(lambda: any(r.running for r in inventories.table.inventories[full].replicas))
            _, timing = await a.complete("m")
            assert timing.node == a.node.identity.node


async def test_two_checkpoints_of_one_name_are_an_error_where_it_was_second(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": {"token_ids": A_ONLY}}) as a:
        await eventually(lambda: a.node.control.view().catalogue.deployments.get("m"))
        async with make_member("b", models={"m": {"token_ids": [64, 65]}, "n": {}}, join=a) as b:
            await eventually(lambda: b.models().get("m"))
            assert "another checkpoint" in str(b.models()["m"])
            assert a.models()["m"] is None
            await a.knows("n")
            assert (await b.complete("m"))[0] == "AAAAAAAA" == (await a.complete("m"))[0]
            assert Store(b.directory / "data" / "store").resolve("m")


@pytest.mark.slow
async def test_a_deleted_deployment_is_gone_everywhere_and_its_bytes_stay(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        await a.knows("m")
        await a.complete("m")
        await eventually(lambda: b.daemon.plane._library.deployed)
        assert a.daemon.operator.cluster is not None
        await a.daemon.operator.cluster.steering.delete_deployment("m")
        await eventually(lambda: "m" not in a.models())
        with pytest.raises(ModelNotFound):
            await a.complete("m")
        await eventually(lambda: b.models()["m"])
        with pytest.raises(ModelNotFound, match="deleted"):
            await b.complete("m")
        assert Store(b.directory / "data" / "store").resolve("m")
        await asyncio.to_thread(import_again, b)
        await a.knows("m")
        assert (await a.complete("m"))[0]


def import_again(member: Member, *, replace: bool = False) -> None:

    store = Store(member.directory / "data" / "store")
    source = member.directory / "sources" / "m"
    import_checkpoint(store, str(source), name="m", replace=replace, on_progress=lambda _: None)


@pytest.mark.slow
async def test_a_model_imported_anew_or_removed_is_so_on_every_node(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("b", models={"m": {"token_ids": A_ONLY}}, join=a) as b:
        await a.knows("m")
        assert (await a.complete("m"))[0] == "AAAAAAAA"
        source = b.directory / "sources" / "m"
        config = source / "config.json"
        fake = {"fake": {"token_ids": [64, 65]}}
        config.write_text(json.dumps(json.loads(config.read_text()) | fake))
        await asyncio.to_thread(import_again, b, replace=True)
        digest = b.daemon.router.model("m").digest
        await eventually(lambda: a.daemon.router.model("m").digest == digest)
        await eventually(lambda: digest in a.daemon.plane._elsewhere())
        assert (await a.complete("m"))[0] == "aaaaaaaa" == (await b.complete("m"))[0]
        Store(b.directory / "data" / "store").remove("m")
        await eventually(lambda: "m" not in a.models() and "m" not in b.models())


@pytest.mark.slow
async def test_without_a_leader_what_is_there_is_served_and_nothing_changes(make_member: MakeMember) -> None:
    async with AsyncExitStack() as founders:
        a = await founders.enter_async_context(make_member("a", models={"warm": {}, "lost": {}}))
        async with make_member("b", models={"own": {}, "cold": {}}, join=a) as b:
            for model in ("warm", "own", "cold"):
                await b.knows(model)
            await b.complete("own")
            await a.knows("own")
            await a.complete("own")
            await eventually(lambda: b.node.control.leadership().leader == a.node.identity.node)
            await founders.aclose()
            await eventually(lambda: not b.daemon.plane._has_leader())
            assert not (await b.complete("own"))[1].cold
            assert (await b.complete("cold"))[1].cold
            with pytest.raises(ControlUnavailable):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await b.node.control.propose(DeploymentDelete(ModelName("own"), None))
            await eventually(lambda: b.models()["lost"])
            assert b.models()["own"] is None


async def test_a_node_that_was_forgotten_wrongly_is_asked_what_it_has(make_member: MakeMember) -> None:
    """It does not know that it was thought dead: nothing of it has changed that it would report."""
    rarely = {"routing": {"full_report_interval": 3600.0}}
    async with make_member("a", **rarely) as a, make_member("b", models={"m": {}}, join=a, **rarely) as b:
        await a.knows("m")
        plane, wrong = a.daemon.plane, b.node.identity.node
        plane.keeper.forget(wrong)
        await eventually(lambda: wrong not in plane.table.inventories)
        plane.keeper.welcome(wrong)
        await eventually(lambda: plane.table.inventories.get(wrong))
        assert plane.table.inventories[wrong].checkpoints


async def test_last_words_of_a_node_that_left_do_not_stay(make_member: MakeMember) -> None:
    async with make_member("a") as a:
        async with make_member("b", models={"m": {}}, join=a) as b:
            await a.knows("m")
            gone = b.node.identity.node
            report = b.daemon.plane.reporter.full()
        keeper = a.daemon.plane.keeper
        await eventually(lambda: gone not in a.daemon.plane.table.inventories)
        assert not keeper.take(gone, report)
        with pytest.raises(KeyError):
            keeper._required().inventory(gone)


async def test_a_member_that_tells_nonsense_stops_nobody(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        await a.knows("m")
        b.node.membership.tell(replace(b.node.membership.meta, address="nowhere:99999999"))
        wrong = b.node.identity.node
        await eventually(lambda: wrong not in a.daemon.plane._chunks.hosts)
        assert not any(task.done() for task in a.daemon.plane._tasks)


async def test_a_name_that_is_taken_is_asked_for_once(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a second for ever: every question is an entry of everybody's log."""
    monkeypatch.setattr("sllmd.roles.deployments.LOOK_SECONDS", 0.005)
    async with make_member("a", models={"m": {}}) as a:
        control = a.node.control
        await eventually(lambda: control.view().catalogue.deployments.get("m"))
        deployment = control.view().catalogue.deployments.get("m")
        assert deployment is not None
        await control.propose(DeploymentPut(ModelName("taken"), deployment.spec, 0))
        Store(a.directory / "data" / "store").alias("taken", "m")
        await eventually(lambda: "a name of taken" in str(a.models()["m"]))
        asked = control.view().position
        await asyncio.sleep(0.5)  # time for many looks; there is nothing to wait for when none asks
        assert control.view().position <= asked + 5, "what others wrote meanwhile is in it"
        await control.propose(DeploymentDelete(ModelName("taken"), None))
        await eventually(lambda: a.models()["m"] is None)
        assert control.view().catalogue.names.get("taken") == "m"


async def test_what_was_in_use_when_its_deployment_went_is_forgotten_later(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllmd.roles.deployments.LOOK_SECONDS", 0.005)
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        await a.knows("m")
        checkpoint = await a.daemon.router.obtain("m")
        adopted = a.daemon.plane._adopted
        async with a.daemon.agent.hold(checkpoint):
            await a.node.control.propose(DeploymentDelete(ModelName("m"), None))
            await eventually(lambda: b.models()["m"])
            await eventually(lambda: a.daemon.plane._deployments._seen.deployments.get("m") is None)  # type: ignore[union-attr]
            assert [model.name for model in adopted.models()] == ["m"]
        await a.daemon.agent.unload(checkpoint)
        await eventually(lambda: not adopted.models())


async def test_a_node_that_drains_alone_says_that_it_drains(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": {}}) as a:
        a.daemon.agent.draining = True
        with pytest.raises(NodeDraining):
            await a.complete("m")


@pytest.mark.slow
async def test_a_new_leader_knows_what_the_nodes_have(make_member: MakeMember) -> None:
    async with AsyncExitStack() as first, AsyncExitStack() as others:
        a = await first.enter_async_context(make_member("a"))
        b = await others.enter_async_context(make_member("b", models={"m": {}}, join=a))
        c = await others.enter_async_context(make_member("c", join=a))
        await c.knows("m")
        await eventually(lambda: len(a.node.control.membership.voters) == 3)  # type: ignore[attr-defined]
        epoch = c.daemon.plane.table.epoch
        await first.aclose()
        await eventually(lambda: c.daemon.plane.table.epoch > epoch)
        assert set(c.daemon.plane.table.inventories) == {b.node.identity.node, c.node.identity.node}
        assert (await c.complete("m"))[1].node == b.node.identity.node
