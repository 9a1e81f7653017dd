"""Fits of configs: one seed, many seeds, many settings."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mnist_jax.data import Dataset
from mnist_jax.errors import InputError
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import (
    DISTORTION_NUMBERS,
    NUMBERS,
    OPTIMIZER_NUMBERS,
    Parts,
    Vary,
    make_setup,
    total_steps,
)
from mnist_jax.signals import interrupts
from mnist_jax.steps import Metrics, Streams, TrainState
from mnist_jax.training import EpochMetrics, Lanes, Plan, Progress, Stopped, begin, train

OnStep = Callable[[int, int, Metrics], None]


def _never() -> bool:
    return False


def start(config: Config, data: Dataset, **parts: Unpack[Parts]) -> Progress[EpochMetrics]:
    """A run before its first step; `parts` and errors are those of `make_setup`."""
    return begin(make_setup(config, data, **parts), Lanes([Streams.from_seed(config.seed)]))


def abstract_progress(config: Config, data: Dataset) -> Progress[EpochMetrics]:
    """Shapes and dtypes of a run's progress, as `jax.ShapeDtypeStruct`, without computing any."""
    return jax.eval_shape(lambda: start(config, data))


def fit(
    config: Config,
    data: Dataset,
    *,
    progress: Progress[EpochMetrics] | None = None,
    mesh: Mesh | None = None,
    on_step: OnStep | None = None,
    on_epoch: Callable[[Progress[EpochMetrics]], object] | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[Parts],
) -> tuple[TrainState, list[EpochMetrics]]:
    """Trains a network and scores it on `data.test` after every epoch.

    On one machine the same arguments give the same bits on CPU, however often a run has stopped and gone on.

    Args:
      config: every setting of the run.
      data: what to train on and what to score.
      progress: where to go on from, else from scratch; it stays usable.
      mesh: the devices to split every batch over; None for the default device.
      on_step: called as `on_step(epoch, i, totals)` after step i of an epoch (CPU only), with its metrics so far.
      on_epoch: called as `on_epoch(progress)` after each epoch, whose metrics are `progress.history[-1]`. The progress
        stays usable. A true result ends the training.
      stop: asked whether to stop; on CPU, in a process by itself, after every step, else after every epoch.
      parts: `model`, `optimizer`, `augment` and `loss`, in place of the config's, as `make_setup` takes them.

    Returns:
      The final state and the history, one entry per epoch.

    Raises:
      InputError: as `make_setup`; batches cannot be split over the mesh; or `progress` is of another training.
      DivergedError: a loss or gradient is no longer finite.
      Stopped: `stop` said so, or there was a Ctrl-C on the main thread, before the last epoch was done. Its `progress`
        goes on from there. A second Ctrl-C raises KeyboardInterrupt at once.
    """
    lanes = Lanes([Streams.from_seed(config.seed)])
    reached = _train(config, data, parts, lanes, stop, progress=progress, mesh=mesh, on_step=on_step, on_epoch=on_epoch)
    return reached.state, list(reached.history)


def fit_seeds(
    config: Config,
    data: Dataset,
    *,
    seeds: Sequence[int],
    progress: Progress[tuple[EpochMetrics, ...]] | None = None,
    mesh: Mesh | None = None,
    on_step: OnStep | None = None,
    on_epoch: Callable[[Progress[tuple[EpochMetrics, ...]]], object] | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[Parts],
) -> tuple[TrainState, list[list[EpochMetrics]]]:
    """As `fit`, for one network for each seed, all in one program under `jax.vmap`.

    Each seed has the shuffles, distortions and dropout that it would have alone; results differ from those by rounding.
    A mesh shards the seeds. An entry of a progress's history has the metrics of every seed; their `seconds` are those
    of all seeds together.

    Returns:
      The final states, each array with a leading axis of seeds, and each seed's history.

    Raises as `fit`, and InputError if there are no seeds or they cannot be split over the mesh.
    """
    if not isinstance(seeds, Iterable) or not (configs := [dataclasses.replace(config, seed=seed) for seed in seeds]):
        raise InputError(f"seeds {seeds} cannot be used; give one or more, as [1, 2]")
    lanes = Lanes([Streams.from_seed(one.seed) for one in configs], [f"seed {one.seed}" for one in configs])
    reached = _train(config, data, parts, lanes, stop, progress=progress, mesh=mesh, on_step=on_step, on_epoch=on_epoch)
    return reached.state, [list(history) for history in zip(*reached.history, strict=True)]


def fit_many(
    configs: Sequence[Config],
    data: Dataset,
    *,
    progress: Progress[tuple[EpochMetrics, ...]] | Sequence[Progress[EpochMetrics]] | None = None,
    mesh: Mesh | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[Parts],
) -> tuple[TrainState, list[list[EpochMetrics]]]:
    """Trains many settings: on a GPU or TPU in one program, on a CPU one after the other.

    The configs may differ in their seed and in numbers that shape no array: learning rate, momentum, beta 2, weight
    decay, and those of the distortion. `progress` is that of a `Stopped`: on a CPU one for each config that was begun.

    Returns:
      The final states, each array with a leading axis of configs, and each config's history, in the configs' order.

    Raises as `fit`, and InputError if there are no configs or they differ in anything else.
    """
    configs = [*configs] if isinstance(configs, Iterable) else configs
    varied = _varied(configs, parts)
    makers = [Vary(config, make_setup(config, data, **parts), total_steps(config, data)) for config in configs]
    streams = [Streams.from_seed(config.seed) for config in configs]
    if jax.default_backend() == "cpu":
        done: list[Progress[EpochMetrics]] = []
        begun = [*(progress or ()), *[None] * len(configs)]
        for config, make, stream, before in zip(configs, makers, streams, begun, strict=False):
            # SGD of an array has a state of the same structure whether there is weight decay or none.
            decays = "weight_decay" in varied and config.optimizer == "sgd"
            setup = make({"weight_decay": jnp.float32(config.weight_decay)} if decays else {})
            try:
                done.append(_train(config, data, parts, Lanes([stream]), stop, setup, progress=before, mesh=mesh))
            except Stopped as stopped:
                raise Stopped((*done, stopped.progress)) from None
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(reached.state for reached in done))
        return states, [list(reached.history) for reached in done]
    numbers = {name: jnp.array([getattr(one, name) for one in configs], jnp.float32) for name in varied}
    lanes = Lanes(streams, [f"config {i}" for i in range(len(configs))], numbers, makers[0])
    reached = _train(configs[0], data, parts, lanes, stop, makers[0].setup, progress=progress, mesh=mesh)
    return reached.state, [list(history) for history in zip(*reached.history, strict=True)]


def _varied(configs, parts):
    """The numbers in which configs differ; refuses what is no list of some, and another difference."""
    if not isinstance(configs, list) or not configs:
        raise InputError(f"configs {configs!r:.60} cannot be used; give a list of one or more")
    names = [name for name in Config.__dataclass_fields__ if name != "seed"]
    differing = [name for name in names if len({getattr(config, name) for config in configs}) > 1]
    replaced = OPTIMIZER_NUMBERS * (parts.get("optimizer") is not None)
    replaced += DISTORTION_NUMBERS * (parts.get("augment") is not None)
    usable = [name for name in NUMBERS if name not in replaced]
    for name in differing:
        if name not in usable:
            values = sorted({str(getattr(config, name)) for config in configs})
            raise InputError(
                f"configs differ in {name.replace('_', ' ')} ({', '.join(values)}), which one program cannot vary; "
                f"let them differ in seed, {', '.join(usable)}"
            )
    return differing


def _train(config, data, parts, lanes, stop, setup=None, **options) -> Progress[Any]:
    setup = setup or make_setup(config, data, **parts)
    own = parts.get("optimizer") is not None
    remedy = "try a smaller learning rate" if own else f"try a learning rate below {config.learning_rate}"
    plan = Plan(config.epochs, config.batch_size, config.plain_epochs, config.eval_batch_size, remedy)
    with interrupts() as interrupted:
        try:
            reached = train(setup, data, plan, lanes, stop=lambda: interrupted() or stop(), **options)
        except jax.errors.UnexpectedTracerError as error:
            raise InputError(
                "the loss calls apply under jax.jit, vmap, checkpoint or lax.map; call it outside, or under jax.grad"
            ) from error
        if interrupted():  # In the last epoch: whoever fits in a loop is to stop too.
            raise Stopped(reached)
        return reached
