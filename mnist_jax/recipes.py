"""One frozen dataclass of every setting of a run, the named recipes, and what they say of network and images."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from mnist_jax.augment import Distortion
from mnist_jax.data import SOURCES
from mnist_jax.errors import InputError
from mnist_jax.models import KERNEL_INITS, Network, create_model, fits_layout

OPTIMIZERS = ("sgd", "adamw", "muon")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("constant", "one_cycle", "cosine")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run: the flags of `scripts/train.py`, with the comments as help, and keys of `config.json`."""

    arch: str = "bn_dropout"  # Network: basic, lighter, gap, bn_dropout, swift, small, accurate, or a layout.
    recipe: str = "default"  # Named settings, which other flags override: default (of swift: fast), fast or reference.
    epochs: int = 14  # Passes over the training images.
    batch_size: int = 128  # Training images per step; what does not fill a last batch rests for that epoch.
    optimizer: str = "muon"  # Optimiser: sgd, adamw or muon.
    learning_rate: float = 0.02  # Learning rate; the peak where the schedule has one.
    schedule: str = "one_cycle"  # Learning rate: constant; one_cycle, straight up and down; or cosine.
    warmup: float = 0.2  # Fraction of the run, in [0, 1), in which the learning rate rises from a tenth of its peak.
    momentum: float = 0.95  # Momentum of SGD and Muon, beta 1 of AdamW, in [0, 1).
    nesterov: bool = True  # Nesterov's form of momentum.
    beta2: float = 0.999  # Decay of the mean squared gradients of AdamW, and of Muon where it is Adam, in [0, 1).
    weight_decay: float = 0.0  # Weight decay of the convolution kernels; batch norm is spared.
    label_smoothing: float = 0.0  # Share of the target, in [0, 1), spread evenly over the ten digits.
    average_decay: float = 0.998  # Decay per step, in [0, 1), of the average of weights scored and saved; 0 for none.
    low_resolution: int = 20  # Height and width of the images in the first epochs; basic and lighter take 28 only.
    low_resolution_epochs: int = 0  # How many epochs train on images of low resolution.
    dropout_rate: float = 0.0  # Probability in [0, 1) that a unit is dropped; only bn_dropout has dropout layers.
    rotation: float = 7.0  # Augmentation: each training image is rotated by up to so many degrees either way.
    shift: float = 1.5  # Augmentation: shifted by up to so many pixels down or up, right or left.
    scale: float = 0.07  # Augmentation: scaled by up to this fraction either way, in [0, 1).
    shear: float = 0.07  # Augmentation: sheared by up to so many pixels per pixel either way.
    elastic: float = 0.0  # Augmentation: points displaced by so many pixels (standard deviation), neighbours alike.
    plain_epochs: int = 3  # How many epochs, the last, train on the images as they are, without augmentation.
    kernel_init: str = "he_normal"  # Initial kernels: he_normal, or torch_uniform, +-1/sqrt(fan_in).
    precision: str = "float32"  # Type of the activations: float32, or bfloat16; weights and statistics are float32.
    seed: int = 1  # Seed of initialisation, shuffling, augmentation and dropout.
    data_source: str = "bundled"  # Where MNIST comes from: bundled (in the package), or tfds (TensorFlow Datasets).
    data_dir: str | None = None  # TFDS data directory, for --data-source tfds; TFDS's own default if not given.
    held_out: int = 0  # Train without the last so many training images and score on them instead of the test images.
    eval_batch_size: int = 250  # Images per step when scoring; it changes speed and memory, not the result.
    run_dir: str | None = None  # Directory to write the run to; runs/TIME-ARCH-RECIPE if not given.

    def __post_init__(self) -> None:
        """Raises InputError for a value that no run can use."""
        layout = getattr(create_model(self.arch), "layout", None)
        choices = {"recipe": RECIPES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        choices |= {"precision": PRECISIONS, "kernel_init": KERNEL_INITS, "data_source": SOURCES}
        for name in choices:
            _one_of(name, getattr(self, name), choices[name])
        _within("epochs", self.epochs, 1 <= self.epochs <= 10_000, "1 to 10000")
        _within("batch_size", self.batch_size, self.batch_size >= 1, "1 to the number of training images")
        _within("eval_batch_size", self.eval_batch_size, 1 <= self.eval_batch_size <= 10_000, "1 to 10000")
        finite = math.isfinite(self.learning_rate) and self.learning_rate > 0
        _within("learning_rate", self.learning_rate, finite, "a finite number above 0")
        for name in ("warmup", "momentum", "beta2", "label_smoothing", "average_decay", "dropout_rate", "scale"):
            value = getattr(self, name)
            _within(name, value, 0 <= value < 1, "at least 0 and below 1")
        _within("low_resolution", self.low_resolution, 18 <= self.low_resolution <= 28, "18 to 28")
        for name in ("low_resolution_epochs", "plain_epochs"):
            _within(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        if self.low_resolution_epochs and self.low_resolution < 28 and self.arch in ("basic", "lighter"):
            raise InputError(f"low resolution epochs need global pooling, which {self.arch} has not; choose 0 of them")
        if self.low_resolution_epochs and layout and not fits_layout(layout, self.low_resolution):
            raise InputError(f"low resolution {self.low_resolution} is too small for {layout}; choose more, up to 28")
        for name in ("rotation", "shift", "shear", "elastic", "weight_decay"):
            value = getattr(self, name)
            _within(name, value, math.isfinite(value) and value >= 0, "a finite number of at least 0")
        _within("seed", self.seed, 0 <= self.seed < 2**32, "0 to 4294967295")
        _within("held_out", self.held_out, self.held_out >= 0, "0 to the number of training images less one")


# What each recipe sets; every other field keeps the default above.
RECIPES: dict[str, dict[str, Any]] = {
    "reference": {
        "epochs": 15,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "schedule": "constant",
        "momentum": 0.9,
        "nesterov": False,
        "average_decay": 0.0,
        "dropout_rate": 0.05,
        "rotation": 0.0,
        "shift": 0.0,
        "scale": 0.0,
        "shear": 0.0,
        "plain_epochs": 0,
        "kernel_init": "torch_uniform",
    },
    "default": {},
    "fast": {
        "epochs": 3,
        "learning_rate": 0.05,
        "average_decay": 0.99,
        "rotation": 6.0,
        "shift": 1.2,
        "scale": 0.05,
        "shear": 0.05,
        "plain_epochs": 1,
    },
}

# What a recipe sets otherwise for a network other than `bn_dropout`. Without batch norm a step changes the network's
# function by more, and the best learning rate is smaller. Smoothed labels spare `swift` a fourth epoch; its `default`
# is its `fast`. `accurate` comes to know the training images by heart unless they are distorted further.
ARCH_RECIPES: dict[tuple[str, str], dict[str, Any]] = (
    {
        (recipe, arch): {"learning_rate": rate}
        for arch in ("basic", "lighter", "gap")
        for recipe, rate in (("default", 0.005), ("fast", 0.01))
    }
    | dict.fromkeys((("default", "swift"), ("fast", "swift")), RECIPES["fast"] | {"label_smoothing": 0.05})
    | {("default", "accurate"): {"rotation": 12.0, "shift": 2.0, "scale": 0.12, "shear": 0.12, "elastic": 0.5}}
)


def make_config(recipe: str = "default", arch: str = "bn_dropout", **overrides: Any) -> Config:
    """The config of a named recipe, for instance `make_config("reference", arch="gap", seed=2)`.

    Raises InputError for an unknown recipe or field, or an unusable value.
    """
    _one_of("recipe", recipe, RECIPES)
    names = [field.name for field in dataclasses.fields(Config)]
    for name in overrides:
        _one_of("setting", name, names)
    settings = {**RECIPES[recipe], **ARCH_RECIPES.get((recipe, arch), {}), **overrides}
    return Config(recipe=recipe, arch=arch, **settings)


def make_model(config: Config) -> Network:
    """The network a config asks for."""
    return create_model(
        config.arch,
        dropout_rate=config.dropout_rate,
        kernel_init=KERNEL_INITS[config.kernel_init],
        dtype=jnp.dtype(config.precision),
    )


def make_distortion(config: Config) -> Distortion | None:
    """How far a config's augmentation goes; None where no epoch has any."""
    distortion = Distortion(config.rotation, config.shift, config.scale, config.shear, config.elastic)
    return distortion if any(distortion) and config.plain_epochs < config.epochs else None


def _one_of(name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise InputError(f"unknown {name.replace('_', ' ')} {value!r}; choose from {', '.join(choices)}")


def _within(name: str, value: Any, ok: bool, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name.replace('_', ' ')} {value} cannot be used; choose {wanted}")
