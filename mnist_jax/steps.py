"""Train state, training step and evaluation step: pure functions of arrays, jitted by whoever runs them."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mnist_jax.augment import Distortion, distort
from mnist_jax.data import standardise
from mnist_jax.models import Network
from mnist_jax.optimizers import make_optimizer
from mnist_jax.recipes import Config, make_distortion, make_model


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
    def zeros(cls, *shape: int) -> "Metrics":
        """Of no examples; with a shape, of as many seeds."""
        return cls(*(jnp.zeros(shape, dtype) for dtype in (jnp.float32, jnp.int32, jnp.int32, jnp.int32)))

    def __add__(self, other: "Metrics") -> "Metrics":
        """Of the examples of both, of which these came first."""
        sums = [a + b for a, b in zip(self[:3], other[:3], strict=True)]
        return Metrics(*sums, jnp.where(self.bad_step > 0, self.bad_step, other.bad_step))

    def mean(self) -> tuple[float, float]:
        """Cross-entropy in nats and accuracy as a fraction, per example."""
        loss, correct, count, _ = jax.device_get(self)
        return float(loss) / int(count), int(correct) / int(count)


class Streams(NamedTuple):
    """The keys of a run's three random streams. A draw folds in its epoch or step; no key is carried along."""

    init: jax.Array
    order: jax.Array
    step: jax.Array

    @classmethod
    def from_seed(cls, seed: int) -> "Streams":
        """The streams of a seed in 0..2^32-1."""
        return cls(*jax.random.split(jax.random.key(seed), 3))


class Setup(NamedTuple):
    """What `train_step` takes beside arrays: a value that a config is made into once, static under `jax.jit`.

    Attributes:
      model: the network.
      optimizer: its update, by optax.
      distortion: how far each image is distorted before the network sees it; None for no distortion at all.
      label_smoothing: share of the target, in [0, 1), spread evenly over the ten classes (Szegedy et al.,
        arXiv:1512.00567); the metrics are of the plain labels all the same.
      average_decay: share of the moving average, in [0, 1), that a step keeps; 0 for no average.
      resolution: height and width the images are scaled to, smaller than 28; None to leave them.
    """

    model: Network
    optimizer: optax.GradientTransformation
    distortion: Distortion | None = None
    label_smoothing: float = 0.0
    average_decay: float = 0.0
    resolution: int | None = None


def make_setup(config: Config, total_steps: int) -> Setup:
    """What a config makes of a run of so many steps, at full resolution; equal settings give an equal value."""
    return Setup(
        make_model(config),
        make_optimizer(config, total_steps),
        make_distortion(config),
        config.label_smoothing,
        config.average_decay,
    )


def init_state(setup: Setup, key: jax.Array) -> TrainState:
    """The state before the first step, with a moving average where one is asked for. The key is consumed."""
    variables = setup.model.init(key, jnp.zeros((1, 28, 28, 1), jnp.float32), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Zeros, because the first step takes nothing from the average; its buffers must not be the parameters'.
    zeros = (
        jax.tree.map(jnp.zeros_like, {"params": params, "batch_stats": batch_stats}) if setup.average_decay else None
    )
    return TrainState(params, batch_stats, setup.optimizer.init(params), jnp.zeros((), jnp.int32), zeros)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    setup: Setup,
    strength: jax.Array | float = 1.0,
) -> tuple[TrainState, Metrics]:
    """One step of gradient descent on the mean cross-entropy of a batch.

    Args:
      state: the state to start from.
      images: uint8 [B, 28, 28, 1].
      labels: int32 [B].
      key: the run's step stream; what this step draws comes from it and `state.step`.
      setup: network, optimiser and the rest that is not an array.
      strength: of the distortion, float32 [] in [0, 1]; at 0 the images are as they were, to the bit.

    Returns:
      The next state, and the metrics of the batch before the update.
    """
    chex.assert_equal_shape_prefix([images, labels], 1)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    if setup.distortion:
        images = distort(augment_key, images, setup.distortion, strength)
    images = standardise(images)
    if setup.resolution:
        images = jax.image.resize(images, (len(images), setup.resolution, setup.resolution, 1), "linear")

    def loss_and_aux(params):
        logits, updated = setup.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = losses.mean()
        if setup.label_smoothing:
            # Cross-entropy with the smoothed target, as the mixture that it is.
            loss += setup.label_smoothing * (-jax.nn.log_softmax(logits).mean() - loss)
        return loss, (_metrics(losses, logits, labels), updated.get("batch_stats", {}))

    grads, (metrics, batch_stats) = jax.grad(loss_and_aux, has_aux=True)(state.params)
    # Kernels only: what is not finite reaches the kernel before it, and the sum of a batch norm's gradients would have
    # XLA:TPU read the activations' once more.
    kernels = [leaf for leaf in jax.tree.leaves(grads) if leaf.ndim > 1]
    finite = jnp.isfinite(metrics.loss) & jnp.isfinite(optax.tree.sum(kernels))
    metrics = metrics._replace(bad_step=jnp.where(finite, 0, state.step + 1))
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step, average = state.step + 1, state.average
    if average is not None:
        # The running mean of the first steps, then an exponential average: zeros at the start leave no trace. Batch
        # statistics are averaged with the weights they belong to.
        weight = (1 - setup.average_decay) / (1 - setup.average_decay ** step.astype(jnp.float32))
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
