"""The epoch and the fit: from a setup and data to a trained state and its history, for one seed or, vmapped, many."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mnist_jax import devices
from mnist_jax.data import Dataset, Split
from mnist_jax.errors import DivergedError, InputError, require_whole
from mnist_jax.loops import loop
from mnist_jax.runtime import default_types, jit
from mnist_jax.scoring import evaluate
from mnist_jax.steps import Metrics, Setup, Streams, TrainState, init_state, train_step


class EpochMetrics(NamedTuple):
    """One finished epoch. Its training figures come from the steps themselves, with dropout and changing weights.

    Attributes:
      epoch: number of the epoch, counted from 1.
      train_loss: mean training loss.
      train_accuracy: training accuracy, a fraction.
      test_loss: mean cross-entropy on the scored images, in nats.
      test_accuracy: accuracy on the scored images, a fraction.
      seconds: seconds to train and score the epoch.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


E = TypeVar("E")  # An entry of a history: EpochMetrics, or one for each seed.


class Progress(NamedTuple, Generic[E]):
    """Where a run stands, with everything needed to continue it as if it had not stopped.

    Attributes:
      state: the train state; `state.step` gives the place in the epoch.
      totals: metrics of the epoch in progress; zeros between epochs.
      history: the finished epochs; with many seeds, a tuple of their metrics for each epoch.
    """

    state: TrainState
    totals: Metrics
    history: tuple[E, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(np.ravel(self.state.step)[0])


class Stopped(Exception):
    """The run was asked to stop, and stopped after a whole step. `fit(..., progress=stopped.progress)` continues it."""

    @property
    def progress(self) -> Any:
        """The `Progress` to continue from; from `fit_many` on a CPU, one for each config that was begun."""
        return self.args[0]

    def __str__(self) -> str:
        """One line, with the way to continue."""
        last = self.progress if isinstance(self.progress, Progress) else self.progress[-1]
        return f"stopped after step {last.steps}; continue with progress=stopped.progress"


class Plan(NamedTuple):
    """Numbers of epochs and batch sizes of a fit.

    Attributes:
      epochs: passes over the training images.
      batch_size: images per step.
      plain_epochs: number of epochs at the end without the recipe's distortion.
      eval_batch_size: images per step of scoring.
      remedy: what the error of a loss that is not finite tells to try.
    """

    epochs: int
    batch_size: int
    plain_epochs: int = 0
    eval_batch_size: int = 250
    remedy: str = "try a smaller learning rate"


class Lanes(NamedTuple):
    """The trainings of one fit: one, or many along a leading axis of their arrays.

    Attributes:
      streams: random streams, one per training.
      names: names in errors, one per training; None for one training without the axis.
      numbers: settings that differ, arrays [N] by name.
      make: makes a training's setup from its numbers, if there are any.
    """

    streams: Sequence[Streams]
    names: Sequence[str] | None = None
    numbers: dict[str, jax.Array] | None = None
    make: Callable[[Any], Setup] | None = None

    def join(self, trees: Sequence[Any]) -> Any:
        """Stacks one tree per training; returns a single one as it is."""
        return trees[0] if self.names is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches per epoch; raises InputError if `batch_size` is above `num_examples`."""
    if batch_size > num_examples:
        raise InputError(f"batch size {batch_size} is above the {num_examples} training images; choose a smaller one")
    return num_examples // batch_size


@default_types()
def epoch_order(key: Key[Array, ""], epoch: ArrayLike, num_examples: int, batch_size: int) -> Int[Array, "steps B"]:
    """Shuffles the examples of an epoch into batches. The incomplete last batch is dropped, others in each epoch.

    Args:
      key: the run's `Streams.order`.
      epoch: number of the epoch, int32 [], folded into the key.
      num_examples: number of training examples.
      batch_size: examples per step.

    Returns:
      Indices of the examples, int32 [steps, batch_size].

    Raises:
      InputError: a size is no whole number above 0, or the batch size is above the number of examples.
    """
    sizes = require_whole(num_examples, "number of examples", 1), require_whole(batch_size, "batch size", 1)
    return jit(_epoch_order, static_argnames=("num_examples", "batch_size"), once=True)(key, epoch, *sizes)


def _epoch_order(key, epoch, num_examples, batch_size):
    steps = steps_per_epoch(num_examples, batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size)


def train_body(i: Any, state: TrainState, totals: Metrics, own: Any, shared: Any, setup: Any) -> tuple[Any, Metrics]:
    """Takes the i-th step of an epoch. Order and key belong to one seed; split and strength are shared."""
    (order, key, numbers), (split, strength) = own, shared
    batch = order[i]
    setup = setup if numbers is None else setup(numbers)
    state, metrics = train_step(state, split.images[batch], split.labels[batch], key, setup, strength)
    return state, totals + metrics


def train_epoch(
    state: TrainState,
    split: Split,
    order: Int[Array, "*seeds steps B"],
    key: Key[Array, "*seeds"],
    setup: Setup | Callable[[Any], Setup],
    *,
    strength: float = 1.0,
    first: int = 0,
    totals: Metrics | None = None,
    many: bool = False,
    numbers: dict[str, Float[Array, " seeds"]] | None = None,
    on_step: Callable[[int, Metrics], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics]:
    """Takes the steps of an epoch.

    Args:
      state: the `TrainState` to start from; donated, so that it cannot be used afterwards.
      split: the training examples, a `Split`.
      order: indices of the examples of each step, int32 [steps, B], from `epoch_order`.
      key: the run's `Streams.step`.
      setup: as for `train_step`; with `numbers`, a function that makes it from one seed's numbers.
      strength: strength of the recipe's distortion, in [0, 1].
      first: the first step to take, in an epoch that was interrupted.
      totals: metrics of the steps before `first`.
      many: whether `state`, `order`, `key`, `totals` and `numbers` have a leading axis of seeds.
      numbers: settings that differ between seeds, arrays [seeds] by name.
      on_step: on a CPU, called as `on_step(i, totals)` after step i, with the metrics of the epoch so far.
      stop: on a CPU, called after every step; true ends the epoch.

    Returns:
      The state, and the metrics of the epoch so far. On a CPU a loss that is not finite ends the epoch early.
    """
    totals = Metrics.zeros(*order.shape[:-2]) if totals is None else totals
    own, shared, steps = (order, key, numbers), (split, np.float32(strength)), range(first, order.shape[-2])

    def ends(before: Metrics) -> bool:
        return bool(np.asarray(before.bad_step).any()) or stop()  # `np.any` would compile a program.

    return loop(train_body, steps, state, totals, own, shared, setup, many=many, on_step=on_step, stop=ends)


def begin(setup: Setup, lanes: Lanes) -> Progress[Any]:
    """The progress of all lanes before their first step."""
    if lanes.numbers is None:
        return lanes.join([Progress(init_state(setup, each.init), Metrics.zeros()) for each in lanes.streams])
    keys = jnp.stack([each.init for each in lanes.streams])
    states = jit(_init_states, static_argnames="make", once=True)(keys, lanes.numbers, lanes.make)
    return Progress(states, Metrics.zeros(len(keys)))


def _init_states(keys, numbers, make):
    return jax.vmap(lambda key, numbers: init_state(make(numbers), key))(keys, numbers)


def train(
    setup: Setup,
    data: Dataset,
    plan: Plan,
    lanes: Lanes,
    *,
    progress: Progress[Any] | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[Progress[Any]], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress[Any]:
    """Trains one lane, or many in one program. Options, scoring and errors are those of `recipes.fits.fit`."""
    many, steps = lanes.names is not None, steps_per_epoch(len(data.train.labels), plan.batch_size)
    _require_split(plan, lanes, mesh)
    place = functools.partial(devices.put, mesh=mesh, axis=0 if many else None)
    if progress:
        _require_own(progress, jax.eval_shape(lambda: begin(setup, lanes)), plan, steps)
        state, totals, history = (*_copy(progress[:2]), progress.history)
    else:
        state, totals, history = begin(setup, lanes)
    state, totals, numbers = place(state), place(totals), lanes.numbers and place(lanes.numbers)
    key = place(jnp.stack([each.step for each in lanes.streams])) if many else lanes.streams[0].step
    train, test = devices.put(data.train, mesh), devices.put(data.test, mesh)
    done = int(np.ravel(state.step)[0])
    for epoch in range(done // steps + 1, plan.epochs + 1):
        begun = time.perf_counter()
        order = lanes.join([epoch_order(s.order, epoch, len(train.labels), plan.batch_size) for s in lanes.streams])
        state, totals = train_epoch(
            state,
            train,
            devices.put(order, mesh, axis=0 if many else 1),
            key,
            lanes.make or setup,
            strength=float(epoch <= plan.epochs - plan.plain_epochs),
            first=done % steps,
            totals=totals,
            many=many,
            numbers=numbers,
            on_step=on_step and functools.partial(on_step, epoch),
            stop=stop if jax.process_count() == 1 else lambda: False,  # All processes take the same steps.
        )
        done = int(np.ravel(state.step)[0])
        _require_finite(totals, lanes, plan, epoch, steps)
        if done < epoch * steps:
            raise Stopped(Progress(state, totals, history))
        scores = evaluate(setup.trained(state), test, plan.eval_batch_size, mesh, many)
        means = zip(_of_each(totals), _of_each(scores), strict=True)
        seconds = time.perf_counter() - begun
        entries = tuple(EpochMetrics(epoch, *mine.mean(), *score.mean(), seconds) for mine, score in means)
        history += (entries if many else entries[0],)
        totals = place(Metrics.zeros(*np.shape(totals.count)))
        reached = Progress(state, totals, history)
        # The next step donates the state's arrays, so the callback gets a copy.
        if devices.any_process(bool(on_epoch and on_epoch(reached._replace(state=_copy(state))))):
            break
        if epoch < plan.epochs and devices.any_process(stop()):
            raise Stopped(reached)
    return Progress(state, totals, history)


def _copy(tree):
    """Copies arrays; `jnp.copy` compiles, but can copy arrays that several processes share."""
    return jax.device_put(tree, may_alias=False) if jax.process_count() == 1 else jax.tree.map(jnp.copy, tree)


def _of_each(metrics):
    """Metrics as a list, one entry per seed."""
    return [Metrics(*each) for each in zip(*map(np.ravel, jax.device_get(metrics)), strict=True)]


def _require_split(plan, lanes, mesh):
    """Raises InputError if the mesh cannot split the batches, or the lanes."""
    if mesh and lanes.names is None:
        devices.require_divisible(plan.batch_size, mesh)
    elif mesh and (count := len(lanes.streams)) % mesh.size:
        raise InputError(f"{count} seeds cannot be split over {mesh.size} devices; choose a multiple of {mesh.size}")


def _require_finite(totals, lanes, plan, epoch, steps):
    """Raises DivergedError for the first lane whose loss or gradient is not finite."""
    for i, bad_step in enumerate(np.ravel(totals.bad_step)):
        if bad_step:
            raise DivergedError(
                f"{f'{lanes.names[i]}: ' if lanes.names else ''}the loss or its gradient is not finite at step "
                f"{bad_step} of {steps * plan.epochs}, in epoch {epoch}; {plan.remedy}"
            )


def _require_own(progress, expected, plan, steps):
    """Raises InputError if a progress has other arrays than expected, or does not fit the plan's epochs."""
    both = map(tree_leaves_with_path, (expected.state, progress.state))
    want, have = ({keystr(path): np.shape(leaf) for path, leaf in leaves} for leaves in both)
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise InputError(
                f"progress is of another training: {name} has shape {have.get(name)}, expected {want.get(name)}; "
                "continue with the config and the parts it was begun with"
            )
    done, epochs = progress.steps, len(progress.history)
    if done // steps != epochs or done > steps * plan.epochs:
        raise InputError(
            f"progress is of another training: {epochs} epochs and step {done}, but a run has {plan.epochs} epochs of "
            f"{steps} steps; continue with the config and the data it was begun with"
        )
