"""Times a training step and scoring against plain Flax and PyTorch.

Each contender runs in a process of its own, so that none inherits another's threads, allocator settings or caches.
Contenders take turns: machines drift, so ratios are taken within a round, and their median over the rounds is quoted.
"""

import contextlib
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.augment import Distortion
from mnist_jax.data import Dataset, load_dataset, standardize
from mnist_jax.lab import baselines, jobs
from mnist_jax.layers import FAST, FLAX, Layers
from mnist_jax.recipes.config import Config, make_config
from mnist_jax.recipes.fits import fit, fit_seeds, start
from mnist_jax.recipes.values import make_distortion, make_setup
from mnist_jax.runtime import cores, reuse_freed_memory
from mnist_jax.scoring import evaluate
from mnist_jax.steps import Streams, train_step
from mnist_jax.training import epoch_order, train_epoch

_MATMUL_SIZE = 2048


class Contender(NamedTuple):
    """A program to time: `steps(n)` takes n training steps, `score()` scores the test images; both block."""

    steps: Callable[[int], None]
    score: Callable[[], None]


def _ours(config: Config, data: Dataset, distortion: Distortion | None = None, layers: Layers = FAST) -> Contender:
    reuse_freed_memory()
    train, test = jax.device_put((data.train, data.test))
    setup = make_setup(config, data)
    setup = setup._replace(model=setup.model.clone(layers=layers), augment=distortion)
    streams = Streams.from_seed(config.seed)
    order = epoch_order(streams.order, 1, len(train.labels), config.batch_size)
    state = start(config, data).state

    def steps(n: int) -> None:
        nonlocal state
        state, _ = train_epoch(state, train, order[:n], streams.step, setup)
        jax.block_until_ready(state)

    def score() -> None:
        evaluate(setup.trained(state), test, config.eval_batch_size).mean()

    return Contender(steps, score)


def _flax(config: Config, data: Dataset) -> Contender:
    """Flax's own layers under a plain `jax.jit`, as in its documentation."""
    setup = make_setup(config, data)
    setup = setup._replace(model=setup.model.clone(layers=FLAX))
    step = jax.jit(partial(train_step, setup=setup))
    predict = jax.jit(lambda t, images: t.model.apply(t.variables, t.standardize(images), train=False).argmax(-1))
    key, state = Streams.from_seed(config.seed).step, start(config, data).state
    images, labels = (array[: config.batch_size] for array in data.train)

    def steps(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, _ = step(state, images, labels, key)
        jax.block_until_ready(state)

    def score() -> None:
        for i in range(0, 10_000, config.eval_batch_size):
            batch = data.test.images[i : i + config.eval_batch_size]
            jax.block_until_ready(predict(setup.trained(state), batch))

    return Contender(steps, score)


def _torch(config: Config, data: Dataset, channels_last: bool, device: str = "cpu") -> Contender:
    """The notebook's network and loop in eager PyTorch, on images that are standardized beforehand."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(len(cores()))
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(images: np.ndarray) -> Any:
        return (
            torch.tensor(np.array(standardize(images, data.mean, data.deviation)))
            .reshape(-1, 1, 28, 28)
            .to(device, memory_format=layout)
        )

    network = baselines.torch_network(config.arch, config.dropout_rate).to(device, memory_format=layout)
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
        with torch.no_grad():
            for i in range(0, 10_000, config.eval_batch_size):
                network(test[i : i + config.eval_batch_size]).argmax(1)

    return Contender(steps, score)


CONTENDERS: dict[str, Callable[..., Contender]] = {
    "ours": _ours,
    "ours augmented": partial(_ours, distortion=Distortion(10.0, 2.0, 0.1, 0.1)),
    "flax": _flax,
    "torch": partial(_torch, channels_last=False),
    "torch channels-last": partial(_torch, channels_last=True),
}


def run(
    config: Config, contenders: Sequence[str], rounds: int, steps: int, threads: int, on_round: Callable[[int], None]
) -> dict[str, Any]:
    """Times contenders, keys of `CONTENDERS`, in turns of `steps` training steps on `threads` cores.

    Calls `on_round` with the number of finished rounds. Returns `contenders`, each with `start`, `step_seconds` and
    `score_seconds`, one value per round, and `peak_bytes`; and `matmul_flops`, the rate of a float32 matrix product in
    the process of "ours", one value per round.
    """
    workers, result = {}, {"contenders": {}, "matmul_flops": []}
    with contextlib.ExitStack() as stack:

        def ask(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
            return workers[name].submit(call, *arguments).result()

        for name in contenders:
            born = time.time()
            workers[name] = stack.enter_context(jobs.process(cores()[:threads]))
            start = ask(name, _start, name, config, steps, born)  # Nothing else runs while one starts and compiles.
            result["contenders"][name] = {"start": start, "step_seconds": [], "score_seconds": []}
        for i in range(rounds):
            for name, record in result["contenders"].items():
                record["step_seconds"].append(ask(name, _turn, name, config, "steps", steps) / steps)
                record["score_seconds"].append(ask(name, _turn, name, config, "score"))
            if "ours" in workers:
                result["matmul_flops"].append(2 * _MATMUL_SIZE**3 / ask("ours", _matmul_seconds))
            on_round(i + 1)
        for name, record in result["contenders"].items():
            record["peak_bytes"] = ask(name, _peak_bytes)
    return result


def accelerator(
    arch: str, data: Dataset, seeds: int = 30, batch_sizes: Sequence[int] = (128, 256, 512, 1024), epochs: int = 0
) -> dict[str, Any]:
    """Times epochs, whole runs (of `epochs`, by default their recipe's) and many seeds on the default device.

    Returns:
      `epoch_seconds` of five compiled epochs of `default`, by batch size, with our layers and Flax's in turns; `runs`
      of `default` and `fast`, and `seeds` in one program, in seconds with compilation (`first`) and without (`again`);
      `torch_step_seconds` of the notebook's step, None without PyTorch for this device.
    """
    options: dict[str, Any] = {"epochs": epochs} if epochs else {}
    result: dict[str, Any] = {"arch": arch, "epoch_seconds": {}, "runs": {}}
    for batch_size in batch_sizes:
        config = make_config("default", arch=arch, batch_size=batch_size)
        distortion, epoch = make_distortion(config), len(data.train.labels) // batch_size
        layers = {"ours": FAST, "flax": FLAX}
        contenders = {name: _ours(config, data, distortion, layers[name]) for name in layers}
        turns = [{name: _seconds(each.steps, epoch)[0] for name, each in contenders.items()} for _ in range(6)]
        # The first turn compiles.
        result["epoch_seconds"][batch_size] = {name: [turn[name] for turn in turns[1:]] for name in contenders}
    for recipe in ("default", "fast"):
        config = make_config(recipe, arch=arch, **options)
        (first, _), (again, (_, history)) = [_seconds(fit, config, data) for _ in range(2)]
        result["runs"][recipe] = {"first": first, "again": again, "test_accuracy": history[-1].test_accuracy}
    config = make_config("default", arch=arch, **options)
    together = [_seconds(partial(fit_seeds, seeds=range(1, seeds + 1)), config, data) for _ in range(2)]
    (first, _), (again, (_, histories)) = together
    accuracies = [history[-1].test_accuracy for history in histories]
    result["seeds"] = {"count": seeds, "first": first, "again": again, "test_accuracies": accuracies}
    result["torch_step_seconds"] = _torch_step_seconds(make_config("reference", arch=arch), data)
    return result


def _seconds(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """The seconds of a call, and its result."""
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


def _torch_step_seconds(config: Config, data: Dataset) -> float | None:
    """Seconds of the notebook's step on a GPU; None where PyTorch finds none."""
    torch = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
    if torch is None or not torch.cuda.is_available():
        return None
    contender = _torch(config, data, channels_last=False, device="cuda")
    contender.steps(50)
    return statistics.median(_seconds(contender.steps, 100)[0] / 100 for _ in range(5))


# In a contender's process ---------------------------------------------------------------------------------------------


@cache
def _contender(name, config):
    return CONTENDERS[name](config, load_dataset("mnist"))


def _start(name, config, steps, born):
    """Compiles; gives the seconds from the start of the process to the end of its first step, and of that step."""
    contender = _contender(name, config)
    compiling = time.perf_counter()
    contender.steps(1)
    start = {"first_step": time.time() - born, "compile": time.perf_counter() - compiling}
    contender.steps(steps)  # Compiles again where the number of steps is part of a shape.
    contender.score()
    return start


def _turn(name, config, method, *arguments):
    contender = _contender(name, config)
    contender.steps(1)  # Back into the caches before the clock starts.
    return _seconds(getattr(contender, method), *arguments)[0]


def _matmul_seconds():
    square = np.random.default_rng(0).normal(size=(_MATMUL_SIZE, _MATMUL_SIZE)).astype(np.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    return _seconds(lambda: multiply(square, square).block_until_ready())[0]


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
