"""Fits of configs: one, many seeds, many settings."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mnist_jax import devices
from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError, refusing, require, shown
from mnist_jax.recipes.config import PLACES, Config, fixed_settings, require_config
from mnist_jax.recipes.values import (
    DISTORTION_NUMBERS,
    NUMBERS,
    OPTIMIZER_NUMBERS,
    Parts,
    Varied,
    make_setup,
    total_steps,
)
from mnist_jax.runtime import backend, tune_process
from mnist_jax.signals import interrupts
from mnist_jax.steps import Metrics, Setup, Streams, Trained, TrainState, train_step
from mnist_jax.training import (
    EpochMetrics,
    Identity,
    Order,
    Progress,
    Step,
    Stopped,
    begin,
    epoch_order,
    require_identity,
    stack,
    train,
    unstack,
)


class FitParts(Parts, total=False):
    """Own parts of a fit, which are also a step and an order."""

    step: Step | None
    order: Order | None


def _never() -> bool:
    return False


def start(config: Config, data: Dataset, *, initial: Trained | None = None, **parts: Unpack[FitParts]) -> Progress:
    """Makes the progress of a run before its first step.

    Args:
      config: every setting of the run, a `Config`.
      data: the images to train on and to score, a `Dataset`.
      initial: the weights to begin with, as for `fit`.
      parts: own parts, as for `fit`.

    Returns:
      The progress, with the initial state.

    Example:
      >>> mj.start(config, data).state
      TrainState(step=0, 104 parameters)
    """
    begun = begin(_setup_of(config, data, parts), Streams.from_seed(config.seed), initial)
    return begun._replace(identity=_identity(config, data, parts))


def abstract_progress(config: Config, data: Dataset) -> Progress:
    """Shapes and dtypes of a run's progress, as `jax.ShapeDtypeStruct`, without computing any."""
    return jax.eval_shape(lambda: start(config, data))


def fit(
    config: Config,
    data: Dataset,
    *,
    initial: Trained | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[Progress], object] | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[FitParts],
) -> tuple[TrainState, list[EpochMetrics]]:
    """Trains a network and scores it on `data.test` after every epoch.

    On the same machine's CPU, equal arguments give equal bits, however often the run was stopped and continued.

    JAX hangs in a process that was forked after JAX was used. To train in processes of your own, start them by
    `multiprocessing.get_context("spawn")`.

    Args:
      config: every setting of the run, a `Config`.
      data: the images to train on and to score, a `Dataset`.
      initial: a trained network of the same kind, whose weights to begin with; the optimizer begins anew.
      progress: the `Progress` to continue from, which stays usable; None to begin.
      mesh: devices that share each batch, from `mnist_jax.devices.make_mesh`; None for the default device.
      on_step: on a CPU, called as `on_step(epoch, i, totals)` after step i, with the metrics of the epoch so far.
      on_epoch: called as `on_epoch(progress)` after each epoch, whose metrics are `progress.history[-1]`. The progress
        stays usable. True ends the training.
      stop: called after every step on a CPU, after every epoch on other devices or with several processes. A true
        result stops the run.
      parts: `model`, `optimizer`, `augment` and `loss` instead of the config's, as for `make_setup`; `step`, a function
        like `train_step`, which a step may call (its setup has no mean and deviation: pass on those that it is given);
        `order`, a function like `epoch_order`, called on the host.

    Returns:
      The final state and the history, a list of `EpochMetrics`.

    Raises:
      InputError: as `make_setup`; step or order have another signature or result; the mesh cannot split a batch;
        `progress` is of another training, or `initial` of another network; processes differ in config, data or
        versions.
      DivergedError: a loss or gradient is not finite.
      Stopped: `stop` returned true, or Ctrl-C was pressed on the main thread. Its `progress` continues the run.
        (A second Ctrl-C raises KeyboardInterrupt at once.)

    Example:
      >>> state, history = mj.fit(config, data)
      >>> state, len(history)
      (TrainState(step=4, 104 parameters), 1)
    """
    require_config(config)
    tune_process()
    streams = Streams.from_seed(config.seed)
    with devices.synchronized() as facts:  # Processes that differ would wait for each other, or mix two trainings.
        require(progress, Progress | None, "progress", "give that of a Stopped, or what on_epoch was given")
        require(initial, Trained | None, "initial", "give a Trained, as setup.trained(state)")
        setup, identity = _setup_of(config, data, parts), _identity(config, data, parts)
        if jax.process_count() > 1:
            facts |= shared_facts(config, data) | {"step": progress.steps if progress else 0}
    with interrupts() as interrupted:
        reached = train(
            setup,
            data,
            streams,
            **_options(config, parts),
            initial=initial,
            progress=progress,
            identity=identity,
            mesh=mesh,
            on_step=on_step,
            on_epoch=on_epoch,
            stop=lambda: interrupted() or stop(),
        )
        if interrupted():  # Ctrl-C in the last epoch must also end a loop of fits.
            raise Stopped(reached)
    return reached.state, list(reached.history)


def fit_seeds(
    config: Config,
    data: Dataset,
    *,
    seeds: Sequence[int],
    initial: Trained | None = None,
    progress: Sequence[Progress] | None = None,
    mesh: Mesh | None = None,
    on_epoch: Callable[[int, EpochMetrics], object] | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[FitParts],
) -> tuple[list[TrainState], list[list[EpochMetrics]]]:
    """Trains one network per seed, by `fit_many`: each has the shuffles, distortions and dropout that it has alone.

    Args:
      config: every setting of the runs, a `Config`; its seed is not used.
      data: the images to train on and to score, a `Dataset`.
      seeds: one or more, in 0..2^32-1.
      initial: as for `fit`, for every seed.
      progress: as for `fit_many`, like the next three.
      mesh: devices that share the seeds; on CPUs, each batch.
      on_epoch: called as `on_epoch(i, metrics)`.
      stop: as for `fit`.
      parts: as for `fit`.

    Returns:
      The final states and the histories, lists in the order of the seeds.

    Raises:
      InputError: as `fit`, there are no seeds, or the mesh cannot split them.
      DivergedError: as `fit`.
      Stopped: as `fit`.

    Example:
      >>> states, histories = mj.fit_seeds(config, data, seeds=[1, 2])
      >>> states[1], len(histories)
      (TrainState(step=4, 104 parameters), 2)
    """
    require_config(config)
    try:
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
    except TypeError:  # A number, or an array of rank 0.
        configs = []
    if not configs:
        raise InputError(f"seeds {shown(seeds)} cannot be used; give one or more, as [1, 2]")
    options: dict[str, Any] = {"initial": initial, "progress": progress, "mesh": mesh}
    return fit_many(configs, data, **options, on_epoch=on_epoch, stop=stop, **parts)


def fit_many(
    configs: Sequence[Config],
    data: Dataset,
    *,
    initial: Trained | None = None,
    progress: Sequence[Progress] | None = None,
    mesh: Mesh | None = None,
    on_epoch: Callable[[int, EpochMetrics], object] | None = None,
    stop: Callable[[], bool] = _never,
    **parts: Unpack[FitParts],
) -> tuple[list[TrainState], list[list[EpochMetrics]]]:
    """Trains many settings: on a CPU one after the other, on a GPU or TPU in one program by `jax.vmap`.

    On a CPU each is `fit` to the bit. In one program, results differ by rounding.

    Args:
      configs: one `Config` or more. They may differ in their seed, learning rate, momentum, beta 2, weight decay, and
        the numbers of the distortion.
      data: the images to train on and to score, a `Dataset`.
      initial: as for `fit`, for every config.
      progress: the `progress` of a `Stopped`, a list; None to begin.
      mesh: devices that share the configs; on CPUs, each batch.
      on_epoch: called as `on_epoch(i, metrics)` after an epoch of training i; its result is not used.
      stop: as for `fit`.
      parts: as for `fit`.

    Returns:
      The final states and the histories, lists in the order of the configs. In one program, `seconds` are those of all
      together.

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
    tune_process()
    with devices.synchronized() as facts:
        facts |= {name: [getattr(config, name) for config in configs] for name in ("seed", *varied)}
    one_by_one, begun = backend() == "cpu", [*(progress or ())]
    known = not isinstance(progress, Progress) and all(isinstance(one, Progress) for one in begun)
    alike = known and len(begun) in (0, len(configs)) and len({one.steps for one in begun}) < 2
    if not known or len(begun) > len(configs) or not (one_by_one or alike):
        raise InputError(f"progress is not of {len(configs)} trainings on this platform; give the list of a Stopped")
    options: dict[str, Any] = {"initial": initial, "mesh": mesh}
    if one_by_one:
        reached = _one_by_one(configs, data, begun, on_epoch, parts, stop=stop, **options)
    else:
        reached = _in_one_program(configs, varied, data, begun, on_epoch, stop, parts, **options)
    return [one.state for one in reached], [list(one.history) for one in reached]


def _one_by_one(configs, data, progress, on_epoch, parts, **options) -> list[Progress]:
    names, done = _names(configs), []
    for i, config in enumerate(configs):
        before = progress[i] if i < len(progress) else None

        def watch(reached: Progress, i: int = i) -> None:
            on_epoch(i, reached.history[-1])

        try:
            state, history = fit(config, data, progress=before, on_epoch=on_epoch and watch, **options, **parts)
        except DivergedError as error:
            raise DivergedError(f"{names[i]}: {error}") from error
        except Stopped as stopped:
            raise Stopped([*done, stopped.progress]) from None
        done.append(Progress(state, Metrics.zeros(), tuple(history), _identity(config, data, parts)))
    return done


def _in_one_program(configs, varied, data, progress, on_epoch, stop, parts, **options) -> list[Progress]:
    config, identities = configs[0], [_identity(one, data, parts) for one in configs]
    numbers = {name: jnp.array([getattr(one, name) for one in configs], jnp.float32) for name in varied}
    with devices.synchronized() as facts:
        setup = _setup_of(config, data, parts)
        if jax.process_count() > 1:
            facts |= shared_facts(config, data) | {"step": progress[0].steps if progress else 0}
    before = None
    if progress:
        for one, identity in zip(progress, identities, strict=True):
            require_identity(one, identity)
        histories: Any = tuple(zip(*(one.history for one in progress), strict=True))
        state, totals = stack([one[:2] for one in progress])
        before = Progress(state, totals, histories)

    def split(reached: Progress) -> list[Progress]:
        arrays = unstack(reached[:2], len(configs))
        histories = zip(*reached.history, strict=True) if reached.history else [()] * len(configs)
        trainings = zip(arrays, histories, identities, strict=True)
        return [Progress(state, totals, history, identity) for (state, totals), history, identity in trainings]

    def watch(reached: Progress) -> None:
        for i, metrics in enumerate(reached.history[-1]):
            on_epoch(i, metrics)

    with interrupts() as interrupted:
        try:
            reached = train(
                setup,
                data,
                [Streams.from_seed(one.seed) for one in configs],
                **_options(config, parts),
                **options,
                progress=before,
                names=_names(configs),
                vary=Varied(config, total_steps(config, data)) if varied else None,
                numbers=numbers or None,
                on_epoch=on_epoch and watch,
                stop=lambda: interrupted() or stop(),
            )
        except Stopped as stopped:
            raise Stopped(split(stopped.progress)) from None
        if interrupted():
            raise Stopped(split(reached))
    return split(reached)


def _names(configs):
    """Names of the trainings in errors."""
    seeds = len({dataclasses.replace(config, seed=1) for config in configs}) == 1
    return [f"seed {config.seed}" if seeds else f"config {i}" for i, config in enumerate(configs)]


def _options(config, parts) -> dict[str, Any]:
    """What `train` takes from a config, and step and order."""
    seams = {"step": parts.get("step") or train_step, "order": parts.get("order") or epoch_order}
    return {name: getattr(config, name) for name in ("epochs", "batch_size", "plain_epochs", "eval_batch_size")} | seams


def _setup_of(config, data, parts) -> Setup:
    """The setup with own parts; raises InputError if a step has another signature than `train_step`."""
    setup = make_setup(config, data, **{name: part for name, part in parts.items() if name not in ("step", "order")})
    if step := parts.get("step"):
        arrays = (((config.batch_size, *setup.image_shape), jnp.uint8), ((config.batch_size,), jnp.int32))
        images, labels = (jax.ShapeDtypeStruct(*array) for array in arrays)
        statistics = [jax.ShapeDtypeStruct((setup.image_shape[2],), jnp.float32)] * 2
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: begin(setup, Streams(key, key, key)).state, key)
        with refusing("step cannot be used (", "); it is called like mj.train_step, and returns the state and Metrics"):
            bare = setup._replace(mean=None, deviation=None)

            def take(state, images, labels, key, strength, statistics):
                return step(state, images, labels, key, bare, strength, *statistics)

            after, metrics = jax.eval_shape(take, state, images, labels, key, jnp.float32(1), statistics)
            if not isinstance(metrics, Metrics) or jax.tree.structure(after) != jax.tree.structure(state):
                raise ValueError(f"it returns {type(after).__name__} and {type(metrics).__name__}")
    return setup


def _identity(config, data, parts) -> Identity:
    """What makes a training this one: its settings, its parts by their names, its data by its hash."""
    settings = {name.replace("_", " "): value for name, value in fixed_settings(config).items()}
    named = {name: _name_of(part) for name, part in parts.items() if part is not None}
    return Identity(tuple((settings | named | {"data": data.sha256[:12]}).items()))


def _name_of(part):
    function: Any = part.update if isinstance(part, optax.GradientTransformation) else part
    function = getattr(function, "function", function)  # Of `losses.from_logits`.
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _varied(configs, parts):
    """The numbers in which configs differ. Raises InputError for an empty list, or for another difference."""
    if not isinstance(configs, list) or not configs:
        raise InputError(f"configs {shown(configs)} cannot be used; give a list of one or more")
    for config in configs:
        require_config(config)
    names = [name for name in Config.__dataclass_fields__ if name not in ("seed", "run_dir")]
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
