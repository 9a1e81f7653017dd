"""Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch."""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from mnist_jax.cli.program import require_at_least, require_folder, write_json
from mnist_jax.errors import InputError
from mnist_jax.lab import notebook
from mnist_jax.lab.tables import NOTEBOOKS
from mnist_jax.recipes.config import make_config
from mnist_jax.runs.directory import SUMMARY
from mnist_jax.runtime import environment


@dataclasses.dataclass(frozen=True)
class Options:
    """Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch.

    Ours is the whole of `train --recipe fast`, with the compilation cache empty (cold) and filled (warm).
    The notebook's 15 epochs are scaled from one: a training epoch through its data loader and a pass over the test
    images; the start of its process is not counted. In turns; run it with nothing else running. A network that is none
    of the notebooks' is timed against the last of theirs, bn_dropout.

    Exit status: 0 done, 2 bad input, 4 cannot write.

    Example: mnist-jax time-to-target --arch swift --json results/time-to-target-swift.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    rounds: int = 3
    """How often each has its turn."""
    json: Path | None = None
    """File to write every measurement to."""


def main(options: Options) -> None:
    """Measures, prints and writes."""
    config = make_config("fast", arch=options.arch)
    reference = make_config("reference", arch=options.arch if options.arch in NOTEBOOKS else "bn_dropout")
    require_at_least(1, options, "rounds")
    require_folder(options.json, "--json")
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed, and it is what to compare with: pip install torch")
    result: dict[str, Any] = {"arch": options.arch, "cold": [], "warm": [], "torch": [], "seconds_of": []}
    with tempfile.TemporaryDirectory() as directory:
        for i in range(options.rounds):
            cache = Path(directory) / f"cache-{i}"
            for name in ("cold", "warm"):
                run_dir = Path(directory) / f"{name}-{i}"
                result[name].append(ours(options.arch, run_dir, cache))
                spent = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))["seconds_of"]
                result["seconds_of"].append({"start": name, **spent})
            result["torch"].append(notebook.epoch_seconds(reference.arch, reference.batch_size))
    epochs = reference.epochs
    whole = [epochs * (epoch["train_seconds"] + epoch["test_seconds"]) for epoch in result["torch"]]
    result |= {
        "epochs": config.epochs,
        "torch_arch": reference.arch,
        "torch_epochs": epochs,
        "torch_seconds_scaled": whole,
        "environment": environment() | {"load_average": os.getloadavg()},
    }
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"PyTorch, the notebook's recipe, {epochs} epochs, scaled from one: {statistics.median(whole):.0f} s")
    for name in ("cold", "warm"):
        times = [b / a for a, b in zip(result[name], whole, strict=True)]
        console.print(
            f"ours, recipe fast, {config.epochs} epochs, {name} start: {statistics.median(result[name]):.1f} s, "
            f"{statistics.median(times):.1f} times as fast"
        )
    write_json(options.json, result)


def ours(arch: str, run_dir: Path, cache: Path) -> float:
    """Seconds of a whole training process."""
    code = "from mnist_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--recipe", "fast", "--arch", arch, "--run-dir", run_dir]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
