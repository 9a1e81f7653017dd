"""Train state, training step and evaluation step: pure functions of arrays, to be jitted by the caller."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, UInt8

from mnist_jax.data import standardize, standardize_pixels, to_float
from mnist_jax.errors import InputError, require_whole
from mnist_jax.losses import Collections, CrossEntropy, Loss, Params, Result
from mnist_jax.runtime import backend, default_types, run_once
from mnist_jax.summary import count_params, is_kernel

Images = UInt8[ArrayLike, "*B H W C"] | Float[ArrayLike, "*B H W C"]

_OTHER_STREAMS, _LOSS = 2**16, 2**17  # Folded into a step's key.


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      params: parameters of the network, a pytree.
      collections: its other collections by name, such as `batch_stats`, a pytree.
      opt_state: state of the optimizer, a pytree.
      step: number of steps taken, int32 [].
      average: moving average of parameters and collections, or None.
    """

    params: Params
    collections: Collections
    opt_state: Any
    step: Int[Array, "*seeds"]
    average: Collections | None = None

    @property
    def variables(self) -> Collections:
        """The variables to predict with, the average if there is one."""
        return {"params": self.params, **self.collections} if self.average is None else self.average

    def __repr__(self) -> str:
        """One line without weights, because a notebook shows the value of its last line."""
        return f"TrainState(step={self.step}, {count_params(self.params):,} parameters)"


class Metrics(NamedTuple):
    """Sums over examples. Metrics of batches are added, then divided once by `mean`.

    Attributes:
      loss: sum of the losses, float32 [].
      correct: number of correct predictions, int32 [].
      count: number of examples, int32 [].
      bad_step: first training step, counted from 1, with a loss or gradient that is not finite; 0 for none; int32 [].
    """

    loss: Float[Array, "*seeds"]
    correct: Int[Array, "*seeds"]
    count: Int[Array, "*seeds"]  # pyright: ignore[reportIncompatibleMethodOverride]
    bad_step: Int[Array, "*seeds"]

    @classmethod
    def zeros(cls, *shape: int) -> "Metrics":
        """Metrics of no examples, each field an array of this shape: `()`, or `(seeds,)`."""
        return cls(*(jax.device_put(np.zeros(shape, dtype)) for dtype in "fiii"))  # `jnp.zeros` would compile.

    def __add__(self, other: "Metrics") -> "Metrics":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adds the sums; keeps the earlier bad step (`self` precedes `other`)."""
        sums = [a + b for a, b in zip(self[:3], other[:3], strict=True)]
        return Metrics._make([*sums, jnp.where(self.bad_step > 0, self.bad_step, other.bad_step)])

    def mean(self) -> tuple[float, float]:
        """Mean loss (cross-entropies in nats) and accuracy (a fraction)."""
        loss, correct, count, _ = jax.device_get(self)
        return float(loss) / int(count), int(correct) / int(count)


class Streams(NamedTuple):
    """Keys of a run's three random streams. A draw folds in its epoch or step, so no key is carried along.

    Attributes:
      init: for the initial parameters.
      order: for the order of the images; `epoch_order` folds in the epoch.
      step: for augmentation, dropout and the loss; `train_step` folds in the step.
    """

    init: Key[Array, ""]
    order: Key[Array, ""]
    step: Key[Array, ""]

    @classmethod
    def from_seed(cls, seed: int) -> "Streams":
        """Makes the streams of a seed in 0..2^32-1; raises InputError for any other."""
        backend()  # A fit uses JAX here first. The key is that of `jax.random.key`, whatever generator the process has.
        data = np.array([0, require_whole(seed, "seed", 0, 2**32 - 1)], np.uint32)
        with default_types():
            return cls(*run_once(_split, data))


def _split(data):
    return [*jax.random.split(jax.random.wrap_key_data(data, impl="threefry2x32"), 3)]


@flax.struct.dataclass
class Trained:
    """A trained network with everything needed to use it: a pytree of its variables, mean and deviation.

    Attributes:
      model: the network, called as `model.apply(variables, standardize(images), train=False)`.
      variables: its parameters and other collections.
      mean: mean of the training pixels, per channel, on the [0, 1] scale, float32 [C].
      deviation: their standard deviation, per channel, float32 [C].
      classes: names of the classes, in the order of the logits.
      image_shape: height, width and channels of an image.
    """

    model: nn.Module = flax.struct.field(pytree_node=False)
    variables: Collections
    mean: Float[ArrayLike, " C"]
    deviation: Float[ArrayLike, " C"]
    classes: tuple[str, ...] = flax.struct.field(pytree_node=False)
    image_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)

    def standardize(self, images: Images) -> Float[Array, "*B H W C"]:
        """Standardizes images [..., H, W, C], uint8 or floats in [0, 1], to the network's input, float32."""
        return standardize(images, self.mean, self.deviation)

    def numbers(self) -> dict[str, list[float]]:
        """`mean` and `deviation` for a file, with as few digits as tell a float32 apart."""
        fields = {"mean": self.mean, "deviation": self.deviation}
        return {name: [float(str(value)) for value in np.asarray(field, np.float32)] for name, field in fields.items()}

    def __repr__(self) -> str:
        """One line without weights."""
        name = getattr(self.model, "arch", "") or type(self.model).__name__
        shape = "x".join(map(str, self.image_shape))
        parameters = count_params(self.variables.get("params", {}))
        return f"Trained({name}, {parameters:,} parameters, images {shape}, {len(self.classes)} classes)"


class Setup(NamedTuple):
    """The static part of a training step, hashable, a static argument under `jax.jit`.

    Attributes:
      model: the network.
      optimizer: an optax optimizer; one that takes extra arguments takes `value`, `grad`, `value_fn` and `grad_fn`.
      loss: the loss, see `losses`.
      augment: `(key, images, strength) -> images`, on float32 or uint8 [B, H, W, C], 0 to 255; or None.
      average_decay: share of the moving average, in [0, 1), that a step keeps; 0 for no average.
      mean: mean of the training pixels, per channel, on the [0, 1] scale; None where a step receives it.
      deviation: their standard deviation, per channel; None as the mean.
      classes: names of the classes.
      image_shape: height, width and channels of an image.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    loss: Loss = CrossEntropy()
    augment: Callable[..., jax.Array] | None = None
    average_decay: float = 0.0
    mean: tuple[float, ...] | None = (0.1307,)
    deviation: tuple[float, ...] | None = (0.3081,)
    classes: tuple[str, ...] = tuple("0123456789")
    image_shape: tuple[int, int, int] = (28, 28, 1)

    def trained(self, state: TrainState) -> Trained:
        """The network with the weights of a state, the average if there is one.

        Raises InputError for the stacked state of many trainings.
        """
        if np.ndim(state.step):
            raise InputError(f"the state is of {len(state.step)} trainings; give that of one")
        return self.with_variables(state.variables)

    def with_variables(self, variables: Collections) -> Trained:
        """The network with these variables."""
        mean, deviation = (np.asarray(value, np.float32) for value in (self.mean, self.deviation))
        return Trained(self.model, variables, mean, deviation, self.classes, self.image_shape)


@default_types()
def init_state(setup: Setup, key: Key[Array, ""]) -> TrainState:
    """Initializes parameters and optimizer.

    Args:
      setup: network and optimizer, a `Setup`.
      key: a `jax.random` key, consumed.

    Returns:
      The state before the first step.
    """
    return run_once(_init_state, setup, key, static_argnums=0)


def _init_state(setup, key):
    images = jnp.zeros((1, *setup.image_shape), jnp.float32)
    variables = meta.unbox(dict(setup.model.init(key, images, train=False)))
    params = variables.pop("params", {})
    kept = _stable(setup.model, params, variables, images) if variables else variables
    # Zeros, because the first step replaces the average. Its buffers must not be those of the parameters.
    zeros = jax.tree.map(jnp.zeros_like, {"params": params, **kept}) if setup.average_decay else None
    return TrainState(params, kept, setup.optimizer.init(params), jnp.zeros((), jnp.int32), zeros)


def _stable(model, params, collections, images):
    """The collections whose structure and shapes a step does not change. Sown collections change, and are dropped."""
    if collections.keys() == {"batch_stats"}:
        return collections
    variables, batch = {"params": params, **collections}, jnp.repeat(images, 2, 0)  # Another size than at first.
    after = jax.eval_shape(lambda key: _apply(model, variables, batch, key)[1], jax.random.key(0))
    described = partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    return {name: tree for name, tree in collections.items() if described(after.get(name)) == described(tree)}


def _apply(model, variables, images, key):
    """Logits in training mode and the updated collections. All random streams derive from the key."""
    # Flax uses the key of `params` for streams without a key.
    rngs = {"dropout": key, "params": jax.random.fold_in(key, _OTHER_STREAMS)}
    mutable = [name for name in variables if name != "params"]
    logits, updated = model.apply(variables, images, train=True, rngs=rngs, mutable=mutable)
    return logits, dict(updated)


@default_types()
def value_and_grad(
    state: TrainState,
    images: Images,
    labels: Int[ArrayLike, " B"],
    key: Key[Array, ""],
    setup: Setup,
    strength: Float[ArrayLike, ""] = 1.0,
    mean: Float[ArrayLike, " C"] | None = None,
    deviation: Float[ArrayLike, " C"] | None = None,
) -> tuple[Result, Params]:
    """Computes the loss of a batch, distorted and standardized, and its gradient, as `train_step` does.

    Args:
      state: the `TrainState`; its parameters, collections and step are used.
      images: uint8, or float32 in [0, 1], [B, H, W, C].
      labels: int32 [B].
      key: the run's `Streams.step`.
      setup: as for `train_step`, like the next three.
      strength: strength of the recipe's distortion, float32 [].
      mean: mean of the training pixels, float32 [C]; None for that of the setup.
      deviation: their standard deviation, float32 [C]; None for that of the setup.

    Returns:
      `((value, (losses, logits, collections)), gradients)`: what the loss returns, and the gradient of `value` with the
      structure of `state.params`.

    Raises:
      InputError: as `train_step`.
    """
    loss_of = _loss_of(state, images, labels, key, setup, strength, mean, deviation)
    return jax.value_and_grad(loss_of, has_aux=True)(state.params)


def _loss_of(state, images, labels, key, setup, strength, mean, deviation) -> Callable[[Params], Result]:
    """The loss of a batch as a function of the parameters."""
    mean, deviation = setup.mean if mean is None else mean, setup.deviation if deviation is None else deviation
    if mean is None or deviation is None:
        raise InputError(
            "a step needs mean and deviation, and the setup has none; pass on those that the step receives"
        )
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or np.shape(images)[:1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        shapes = f"images {list(np.shape(images))} and labels {labels.dtype} {list(labels.shape)}"
        raise InputError(f"a step cannot use {shapes}; give images [B, H, W, C] and integers [B]")
    augment_key, step_key = jax.random.split(jax.random.fold_in(key, state.step))
    images, labels, strength = jnp.asarray(images), jnp.asarray(labels, jnp.int32), jnp.asarray(strength, jnp.float32)
    pixels = images if images.dtype == jnp.uint8 else to_float(images)  # The augmentation looks up bytes faster.
    if setup.augment is not None:
        pixels = setup.augment(augment_key, pixels, strength)
    batch = standardize_pixels(pixels.astype(jnp.float32), mean, deviation)

    def apply(params, images, key=None):
        variables = {"params": params, **state.collections}
        return _apply(setup.model, variables, images, step_key if key is None else key)

    def loss_of(params):
        result = setup.loss(apply, params, batch, labels, jax.random.fold_in(step_key, _LOSS))
        return _checked(result, labels, state.collections)

    return loss_of


def _checked(result, labels, kept) -> Result:
    """What a loss returned; raises InputError unless it has the form that `losses` describes."""
    try:
        value, (losses, logits, collections) = result
    except (TypeError, ValueError) as error:
        raise InputError(
            "the loss does not return what a loss has to; return value, (losses, logits, collections)"
        ) from error
    shapes = jnp.shape(value), jnp.shape(losses), jnp.shape(logits)[:-1]
    if shapes != ((), labels.shape, labels.shape) or not isinstance(collections, dict) or {*collections} != {*kept}:
        raise InputError(
            f"the loss gives value {shapes[0]}, losses {shapes[1]} and logits {jnp.shape(logits)} for {len(labels)} "
            f"images; return (), ({len(labels)},), ({len(labels)}, classes) and the collections of apply"
        )
    return result


@default_types()
def train_step(
    state: TrainState,
    images: Images,
    labels: Int[ArrayLike, " B"],
    key: Key[Array, ""],
    setup: Setup,
    strength: Float[ArrayLike, ""] = 1.0,
    mean: Float[ArrayLike, " C"] | None = None,
    deviation: Float[ArrayLike, " C"] | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one step of gradient descent on the loss of a batch.

    Args:
      state: the `TrainState` to start from.
      images: uint8, or float32 in [0, 1], [B, H, W, C].
      labels: int32 [B].
      key: the run's `Streams.step`; the step's randomness depends on it and on `state.step`.
      setup: network, optimizer, loss and other static parts, a `Setup`.
      strength: strength of the recipe's distortion, float32 [] in [0, 1]; 0 leaves the images unchanged.
      mean: of the training pixels, per channel, on the [0, 1] scale, float32 [C]; None for that of the setup.
      deviation: their standard deviation, float32 [C]; None for that of the setup.

    Returns:
      The next state, and the `Metrics` of the batch before the update.

    Raises:
      InputError: labels or loss have another form, or there is no mean and deviation.
    """
    loss_of = _loss_of(state, images, labels, key, setup, strength, mean, deviation)
    (value, (losses, logits, collections)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    metrics = _metrics(losses, logits, jnp.asarray(labels, jnp.int32))
    # Kernels only: values that are not finite reach the kernel before them, and to sum the gradients of a batch norm
    # XLA:TPU would read those of the activations again.
    kernels = list(filter(is_kernel, jax.tree.leaves(grads))) or jax.tree.leaves(grads)
    finite = jnp.isfinite(metrics.loss) & jnp.isfinite(optax.tree.sum(kernels))
    metrics = metrics._replace(bad_step=jnp.where(finite, 0, state.step + 1))
    updates, opt_state = optax.with_extra_args_support(setup.optimizer).update(
        grads,
        state.opt_state,
        state.params,
        value=value,
        grad=grads,
        value_fn=lambda params: loss_of(params)[0],
        grad_fn=lambda params, _: jax.grad(loss_of, has_aux=True)(params)[0],
    )
    params = optax.apply_updates(state.params, updates)
    step, average = state.step + 1, state.average
    if average is not None:
        # A running mean of the first steps, then an exponential average, so the zeros at the start have no weight.
        # Other collections are averaged with the weights they belong to.
        weight = (1 - setup.average_decay) / (1 - setup.average_decay ** step.astype(jnp.float32))
        average = jax.tree.map(partial(_averaged, weight=weight), {"params": params, **collections}, average)
    return TrainState(params, collections, opt_state, step, average), metrics


def _averaged(new, old, weight):
    """`optax.incremental_update` for floats; other types, such as counters, take the new value."""
    floats = jnp.issubdtype(new.dtype, jnp.inexact)
    return (weight * new + (1.0 - weight) * old).astype(old.dtype) if floats else new


@default_types()
def eval_step(trained: Trained, images: Images, labels: Int[Array, " B"], mask: Bool[Array, " B"]) -> Metrics:
    """Scores a batch by cross-entropy and accuracy.

    Args:
      trained: the network, a `Trained`.
      images: uint8, or float32 in [0, 1], [B, H, W, C].
      labels: int32 [B].
      mask: bool [B], True for the images that count.

    Returns:
      The sums over the images that count.
    """
    logits = cast(jax.Array, trained.model.apply(trained.variables, trained.standardize(images), train=False))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), jnp.asarray(labels, jnp.int32))
    return _metrics(losses, logits, labels, mask)


def _metrics(losses, logits, labels, mask=None) -> Metrics:
    correct = logits.argmax(-1) == labels
    count = jnp.ones_like(labels).sum(where=mask, dtype=jnp.int32)
    loss = losses.astype(jnp.float32).sum(where=mask)  # A sum in bfloat16 would depend on the size of the batch.
    return Metrics(loss, correct.sum(where=mask, dtype=jnp.int32), count, jnp.int32(0))
