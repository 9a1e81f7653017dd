"""The loop over the steps, an epoch and a training: from a setup and data to a trained state and its history."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, ArrayLike, Float, Int, Key

from mnist_jax import devices
from mnist_jax.data import Dataset, Split
from mnist_jax.errors import DivergedError, InputError, refusing, require_whole, shown
from mnist_jax.runtime import backend, default_types, jit, run_once
from mnist_jax.scoring import score
from mnist_jax.steps import Metrics, Setup, Streams, Trained, TrainState, init_state, train_step

Step: TypeAlias = Callable[..., tuple[TrainState, Metrics]]  # As `train_step`.
Order: TypeAlias = Callable[[Key[Array, ""], int, int, int], Int[ArrayLike, "steps B"]]  # As `epoch_order`.
Vary: TypeAlias = Callable[[Setup, Mapping[str, jax.Array]], Setup]  # Makes a setup with other numbers.


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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells trainings apart: pairs of a name and a value; empty if nothing is known."""

    values: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        """The number of values."""
        return f"Identity({len(self.values)} values)"


class Progress(NamedTuple):
    """Where a run stands, with everything needed to continue it as if it had not stopped.

    Attributes:
      state: the train state; `state.step` gives the place in the epoch.
      totals: metrics of the epoch in progress; zeros between epochs.
      history: the finished epochs.
      identity: settings, parts and data of the training.
    """

    state: TrainState
    totals: Metrics
    history: tuple[EpochMetrics, ...] = ()
    identity: Identity = Identity()

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return int(np.ravel(self.state.step)[0])


class Stopped(Exception):
    """The run was asked to stop, and stopped after a whole step. `fit(..., progress=stopped.progress)` continues it."""

    @property
    def progress(self) -> Any:
        """The `Progress` to continue from; from `fit_seeds` and `fit_many`, a list of one for each training begun."""
        return self.args[0]

    def __str__(self) -> str:
        """One line, with the way to continue."""
        last = self.progress if isinstance(self.progress, Progress) else self.progress[-1]
        return f"stopped after step {last.steps}; continue with progress=stopped.progress"


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
    return run_once(_epoch_order, key, epoch, *sizes, static_argnums=(2, 3))


def _epoch_order(key, epoch, num_examples, batch_size):
    steps = steps_per_epoch(num_examples, batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size)


class Epoch(NamedTuple):
    """What the steps of an epoch read; for many trainings `order`, `key` and `numbers` have a leading axis.

    Attributes:
      split: the training examples.
      order: indices of the examples of each step, int32 [steps, B].
      key: the run's `Streams.step`.
      strength: strength of the recipe's distortion, float32 [].
      mean: mean of the training pixels, float32 [C], or None.
      deviation: their standard deviation, float32 [C], or None.
      numbers: settings that differ between trainings, arrays by name, or None.
    """

    split: Any
    order: Any
    key: Any
    strength: Any
    mean: Any
    deviation: Any
    numbers: Any


_AXES = Epoch(split=None, order=0, key=0, strength=None, mean=None, deviation=None, numbers=0)  # For `jax.vmap`.


def take_step(
    i: Any, state: TrainState, totals: Metrics, epoch: Epoch, setup: Setup, step: Step, vary: Vary | None
) -> tuple[TrainState, Metrics]:
    """Takes the i-th step of an epoch, and adds its metrics to the totals: the body of the loop."""
    batch = epoch.order[i]
    images, labels = epoch.split.images[batch], epoch.split.labels[batch]
    setup = vary(setup, epoch.numbers) if vary else setup
    state, metrics = step(state, images, labels, epoch.key, setup, epoch.strength, epoch.mean, epoch.deviation)
    return state, totals + metrics


def loop(many: bool, whole: bool) -> Callable[..., tuple[TrainState, Metrics]]:
    """`take_step`, with `many` under `jax.vmap`; with `whole` in a loop over all steps of an epoch from `first` on."""

    def take(i, state, totals, epoch, setup, step, vary):
        def one(state, totals, epoch):
            return take_step(i, state, totals, epoch, setup, step, vary)

        return (jax.vmap(one, in_axes=(0, 0, _AXES)) if many else one)(state, totals, epoch)

    def take_all(first, state, totals, epoch, setup, step, vary):
        def body(i, carry):
            state, totals = carry
            return take(i, state, totals, epoch, setup, step, vary)

        return lax.fori_loop(first, epoch.order.shape[-2], body, (state, totals))

    return take_all if whole else take


@cache
def program(many: bool, whole: bool) -> Any:
    """The compiled `loop`."""
    return jit(loop(many, whole), static_argnames=("setup", "step", "vary"), donate_argnames="state")


def train_epoch(
    state: TrainState,
    split: Split,
    order: Int[ArrayLike, "*many steps B"],
    key: Key[Array, "*many"],
    setup: Setup,
    strength: float = 1.0,
    mean: Float[ArrayLike, " C"] | None = None,
    deviation: Float[ArrayLike, " C"] | None = None,
    *,
    step: Step = train_step,
    first: int = 0,
    totals: Metrics | None = None,
    vary: Vary | None = None,
    numbers: Mapping[str, Float[Array, " many"]] | None = None,
    whole: bool | None = None,
    on_step: Callable[[int, Metrics], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics]:
    """Takes the steps of an epoch: on a GPU or TPU in one program, on a CPU one by one.

    XLA:CPU runs the same step several times slower inside a loop. With a leading axis of trainings in `state`, `order`,
    `key`, `totals` and `numbers`, each step is one of all of them, by `jax.vmap`.

    Args:
      state: the `TrainState` to start from; donated, so that it cannot be used afterwards.
      split: the training examples, a `Split`.
      order: indices of the examples of each step, int32 [steps, B], from `epoch_order`.
      key: the run's `Streams.step`.
      setup: as for `train_step`, like the next three.
      strength: strength of the recipe's distortion, in [0, 1].
      mean: of the training pixels, float32 [C]; None for that of the setup.
      deviation: of the training pixels, float32 [C]; None for that of the setup.
      step: takes one step, with the signature of `train_step`.
      first: the first step to take, in an epoch that was interrupted.
      totals: metrics of the steps before `first`.
      vary: makes the setup of one training from its numbers, `vary(setup, numbers)`.
      numbers: settings that differ between trainings, float32 [trainings], by name.
      whole: whether all steps are one program; None for the way of the platform.
      on_step: where steps are taken one by one, called as `on_step(i, totals)` after step i, with the metrics so far.
      stop: where steps are taken one by one, called after every step; true ends the epoch.

    Returns:
      The state, and the metrics of the epoch so far. Taken one by one, a loss that is not finite ends the epoch early.
    """
    shape, steps = np.shape(order)[:-2], range(first, np.shape(order)[-2])
    totals = Metrics.zeros(*shape) if totals is None else totals
    if not steps:
        return state, totals
    epoch = Epoch(split, order, key, np.float32(strength), mean, deviation, numbers)
    whole = backend() != "cpu" if whole is None else whole
    take: Callable[..., tuple[TrainState, Metrics]] = program(bool(shape), whole)
    if whole:
        with default_types():
            return take(first, state, totals, epoch, setup, step, vary)
    several = any(len(leaf.devices()) > 1 for leaf in jax.tree.leaves(totals))
    before, i = totals, first
    for i in steps:
        before = totals
        with default_types():
            state, totals = take(i, state, totals, epoch, setup, step, vary)
        if several:  # XLA has as few threads as devices: two steps at once can take them all and wait for each other.
            jax.block_until_ready((state, totals))
        if on_step and i > first:
            on_step(i - 1, before)
        # Asked of the step before, so that the host does not wait; `np.any` of a JAX array would compile a program.
        if stop() or np.asarray(before.bad_step).any():
            break
    if on_step:
        on_step(i, totals)
    return state, totals


def begin(setup: Setup, streams: Streams, initial: Trained | None = None) -> Progress:
    """The progress of a training before its first step, with the weights of `initial` if there is one.

    Raises InputError if `initial` is of another network.
    """
    state = init_state(setup, streams.init)
    if initial is not None:
        fresh = {"params": state.params, **state.collections}
        weights = {name: initial.variables.get(name, {}) for name in fresh}
        _require_alike(fresh, weights, "initial is of another network", "give weights of this one")
        copied = _copy(weights)
        state = state._replace(params=copied.pop("params"), collections=copied)
    return Progress(state, Metrics.zeros())


def stack(trees: Sequence[Any]) -> Any:
    """One tree, with a leading axis, of many like it."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """The trees of `stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def train(
    setup: Setup,
    data: Dataset,
    streams: Streams | Sequence[Streams],
    *,
    epochs: int,
    batch_size: int,
    plain_epochs: int = 0,
    eval_batch_size: int = 250,
    step: Step = train_step,
    order: Order = epoch_order,
    initial: Trained | None = None,
    progress: Progress | None = None,
    identity: Identity = Identity(),
    names: Sequence[str] = (),
    vary: Vary | None = None,
    numbers: Mapping[str, jax.Array] | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[Progress], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Trains epoch by epoch, and scores each; with a list of streams, that many trainings at once by `jax.vmap`.

    Options and errors are those of `recipes.fits.fit`. For many trainings, the arrays of the progress have a leading
    axis, and an entry of its history is a tuple of their metrics.
    """
    many = not isinstance(streams, Streams)
    runs, size = [*streams] if many else [streams], len(data.train.labels)
    steps = steps_per_epoch(size, batch_size)
    if mesh and not many:
        devices.require_divisible(batch_size, mesh)
    elif mesh and len(runs) % mesh.size:
        raise InputError(
            f"{len(runs)} trainings cannot be split over {mesh.size} devices; choose a multiple of {mesh.size}"
        )
    scored, setup = setup, setup._replace(mean=None, deviation=None)  # Other data then needs no other program.
    joined = stack if many else (lambda trees: trees[0])

    def fresh() -> Progress:
        begun = joined([begin(setup, run, initial) for run in runs])
        if not vary:
            return begun
        opt_state = run_once(_init_optimizers, begun.state.params, numbers, setup, vary, static_argnums=(2, 3))
        return begun._replace(state=begun.state._replace(opt_state=opt_state))

    if progress:
        require_identity(progress, identity)
        _require_own(progress, jax.eval_shape(fresh).state, epochs, steps)
        state, totals = _copy(progress[:2])
    else:
        state, totals, *_ = fresh()
    history: tuple[Any, ...] = progress.history if progress else ()
    axis = 0 if many else None
    state, totals, numbers = devices.put((state, totals, numbers), mesh, axis)
    key = devices.put(stack([run.step for run in runs]), mesh, axis) if many else streams.step
    train = devices.put(data.train, mesh)
    mean, deviation = (devices.put(np.asarray(value, np.float32), mesh) for value in (data.mean, data.deviation))
    alone, stopping = jax.process_count() == 1, False  # All processes take the same steps.

    def asked() -> bool:
        nonlocal stopping
        stopping = alone and bool(stop())
        return stopping

    done = int(np.ravel(state.step)[0])
    for epoch in range(done // steps + 1, epochs + 1):
        begun = time.perf_counter()
        orders = joined([_batches(order, run, epoch, size, batch_size) for run in runs])
        state, totals = train_epoch(
            state,
            train,
            devices.put(orders, mesh, 0 if many else 1),
            key,
            setup,
            float(epoch <= epochs - plain_epochs),
            mean,
            deviation,
            step=step,
            first=done % steps,
            totals=totals,
            vary=vary,
            numbers=numbers,
            on_step=on_step and partial(on_step, epoch),
            stop=asked,
        )
        done = int(np.ravel(state.step)[0])
        for i, bad_step in enumerate(np.ravel(totals.bad_step)):
            if bad_step:
                raise DivergedError(
                    f"{f'{names[i]}: ' if names else ''}the loss or its gradient is not finite at step {bad_step} of "
                    f"{steps * epochs}, in epoch {epoch}; try a smaller learning rate"
                )
        if done < epoch * steps:
            raise Stopped(Progress(state, totals, history, identity))
        scores = score(scored.with_variables(state.variables), data.test, eval_batch_size, mesh, many)
        seconds = time.perf_counter() - begun
        means = zip(_by_training(totals), _by_training(scores), strict=True)
        entries = tuple(EpochMetrics(epoch, *trained.mean(), *tested.mean(), seconds) for trained, tested in means)
        history += (entries if many else entries[0],)
        totals = devices.put(Metrics.zeros(*np.shape(totals.count)), mesh, axis)
        # The next step donates the state's arrays, so the callback gets a copy.
        ended = on_epoch and on_epoch(Progress(_copy(state), totals, history, identity))
        if not isinstance(ended, bool | np.bool_ | None):
            raise InputError(f"on_epoch returned {shown(ended)}; return True to end the training, or None")
        if devices.any_process(bool(ended)):
            break
        if not alone or backend() != "cpu":  # Not asked after every step.
            stopping = devices.any_process(bool(stop()))
        if stopping and epoch < epochs:
            raise Stopped(Progress(state, totals, history, identity))
    return Progress(state, totals, history, identity)


def _init_optimizers(params, numbers, setup, vary):
    return jax.vmap(lambda params, numbers: vary(setup, numbers).optimizer.init(params))(params, numbers)


def _batches(order, streams, epoch, num_examples, batch_size):
    """The order of an epoch; raises InputError if an own one does not fit."""
    if order is epoch_order:
        return order(streams.order, epoch, num_examples, batch_size)
    with refusing("order cannot be used (", "); it is called like mj.epoch_order"):
        actual = np.asarray(order(streams.order, epoch, num_examples, batch_size))
    shape = (num_examples // batch_size, batch_size)
    if actual.shape != shape or actual.dtype.kind not in "iu":
        raise InputError(
            f"order gives {actual.dtype} {list(actual.shape)}; give integers {list(shape)}: steps, and examples of each"
        )
    if actual.size and not 0 <= actual.min() <= actual.max() < num_examples:
        raise InputError(f"order gives indices from {actual.min()} to {actual.max()}; give 0 to {num_examples - 1}")
    return actual.astype(np.int32)


def _copy(tree):
    """Copies arrays; `jnp.copy` compiles, but can copy arrays that several processes share."""
    return jax.device_put(tree, may_alias=False) if jax.process_count() == 1 else jax.tree.map(jnp.copy, tree)


def _by_training(metrics):
    """Metrics as a list, one entry per training."""
    return [Metrics(*sums) for sums in zip(*map(np.ravel, jax.device_get(metrics)), strict=True)]


_OTHER, _REMEDY = "progress is of another training", "continue with the settings, parts and data it was begun with"


def require_identity(progress: Progress, identity: Identity) -> None:
    """Raises InputError if a progress is known to be of another training."""
    before, now = dict(progress.identity.values), dict(identity.values)
    for name in [*now, *before] if now and before else []:
        if before.get(name) != now.get(name):
            values = f"was {shown(before.get(name))}, now {shown(now.get(name))}"
            raise InputError(f"{_OTHER}: {name} {values}; {_REMEDY}")


def _require_own(progress, state, epochs, steps):
    """Raises InputError unless a progress can continue in a training that begins with this state."""
    _require_alike(state, progress.state, _OTHER, _REMEDY)
    done, finished = progress.steps, len(progress.history)
    if done // steps != finished or done > steps * epochs:
        raise InputError(f"{_OTHER}: {finished} epochs and step {done}, of {epochs} epochs of {steps} steps; {_REMEDY}")


def _require_alike(expected, actual, wrong, remedy):
    """Raises InputError unless two trees have arrays of the same names and shapes."""
    leaves = map(tree_leaves_with_path, (expected, actual))
    want, have = ({keystr(path): np.shape(leaf) for path, leaf in of_tree} for of_tree in leaves)
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise InputError(f"{wrong}: {name} has shape {have.get(name)}, expected {want.get(name)}; {remedy}")
