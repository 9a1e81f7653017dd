"""Train state, training and evaluation step, the epoch, the fit: pure functions, jitted at the edge.

On GPU and TPU an epoch is one program. On CPU XLA runs the same step several times slower inside a loop, so
there each step is dispatched by itself; both walk through the one `train_step`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from mnist_jax import devices
from mnist_jax.augment import Distortion, distort
from mnist_jax.data import Mnist, Split, standardise
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.models import KERNEL_INITS, Network, create_model
from mnist_jax.recipes import Config
from mnist_jax.runtime import compiler_options


class TrainState(NamedTuple):
    """All that a step changes: `step` is int32 [], the others are pytrees of arrays.

    `average` is the moving average of `params` and `batch_stats`, None where none is kept.
    """

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array
    average: dict[str, Any] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes to predict: the average where one is kept."""
        return {"params": self.params, "batch_stats": self.batch_stats} if self.average is None else self.average


class Metrics(NamedTuple):
    """Sums over examples, to be divided once: `loss` float32 [], `correct` and `count` int32 [].

    `bad_step`, int32 [], is the first training step, counted from 1, whose loss or gradient was not finite; 0 for none.
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array
    bad_step: jax.Array

    @classmethod
    def zeros(cls) -> "Metrics":
        """Of no examples."""
        return cls(*(jnp.zeros((), dtype) for dtype in (jnp.float32, jnp.int32, jnp.int32, jnp.int32)))

    def mean(self) -> tuple[float, float]:
        """Cross-entropy in nats and accuracy as a fraction, per example."""
        loss, correct, count, _ = jax.device_get(self)
        return float(loss) / int(count), int(correct) / int(count)


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
      history: the finished epochs.
    """

    state: TrainState
    totals: Metrics
    history: tuple[EpochMetrics, ...] = ()


class Stopped(Exception):
    """The run was asked to stop, and did after a whole step; `args[0]`, a `Progress`, is where it stands."""


class Streams(NamedTuple):
    """The keys of a run's three random streams. A draw folds in its epoch or step; no key is carried along."""

    init: jax.Array
    order: jax.Array
    step: jax.Array

    @classmethod
    def from_seed(cls, seed: int) -> "Streams":
        """The streams of a seed in 0..2^32-1."""
        return cls(*jax.random.split(jax.random.key(seed), 3))


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in an epoch.

    Raises:
      InputError: `batch_size` is above `num_examples`.
    """
    if batch_size > num_examples:
        raise InputError(f"batch size {batch_size} is above the {num_examples} training images; choose fewer")
    return num_examples // batch_size


def make_model(config: Config) -> Network:
    """The network a config asks for."""
    return create_model(
        config.arch,
        dropout_rate=config.dropout_rate,
        kernel_init=KERNEL_INITS[config.kernel_init],
        dtype=jnp.dtype(config.precision),
    )


def make_distortion(config: Config) -> Distortion | None:
    """How far a config's augmentation goes; None for none at all."""
    distortion = Distortion(config.rotation, config.shift, config.scale, config.shear, config.elastic)
    return distortion if any(distortion) else None


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimiser a config asks for, its learning-rate schedule laid over `total_steps`.

    Weight decay spares batch norm: it acts on convolution kernels only, in SGD as a penalty in the gradient, in AdamW
    and Muon decoupled from it (Loshchilov and Hutter, arXiv:1711.05101). Muon (Jordan, "Muon", 2024) orthogonalises
    each kernel's update, scaled to the size of Adam's (Liu et al., arXiv:2502.16982); batch norm gets Adam's.
    """
    rate = (config.schedule, config.learning_rate, config.warmup, total_steps)
    return _optimizer(config.optimizer, rate, config.momentum, config.beta2, config.nesterov, config.weight_decay)


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    `one_cycle` is the triangle of L. N. Smith, "Super-Convergence", arXiv:1708.07120, ending at zero; `cosine` falls
    as in Loshchilov and Hutter, "SGDR", arXiv:1608.03983.
    """
    return _schedule(config.schedule, config.learning_rate, config.warmup, total_steps)


@functools.cache  # Equal settings give the same object, so that jit recognises it and does not compile again.
def _optimizer(name, rate, momentum, beta2, nesterov, weight_decay):
    rate = _schedule(*rate)
    if name == "sgd":
        sgd = optax.sgd(rate, momentum, nesterov)
        return optax.chain(optax.add_decayed_weights(weight_decay, _kernels), sgd) if weight_decay else sgd
    if name == "adamw":
        return optax.adamw(rate, momentum, beta2, weight_decay=weight_decay, mask=_kernels, nesterov=nesterov)
    return optax.contrib.muon(
        rate,
        beta=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
        adam_b2=beta2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _schedule(name, learning_rate, warmup, total_steps):
    if name == "one_cycle":
        return optax.linear_onecycle_schedule(total_steps, learning_rate, warmup, 1.0, 10.0, 1e4)
    if name == "cosine":
        rising = round(warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(learning_rate / 10, learning_rate, rising, total_steps)
    return optax.constant_schedule(learning_rate)


def _kernels(params):
    """A tree that says of each parameter whether it is a convolution kernel."""
    return jax.tree.map(lambda leaf: leaf.ndim == 4, params)


def _matrices(params):
    """A tree that says how Muon reads a kernel as a matrix: height, width and inputs by outputs; None for the rest."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda leaf: numbers if leaf.ndim == 4 else None, params)


def step_options(config: Config, total_steps: int, epoch: int = 1) -> dict[str, Any]:
    """What a config makes of `train_step` beside the arrays, in an epoch counted from 1."""
    return {
        "model": make_model(config),
        "optimizer": make_optimizer(config, total_steps),
        "distortion": make_distortion(config) if epoch <= config.epochs - config.plain_epochs else None,
        "label_smoothing": config.label_smoothing,
        "average_decay": config.average_decay,
        "resolution": config.low_resolution if epoch <= config.low_resolution_epochs else None,
    }


def init_state(
    model: Network, optimizer: optax.GradientTransformation, key: jax.Array, average: bool = False
) -> TrainState:
    """The state before the first step, with a moving average or without. The key is consumed."""
    variables = model.init(key, jnp.zeros((1, 28, 28, 1), jnp.float32), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Zeros, because the first step takes nothing from the average; its buffers must not be the parameters'.
    zeros = jax.tree.map(jnp.zeros_like, {"params": params, "batch_stats": batch_stats}) if average else None
    return TrainState(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32), zeros)


def epoch_order(key: jax.Array, epoch: jax.Array, num_examples: int, batch_size: int) -> jax.Array:
    """Which examples each step of an epoch sees, int32 [steps, batch_size]: a permutation from (key, epoch).

    The last `num_examples % batch_size` of the permutation rest, different ones in every epoch.
    """
    steps = steps_per_epoch(num_examples, batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
    return order[: steps * batch_size].reshape(steps, batch_size)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    model: Network,
    optimizer: optax.GradientTransformation,
    distortion: Distortion | None = None,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    resolution: int | None = None,
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean cross-entropy of a batch.

    Args:
      state: the state to start from.
      images: uint8 [B, 28, 28, 1].
      labels: int32 [B].
      key: the run's step stream; what this step draws comes from it and `state.step`.
      model: the network.
      optimizer: as given to `init_state`.
      distortion: how far each image is distorted before the network sees it, if at all.
      label_smoothing: share of the target, in [0, 1), spread evenly over the ten classes (Szegedy et al.,
        arXiv:1512.00567); the metrics are of the plain labels all the same.
      average_decay: share of the moving average that a step keeps, where the state has one.
      resolution: height and width the images are scaled to, smaller than 28; None to leave them.

    Returns:
      The next state, and the metrics of the batch before the update.
    """
    chex.assert_equal_shape_prefix([images, labels], 1)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    if distortion:
        images = distort(augment_key, images, distortion)
    images = standardise(images)
    if resolution:
        images = jax.image.resize(images, (len(images), resolution, resolution, 1), "linear")

    def loss_and_aux(params):
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = losses.mean()
        if label_smoothing:
            # Cross-entropy with the smoothed target, as the mixture that it is.
            loss += label_smoothing * (-jax.nn.log_softmax(logits).mean() - loss)
        return loss, (_metrics(losses, logits, labels), updated.get("batch_stats", {}))

    grads, (metrics, batch_stats) = jax.grad(loss_and_aux, has_aux=True)(state.params)
    finite = jnp.isfinite(metrics.loss) & jnp.isfinite(optax.tree.sum(grads))
    metrics = metrics._replace(bad_step=jnp.where(finite, 0, state.step + 1))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step, average = state.step + 1, state.average
    if average is not None:
        # The running mean of the first steps, then an exponential average: zeros at the start leave no trace. Batch
        # statistics are averaged with the weights they belong to.
        weight = (1 - average_decay) / (1 - average_decay ** step.astype(jnp.float32))
        average = optax.incremental_update({"params": params, "batch_stats": batch_stats}, average, weight)
    return TrainState(params, batch_stats, opt_state, step, average), metrics


def eval_step(
    variables: dict[str, Any], images: jax.Array, labels: jax.Array, mask: jax.Array, *, model: Network
) -> Metrics:
    """Scores a batch: `images` uint8 [B, 28, 28, 1], `labels` int32 [B], of which `mask` bool [B] count."""
    logits = model.apply(variables, standardise(images), train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _metrics(losses, logits, labels, mask)


def _metrics(losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Metrics:
    correct = logits.argmax(-1) == labels
    count = jnp.ones_like(labels).sum(where=mask)
    return Metrics(losses.sum(where=mask), correct.sum(where=mask), count, jnp.int32(0))


def _add(a: Metrics, b: Metrics) -> Metrics:
    sums = jax.tree.map(jnp.add, a, b)
    return sums._replace(bad_step=jnp.where(a.bad_step > 0, a.bad_step, b.bad_step))


# The i-th step of an epoch, and of a scoring: the bodies that both ways of looping share.


def _train_at(i, state, totals, split, order, key, **options):
    batch = order[i]
    state, metrics = train_step(state, split.images[batch], split.labels[batch], key, **options)
    return state, _add(totals, metrics)


def _eval_at(i, totals, variables, split, order, *, model):
    batch = order[i]
    mask = batch < len(split.labels)  # Indices past the end read the last example, which then does not count.
    return _add(totals, eval_step(variables, split.images[batch], split.labels[batch], mask, model=model))


def _train_epoch(first, state, totals, split, order, key, **options):
    def body(i, carry):
        return _train_at(i, *carry, split, order, key, **options)

    return lax.fori_loop(first, len(order), body, (state, totals))


def _eval_all(variables, split, order, *, model):
    def body(i, totals):
        return _eval_at(i, totals, variables, split, order, model=model)

    return lax.fori_loop(0, len(order), body, Metrics.zeros())


def _logits_at(i, variables, images, order, *, model):
    return model.apply(variables, standardise(images[order[i]]), train=False)


def _in_order(num_examples, batch_size):
    """Indices int32 [steps, batch_size] of all examples, and past the end where the last batch is not full."""
    steps = -(-num_examples // batch_size)
    return np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)


@functools.cache
def _jit(function: Callable, static: tuple[str, ...], donate: tuple[str, ...] = (), once: bool = False) -> Callable:
    """The edge: `jax.jit` once per function, with the compiler options of the backend (not known at import)."""
    options = compiler_options(once)
    return jax.jit(function, static_argnames=static, donate_argnames=donate, compiler_options=options)


# Only the train state is donated: the totals of step i - 1 are still to be read while step i runs.
_TRAIN = (("model", "optimizer", "distortion", "label_smoothing", "average_decay", "resolution"), ("state",))
_EVAL = (("model",),)


def evaluate(
    model: Network, variables: dict[str, Any], split: Split, batch_size: int = 250, mesh: Mesh | None = None
) -> Metrics:
    """Scores a whole split: every example counts once, whatever the batch size and the devices of `mesh`."""
    batch_size = min(batch_size, len(split.labels))
    if mesh:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    split, order = devices.put(split, mesh), devices.put(_in_order(len(split.labels), batch_size), mesh, axis=1)
    if jax.default_backend() != "cpu":
        return _jit(_eval_all, *_EVAL)(variables, split, order, model=model)
    step, totals = _jit(_eval_at, *_EVAL), devices.put(Metrics.zeros(), mesh)
    for i in range(len(order)):
        totals = step(i, totals, variables, split, order, model=model)
    return totals


def predict(model: Network, variables: dict[str, Any], images: jax.Array, batch_size: int = 250) -> np.ndarray:
    """Logits float32 [N, 10] of images uint8 [N, 28, 28, 1]; the batch size does not change them."""
    order, images = jax.device_put((_in_order(len(images), min(batch_size, len(images))), images))
    step = _jit(_logits_at, *_EVAL)
    return np.concatenate([step(i, variables, images, order, model=model) for i in range(len(order))])[: len(images)]


def train_epoch(
    state: TrainState,
    split: Split,
    order: jax.Array,
    key: jax.Array,
    *,
    first: int = 0,
    totals: Metrics | None = None,
    on_step: Callable[[int, Metrics], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Trains on the batches of `order`, int32 [steps, B]; the state given is donated.

    Args:
      state: the state to start from.
      split: the training examples.
      order: which of them each step sees.
      key: the run's step stream.
      first: the step of the epoch to begin at, for one that was interrupted.
      totals: metrics of the steps before `first`.
      on_step: on CPU called as `on_step(i, totals)`, with the metrics up to and with step i.
      stop: on CPU asked after every step whether to leave the rest of the epoch.
      **options: those of `train_step`, as `step_options` makes them.

    Returns:
      The state, and the metrics of the epoch so far. On CPU a loss that is not finite ends the epoch early.
    """
    totals = totals or Metrics.zeros()
    if jax.default_backend() != "cpu":
        return _jit(_train_epoch, *_TRAIN)(first, state, totals, split, order, key, **options)
    step = _jit(_train_at, *_TRAIN)
    for i in range(first, len(order)):
        before = totals
        state, totals = step(i, state, totals, split, order, key, **options)
        # What step i - 1 gave is read while step i may still be running.
        if on_step and i > first:
            on_step(i - 1, before)
        if before.bad_step or stop():
            break
    if on_step:
        on_step(i, totals)
    return state, totals


def start(config: Config, num_examples: int) -> Progress:
    """A run before its first step, on `num_examples` training images.

    Raises:
      InputError: the batch size is above the number of training images.
    """
    initialise = _jit(init_state, ("model", "optimizer", "average"), once=True)
    return Progress(initialise(**_init_arguments(config, num_examples)), Metrics.zeros())


def abstract_progress(config: Config, num_examples: int) -> Progress:
    """Shapes and dtypes of a run's progress, as `jax.ShapeDtypeStruct`, without computing any."""
    return jax.eval_shape(lambda: Progress(init_state(**_init_arguments(config, num_examples)), Metrics.zeros()))


def _init_arguments(config, num_examples):
    total_steps = steps_per_epoch(num_examples, config.batch_size) * config.epochs
    return {
        "model": make_model(config),
        "optimizer": make_optimizer(config, total_steps),
        "key": Streams.from_seed(config.seed).init,
        "average": config.average_decay > 0,
    }


def fit(
    config: Config,
    data: Mnist,
    *,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, list[EpochMetrics]]:
    """Trains a network and scores it on `data.test` after every epoch.

    Args:
      config: every setting of the run; on one machine the same config and data give the same bits on CPU.
      data: what to train on and what to score.
      progress: where to go on from, else from scratch; its state is donated. It comes out the same to the bit, on CPU,
        however often a run has stopped and gone on.
      mesh: the devices to split every batch over, as `devices.make_mesh` makes it; None for the default device.
      on_step: called as `on_step(epoch, i, totals)` after step i of an epoch (CPU only), with the epoch's metrics so
        far.
      on_epoch: called as `on_epoch(progress)` after each epoch, whose metrics are `progress.history[-1]`.
      stop: asked whether to stop, on CPU after every step, else, and where there are several processes, after every
        epoch.

    Returns:
      The final state and the history, one entry per epoch.

    Raises:
      InputError: the batch size is above the number of training images, or cannot be split over the devices.
      DivergedError: a loss or gradient is no longer finite.
      Stopped: `stop` said so before the last epoch was done.
    """
    steps = steps_per_epoch(len(data.train.labels), config.batch_size)
    if mesh:
        devices.require_divisible(config.batch_size, mesh)
    state, totals, history = progress or start(config, len(data.train.labels))
    state, totals = devices.put((state, totals), mesh)
    streams = Streams.from_seed(config.seed)
    shuffle = _jit(epoch_order, ("num_examples", "batch_size"))
    train, test = devices.put(data, mesh)
    done = int(state.step)
    for epoch in range(done // steps + 1, config.epochs + 1):
        begin = time.perf_counter()
        options = step_options(config, steps * config.epochs, epoch)
        order = shuffle(streams.order, epoch, num_examples=len(train.labels), batch_size=config.batch_size)
        state, totals = train_epoch(
            state,
            train,
            devices.put(order, mesh, axis=1),
            streams.step,
            first=done % steps,
            totals=totals,
            on_step=on_step and functools.partial(on_step, epoch),
            stop=stop if jax.process_count() == 1 else lambda: False,  # All processes take the same steps.
            **options,
        )
        done = int(state.step)
        if totals.bad_step:
            raise DivergedError(
                f"the loss or its gradient is not finite at step {totals.bad_step} of {steps * config.epochs}, in "
                f"epoch {epoch}; try a learning rate below {config.learning_rate}"
            )
        if done < epoch * steps:
            raise Stopped(Progress(state, totals, history))
        scores = evaluate(options["model"], state.variables, test, config.eval_batch_size, mesh)
        history += (EpochMetrics(epoch, *totals.mean(), *scores.mean(), time.perf_counter() - begin),)
        totals = devices.put(Metrics.zeros(), mesh)
        if on_epoch:
            on_epoch(Progress(state, totals, history))
        if epoch < config.epochs and devices.any_process(stop()):
            raise Stopped(Progress(state, totals, history))
    return state, list(history)


def fit_seeds(
    config: Config,
    seeds: Sequence[int],
    data: Mnist,
    *,
    mesh: Mesh | None = None,
    on_epoch: Callable[[list[EpochMetrics]], None] | None = None,
) -> tuple[TrainState, list[list[EpochMetrics]]]:
    """Trains one network for each seed, all in one program: the whole of `fit`, under `jax.vmap`.

    Each seed has the shuffles, distortions and dropout that it would have alone; results differ from those by rounding.

    Args:
      config: every setting but the seed.
      seeds: the seeds.
      data: what to train on and what to score.
      mesh: the devices to split the seeds over; None for the default device.
      on_epoch: called with the epoch's metrics of every seed; their `seconds` are those of all seeds together.

    Returns:
      The final states, each array with a leading axis of seeds, and each seed's history.

    Raises:
      InputError: the batch size is above the number of training images, or the seeds cannot be split over the devices.
      DivergedError: a loss or gradient of one of the seeds is no longer finite.
    """
    if mesh and len(seeds) % mesh.size:
        raise InputError(f"{len(seeds)} seeds cannot be split over {mesh.size} devices; choose a multiple of that")
    steps = steps_per_epoch(len(data.train.labels), config.batch_size)
    arguments = _init_arguments(config, len(data.train.labels))
    streams = Streams(*jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))(np.asarray(seeds, np.uint32)).T)
    streams = devices.put(streams, mesh, axis=0)
    initialise = _jit(_init_seeds, ("model", "optimizer", "average"), once=True)
    state = devices.put(initialise(**arguments | {"key": streams.init}), mesh, axis=0)
    train, test = devices.put(data, mesh)
    eval_order = devices.put(_in_order(len(test.labels), min(config.eval_batch_size, len(test.labels))), mesh)
    shuffle = _jit(_order_seeds, ("num_examples", "batch_size"))
    histories = [[] for _ in seeds]
    for epoch in range(1, config.epochs + 1):
        begin = time.perf_counter()
        order = shuffle(streams.order, epoch, num_examples=len(train.labels), batch_size=config.batch_size)
        options = step_options(config, steps * config.epochs, epoch)
        totals = devices.put(
            jax.tree.map(lambda zero: jnp.broadcast_to(zero, len(seeds)), Metrics.zeros()), mesh, axis=0
        )
        state, totals = _train_seeds(state, totals, train, devices.put(order, mesh, axis=0), streams.step, **options)
        totals = jax.device_get(totals)
        for seed, bad_step in zip(seeds, totals.bad_step, strict=True):
            if bad_step:
                raise DivergedError(
                    f"seed {seed}: the loss or its gradient is not finite at step {bad_step} of "
                    f"{steps * config.epochs}, in epoch {epoch}; try a learning rate below {config.learning_rate}"
                )
        scores = jax.device_get(_score_seeds(state.variables, test, eval_order, model=options["model"]))
        seconds = time.perf_counter() - begin
        for i, history in enumerate(histories):
            mine, score = (Metrics(*(leaf[i] for leaf in metrics)) for metrics in (totals, scores))
            history.append(EpochMetrics(epoch, *mine.mean(), *score.mean(), seconds))
        if on_epoch:
            on_epoch([history[-1] for history in histories])
    return state, histories


def _init_seeds(key, **arguments):
    return jax.vmap(lambda key: init_state(key=key, **arguments))(key)


def _order_seeds(key, epoch, **sizes):
    return jax.vmap(lambda key: epoch_order(key, epoch, **sizes))(key)


def _train_seeds_at(i, state, totals, split, order, key, **options):
    def one(state, totals, order, key):
        return _train_at(i, state, totals, split, order, key, **options)

    return jax.vmap(one)(state, totals, order, key)


def _train_seeds_epoch(state, totals, split, order, key, **options):
    def body(i, carry):
        return _train_seeds_at(i, *carry, split, order, key, **options)

    return lax.fori_loop(0, order.shape[1], body, (state, totals))


def _train_seeds(state, totals, split, order, key, **options):
    if jax.default_backend() != "cpu":
        return _jit(_train_seeds_epoch, *_TRAIN)(state, totals, split, order, key, **options)
    step = _jit(_train_seeds_at, *_TRAIN)
    for i in range(order.shape[1]):
        state, totals = step(i, state, totals, split, order, key, **options)
    return state, totals


def _eval_seeds(variables, split, order, *, model):
    return jax.vmap(lambda variables: _eval_all(variables, split, order, model=model))(variables)


def _eval_seeds_at(i, totals, variables, split, order, *, model):
    def one(totals, variables):
        return _eval_at(i, totals, variables, split, order, model=model)

    return jax.vmap(one)(totals, variables)


def _score_seeds(variables, split, order, *, model):
    if jax.default_backend() != "cpu":
        return _jit(_eval_seeds, *_EVAL)(variables, split, order, model=model)
    seeds = len(jax.tree.leaves(variables)[0])
    totals = jax.tree.map(lambda zero: jnp.broadcast_to(zero, seeds), Metrics.zeros())
    for i in range(len(order)):
        totals = _jit(_eval_seeds_at, *_EVAL)(i, totals, variables, split, order, model=model)
    return totals
