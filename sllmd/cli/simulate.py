"""``sllmd simulate``: a virtual cluster, to compare policies and to choose hardware. Needs no daemon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.cli.session import Session, command
from sllmd.cli.tables import Column
from sllmd.core.errors import InvalidRequest, PathNotFound, StoreError
from sllmd.core.units import format_seconds
from sllmd.scheduler.facts import Model
from sllmd.simulator.hardware import GB, KINDS, Hardware, Kind
from sllmd.simulator.plots import svg
from sllmd.simulator.policies import POLICIES
from sllmd.simulator.results import Result, summarise
from sllmd.simulator.simulation import simulate as run_simulation
from sllmd.simulator.traces import LENGTHS, Arrival, gamma_bursts, read_trace

app = typer.Typer()


def _seconds(row: Any, key: str) -> str:
    return "-" if row[key] is None or row[key] != row[key] else format_seconds(row[key])


def _loads(row: Any) -> str:
    return " ".join(f"{tier} {count}" for tier, count in row["loads"].items()) or "-"


_COLUMNS = (
    Column("POLICY", lambda row: str(row["policy"])),
    Column("REQUESTS", lambda row: str(row["requests"]), right=True),
    Column("MEAN", lambda row: _seconds(row, "startup_mean_seconds"), right=True),
    Column("±", lambda row: _seconds(row, "startup_mean_seconds_ci95"), wide=True, right=True),
    Column("P50", lambda row: _seconds(row, "startup_p50_seconds"), right=True),
    Column("P95", lambda row: _seconds(row, "startup_p95_seconds"), right=True),
    Column("P99", lambda row: _seconds(row, "startup_p99_seconds"), right=True),
    Column("± ", lambda row: _seconds(row, "startup_p99_seconds_ci95"), wide=True, right=True),
    Column("COLD", lambda row: f"{row['cold_share']:.0%}", right=True),
    Column("UTIL", lambda row: f"{row['utilisation']:.0%}", right=True),
    Column("FAILED", lambda row: str(row["failed"]), right=True),
    Column("MOVED", lambda row: str(row["moved"]), right=True),
    Column("STOPPED", lambda row: str(row["preempted"]), wide=True, right=True),
    Column("LOADS", _loads),
)


@command(app, "simulate")
def simulate(
    session: Session,
    trace: Annotated[
        Path | None,
        typer.Option(help="A trace in Azure's or BurstGPT's format; without one, bursts are made."),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(POLICIES)}; may be repeated. Default: all.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, max=4096, help="Servers.")] = 4,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Devices per server.")] = 4,
    device_gb: Annotated[float, typer.Option(min=1, help="Memory of a device.")] = 48,
    dram_gb: Annotated[float, typer.Option(min=0, help="DRAM tier of a server.")] = 512,
    ssd_gb_per_second: Annotated[float, typer.Option(min=0.01, help="Bandwidth of a server's SSD.")] = 5,
    dram_gb_per_second: Annotated[float, typer.Option(min=0.01, help="From DRAM to one device.")] = 20,
    network_gbit_per_second: Annotated[float, typer.Option(min=0.01, help="Between servers.")] = 10,
    models: Annotated[int, typer.Option(min=1, max=100_000, help="Models that are served.")] = 32,
    model: Annotated[str, typer.Option(help=f"What they are like: {', '.join(KINDS)}.")] = "opt-6.7b",
    rows: Annotated[int, typer.Option(min=1, help="Requests that one replica runs together.")] = 1,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests per second, without a trace.")] = 0.8,
    cv: Annotated[float, typer.Option(min=0.1, help="Burstiness of the made requests.")] = 8.0,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the made trace.")] = 600,
    lengths: Annotated[str, typer.Option(help=f"Of made requests: {', '.join(LENGTHS)}.")] = "gsm8k",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs per policy.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Write plots there, as SVG.")] = None,
) -> None:
    """Try placement policies on a virtual cluster: the scheduler's own decisions, calibrated bandwidths."""
    chosen = policy or list(POLICIES)
    _check("policy", chosen, POLICIES)
    _check("model", [model], KINDS)
    _check("lengths", [lengths], LENGTHS)
    hardware = Hardware(
        nodes=nodes,
        devices=devices,
        device_bytes=round(device_gb * GB),
        dram_bytes=round(dram_gb * GB),
        to_device=dram_gb_per_second * 1e9,
        from_ssd=ssd_gb_per_second * 1e9,
        network=network_gbit_per_second * 1e9 / 8,
    )
    kind = KINDS[model]
    kind = Kind(kind.label, kind.load_bytes, kind.device_bytes, kind.pace, rows)
    served = [(kind, kind.model(index)) for index in range(models)]
    names = [each.name for _, each in served]
    lines = _lines(trace) if trace is not None else None

    def arrivals(seed: int) -> list[Arrival]:
        if lines is not None:
            return read_trace(lines, names, seed=seed)
        return gamma_bursts(
            names, requests_per_second=rate, cv=cv, seconds=seconds, lengths=LENGTHS[lengths], seed=seed
        )

    results = _results(hardware, served, [arrivals(seed) for seed in range(seeds)], chosen)
    if plot is not None:
        _write(plot, svg(results))
    session.show_rows(
        [summarise(runs).as_json() for runs in results.values()], _COLUMNS, empty="nothing was run"
    )


def _results(
    hardware: Hardware,
    served: Sequence[tuple[Kind, Model]],
    traces: Sequence[Sequence[Arrival]],
    policies: Sequence[str],
) -> dict[str, list[Result]]:
    """The same traces for every policy: seed by seed they differ in nothing else."""
    return {
        name: [run_simulation(hardware, served, trace, name, seed) for seed, trace in enumerate(traces)]
        for name in policies
    }


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise PathNotFound(f"{path} is not there", hint="name a trace that is, or none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read as a trace: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from None


def _check(option: str, given: Sequence[str], known: Sequence[str] | dict[str, Any]) -> None:
    for each in given:
        if each not in known:
            raise InvalidRequest(f"--{option} {each}: it is one of {', '.join(known)}")
