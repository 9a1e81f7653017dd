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

import numpy as np
from rich.console import Console

from mnist_jax import data
from mnist_jax.cli.program import require_at_least, require_folder, write_json
from mnist_jax.errors import InputError
from mnist_jax.lab import baselines
from mnist_jax.lab.tables import NOTEBOOKS
from mnist_jax.recipes import make_config
from mnist_jax.runs.directory import SUMMARY
from mnist_jax.runtime import cores, environment

STEPS = 200


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
            result["torch"].append(notebook_epoch(reference.arch, reference.batch_size))
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


def notebook_epoch(arch: str, batch_size: int) -> dict[str, float]:
    """Seconds of one epoch as the notebook has it, on images read one by one through a `DataLoader`.

    Returns:
      `train_seconds` and `test_seconds` of an epoch, and `steps_seconds` of 200 steps on images that lie ready.
    """
    import torch
    from PIL import Image

    class Images(torch.utils.data.Dataset):
        """What torchvision's MNIST with `ToTensor` and `Normalize` does for each image."""

        def __init__(self, split: data.Split) -> None:
            self.images, self.labels = torch.from_numpy(split.images[..., 0]), split.labels.tolist()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            image = Image.fromarray(self.images[i].numpy())
            pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(28, 28, 1)
            tensor = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
            return tensor.sub_(data.MEAN).div_(data.STD), self.labels[i]

    torch.set_num_threads(len(cores()))
    mnist = data.load_mnist()
    train, test = (
        torch.utils.data.DataLoader(Images(split), batch_size, shuffle=shuffle)
        for split, shuffle in ((mnist.train, True), (mnist.test, False))
    )
    network = baselines.torch_network(arch)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log_softmax(network(images), 1), labels).backward()
        optimizer.step()

    def seconds(batches: Any, call: Any) -> float:
        start = time.perf_counter()
        for images, labels in batches:
            call(images, labels)
        return time.perf_counter() - start

    ready = next(iter(train))
    seconds([ready] * 10, step)
    steps_seconds = seconds([ready] * STEPS, step)
    train_seconds = seconds(train, step)
    network.eval()
    with torch.no_grad():
        test_seconds = seconds(test, lambda images, labels: network(images).argmax(1).eq(labels).sum().item())
    return {"train_seconds": train_seconds, "test_seconds": test_seconds, "steps_seconds": steps_seconds}
