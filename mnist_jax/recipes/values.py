"""The values that a config, and own parts in place of its own, make: data, network, optimizer, setup."""

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
from mnist_jax.errors import InputError, refusing, require
from mnist_jax.layers import FLAX
from mnist_jax.losses import CrossEntropy, Loss
from mnist_jax.models import KERNEL_INITS, Network
from mnist_jax.recipes.config import Config
from mnist_jax.steps import Setup
from mnist_jax.training import steps_per_epoch

Augment = Callable[[jax.Array, jax.Array], jax.Array]

# Settings that shape no array and choose no program: `fit_many` may vary them.
OPTIMIZER_NUMBERS = ("learning_rate", "momentum", "beta2", "weight_decay")
DISTORTION_NUMBERS = ("rotation", "shift", "scale", "shear", "elastic")
NUMBERS = OPTIMIZER_NUMBERS + DISTORTION_NUMBERS
_OPTIMIZER_SETTINGS = ("optimizer", "schedule", "warmup", "nesterov", *OPTIMIZER_NUMBERS)


class Parts(TypedDict, total=False):
    """Own parts in place of a config's, as `make_setup` takes them."""

    model: nn.Module | None
    optimizer: optax.GradientTransformation | None
    augment: Augment | None
    loss: Loss | None


def load_data(config: Config) -> Dataset:
    """The whole of the data a config names; raises as `load_dataset`."""
    return load_dataset(config.dataset, data_dir=config.data_dir, source=config.data_source)


def part_of(config: Config, data: Dataset) -> Dataset:
    """What a config trains on and scores: all of its data, or without the images it holds out; raises as `hold_out`."""
    return hold_out(data, config.held_out) if config.held_out else data


def total_steps(config: Config, data: Dataset) -> int:
    """Steps of a whole run; raises InputError if a batch is above the number of training images."""
    return steps_per_epoch(len(data.train.labels), config.batch_size) * config.epochs


def network_of(config: Config, num_classes: int = 10) -> Network:
    """The network a config asks for."""
    return models.make_model(
        config.arch,
        num_classes=num_classes,
        dropout_rate=config.dropout_rate,
        kernel_init=KERNEL_INITS[config.kernel_init],
        dtype=jnp.dtype(config.precision),
    )


# Cached so that runs that differ elsewhere, as in their seed, get the same object, and `jax.jit` compiles once.
_optimizer_of = functools.cache(optimizers.optimizer_of)


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimizer a config asks for, its learning-rate schedule laid over `total_steps`."""
    return _optimizer_of(total_steps=total_steps, **{name: getattr(config, name) for name in _OPTIMIZER_SETTINGS})


def make_distortion(config: Config) -> Distortion | None:
    """How far a config's augmentation goes; None where no epoch has any."""
    distortion = Distortion(config.rotation, config.shift, config.scale, config.shear, config.elastic)
    return distortion if any(distortion) and config.plain_epochs < config.epochs else None


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
      config: every setting of the run.
      data: what it trains on; its length, classes and shape of image count.
      model: in place of the config's network: a module called as `model(images, train=...)`, of float32 [B, H, W, C] to
        logits [B, classes], with any collections and random streams.
      optimizer: in place of the config's: needs `update(grads, state, params)` and no more.
      augment: in place of the config's distortion: `(key, images) -> images`, float32 [B, H, W, C], 0 to 255. It acts
        in every epoch.
      loss: in place of the cross-entropy, see `losses`.

    Raises InputError if the images are too small for the network or too few for a batch, the network does not give a
    logit for each class, the optimizer needs more, a part cannot be hashed, or `loss` is beside label smoothing.
    """
    require(data, Dataset, "data", "make a Dataset of it, by Dataset.from_arrays")
    require(model, nn.Module | None, "model", "give a Flax module; a network of the package has its name in the config")
    for name, part in (("model", model), ("optimizer", optimizer), ("augment", augment), ("loss", loss)):
        with refusing(f"{name} cannot be hashed (", "), which compiling it needs; keep arrays and lists in a closure"):
            hash(part)
    if loss is not None and config.label_smoothing:
        raise InputError(
            f"label smoothing {config.label_smoothing} is part of the loss that is replaced; choose label_smoothing=0"
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
    """Refuses a network that the data does not fit, and an optimizer that needs more than a step has."""
    ours = isinstance(network, Network) and network.arch in models.ARCHS
    if ours and optimizer is None and data.image_shape == models.IMAGE_SHAPE:  # Known to fit, and tracing takes time.
        return
    # Flax's layers, because the fast ones assume that there are pixels.
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
    """Makes of a config's numbers, scalar arrays by name, the setup that has them in place of its own."""

    config: Config
    setup: Setup
    total_steps: int

    def __call__(self, numbers: dict[str, jax.Array]) -> Setup:
        """The setup with these numbers, inside a program."""
        setup = self.setup
        value_of: dict[str, Any] = vars(self.config) | numbers
        if not numbers.keys().isdisjoint(OPTIMIZER_NUMBERS):
            settings = {name: value_of[name] for name in _OPTIMIZER_SETTINGS}
            setup = setup._replace(optimizer=optimizers.optimizer_of(total_steps=self.total_steps, **settings))
        if not numbers.keys().isdisjoint(DISTORTION_NUMBERS) and self.config.plain_epochs < self.config.epochs:
            setup = setup._replace(augment=Distortion(*(value_of[name] for name in DISTORTION_NUMBERS)))
        return setup
