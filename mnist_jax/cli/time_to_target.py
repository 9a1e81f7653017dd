"""Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mnist_jax.cli.lab_options import TimeToTargetOptions
from mnist_jax.cli.program import report, require_at_least, require_folder, telling
from mnist_jax.errors import InputError
from mnist_jax.lab import baselines, benchmark, tables, timings
from mnist_jax.lab.records import TimeToTarget, measured_on, only_writer
from mnist_jax.recipes.config import make_config


def main(options: TimeToTargetOptions) -> None:
    """Measures, prints and writes."""
    config = make_config("fast", arch=options.arch)
    reference = make_config("reference", arch=options.arch if options.arch in tables.NOTEBOOKS else "bn_dropout")
    require_at_least(1, options, "rounds")
    require_folder(options.json, "--json")
    if importlib.util.find_spec("torch") is None:
        raise InputError("PyTorch is not installed, and it is what to compare with: pip install torch")
    seconds, torch = {"cold": [], "warm": []}, []
    with (
        only_writer(options.json),
        tempfile.TemporaryDirectory() as directory,
        benchmark.sharing(),
        telling() as tell,
    ):
        for i in range(options.rounds):
            cache = Path(directory) / f"cache-{i}"
            for name in seconds:
                tell(f"round {i + 1} of {options.rounds}: ours, cache {name}")
                seconds[name].append(ours(options.arch, Path(directory) / f"{name}-{i}", cache))
            tell(f"round {i + 1} of {options.rounds}: the notebook in PyTorch")
            torch.append(baselines.epoch_seconds(reference.arch, reference.batch_size))
    result = TimeToTarget(
        arch=options.arch,
        epochs=config.epochs,
        cold=seconds["cold"],
        warm=seconds["warm"],
        torch=torch,
        torch_epochs=reference.epochs,
        torch_seconds_scaled=[reference.epochs * sum(epoch.values()) for epoch in torch],
        environment=measured_on(),
        torch_arch=reference.arch,
    )
    report(timings.time_table([result]), result, options.json)


def ours(arch: str, run_dir: Path, cache: Path) -> float:
    """Seconds of a whole training process."""
    code = "from mnist_jax.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "--recipe", "fast", "--arch", arch, "--run-dir", run_dir]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
