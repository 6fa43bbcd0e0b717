import pytest

from sllmd.engine.messages import Failed
from sllmd.engine.postmortem import Cause, explain, hint_for, last_error

TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "worker.py", line 1, in <module>',
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
    "Exception ignored in sys.unraisablehook",
]


@pytest.mark.parametrize(
    ("exit_code", "output", "last_words", "killed", "message", "hint"),
    [
        (-9, ["Error: x"], Failed("mine", None), Cause("ours", "do"), "ours", "do"),
        (1, TRACEBACK, Failed("ValueError: bad", "fix it"), None, "ValueError: bad", "fix it"),
        (
            1,
            [],
            Failed("RuntimeError: CUDA out of memory", None),
            None,
            "RuntimeError: CUDA out",
            "cache_tokens",
        ),
        (-9, [], None, None, "the worker was killed (SIGKILL)", "out-of-memory"),
        (
            -11,
            ["Fatal Python error: Segmentation fault", ""],
            None,
            None,
            "(SIGSEGV): Fatal Python error",
            None,
        ),
        (
            -6,
            ["terminate called after throwing 'std::bad_alloc'"],
            None,
            None,
            "(SIGABRT): term",
            "exhausted",
        ),
        (-64, [], None, None, "the worker crashed (SIGRTMAX)", None),
        (-99, [], None, None, "the worker crashed (signal 99)", None),
        (
            1,
            TRACEBACK[:3],
            None,
            None,
            "status 1: torch.OutOfMemoryError: CUDA",
            "cache_tokens",
        ),
        (3, [], None, None, "the worker exited with status 3", None),
        (None, ["bye"], None, None, "the worker is gone: bye", None),
    ],
)
def test_the_best_witness_is_heard(
    exit_code: int | None,
    output: list[str],
    last_words: Failed | None,
    killed: Cause | None,
    message: str,
    hint: str | None,
) -> None:
    cause = explain(
        "the worker", exit_code=exit_code, output=output, last_words=last_words, killed_because=killed
    )
    assert message in cause.message
    if hint is None:
        assert cause.hint is None
    else:
        assert hint in (cause.hint or "")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ([], None),
        (["  ", ""], None),
        (["loading", "done"], "done"),
        (["ValueError: x", "some note"], "ValueError: x"),
        (["a.b.CustomError", "note"], "a.b.CustomError"),
        (["/usr/bin/python: error: no such file", "note"], "/usr/bin/python: error: no such file"),
    ],
)
def test_last_error(output: list[str], line: str | None) -> None:
    assert last_error(output) == line


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "dram_budget"),
        ("OSError: [Errno 12] Cannot allocate memory", "dram_budget"),
        ("RuntimeError: CUDA error: an illegal memory access", "nvidia-smi"),
        ("ValueError: nothing of the kind", None),
    ],
)
def test_hints(message: str, part: str | None) -> None:
    hint = hint_for(message)
    assert hint is None if part is None else part in (hint or "")
