"""``scripts/bench load``: a checkpoint from SSD into memory, against the disk's limit and other loaders."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.anchors import make_cold, measure, warm_memory
from benchmarks.environments import environment, log, peer_variables
from benchmarks.models import model_directory
from benchmarks.pages import huge_pages
from benchmarks.report import Goal, Report, ratios, rotated
from benchmarks.store import imported
from benchmarks.tier_load import data_files

GOALS = (
    Goal("load.ssd_ratio_1g", "ratio", ">=", 0.90),
    Goal("load.ssd_ratio_4g", "ratio", ">=", 0.90),
    Goal("load.cpu", "CPU-s/GB", "<=", 0.06),
    Goal("load.cpu_verified", "CPU-s/GB", "<=", 0.15),
    Goal("load.extra_memory_ratio", "ratio", "<=", 0.02),
    Goal("load.vs_best_peer", "ratio", ">=", 1.0),
)
SIZES = {"1g": "random-1g", "4g": "random-4g"}
PEERS = (
    "torch.load",
    "safetensors load_file",
    "from_pretrained",
    "runai-model-streamer",
    "fastsafetensors",
    "tensorizer",
)
OURS = {
    "sllmd": ("recycled", "always"),
    "sllmd, fresh slabs": ("fresh", "always"),
    "sllmd, unverified": ("recycled", "never"),
    "sllmd, small pages": ("recycled", "always"),
}
ANCHORS = {"sllmd": "anchor", "sllmd, small pages": "anchor, small pages"}
"""Which anchor is read right before whom."""
PEER_FILES = {"torch.load": "model.bin", "tensorizer": "model.tensors"}
LOADER_TIMEOUT_SECONDS = 600.0

Found = dict[str, dict[int, dict[str, float]]]
"""Loader -> round -> what it printed."""


def run(rounds: int) -> Report:
    """All sizes, all loaders, ``rounds`` times."""
    report = Report(GOALS)
    found = {size: _measure_size(model, rounds) for size, model in SIZES.items()}
    for size, measured in found.items():
        _rows(report, size, measured)
        ratio = ratios(_seconds(measured["anchor"]), _loaded(measured["sllmd"]))
        report.value(f"load.ssd_ratio_{size}", ratio, rounds)
    everything = list(found.values())
    report.value("load.cpu", _cpu_per_gb(everything, "sllmd, unverified"), rounds * len(SIZES))
    report.value("load.cpu_verified", _cpu_per_gb(everything, "sllmd"), rounds * len(SIZES))
    extra = [
        sample["extra_bytes"] / sample["bytes"]
        for measured in everything
        for ours in OURS
        for sample in measured[ours].values()
    ]
    whole = len(extra) == rounds * len(SIZES) * len(OURS)
    report.value("load.extra_memory_ratio", [max(extra)] if whole else [], 1)
    report.value("load.vs_best_peer", _vs_best_peer(everything, rounds), 1)
    return report


def _measure_size(model: str, rounds: int) -> Found:
    directory = model_directory(model)
    files = data_files(imported(model))
    size_bytes = sum(file.stat().st_size for file in files)
    python = _peer_python(directory)
    found: Found = defaultdict(dict)
    for index in range(rounds):
        for name in rotated([*OURS, *PEERS], index):
            warm_memory(int(1.2 * size_bytes))
            if name in ANCHORS:
                # Right before, since a disk's limit may drift within a round.
                found[ANCHORS[name]][index] = measure(files[0], huge_pages=name == "sllmd")
            sample = _ours(model, name) if name in OURS else _peer(python, name, directory)
            if sample is not None:
                found[name][index] = sample
                log(f"{model} round {index + 1}: {name}: {sample['seconds']:.3f} s")
    return found


def _peer_python(directory: Path) -> Path | None:
    try:
        python = environment("loaders")
        _run_peer(python, "prepare", directory)
    except subprocess.CalledProcessError as error:
        log(f"the peers' environment does not work: {error}\n{error.stderr}")
        return None
    return python


def _ours(model: str, name: str) -> dict[str, float] | None:
    slabs, verify = OURS[name]
    command = ["-m", "benchmarks.tier_load", model, "--slabs", slabs, "--verify", verify]
    with huge_pages("never" if name == "sllmd, small pages" else "advise"):
        return _parsed(lambda: _run([sys.executable, *command]))


def _peer(python: Path | None, name: str, directory: Path) -> dict[str, float] | None:
    if python is None:
        return None
    make_cold(directory / PEER_FILES.get(name, "model.safetensors"))
    return _parsed(lambda: _run_peer(python, name, directory))


def _run_peer(python: Path, what: str, directory: Path) -> str:
    """-P and another directory: in ours, peers would import what lies there."""
    program = Path(__file__).with_name("peers_load.py")
    return _run([python, "-P", program, what, directory], cwd=directory, env=peer_variables())


def _run(command: Sequence[str | Path], **how: Any) -> str:
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=LOADER_TIMEOUT_SECONDS, **how
    )
    return said.stdout


def _parsed(run_loader: Callable[[], str]) -> dict[str, float] | None:
    """What a fresh process prints last; None, said aloud, when it fails."""
    try:
        found: dict[str, float] = json.loads(run_loader().splitlines()[-1])
    except subprocess.CalledProcessError as error:
        log(f"{error}:\n{error.stderr[-2000:]}")
        return None
    except subprocess.TimeoutExpired as error:
        log(str(error))
        return None
    return found


def _seconds(samples: dict[int, dict[str, float]]) -> dict[int, float]:
    """Until every byte is there and touched through the mapping that its user has."""
    return {index: sample["seconds"] + sample.get("touch_seconds", 0) for index, sample in samples.items()}


def _loaded(samples: dict[int, dict[str, float]]) -> dict[int, float]:
    """Until every byte is in DRAM."""
    return {index: sample["seconds"] for index, sample in samples.items()}


def _cpu_per_gb(everything: Sequence[Found], name: str) -> list[float]:
    return [
        sample["cpu_seconds"] / sample["bytes"] * 1e9
        for measured in everything
        for sample in measured[name].values()
    ]


def _vs_best_peer(everything: Sequence[Found], rounds: int) -> list[float]:
    """Of the best peer's and our median time, the worse size; nothing when a round of a peer is missing."""
    worst: list[float] = []
    for measured in everything:
        if any(len(measured[name]) < rounds for name in (*PEERS, "sllmd")):
            return []
        per_peer = [
            statistics.median(ratios(_seconds(measured[peer]), _seconds(measured["sllmd"]))) for peer in PEERS
        ]
        worst.append(min(per_peer))
    return [min(worst)]


def _rows(report: Report, size: str, measured: Found) -> None:
    anchor, small = measured["anchor"], measured["anchor, small pages"]
    report.row(f"{size} anchor: O_DIRECT, huge pages", list(_seconds(anchor).values()), "s")
    report.row(f"{size} anchor: O_DIRECT, small pages", list(_seconds(small).values()), "s")
    memmove = [sample["memmove_gb_per_s"] for sample in anchor.values()]
    report.row(f"{size} anchor: memmove", memmove, "GB/s")
    for name in (*OURS, *PEERS):
        samples = measured[name].values()
        report.row(
            f"{size} {name}",
            list(_seconds(measured[name]).values()),
            "s",
            loaded_seconds=[sample["seconds"] for sample in samples],
            cpu_seconds_per_gb=[sample["cpu_seconds"] / sample["bytes"] * 1e9 for sample in samples],
            extra_or_peak_bytes=[sample.get("extra_bytes", sample.get("peak_bytes")) for sample in samples],
            direct_io=[sample["direct_io"] for sample in samples if "direct_io" in sample],
        )
