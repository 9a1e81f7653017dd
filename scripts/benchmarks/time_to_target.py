"""Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timings
import torch_networks

from mnist_jax.cli import run
from mnist_jax.errors import InputError
from mnist_jax.recipes.config import make_config

NOTEBOOKS = ("basic", "lighter", "gap", "bn_dropout")


@dataclasses.dataclass(frozen=True)
class Options:
    """Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch.

    Ours is the whole of `train --recipe fast`, with the compilation cache empty (cold) and filled (warm).
    The notebook's 15 epochs are scaled from one: a training epoch through its data loader and a pass over the test
    images; the start of its process is not counted. They take turns; run it with nothing else running. A network that
    is not in the notebooks is timed against the last of theirs, bn_dropout. Needs PyTorch.

    Example: python scripts/benchmarks/time_to_target.py --arch swift --json results/speed/time-to-target-swift.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    rounds: int = 3
    """Number of turns of each side."""
    json: Path | None = None
    """File for all measurements."""


def main(options: Options) -> None:
    """Measures, prints and writes."""
    config = make_config("fast", arch=options.arch)
    reference = make_config("reference", arch=options.arch if options.arch in NOTEBOOKS else "bn_dropout")
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed, and it is what to compare with: pip install torch")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # Both sides share the memory of a GPU.
    seconds, torch = {"cold": [], "warm": []}, []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(options.rounds):
            cache = Path(directory) / f"cache-{i}"
            for name in seconds:
                timings.tell(f"round {i + 1} of {options.rounds}: ours, cache {name}")
                seconds[name].append(ours(options.arch, Path(directory) / f"{name}-{i}", cache))
            timings.tell(f"round {i + 1} of {options.rounds}: the notebook in PyTorch")
            torch.append(torch_networks.epoch_seconds(reference.arch, reference.batch_size))
    record = {
        "arch": options.arch,
        "epochs": config.epochs,
        **seconds,
        "torch": torch,
        "torch_epochs": reference.epochs,
        "torch_seconds_scaled": [reference.epochs * sum(epoch.values()) for epoch in torch],
        "environment": timings.measured_on(),
        "torch_arch": reference.arch,
        "version": 1,
    }
    timings.report(timings.time_table([record]), record, options.json)


def ours(arch: str, run_dir: Path, cache: Path) -> float:
    """Seconds of a whole training process."""
    code = "from mnist_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--recipe", "fast", "--arch", arch, "--run-dir", run_dir]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    run(main, Options)
