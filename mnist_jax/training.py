"""The epoch, the scoring, the fit: the walk from a config and data to a trained state and its history.

Each is one `runtime.loop` over a pure body, of one seed or, vmapped, of many.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mnist_jax import devices
from mnist_jax.data import Mnist, Split, standardise
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.models import Network
from mnist_jax.recipes import Config
from mnist_jax.runtime import jit, loop
from mnist_jax.steps import Metrics, Setup, Streams, TrainState, eval_step, init_state, make_setup, train_step


class EpochMetrics(NamedTuple):
    """One finished epoch: losses in nats, accuracies as fractions; `seconds` for training and scoring it.

    The training figures are those of the steps as they were taken, with dropout on and the weights moving.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


class Progress(NamedTuple):
    """How far a run is: all that it needs to go on from there, as if it had never stopped.

    Attributes:
      state: the train state; `state.step` says where in which epoch the run is.
      totals: metrics of the epoch in progress; zeros between epochs.
      history: the finished epochs; of many seeds, a tuple of all their metrics for each epoch.
    """

    state: TrainState
    totals: Metrics
    history: tuple[EpochMetrics, ...] | tuple[tuple[EpochMetrics, ...], ...] = ()


class Stopped(Exception):
    """The run was asked to stop, and did after a whole step; `args[0]`, a `Progress`, is where it stands."""


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in an epoch; raises InputError if `batch_size` is above `num_examples`."""
    if batch_size > num_examples:
        raise InputError(f"batch size {batch_size} is above the {num_examples} training images; choose fewer")
    return num_examples // batch_size


def epoch_order(key: jax.Array, epoch: jax.Array, num_examples: int, batch_size: int) -> jax.Array:
    """Which examples each step of an epoch sees, int32 [steps, batch_size]: a permutation from (key, epoch).

    The last `num_examples % batch_size` of the permutation rest, different ones in every epoch.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size)


# The bodies of `runtime.loop`, as it takes them ----------------------------------------------------------------------


def train_body(i, state, totals, own, shared, setup):
    """Takes the i-th step of an epoch: its order and key are a seed's own, split and strength are shared."""
    (order, key), (split, strength) = own, shared
    batch = order[i]
    state, metrics = train_step(state, split.images[batch], split.labels[batch], key, setup, strength)
    return state, totals + metrics


def eval_body(i, _, totals, variables, shared, model):
    """Scores the i-th batch. Indices past the end read the last example, which then does not count."""
    split, order = shared
    batch = order[i]
    mask = batch < len(split.labels)
    return None, totals + eval_step(variables, split.images[batch], split.labels[batch], mask, model=model)


def predict_body(i, logits, _, variables, shared, model):
    """Puts the logits of the i-th batch in their place."""
    images, order = shared
    return logits.at[i].set(model.apply(variables, standardise(images[order[i]]), train=False)), None


def _in_order(num_examples, batch_size):
    """Indices int32 [steps, batch_size] of all examples, and past the end where the last batch is not full."""
    steps = -(-num_examples // batch_size)
    return np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)


# The epoch and the scoring -------------------------------------------------------------------------------------------


def train_epoch(
    state: TrainState,
    split: Split,
    order: jax.Array,
    key: jax.Array,
    setup: Setup,
    *,
    strength: float = 1.0,
    first: int = 0,
    totals: Metrics | None = None,
    many: bool = False,
    on_step: Callable[[int, Metrics], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics]:
    """Takes the steps of an epoch; the state given is donated.

    Args:
      state: the state to start from.
      split: the training examples.
      order: which of them each step sees, int32 [steps, B].
      key: the run's step stream.
      setup: as `train_step` takes it.
      strength: of the distortion, in [0, 1].
      first: the step to begin at, in an epoch that was interrupted.
      totals: metrics of the steps before `first`.
      many: whether `state`, `order`, `key` and `totals` have a leading axis of seeds.
      on_step: on CPU called as `on_step(i, totals)` after step i, with the epoch's metrics so far.
      stop: on CPU asked after every step whether to leave the rest of the epoch.

    Returns:
      The state, and the metrics of the epoch so far. On CPU a loss that is not finite ends the epoch early.
    """
    totals = Metrics.zeros(*order.shape[:-2]) if totals is None else totals
    return loop(
        train_body,
        range(first, order.shape[-2]),
        state,
        totals,
        (order, key),
        (split, np.float32(strength)),
        setup,
        many=many,
        on_step=on_step,
        stop=lambda before: np.any(before.bad_step) or stop(),
    )


def evaluate(
    model: Network,
    variables: dict[str, Any],
    split: Split,
    batch_size: int = 250,
    mesh: Mesh | None = None,
    many: bool = False,
) -> Metrics:
    """Scores a whole split: every example counts once, whatever the batch size and the devices of `mesh`.

    With `many`, the variables have a leading axis of seeds, which is what a mesh splits, and the metrics have it too.
    """
    batch_size = min(batch_size, len(split.labels))
    if mesh and not many:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    split = devices.put(split, mesh)
    order = devices.put(_in_order(len(split.labels), batch_size), mesh, axis=None if many else 1)
    seeds = jax.tree.leaves(variables)[0].shape[:1] if many else ()
    totals = devices.put(Metrics.zeros(*seeds), mesh, axis=0 if many else None)
    return loop(eval_body, range(len(order)), None, totals, variables, (split, order), model, many=many)[1]


def predict(model: Network, variables: dict[str, Any], images: jax.Array, batch_size: int = 250) -> np.ndarray:
    """Logits float32 [N, 10] of images uint8 [N, 28, 28, 1]; the batch size does not change them."""
    order = _in_order(len(images), min(batch_size, len(images)))
    shared = jax.device_put((images, order))
    logits, _ = loop(predict_body, range(len(order)), jnp.zeros((*order.shape, 10)), None, variables, shared, model)
    return np.asarray(logits).reshape(-1, 10)[: len(images)]


# The fit -------------------------------------------------------------------------------------------------------------


def start(config: Config, num_examples: int) -> Progress:
    """A run before its first step; raises InputError if the batch size is above the number of training images."""
    setup = make_setup(config, steps_per_epoch(num_examples, config.batch_size) * config.epochs)
    state = jit(init_state, ("setup",), once=True)(setup, Streams.from_seed(config.seed).init)
    return Progress(state, Metrics.zeros())


def abstract_progress(config: Config, num_examples: int) -> Progress:
    """Shapes and dtypes of a run's progress, as `jax.ShapeDtypeStruct`, without computing any."""
    setup = make_setup(config, steps_per_epoch(num_examples, config.batch_size) * config.epochs)
    return jax.eval_shape(lambda: Progress(init_state(setup, jax.random.key(0)), Metrics.zeros()))


def fit(
    config: Config,
    data: Mnist,
    *,
    seeds: Sequence[int] | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, list[EpochMetrics]]:
    """Trains a network and scores it on `data.test` after every epoch.

    On one machine the same config and data give the same bits on CPU, however often a run has stopped and gone on.

    Args:
      config: every setting of the run.
      data: what to train on and what to score.
      seeds: in place of the config's one seed; state, metrics and entries of the history then have an axis of seeds.
      progress: where to go on from, else from scratch; its state is donated.
      mesh: the devices to split every batch over, or the seeds; None for the default device.
      on_step: called as `on_step(epoch, i, totals)` after step i of an epoch (CPU only), with its metrics so far.
      on_epoch: called as `on_epoch(progress)` after each epoch, whose metrics are `progress.history[-1]`.
      stop: asked whether to stop; on CPU, in a process by itself, after every step, else after every epoch.

    Returns:
      The final state and the history, one entry per epoch.

    Raises:
      InputError: batches are larger than the training split, or they, or the seeds, cannot be split over the mesh.
      DivergedError: a loss or gradient is no longer finite.
      Stopped: `stop` said so before the last epoch was done.
    """
    many, steps = seeds is not None, steps_per_epoch(len(data.train.labels), config.batch_size)
    if mesh and many and len(seeds) % mesh.size:
        raise InputError(f"{len(seeds)} seeds cannot be split over {mesh.size} devices; choose a multiple of that")
    if mesh and not many:
        devices.require_divisible(config.batch_size, mesh)
    setup = make_setup(config, steps * config.epochs)
    configs = [dataclasses.replace(config, seed=seed) for seed in seeds] if many else [config]
    streams = [Streams.from_seed(each.seed) for each in configs]
    place = functools.partial(devices.put, mesh=mesh, axis=0 if many else None)

    def join(trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if many else trees[0]

    state, totals, history = progress or join([start(each, len(data.train.labels)) for each in configs])
    state, totals = place((state, totals))
    key = place(jnp.stack([each.step for each in streams])) if many else streams[0].step
    shuffle = jit(epoch_order, ("num_examples", "batch_size"))
    train, test = devices.put(data, mesh)
    done = int(np.ravel(state.step)[0])
    for epoch in range(done // steps + 1, config.epochs + 1):
        begin = time.perf_counter()
        order = join([shuffle(each.order, epoch, len(train.labels), config.batch_size) for each in streams])
        state, totals = train_epoch(
            state,
            train,
            devices.put(order, mesh, axis=0 if many else 1),
            key,
            setup._replace(resolution=config.low_resolution) if epoch <= config.low_resolution_epochs else setup,
            strength=float(epoch <= config.epochs - config.plain_epochs),
            first=done % steps,
            totals=totals,
            many=many,
            on_step=on_step and functools.partial(on_step, epoch),
            stop=stop if jax.process_count() == 1 else lambda: False,  # All processes take the same steps.
        )
        done = int(np.ravel(state.step)[0])
        for each, bad_step in zip(configs, np.ravel(totals.bad_step), strict=True):
            if bad_step:
                raise DivergedError(
                    f"{f'seed {each.seed}: ' if many else ''}the loss or its gradient is not finite at step {bad_step} "
                    f"of {steps * config.epochs}, in epoch {epoch}; try a learning rate below {config.learning_rate}"
                )
        if done < epoch * steps:
            raise Stopped(Progress(state, totals, history))
        scores = evaluate(setup.model, state.variables, test, config.eval_batch_size, mesh, many)
        means = [each.mean() for each in _of_each(totals)], [each.mean() for each in _of_each(scores)]
        seconds = time.perf_counter() - begin
        entries = tuple(EpochMetrics(epoch, *mine, *score, seconds) for mine, score in zip(*means, strict=True))
        history += (entries if many else entries[0],)
        totals = place(Metrics.zeros(*np.shape(totals.count)))
        if on_epoch:
            on_epoch(Progress(state, totals, history))
        if epoch < config.epochs and devices.any_process(stop()):
            raise Stopped(Progress(state, totals, history))
    return state, list(history)


def _of_each(metrics):
    """Metrics of one seed or many as a list, an entry per seed."""
    return [Metrics(*each) for each in zip(*map(np.ravel, jax.device_get(metrics)), strict=True)]
