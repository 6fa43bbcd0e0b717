"""Requests over time: made with a coefficient of variation, or read from public traces.

* Azure LLM inference trace 2023 (Patel et al., Splitwise, ISCA 2024; CC-BY): ``TIMESTAMP,ContextTokens,
  GeneratedTokens``.
* BurstGPT (Wang et al., 2024; CC-BY-4.0): ``Timestamp,Model,Request tokens,Response tokens,...`` with
seconds.

Neither says which of many models was asked for: models are drawn with a Zipf popularity, in bursts, as the
paper draws functions from the Azure serverless trace.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sllmd.core.errors import InvalidRequest
from sllmd.core.ids import ModelName


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace."""

    seconds: float
    model: ModelName
    tokens_in: int
    tokens_out: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths of prompts and answers: their means, and the spread of the logarithm."""

    tokens_in: float
    tokens_out: float
    spread: float = 0.6
    tokens_max: int = 2048

    def draw(self, chance: random.Random) -> tuple[int, int]:
        """One prompt's and one answer's length."""
        return self._one(chance, self.tokens_in), self._one(chance, self.tokens_out)

    def _one(self, chance: random.Random, mean: float) -> int:
        drawn = chance.lognormvariate(math.log(mean) - self.spread**2 / 2, self.spread)
        return max(1, min(round(drawn), self.tokens_max))


LENGTHS = {"gsm8k": Lengths(60, 120), "sharegpt": Lengths(160, 340, 0.9)}
"""Short questions with worked answers, and chats: approximations of the two data sets' lengths."""


def gamma_bursts(
    models: Sequence[ModelName],
    *,
    requests_per_second: float,
    cv: float,
    seconds: float,
    lengths: Lengths,
    seed: int,
) -> list[Arrival]:
    """Each model's requests with Gamma gaps of that coefficient of variation, all equally popular.

    The first gap is drawn as of a process that has run for ever: the longer a gap, the likelier it is that
    the trace begins in it, at a uniform place.
    """
    chance = random.Random(f"gamma {seed}")
    shape = 1 / (cv * cv)
    mean_gap = len(models) / requests_per_second
    found: list[Arrival] = []
    for model in models:
        # A gap seen from a random instant is drawn in proportion to its length: Gamma with shape + 1.
        now = chance.gammavariate(shape + 1, mean_gap / shape) * chance.random()
        while now < seconds:
            found.append(Arrival(now, model, *lengths.draw(chance)))
            now += chance.gammavariate(shape, mean_gap / shape)
    return sorted(found, key=lambda arrival: (arrival.seconds, arrival.model))


def read_azure(lines: Iterable[str], models: Sequence[ModelName], *, seed: int) -> list[Arrival]:
    """A trace in Azure's format. Raises InvalidRequest, naming the line, when it is none."""
    rows = _rows(lines, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    timed = [
        (
            number,
            _instant(number, row["TIMESTAMP"]),
            _count(number, row["ContextTokens"]),
            _count(number, row["GeneratedTokens"]),
        )
        for number, row in rows
    ]
    begin = min((seconds for _, seconds, _, _ in timed), default=0.0)
    return _with_models([(seconds - begin, i, o) for _, seconds, i, o in timed], models, seed)


def read_burstgpt(lines: Iterable[str], models: Sequence[ModelName], *, seed: int) -> list[Arrival]:
    """A trace in BurstGPT's format; answers of no tokens (failures) are left out. Raises InvalidRequest."""
    timed = []
    for number, row in _rows(lines, ("Timestamp", "Request tokens", "Response tokens")):
        produced = _count(number, row["Response tokens"])
        if produced:
            seconds = float(_count(number, row["Timestamp"]))
            timed.append((seconds, _count(number, row["Request tokens"]), produced))
    begin = min((seconds for seconds, _, _ in timed), default=0.0)
    return _with_models([(seconds - begin, i, o) for seconds, i, o in timed], models, seed)


def read_trace(lines: Sequence[str], models: Sequence[ModelName], *, seed: int) -> list[Arrival]:
    """A trace in either format, told apart by its head. Raises InvalidRequest."""
    head = lines[0] if lines else ""
    if head.lstrip("\ufeff").startswith("TIMESTAMP"):
        return read_azure(lines, models, seed=seed)
    if head.lstrip("\ufeff").startswith("Timestamp"):
        return read_burstgpt(lines, models, seed=seed)
    raise InvalidRequest(
        "the trace's first line is neither Azure's nor BurstGPT's",
        hint="it begins with `TIMESTAMP,ContextTokens,GeneratedTokens` or `Timestamp,Model,Request tokens`",
    )


def _rows(lines: Iterable[str], needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(line.lstrip("\ufeff") for line in lines)
    missing = set(needed) - set(reader.fieldnames or ())
    if missing:
        raise InvalidRequest(f"the trace has no column `{min(missing)}`")
    return [(reader.line_num, row) for row in reader]


def _instant(line: int, text: str | None) -> float:
    try:
        # Azure writes seven digits of a second; fromisoformat takes six.
        return datetime.fromisoformat(f"{(text or '')[:26]}+00:00").timestamp()
    except ValueError:
        raise InvalidRequest(f"line {line} of the trace has no timestamp: `{text}`") from None


def _count(line: int, text: str | None) -> int:
    try:
        return max(int(float(text or "")), 0)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"line {line} of the trace has no number: `{text}`") from None


def _with_models(
    timed: Sequence[tuple[float, int, int]], models: Sequence[ModelName], seed: int
) -> list[Arrival]:
    """Models by popularity, the same one for a run of requests that a Pareto law draws."""
    chance = random.Random(f"models {seed}")
    weights = [1 / (rank + 1) for rank in range(len(models))]
    popular = list(models)
    chance.shuffle(popular)
    found, left, model = [], 0, popular[0]
    for seconds, tokens_in, tokens_out in sorted(timed):
        if left <= 0:
            model = chance.choices(popular, weights)[0]
            left = min(int(chance.paretovariate(1.2)), 50)
        left -= 1
        found.append(Arrival(seconds, model, max(tokens_in, 1), max(tokens_out, 1)))
    return found
