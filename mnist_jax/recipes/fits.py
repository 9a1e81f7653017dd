"""Fits of configs: one seed, many seeds, many settings."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mnist_jax import devices
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, require, shown
from mnist_jax.recipes.config import PLACES, Config, require_config
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
    """Makes the progress of a run before its first step.

    Args:
      config: every setting of the run, a `Config`.
      data: the images to train on and to score, a `Dataset`.
      parts: `model`, `optimizer`, `augment` and `loss`, as for `make_setup`.

    Returns:
      The progress, with the initial state.

    Example:
      >>> mj.start(config, data).state
      TrainState(step=0, 104 parameters)
    """
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

    On the same machine's CPU, equal arguments give equal bits, however often the run was stopped and continued.

    JAX hangs in a process that was forked after JAX was used. To train in processes of your own, start them by
    `multiprocessing.get_context("spawn")`.

    Args:
      config: every setting of the run, a `Config`.
      data: the images to train on and to score, a `Dataset`.
      progress: the `Progress` to continue from, which stays usable; None to begin.
      mesh: devices that share each batch, from `mnist_jax.devices.make_mesh`; None for the default device.
      on_step: on a CPU, called as `on_step(epoch, i, totals)` after step i, with the metrics of the epoch so far.
      on_epoch: called as `on_epoch(progress)` after each epoch, whose metrics are `progress.history[-1]`. The progress
        stays usable. A true result ends the training.
      stop: called after every step on a CPU, after every epoch on other devices or with several processes. A true
        result stops the run.
      parts: `model`, `optimizer`, `augment` and `loss` instead of the config's, as for `make_setup`.

    Returns:
      The final state and the history, a list of `EpochMetrics`.

    Raises:
      InputError: as `make_setup`, the mesh cannot split a batch, `progress` is of another training, or processes
        differ in config, data or versions.
      DivergedError: a loss or gradient is not finite.
      Stopped: `stop` returned true, or Ctrl-C was pressed on the main thread. Its `progress` continues the run.
        (A second Ctrl-C raises KeyboardInterrupt at once.)

    Example:
      >>> state, history = mj.fit(config, data)
      >>> state, len(history)
      (TrainState(step=4, 104 parameters), 1)
    """
    require_config(config)
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
    """Trains one network per seed, all in one program under `jax.vmap`.

    Each seed has the shuffles, distortions and dropout that it has alone. Results differ by rounding.

    Args:
      config: every setting of the runs, a `Config`; its seed is not used.
      data: the images to train on and to score, a `Dataset`.
      seeds: one or more, in 0..2^32-1.
      progress: as for `fit`; an entry of its history has the metrics of every seed.
      mesh: devices that share the seeds.
      on_step: as for `fit`, with metrics [seeds].
      on_epoch: as for `fit`.
      stop: as for `fit`.
      parts: as for `fit`.

    Returns:
      The final states, each array with a leading axis of seeds, and the list of the seeds' histories. Their `seconds`
      are those of all seeds together.

    Raises:
      InputError: as `fit`, there are no seeds, or the mesh cannot split them.
      DivergedError: as `fit`.
      Stopped: as `fit`.

    Example:
      >>> states, histories = mj.fit_seeds(config, data, seeds=[1, 2])
      >>> states.params["conv1"]["kernel"].shape, len(histories)
      ((2, 3, 3, 1, 8), 2)
    """
    require_config(config)
    try:
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    except TypeError:  # A number, or an array of rank 0.
        configs = []
    if not configs:
        raise InputError(f"seeds {shown(seeds)} cannot be used; give one or more, as [1, 2]")
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

    Args:
      configs: one `Config` or more. They may differ in their seed, learning rate, momentum, beta 2, weight decay, and
        the numbers of the distortion.
      data: the images to train on and to score, a `Dataset`.
      progress: the `progress` of a `Stopped`; None to begin.
      mesh: devices that share the configs; on CPUs, each batch.
      stop: as for `fit`.
      parts: as for `fit`.

    Returns:
      The final states, each array with a leading axis of configs, and the list of their histories, in the order of the
      configs.

    Raises:
      InputError: as `fit`, there are no configs, or they differ in another setting.
      DivergedError: as `fit`.
      Stopped: as `fit`.

    Example:
      >>> configs = [dataclasses.replace(config, learning_rate=rate, seed=2) for rate in (0.01, 0.02)]
      >>> states, histories = mj.fit_many(configs, data)
      >>> [len(history) for history in histories]
      [1, 1]
    """
    configs = [*configs] if isinstance(configs, Iterable) else configs
    varied = _varied(configs, parts)
    makers = [Vary(config, make_setup(config, data, **parts), total_steps(config, data)) for config in configs]
    streams = [Streams.from_seed(config.seed) for config in configs]
    if jax.default_backend() == "cpu":
        done: list[Progress[EpochMetrics]] = []
        begun = [*(progress or ()), *[None] * len(configs)]
        for config, make, stream, before in zip(configs, makers, streams, begun, strict=False):
            # With an array as weight decay, the state of SGD has the same structure with and without decay.
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
    """The numbers in which configs differ. Raises InputError for an empty list, or for another difference."""
    if not isinstance(configs, list) or not configs:
        raise InputError(f"configs {shown(configs)} cannot be used; give a list of one or more")
    for config in configs:
        require_config(config)
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


def shared_facts(config: Config, data: Dataset) -> dict[str, Any]:
    """What several processes must have alike to train together: the settings, and the data by its hash."""
    values = dataclasses.asdict(config).items()
    settings = {name.replace("_", " "): value for name, value in values if name not in PLACES}
    return settings | {"data": data.sha256[:12]}


def _train(config, data, parts, lanes, stop, setup=None, **options) -> Progress[Any]:
    remedy = "give that of a Stopped, or what on_epoch was given"
    require(options.get("progress"), Progress | None, "progress", remedy)
    with devices.together() as facts:  # Processes that differ would wait for each other, or mix two trainings.
        setup = setup or make_setup(config, data, **parts)
        if jax.process_count() > 1:
            facts |= shared_facts(config, data) | {"trainings": lanes.names}
            facts["step"] = options["progress"].steps if options.get("progress") else 0
            facts |= {name: np.asarray(values).tolist() for name, values in (lanes.numbers or {}).items()}
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
        if interrupted():  # Ctrl-C in the last epoch must also end a loop of fits.
            raise Stopped(reached)
        return reached
