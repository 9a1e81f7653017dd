"""Every setting of a run, and the named recipes."""

import dataclasses
import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, Unpack

from mnist_jax.data import SOURCES
from mnist_jax.errors import InputError
from mnist_jax.models import KERNEL_INITS, make_model
from mnist_jax.optimizers import OPTIMIZERS, SCHEDULES

PRECISIONS = ("float32", "bfloat16")

# Settings of earlier versions, with the values at which they changed nothing.
RETIRED = {"low_resolution": 20, "low_resolution_epochs": 0}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run: the flags of `mnist-jax train`, and the keys of `config.json`.

    Raises InputError for a value that no run can use.

    Attributes:
      arch: Network: basic, lighter, gap, bn_dropout, swift, small, accurate, or a layout.
      recipe: Named settings, which other settings override: default (of swift: fast), fast or reference.
      epochs: Passes over the training images.
      batch_size: Training images per step; the incomplete last batch is dropped, different images each epoch.
      optimizer: Optimizer: sgd, adamw or muon.
      learning_rate: Learning rate; the peak where the schedule has one.
      schedule: Learning rate over the run: constant; one_cycle, straight up and down; or cosine.
      warmup: Fraction of the run, in [0, 1), in which the learning rate rises from a tenth of its peak.
      momentum: Momentum of SGD and Muon, beta 1 of AdamW, in [0, 1).
      nesterov: Use Nesterov's form of momentum.
      beta2: Decay of the mean squared gradients of AdamW, and of Muon's Adam, in [0, 1).
      weight_decay: Weight decay of the kernels; batch norm is spared.
      label_smoothing: Share of the target, in [0, 1), spread evenly over the classes.
      average_decay: Decay per step, in [0, 1), of the average of weights scored and saved; 0 for none.
      dropout_rate: Probability in [0, 1) that a unit is dropped; only bn_dropout has dropout layers.
      rotation: Augmentation: rotate each training image by up to this many degrees either way.
      shift: Augmentation: shift it by up to this many pixels down or up, right or left.
      scale: Augmentation: scale it by up to this fraction either way, in [0, 1).
      shear: Augmentation: shear it by up to this many pixels per pixel either way.
      elastic: Augmentation: displace points by this many pixels (standard deviation), neighbors alike.
      plain_epochs: How many epochs, the last, train on the images as they are, without augmentation.
      kernel_init: Initial kernels: he_normal, or torch_uniform, +-1/sqrt(fan_in).
      precision: Type of the activations: float32, or bfloat16; weights and statistics are float32.
      seed: Seed of initialization, shuffling, augmentation and dropout, 0 to 4294967295.
      dataset: Data set: mnist, another name of TensorFlow Datasets, or a path to a folder or an .npz file.
      data_source: Where mnist comes from: bundled (in the package), or tfds (TensorFlow Datasets).
      data_dir: Data directory of TensorFlow Datasets; its own default if not given.
      held_out: Train without this many images, the last, and score on them instead of the test images.
      eval_batch_size: Images per step of scoring; it changes speed and memory, not the result.
      run_dir: Directory to write the run to; runs/TIME-ARCH-RECIPE if not given.
    """

    arch: str = "bn_dropout"
    recipe: str = "default"
    epochs: int = 14
    batch_size: int = 128
    optimizer: str = "muon"
    learning_rate: float = 0.02
    schedule: str = "one_cycle"
    warmup: float = 0.2
    momentum: float = 0.95
    nesterov: bool = True
    beta2: float = 0.999
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    average_decay: float = 0.998
    dropout_rate: float = 0.0
    rotation: float = 7.0
    shift: float = 1.5
    scale: float = 0.07
    shear: float = 0.07
    elastic: float = 0.0
    plain_epochs: int = 3
    kernel_init: str = "he_normal"
    precision: str = "float32"
    seed: int = 1
    dataset: str = "mnist"
    data_source: str = "bundled"
    data_dir: str | None = None
    held_out: int = 0
    eval_batch_size: int = 250
    run_dir: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that no run can use."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name), field.type))
        make_model(self.arch)
        choices: dict[str, Iterable[str]] = {"recipe": RECIPES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
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
        _within("plain_epochs", self.plain_epochs, self.plain_epochs >= 0, "0 or more")
        for name in ("rotation", "shift", "shear", "elastic", "weight_decay"):
            value = getattr(self, name)
            _within(name, value, math.isfinite(value) and value >= 0, "a finite number of at least 0")
        _within("seed", self.seed, 0 <= self.seed < 2**32, "0 to 4294967295")
        _within("held_out", self.held_out, self.held_out >= 0, "0 to the number of training images less one")


class Settings(TypedDict, total=False):
    """The settings of `Config` beside `recipe` and `arch`, for type checkers."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup: float
    momentum: float
    nesterov: bool
    beta2: float
    weight_decay: float
    label_smoothing: float
    average_decay: float
    dropout_rate: float
    rotation: float
    shift: float
    scale: float
    shear: float
    elastic: float
    plain_epochs: int
    kernel_init: str
    precision: str
    seed: int
    dataset: str
    data_source: str
    data_dir: str | None
    held_out: int
    eval_batch_size: int
    run_dir: str | None


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


def make_config(recipe: str = "default", arch: str = "bn_dropout", **settings: Unpack[Settings]) -> Config:
    """The config of a named recipe, for instance `make_config("reference", arch="gap", seed=2)`.

    Raises InputError for an unknown recipe or setting, or an unusable value.
    """
    _one_of("recipe", recipe, RECIPES)
    names = [field.name for field in dataclasses.fields(Config)]
    for name in settings:
        _one_of("setting", name, names)
    merged: dict[str, Any] = {**RECIPES[recipe], **ARCH_RECIPES.get((recipe, arch), {}), **settings}
    return Config(recipe=recipe, arch=arch, **merged)


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value as `int`, `float`, `bool` or text, whatever number or path it came as."""
    kinds: dict[Any, tuple[Any, str]] = {
        int: (numbers.Integral, "a whole number"),
        float: (numbers.Real, "a number"),
        bool: (bool, "True or False"),
    }
    abstract, wanted = kinds.get(kind, ((str, os.PathLike), "text"))
    if value is None and kind == str | None:
        return None
    if isinstance(value, abstract) and (kind is bool or not isinstance(value, bool)):
        # A path given as such stays one as text: it begins with a slash.
        return kind(value) if kind in kinds else str(Path(value).absolute() if isinstance(value, Path) else value)
    raise InputError(f"{name.replace('_', ' ')} {value!r} cannot be used; choose {wanted}")


def _one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name.replace('_', ' ')} {value!r}; choose from {', '.join(choices)}")


def _within(name: str, value: Any, ok: bool, wanted: str) -> None:
    if not ok:
        raise InputError(f"{name.replace('_', ' ')} {value} cannot be used; choose {wanted}")
