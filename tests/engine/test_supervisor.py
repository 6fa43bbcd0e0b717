import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sllmd.core.errors import ModelLoadFailed, WorkerLost
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.replica import LocalReplica
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from sllmd.engine.worker_replica import WorkerReplica
from sllmd.engine.zygote_process import ZygoteProcess
from tests.engine.conftest import alive, children, descriptors_of
from tests.engine.fakes import manifest, next_replica_id, state, tokens
from tests.waiting import eventually

OPTIONS = EngineOptions(threads=1)


async def serve(supervisor: Supervisor, **fake: object) -> WorkerReplica:
    replica = await supervisor.attach(next_replica_id(), manifest(**fake), (), OPTIONS)
    await replica.begin()
    assert isinstance(replica, WorkerReplica)
    return replica


async def tokens_of(replica: WorkerReplica, max_tokens: int = 5) -> int:
    return len(tokens([event async for event in replica.generate(state(max_tokens=max_tokens))]))


def pids(supervisor: Supervisor, role: str) -> list[int]:
    return [process.pid for process in supervisor.stats().processes if process.role == role]


def oom_score_adjust(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def filled(supervisor: Supervisor) -> None:
    await eventually(lambda: supervisor.stats().waiting_workers == 2, "two workers wait")


async def test_workers_wait_and_are_replaced_when_taken(supervisor: Supervisor) -> None:
    await filled(supervisor)
    waiting = pids(supervisor, "waiting")
    replica = await serve(supervisor)
    assert replica.worker.process.pid in waiting
    await filled(supervisor)
    stats = supervisor.stats()
    assert [p.role for p in stats.processes].count(replica.replica_id) == 1
    assert all(process.rss_bytes > process.anonymous_bytes > 1e6 for process in stats.processes)
    assert (stats.zygote_starts, stats.last_error) == (1, None)


async def test_more_replicas_than_waiting_workers(supervisor: Supervisor) -> None:
    replicas = await asyncio.gather(*(serve(supervisor) for _ in range(6)))
    assert await asyncio.gather(*(tokens_of(replica) for replica in replicas)) == [5] * 6
    assert len({replica.worker.process.pid for replica in replicas}) == 6


async def test_who_has_to_wait_for_a_worker_knows_for_how_long(supervisor: Supervisor) -> None:
    from_zygote_seconds = supervisor.wait_estimate_seconds()
    await filled(supervisor)
    assert supervisor.wait_estimate_seconds() == 0
    serving = [asyncio.create_task(serve(supervisor)) for _ in range(4)]
    await eventually(lambda: supervisor.wait_estimate_seconds() > 0, "nobody waits any more")
    assert supervisor.wait_estimate_seconds() < from_zygote_seconds
    await asyncio.gather(*serving)


async def test_a_killed_waiting_worker_is_replaced(supervisor: Supervisor) -> None:
    await filled(supervisor)
    victim, survivor = pids(supervisor, "waiting")
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: not alive(victim), "the victim is reaped")
    await eventually(
        lambda: survivor in (now := pids(supervisor, "waiting")) and victim not in now and len(now) == 2,
        "it is replaced",
    )
    assert await tokens_of(await serve(supervisor)) == 5


async def test_attach_survives_the_death_of_the_worker_it_takes(supervisor: Supervisor) -> None:
    await filled(supervisor)
    for pid in pids(supervisor, "waiting"):
        os.kill(pid, signal.SIGKILL)
    assert await tokens_of(await serve(supervisor)) == 5


async def test_a_killed_zygote_takes_its_workers_along_and_is_replaced(supervisor: Supervisor) -> None:
    replica = await serve(supervisor, token_seconds=0.001)
    await filled(supervisor)
    (zygote,) = pids(supervisor, "zygote")
    workers = [*pids(supervisor, "waiting"), replica.worker.process.pid]
    stream = replica.generate(state(max_tokens=10**6))
    await anext(stream)
    os.kill(zygote, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        async for _ in stream:
            pass
    again = await serve(supervisor)
    assert await tokens_of(again) == 5
    assert not [pid for pid in workers if alive(pid)]
    assert supervisor.stats().zygote_starts == 2
    assert pids(supervisor, "zygote") != [zygote]


async def test_a_zygote_that_is_killed_while_somebody_waits_costs_time_only(
    supervisor: Supervisor,
) -> None:
    task = asyncio.create_task(serve(supervisor))
    await eventually(lambda: pids(supervisor, "zygote"), "the zygote runs")
    os.kill(pids(supervisor, "zygote")[0], signal.SIGKILL)
    assert await tokens_of(await task) == 5


@pytest.fixture
def broken_library(tmp_path: Path) -> Path:
    """A directory which, when it comes first on the path, lets no zygote start."""
    (tmp_path / "msgpack.py").write_text("raise ImportError('no msgpack today')")
    return tmp_path


async def test_a_start_that_fails_tells_why_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, broken_library: Path, nothing_left: None
) -> None:
    settings = WorkerSettings(
        engine="fake", respawn_backoff_seconds_min=0.01, respawn_backoff_seconds_max=0.02
    )
    supervisor = Supervisor(settings)
    monkeypatch.setenv("PYTHONPATH", str(broken_library))
    await supervisor.start()
    with pytest.raises(ModelLoadFailed, match="ImportError: no msgpack today"):
        await serve(supervisor)
    assert "no msgpack today" in (supervisor.stats().last_error or "")
    with pytest.raises(ModelLoadFailed):
        await serve(supervisor)
    monkeypatch.delenv("PYTHONPATH")
    await eventually(lambda: supervisor.stats().waiting_workers > 0, "it recovers")
    assert await tokens_of(await serve(supervisor)) == 5
    assert supervisor.stats().last_error is None
    await supervisor.close()


class TestLimits:
    @pytest.fixture
    def worker_settings(self) -> WorkerSettings:
        return WorkerSettings(
            engine="fake", respawn_backoff_seconds_min=0.01, respawn_backoff_seconds_max=0.02
        )

    async def test_running_out_of_descriptors_is_told_and_passes(self, supervisor: Supervisor) -> None:
        await filled(supervisor)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            for _ in range(2):
                await serve(supervisor)
            with pytest.raises(ModelLoadFailed, match="Too many open files"):
                await serve(supervisor)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await filled(supervisor)
        assert supervisor.stats().last_error is None
        assert supervisor.stats().zygote_starts == 1

    async def test_no_descriptor_for_a_forked_worker_costs_that_worker_alone(
        self, nothing_left: None
    ) -> None:
        zygote = ZygoteProcess(WorkerSettings(engine="fake"))
        await zygote.ready()
        before = descriptors_of()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        forking = asyncio.create_task(zygote.fork(1))
        await asyncio.sleep(0)  # the question is sent
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await forking
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors_of() == before
        worker = await zygote.fork(2)
        await worker.waiting
        await zygote.close()


async def test_what_lies_in_the_working_directory_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nothing_left: None
) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('not the queue of the library')")
    monkeypatch.chdir(tmp_path)
    supervisor = Supervisor(WorkerSettings(engine="fake"))
    await supervisor.start()
    assert await tokens_of(await serve(supervisor)) == 5
    await supervisor.close()


@pytest.mark.parametrize(
    ("engine", "module", "text"),
    [
        ("transformers", "torch", "raise OSError('libcudart.so.13: cannot open shared object file')"),
        (
            "fake",
            "sitecustomize",
            "import pathlib\npathlib.Path.write_text = lambda *_: open('/no/libcudart')",
        ),
    ],
    ids=["zygote", "worker"],
)
async def test_an_error_of_the_system_is_not_taken_for_the_daemons_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nothing_left: None, engine: str, module: str, text: str
) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    supervisor = Supervisor(
        WorkerSettings(engine=engine, respawn_backoff_seconds_min=0.01, respawn_backoff_seconds_max=0.02)
    )
    await supervisor.start()
    with pytest.raises(ModelLoadFailed, match="libcudart"):
        await serve(supervisor)
    await supervisor.close()


async def test_a_caller_that_gives_up_waiting_takes_no_worker(supervisor: Supervisor) -> None:
    tasks = [asyncio.create_task(serve(supervisor)) for _ in range(4)]
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    assert await tokens_of(await tasks[3]) == 5
    await filled(supervisor)
    assert len(supervisor.stats().processes) == 4, "zygote, one replica, two waiting"


async def test_closing_refuses_those_who_wait(nothing_left: None) -> None:
    supervisor = Supervisor(WorkerSettings(engine="fake"))
    await supervisor.start()
    task = asyncio.create_task(serve(supervisor))
    await asyncio.sleep(0)
    await supervisor.close()
    with pytest.raises(ModelLoadFailed, match="daemon stops"):
        await task


async def test_a_closed_supervisor_refuses(nothing_left: None) -> None:
    supervisor = Supervisor(WorkerSettings(engine="fake"))
    await supervisor.start()
    await supervisor.close()
    with pytest.raises(ModelLoadFailed, match="daemon stops"):
        await serve(supervisor)


async def test_many_lives_leave_nothing_behind(supervisor: Supervisor) -> None:
    await filled(supervisor)
    descriptors = len(descriptors_of())
    (zygote,) = pids(supervisor, "zygote")
    zygote_descriptors = len(descriptors_of(zygote))
    for number in range(12):
        replica = await serve(supervisor)
        assert await tokens_of(replica) == 5
        if number % 2:
            os.kill(replica.worker.process.pid, signal.SIGKILL)
            await replica.lost
        await replica.close()
    await filled(supervisor)
    assert len(descriptors_of()) == descriptors
    assert len(descriptors_of(zygote)) == zygote_descriptors
    assert children() == {zygote}


async def test_children_inherit_nothing(nothing_left: None) -> None:
    supervisor = Supervisor(WorkerSettings(engine="fake"))
    with tempfile.NamedTemporaryFile() as secret:
        os.set_inheritable(secret.fileno(), True)
        await supervisor.start()
        await filled(supervisor)
        for process in supervisor.stats().processes:
            targets = descriptors_of(process.pid)
            assert secret.name not in targets
            kinds = sorted(target.split(":")[0] for target in targets)
            if process.role == "waiting":
                assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
    await supervisor.close()


async def test_signals_of_the_terminal_and_the_service_manager_are_the_daemons(
    supervisor: Supervisor,
) -> None:
    await filled(supervisor)
    replica = await serve(supervisor)
    for process in supervisor.stats().processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    assert await tokens_of(replica) == 5
    assert await tokens_of(await serve(supervisor)) == 5
    assert supervisor.stats().zygote_starts == 1


async def test_a_worker_is_the_first_to_go_when_memory_runs_out(supervisor: Supervisor) -> None:
    await filled(supervisor)
    for pid in pids(supervisor, "waiting"):
        assert oom_score_adjust(pid) == 500


DAEMON = """
import asyncio
from pathlib import Path
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from tests.engine.fakes import manifest, next_replica_id

async def main():
    supervisor = Supervisor(WorkerSettings(engine="fake"))
    await supervisor.start()
    replica = await supervisor.attach(next_replica_id(), manifest(), (), EngineOptions(threads=1))
    await replica.begin()
    print("PIDS", *(process.pid for process in supervisor.stats().processes), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "even a stopped worker"])
async def test_everything_ends_with_a_killed_daemon(stopped: bool) -> None:
    daemon = subprocess.Popen(  # noqa: ASYNC220 - its first lines are all that is waited for
        [sys.executable, "-c", DAEMON],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert daemon.stdout is not None
    try:
        line = next(line for line in daemon.stdout if line.startswith("PIDS"))
        left = [int(pid) for pid in line.split()[1:]]
        assert len(left) >= 2
        if stopped:
            os.kill(left[-1], signal.SIGSTOP)
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    await eventually(lambda: not any(alive(pid) for pid in left), "all its processes are gone")


async def test_in_process_needs_no_process(nothing_left: None) -> None:
    supervisor = Supervisor(WorkerSettings(engine="fake", in_process=True))
    await supervisor.start()
    replica = await supervisor.attach(next_replica_id(), manifest(), (), OPTIONS)
    assert isinstance(replica, LocalReplica)
    await replica.begin()
    assert len(tokens([event async for event in replica.generate(state())])) == 5
    assert supervisor.stats().processes == ()
    await replica.close()
    await supervisor.close()


def test_a_model_cannot_run_in_process() -> None:
    with pytest.raises(ValueError, match="in_process needs engine = 'fake'"):
        WorkerSettings(in_process=True)


def test_durations_are_written_as_people_do() -> None:
    settings = WorkerSettings.model_validate({"hang_timeout_seconds": "2m", "stop_timeout_seconds": "500ms"})
    assert (settings.hang_timeout_seconds, settings.stop_timeout_seconds) == (120.0, 0.5)
