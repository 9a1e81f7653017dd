"""Times a training step and scoring against plain Flax and PyTorch.

Each contender runs in its own process, so that none inherits another's threads, allocator settings or caches.
Contenders take turns, because machines drift: ratios are taken within a round, and their median is quoted.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import timings
import torch_networks

from mnist_jax import scoring
from mnist_jax.augment import Distortion
from mnist_jax.cli import run
from mnist_jax.data import Dataset, load_dataset, standardize
from mnist_jax.errors import InputError
from mnist_jax.layers import FLAX
from mnist_jax.recipes.config import Config, make_config
from mnist_jax.recipes.fits import start
from mnist_jax.recipes.values import make_setup
from mnist_jax.runtime import backend, cores, reuse_freed_memory
from mnist_jax.steps import Streams, train_step
from mnist_jax.training import begin, epoch_order, stack, train_epoch


@dataclasses.dataclass(frozen=True)
class Options:
    """Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine.

    Batches of real images, SGD with momentum, dropout and batch norm on, float32. Each contender is a process of its
    own; ratios are taken round by round. Run it with nothing else running. PyTorch computes where JAX does.
    JAX_PLATFORMS=cpu computes on the CPU.

    Example: python scripts/benchmarks/speed.py --arch gap --json results/speed/benchmark-gap.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    batch_size: int = 128
    """Images per training step."""
    contenders: tuple[str, ...] = ()
    """Any of ours, "ours augmented", "ours, 30 seeds", flax, torch, "torch channels-last". If not given: all that can
    run here; those of 30 seeds on a GPU or TPU only."""
    rounds: int = 15
    """Number of turns of each contender."""
    steps: int | None = None
    """Training steps in a turn. If not given: 20 on a CPU, an epoch's on a GPU or TPU."""
    threads: int | None = None
    """Number of cores that each contender may use. If not given: all of this process."""
    json: Path | None = None
    """File for all measurements."""


def main(options: Options) -> None:
    """Measures, prints the table and writes the file."""
    config = make_config("reference", arch=options.arch, batch_size=options.batch_size)
    have_torch = importlib.util.find_spec("torch") is not None
    possible = [name for name in CONTENDERS if have_torch or not name.startswith("torch")]
    for name in options.contenders:
        if name not in possible:
            raise InputError(f"contender {name!r} cannot run here; choose from {', '.join(possible)}")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # The contenders share the memory of a GPU.
    on_cpu = backend() == "cpu"
    chosen = options.contenders or [name for name in possible if not (on_cpu and name == "ours, 30 seeds")]
    names = [name for name in possible if name in chosen or name == "ours"]
    steps = options.steps or (20 if on_cpu else 60_000 // options.batch_size)
    record = measure(config, names, options.rounds, steps, options.threads or len(cores()))
    timings.report(timings.speed_table([record]), record, options.json)


class Contender(NamedTuple):
    """A program to time: `steps(n)` takes n training steps, `score()` scores the test images; both block.

    `seeds` is the number of networks that take each step and score the images.
    """

    steps: Callable[[int], None]
    score: Callable[[], None]
    seeds: int = 1


def _ours(config: Config, data: Dataset, distortion: Distortion | None = None, seeds: int = 1) -> Contender:
    reuse_freed_memory()
    train = jax.device_put(data.train)
    setup = make_setup(config, data)._replace(augment=distortion)
    streams = [Streams.from_seed(config.seed + i) for i in range(seeds)]
    join = stack if seeds > 1 else (lambda trees: trees[0])
    order = join([epoch_order(each.order, 1, len(train.labels), config.batch_size) for each in streams])
    key, state = join([each.step for each in streams]), join([begin(setup, each).state for each in streams])

    def steps(n: int) -> None:
        nonlocal state
        state, _ = train_epoch(state, train, order, key, setup, first=order.shape[-2] - n)
        jax.block_until_ready(state)

    def score() -> None:
        trained = setup.with_variables(state.variables)
        jax.device_get(scoring.score(trained, data.test, config.eval_batch_size, None, seeds > 1))

    return Contender(steps, score, seeds)


def _flax(config: Config, data: Dataset) -> Contender:
    """Flax's layers under a plain `jax.jit`, as in its documentation."""
    setup = make_setup(config, data)
    setup = setup._replace(model=setup.model.clone(layers=FLAX))
    step = jax.jit(partial(train_step, setup=setup))
    predict = jax.jit(lambda t, images: t.model.apply(t.variables, t.standardize(images), train=False).argmax(-1))
    key, state = Streams.from_seed(config.seed).step, start(config, data).state
    images, labels = jax.device_put([array[: config.batch_size] for array in data.train])
    test = jax.device_put(data.test.images)

    def steps(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, _ = step(state, images, labels, key)
        jax.block_until_ready(state)

    def score() -> None:
        answers = None
        for i in range(0, 10_000, config.eval_batch_size):
            answers = predict(setup.trained(state), test[i : i + config.eval_batch_size])
        jax.block_until_ready(answers)

    return Contender(steps, score)


def _torch(config: Config, data: Dataset, channels_last: bool) -> Contender:
    """The exercise's network and loop in eager PyTorch, on images standardized beforehand."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(len(cores()))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    device = torch_networks.torch_device()

    def tensor(images: np.ndarray) -> Any:
        standardized = torch.tensor(np.array(standardize(images, data.mean, data.deviation)))
        return standardized.reshape(-1, 1, 28, 28).to(device, memory_format=layout)

    network = torch_networks.torch_network(config.arch, config.dropout_rate).to(device, memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), config.learning_rate, config.momentum, nesterov=config.nesterov)
    images, labels = (array[: config.batch_size] for array in data.train)
    images, labels = tensor(images), torch.tensor(labels, dtype=torch.long, device=device)
    test = tensor(data.test.images)

    def steps(n: int) -> None:
        network.train()
        loss: Any = None
        for _ in range(n):
            optimizer.zero_grad()
            loss = torch.nn.functional.nll_loss(torch.log_softmax(network(images), 1), labels)
            loss.backward()
            optimizer.step()
        loss.item()

    def score() -> None:
        network.eval()
        answers: Any = None
        with torch.no_grad():
            for i in range(0, 10_000, config.eval_batch_size):
                answers = network(test[i : i + config.eval_batch_size]).argmax(1)
        answers.cpu()  # Waits for a GPU.

    return Contender(steps, score)


CONTENDERS: dict[str, Callable[..., Contender]] = {
    "ours": _ours,
    "ours augmented": partial(_ours, distortion=Distortion(10.0, 2.0, 0.1, 0.1)),
    "ours, 30 seeds": partial(_ours, seeds=30),
    "flax": _flax,
    "torch": partial(_torch, channels_last=False),
    "torch channels-last": partial(_torch, channels_last=True),
}


def measure(config: Config, contenders: Sequence[str], rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """Times contenders, keys of `CONTENDERS`, in turns of `steps` training steps on `threads` cores.

    Returns the record of a file `benchmark-ARCH.json`. A contender's seconds have one value per round, of as many
    networks as its `seeds`.
    """
    workers, found, spawn = {}, {}, multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        os.environ["MNIST_JAX_LEAVE_PROCESS"] = "1"  # Else importing the package gives every contender our settings.
        stack.callback(os.environ.pop, "MNIST_JAX_LEAVE_PROCESS")

        def ask(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
            return workers[name].submit(call, *arguments).result()

        for name in contenders:
            timings.tell(f"starting {name}")
            born, share = time.time(), cores()[:threads]
            workers[name] = stack.enter_context(ProcessPoolExecutor(1, spawn, _bind, (share,)))
            start, seeds = ask(name, _start, name, config, steps, born)  # Nothing else runs until the answer.
            found[name] = {"start": start, "step_seconds": [], "score_seconds": [], "seeds": seeds}
        for i in range(rounds):
            timings.tell(f"round {i + 1} of {rounds}")
            for name, timing in found.items():
                timing["step_seconds"].append(ask(name, _turn, name, config, "steps", steps) / steps)
                timing["score_seconds"].append(ask(name, _turn, name, config, "score"))
        for name, timing in found.items():
            timing["peak_bytes"] = ask(name, _peak_bytes)
    settings = {"arch": config.arch, "batch_size": config.batch_size, "steps": steps, "threads": threads}
    return settings | {"contenders": found, "environment": timings.measured_on(), "version": 1}


# Runs in a contender's process ----------------------------------------------------------------------------------------


def _bind(share):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


@cache
def _contender(name, config):
    return CONTENDERS[name](config, load_dataset("mnist"))


def _start(name, config, steps, born):
    """Compiles; returns the seconds from the start of the process to the end of its first step, and the networks."""
    contender = _contender(name, config)
    contender.steps(1)
    start = {"first_step": time.time() - born}
    contender.steps(steps)
    contender.score()
    return start, contender.seeds


def _turn(name, config, method, *arguments):
    contender = _contender(name, config)
    contender.steps(1)  # Fills the caches before the clock starts.
    start = time.perf_counter()
    getattr(contender, method)(*arguments)
    return time.perf_counter() - start


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    run(main, Options)
