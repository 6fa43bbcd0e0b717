"""Imports that are killed, crowded out, refused by the system or interrupted: nothing half-appears."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllmd.core.errors import BusyError, ModelNotFound, StoreError
from sllmd.store.store import Store
from tests.store.models import as_bytes, llama_tensors, read_back, run_import, snapshot, write_model

PRELUDE = """
import os, resource, sys
from pathlib import Path
from sllmd.core.errors import SllmdError
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
root, source = sys.argv[1:]
def halfway(progress):
    if progress.bytes_done * 2 > progress.bytes_total:
        print("halfway", flush=True)
        sys.stdin.read()
def tell(call):
    try:
        call()
    except SllmdError as error:
        print(type(error).__name__, error)
    else:
        print("done")
"""


def python(code: str, root: Path, source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(root), str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def output_of(code: str, root: Path, source: Path) -> str:
    with python(code, root, source) as child:
        output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return output


STOP_HALFWAY = (
    "import_checkpoint(Store(Path(root)), source, name={name!r}, in_place={in_place}, replace=True, "
    "on_progress=halfway)"
)


def kill_halfway(store: Store, source: Path, *, name: str = "m", in_place: bool = False) -> None:
    with python(STOP_HALFWAY.format(name=name, in_place=in_place), store.root, source) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "halfway\n"
        child.send_signal(signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("in_place", [False, True])
def test_an_import_that_is_killed_leaves_nothing_and_the_next_one_works(
    store: Store, tmp_path: Path, in_place: bool
) -> None:
    source = write_model(tmp_path / "m")
    kill_halfway(store, source, in_place=in_place)
    assert store.models() == []
    with pytest.raises(ModelNotFound):
        store.resolve("m")
    checkpoint = run_import(store, source)
    assert read_back(checkpoint) == as_bytes(llama_tensors())
    assert list((store.root / "partial").iterdir()) == []


def test_a_killed_import_leaves_the_model_of_that_name_as_it_was(store: Store, tmp_path: Path) -> None:
    before = run_import(store, write_model(tmp_path / "old"))
    kill_halfway(store, write_model(tmp_path / "new", llama_tensors(seed=9)))
    assert Store(store.root).resolve("m") == before
    store.verify("m", lambda done, total: None)


def test_what_a_killed_import_left_is_removed_by_an_import_of_another_name(
    store: Store, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "m")
    kill_halfway(store, source, name="killed")
    assert list((store.root / "partial").iterdir()) != []
    run_import(store, source, "other")
    assert list((store.root / "partial").iterdir()) == []


def test_what_a_process_left_that_was_killed_between_two_steps_of_publishing(
    store: Store, tmp_path: Path
) -> None:
    kept = run_import(store, write_model(tmp_path / "m"), "kept")
    renamed_but_not_named = store.root / "models" / "lost@0123"
    shutil.copytree(kept.directory, renamed_but_not_named)
    unfinished = store.root / "names" / ".lost.json.1.tmp"
    unfinished.write_text("{")
    assert [model.name for model in store.models()] == ["kept"]
    run_import(store, tmp_path / "m", "other")
    assert not renamed_but_not_named.exists()
    assert not unfinished.exists()
    assert store.resolve("kept") == kept


def test_two_imports_of_one_name_at_once_the_second_is_told(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    with python(STOP_HALFWAY.format(name="m", in_place=False), store.root, source) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "halfway\n"
        with pytest.raises(BusyError, match="being imported by another process"):
            run_import(store, source)
        run_import(store, source, "another-name")
        child.communicate(timeout=60)
    assert child.returncode == 0
    assert [model.name for model in store.models()] == ["another-name", "m"]
    assert read_back(store.resolve("m")) == as_bytes(llama_tensors())


def test_an_interrupt_from_the_keyboard_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def interrupt(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_import(store, write_model(tmp_path / "m"), on_progress=interrupt)
    assert snapshot(store.root) == {}


def test_a_disk_that_takes_no_more_leaves_the_store_as_it_was(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source)
    before = snapshot(store.root)
    code = """
    for limit_bytes in (0, 1, 4096, 10_000, 20_000, 40_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
        tell(lambda: import_checkpoint(
            Store(Path(root)), source, name="m", replace=True, on_progress=lambda p: None
        ))
    """
    lines = output_of(code, store.root, source).splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("StoreError cannot import `m`: File too large")
        assert "free some space" in line
    assert snapshot(store.root) == before
    assert list((store.root / "partial").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with 66 MiB: what must stay free, and next to nothing more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    small_disk: Path, tmp_path: Path
) -> None:
    store = Store(small_disk / "store")
    run_import(store, write_model(tmp_path / "small"), "kept")
    before = snapshot(store.root)
    large = write_model(tmp_path / "large", llama_tensors(layers=4, width=512))
    with pytest.raises(StoreError, match=r"needs 12\.\d MB, the store has 6\d\.\d MB free"):
        run_import(store, large)
    assert snapshot(store.root) == before


def test_a_disk_that_fills_up_meanwhile_leaves_the_store_as_it_was(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "store")
    source = write_model(tmp_path / "m")
    run_import(store, source)
    before = snapshot(store.root)

    def fill(progress: object) -> None:
        filler = small_disk / "filler"
        if not filler.exists():
            free_bytes = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(free_bytes - 8192))

    with pytest.raises(StoreError, match="No space left on device"):
        run_import(store, source, replace=True, on_progress=fill)
    assert snapshot(store.root) == before


AS_NOBODY = """
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def reachable(path: Path) -> None:
    """Let every user walk to ``path``: pytest's directories are their owner's alone."""
    for parent in (path, *path.parents[:4]):
        if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)


def test_without_the_right_to_write_the_store_says_so(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source)
    reachable(tmp_path)
    if os.geteuid() != 0:
        (store.root / "partial").chmod(0o500)
        (store.root / "locks").chmod(0o500)
    before = snapshot(store.root)
    code = (
        AS_NOBODY
        + """
store = Store(Path(root))
print(len(store.models()))
tell(lambda: import_checkpoint(store, source, name="n", on_progress=lambda p: None))
tell(lambda: store.alias("a", "m"))
tell(lambda: store.remove("m"))
"""
    )
    lines = output_of(code, store.root, source).splitlines()
    assert lines[0] == "1"
    for line in lines[1:]:
        assert line.startswith("StoreError cannot ")
        assert "Permission denied" in line
    assert len(lines) == 4
    assert snapshot(store.root) == before


def test_without_the_right_to_read_the_source_the_import_says_so(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    reachable(tmp_path)
    (source / "model.safetensors").chmod(0)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o777)
    code = (
        AS_NOBODY
        + """
tell(lambda: import_checkpoint(Store(Path(root)), source, name="n", on_progress=lambda p: None))
"""
    )
    output = output_of(code, tmp_path / "theirs" / "store", source)
    assert output.startswith("StoreError cannot read the model: Permission denied")
    assert "model.safetensors" in output
