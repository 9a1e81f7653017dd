"""Makes data, network, optimizer and setup from a config and from own parts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.core import meta

from mnist_jax import models, optimizers
from mnist_jax.augment import Distortion, EveryEpoch
from mnist_jax.data import Dataset, hold_out, load_dataset
from mnist_jax.errors import InputError, refusing, require, require_whole
from mnist_jax.layers import FLAX
from mnist_jax.losses import CrossEntropy, Loss
from mnist_jax.models import KERNEL_INITS, Network
from mnist_jax.recipes.config import Config, make_config, require_config
from mnist_jax.runtime import default_types
from mnist_jax.steps import Setup, init_state, value_and_grad
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
    settings = {name: getattr(config, name) for name in _OPTIMIZER_SETTINGS}
    return optimizers.optimizer_of(total_steps=require_whole(total_steps, "number of steps", 1), **settings)


def make_distortion(config: Config) -> Distortion | None:
    """Makes the distortion of a config, to be composed with others: `distortion(key, images)`.

    Args:
      config: a `Config`; the numbers of its distortion are used.

    Returns:
      The distortion; None if no epoch has any.

    Example:
      >>> distortion = mj.make_distortion(mj.make_config())
      >>> inverted = mj.make_setup(config, data, augment=lambda key, images: 255 - distortion(key, images))
    """
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
      model: replaces the network: a Flax linen module called as `model(images, train=...)`, from float32 [B, H, W, C]
        to logits [B, classes], with any collections and random streams.
      optimizer: replaces the optimizer, see `optimizers.with_extra_args`.
      augment: replaces the distortion, in every epoch: `(key, images) -> images`, float32 [B, H, W, C], 0 to 255.
      loss: replaces the cross-entropy, see `mnist_jax.losses`.

    Returns:
      The `Setup`.

    Raises:
      InputError: the images are too small for the network or too few for a batch; a part has another signature, cannot
        be hashed, or makes a setting meaningless that the config changes from its recipe's.

    Example:
      >>> adam = mj.make_setup(config, data, optimizer=optax.adam(1e-3))
      >>> adam.image_shape, adam.classes
      ((12, 12, 1), ('a', 'b', 'c'))
    """
    require_config(config)
    require(data, Dataset, "data", "make a Dataset of it, by Dataset.from_arrays")
    require(
        model, nn.Module | None, "model", "give a Flax linen module: nnx.bridge.to_linen makes one of an nnx module"
    )
    parts = {"model": model, "optimizer": optimizer, "augment": augment, "loss": loss}
    replaced = [name for name, part in parts.items() if part is not None]
    for name in replaced:
        with refusing(f"{name} cannot be hashed (", "), which compiling needs; keep arrays and lists in a closure"):
            hash(parts[name])
        _require_unchanged(name, config)
    network = network_of(config, len(data.classes)) if model is None else model
    setup = Setup(
        network,
        make_optimizer(config, total_steps(config, data)) if optimizer is None else optimizer,
        CrossEntropy(config.label_smoothing) if loss is None else loss,
        make_distortion(config) if augment is None else EveryEpoch(augment),
        config.average_decay,
        data.mean,
        data.deviation,
        data.classes,
        data.image_shape,
    )
    known = isinstance(network, Network) and network.arch in models.ARCHS and data.image_shape == models.IMAGE_SHAPE
    return setup if known and not replaced else _traced(setup, replaced)  # Tracing takes time.


# Settings that a part replaces, so that to change them would have no effect.
_REPLACED = {
    "model": ("dropout_rate", "kernel_init", "precision"),
    "optimizer": _OPTIMIZER_SETTINGS,
    "augment": (*DISTORTION_NUMBERS, "plain_epochs"),
    "loss": ("label_smoothing",),
}


def _require_unchanged(part, config):
    """Raises InputError if a config changes a setting that an own part replaces."""
    recipe = make_config(config.recipe, arch=config.arch)
    for name in _REPLACED[part]:
        value, plain = getattr(config, name), 0.0 if part == "loss" else getattr(recipe, name)
        if value != plain:
            setting = name.replace("_", " ")
            raise InputError(f"{setting} {value} belongs to the {part} that is replaced; choose {name}={plain!r}")


def _traced(setup: Setup, replaced: Sequence[str]) -> Setup:
    """Traces the parts one after the other, so that one with another signature is refused by its name."""
    network, shape = setup.model, setup.image_shape
    count = len(setup.classes)
    # Flax's layers, because the fast ones need at least one pixel.
    plain = network.clone(layers=FLAX) if isinstance(network, Network) else network
    # Unlike the number of classes, so that a loss of one-hot labels does not fit by chance.
    images = jax.ShapeDtypeStruct((count + 1, *shape), jnp.float32)
    labels, key = jax.ShapeDtypeStruct((count + 1,), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    remedy = (
        "; it is called as model(images, train=...), with images [B, H, W, C]"
        if "model" in replaced
        else "; choose another"
    )
    with refusing("model cannot be used (", f"){remedy}"):
        logits, variables = jax.eval_shape(partial(plain.init_with_output, train=False), key, images)
    actual = getattr(logits, "shape", type(logits).__name__)
    if actual != (count + 1, count):
        raise InputError(
            f"model gives {actual} for {count + 1} images, and the data has {count} classes; "
            f"return logits of shape ({count + 1}, {count})"
        )
    if "optimizer" in replaced:
        params = meta.unbox(variables.get("params", {}))
        setup = setup._replace(optimizer=optimizers.with_extra_args(setup.optimizer, params))
    if setup.augment and "augment" in replaced:
        with refusing("augment cannot be used (", "); it is called as augment(key, images), with images [B, H, W, C]"):
            jax.eval_shape(setup.augment, key, images)
    if "loss" in replaced:
        state = jax.eval_shape(partial(init_state, setup._replace(optimizer=optax.identity())), key)
        remedy = (
            "; it is called as loss(apply, params, images, labels, key); mj.losses.from_logits makes one of a function"
        )
        with refusing("loss cannot be used (", f"){remedy} of logits and integer labels"):
            jax.eval_shape(partial(value_and_grad, setup=setup), state, images, labels, key)
    return setup


@dataclasses.dataclass(frozen=True)
class Varied:
    """Makes the setup of a config with other numbers, scalar arrays by name, inside a jitted program."""

    config: Config
    total_steps: int

    def __call__(self, setup: Setup, numbers: Mapping[str, jax.Array]) -> Setup:
        """The setup with these numbers."""
        value_of: dict[str, Any] = vars(self.config) | dict(numbers)
        if not numbers.keys().isdisjoint(OPTIMIZER_NUMBERS):
            settings = {name: value_of[name] for name in _OPTIMIZER_SETTINGS}
            optimizer = optimizers.optimizer_of.__wrapped__(total_steps=self.total_steps, **settings)
            setup = setup._replace(optimizer=optimizer)
        if not numbers.keys().isdisjoint(DISTORTION_NUMBERS) and self.config.plain_epochs < self.config.epochs:
            setup = setup._replace(augment=Distortion(*(value_of[name] for name in DISTORTION_NUMBERS)))
        return setup
