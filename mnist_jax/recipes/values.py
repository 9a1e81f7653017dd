"""Makes data, network, optimizer and setup from a config and from own parts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from mnist_jax import models, optimizers
from mnist_jax.augment import Always, Distortion
from mnist_jax.data import Dataset, hold_out, load_dataset
from mnist_jax.errors import InputError, refusing, require, require_whole
from mnist_jax.layers import FLAX
from mnist_jax.losses import CrossEntropy, Loss
from mnist_jax.models import KERNEL_INITS, Network
from mnist_jax.recipes.config import Config, require_config
from mnist_jax.runtime import default_types
from mnist_jax.steps import Setup
from mnist_jax.training import steps_per_epoch

Augment = Callable[[jax.Array, jax.Array], jax.Array]

# Settings that shape no array and choose no program: `fit_many` may vary them.
OPTIMIZER_NUMBERS = ("learning_rate", "momentum", "beta2", "weight_decay")
DISTORTION_NUMBERS = ("rotation", "shift", "scale", "shear", "elastic")
NUMBERS = OPTIMIZER_NUMBERS + DISTORTION_NUMBERS
_OPTIMIZER_SETTINGS = ("optimizer", "schedule", "warmup", "nesterov", *OPTIMIZER_NUMBERS)


class Parts(TypedDict, total=False):
    """Own parts instead of a config's, as for `make_setup`."""

    model: nn.Module | None
    optimizer: optax.GradientTransformation | None
    augment: Augment | None
    loss: Loss | None


def load_data(config: Config) -> Dataset:
    """The whole data set that a config names; raises as `load_dataset`."""
    return load_dataset(config.dataset, data_dir=config.data_dir, source=config.data_source)


def part_of(config: Config, data: Dataset) -> Dataset:
    """The data that a config trains on and scores, with its held-out images in `test`; raises as `hold_out`."""
    return hold_out(data, config.held_out) if config.held_out else data


def total_steps(config: Config, data: Dataset) -> int:
    """Number of steps of a run; raises InputError if the batch size is above the number of training images."""
    return steps_per_epoch(len(data.train.labels), config.batch_size) * config.epochs


def network_of(config: Config, num_classes: int = 10) -> Network:
    """The network of a config."""
    return models.make_model(
        config.arch,
        num_classes=num_classes,
        dropout_rate=config.dropout_rate,
        kernel_init=KERNEL_INITS[config.kernel_init],
        dtype=jnp.dtype(config.precision),
    )


@dataclasses.dataclass(frozen=True)
class OptimizerPart:
    """The function `init` or `update` of an optimizer, made when it is called.

    The functions of optax are closures. This one can be pickled, and is equal for equal settings, so that `jax.jit`
    compiles once.

    Attributes:
      name: "init" or "update".
      settings: the arguments of `optimizers.optimizer_of` with their names.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Calls the function of optax."""
        return getattr(optimizers.optimizer_of(**dict(self.settings)), self.name)(*args, **options)


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of a config.

    Args:
      config: a `Config`; its optimizer, schedule and their numbers are used.
      total_steps: number of steps of the run, for the schedule.

    Returns:
      The optimizer.

    Example:
      >>> optimizer = mj.make_optimizer(config, total_steps=4)
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    """
    require_config(config)
    steps = ("total_steps", require_whole(total_steps, "number of steps", 1))
    settings = (steps, *((name, getattr(config, name)) for name in _OPTIMIZER_SETTINGS))
    return optax.GradientTransformation(OptimizerPart("init", settings), OptimizerPart("update", settings))


def make_distortion(config: Config) -> Distortion | None:
    """The distortion of a config; None if no epoch has any."""
    distortion = Distortion(config.rotation, config.shift, config.scale, config.shear, config.elastic)
    return distortion if any(distortion) and config.plain_epochs < config.epochs else None


@default_types()
def make_setup(
    config: Config,
    data: Dataset,
    *,
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    augment: Augment | None = None,
    loss: Loss | None = None,
) -> Setup:
    """Builds the static part of a training step. Equal configs give equal, hashable results.

    Args:
      config: every setting of the run, a `Config`.
      data: the `Dataset` to train on; its length, classes, statistics and image shape are used.
      model: replaces the network: a Flax module called as `model(images, train=...)`, from float32 [B, H, W, C] to
        logits [B, classes], with any collections and random streams.
      optimizer: replaces the optimizer; needs `update(grads, state, params)` and no more.
      augment: replaces the distortion, in every epoch: `(key, images) -> images`, float32 [B, H, W, C], 0 to 255.
      loss: replaces the cross-entropy, see `mnist_jax.losses`.

    Returns:
      The `Setup`.

    Raises:
      InputError: the images are too small for the network or too few for a batch, the network does not return one logit
        per class, the optimizer needs more arguments, a part cannot be hashed, or `loss` comes with label smoothing.

    Example:
      >>> adam = mj.make_setup(config, data, optimizer=optax.adam(1e-3))
      >>> adam.image_shape, adam.classes
      ((12, 12, 1), ('a', 'b', 'c'))
    """
    require_config(config)
    require(data, Dataset, "data", "make a Dataset of it, by Dataset.from_arrays")
    require(model, nn.Module | None, "model", "give a Flax module; name networks of the package by arch in the config")
    for name, part in (("model", model), ("optimizer", optimizer), ("augment", augment), ("loss", loss)):
        with refusing(f"{name} cannot be hashed (", "), which compiling needs; keep arrays and lists in a closure"):
            hash(part)
    if loss is not None and config.label_smoothing:
        raise InputError(
            f"label smoothing {config.label_smoothing} belongs to the loss that is replaced; choose label_smoothing=0"
        )
    network = network_of(config, len(data.classes)) if model is None else model
    _require_fit(network, data, optimizer)
    return Setup(
        network,
        make_optimizer(config, total_steps(config, data)) if optimizer is None else optimizer,
        CrossEntropy(config.label_smoothing) if loss is None else loss,
        make_distortion(config) if augment is None else Always(augment),
        config.average_decay,
        data.mean,
        data.deviation,
        data.classes,
        data.image_shape,
    )


def _require_fit(network: nn.Module, data: Dataset, optimizer: optax.GradientTransformation | None) -> None:
    """Raises InputError if the network does not fit the data, or the optimizer needs more than a step has."""
    ours = isinstance(network, Network) and network.arch in models.ARCHS
    if ours and optimizer is None and data.image_shape == models.IMAGE_SHAPE:  # Known to fit; tracing takes time.
        return
    # Flax's layers, because the fast ones need at least one pixel.
    plain = network.clone(layers=FLAX) if isinstance(network, Network) else network
    images = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.float32)
    initialize = functools.partial(plain.init_with_output, train=False)
    logits, variables = jax.eval_shape(initialize, jax.random.key(0), images)
    found = getattr(logits, "shape", type(logits).__name__)
    if found != (2, len(data.classes)):
        raise InputError(
            f"model gives {found} for 2 images, and the data has {len(data.classes)} classes; "
            f"return logits of shape (2, {len(data.classes)})"
        )
    if optimizer is not None:
        optimizers.require_plain(optimizer, meta.unbox(variables.get("params", {})))


@dataclasses.dataclass(frozen=True)
class Vary:
    """Makes a config's setup with other numbers, scalar arrays by name."""

    config: Config
    setup: Setup
    total_steps: int

    def __call__(self, numbers: dict[str, jax.Array]) -> Setup:
        """The setup with these numbers, inside a jitted program."""
        setup = self.setup
        value_of: dict[str, Any] = vars(self.config) | numbers
        if not numbers.keys().isdisjoint(OPTIMIZER_NUMBERS):
            settings = {name: value_of[name] for name in _OPTIMIZER_SETTINGS}
            setup = setup._replace(optimizer=optimizers.optimizer_of(total_steps=self.total_steps, **settings))
        if not numbers.keys().isdisjoint(DISTORTION_NUMBERS) and self.config.plain_epochs < self.config.epochs:
            setup = setup._replace(augment=Distortion(*(value_of[name] for name in DISTORTION_NUMBERS)))
        return setup
