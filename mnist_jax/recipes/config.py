"""Every setting of a run, and the named recipes."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec

from mnist_jax.errors import InputError, plain_number, require, shown

# What can be chosen, by name. The modules that implement it import JAX; help texts do not wait for that.
NETWORKS = ("basic", "lighter", "gap", "bn_dropout", "swift", "small", "accurate")
OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("constant", "one_cycle", "cosine")
KERNEL_INITS = ("torch_uniform", "he_normal")
PRECISIONS = ("float32", "bfloat16")
SOURCES = ("bundled", "tfds")

# Settings of where a run finds its data and writes. They may differ between processes that do the same.
PLACES = ("dataset", "data_source", "data_dir", "run_dir")

# Settings with which a training may be continued otherwise: they change where it reads and writes, and how it scores.
MAY_CHANGE = (*PLACES, "eval_batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run: the flags of `mnist-jax train`, and the keys of `config.json`.

    Raises InputError for a value that no run can use.

    Attributes:
      arch: Network: basic, lighter, gap, bn_dropout, swift, small, accurate, or a layout.
      recipe: Named settings that others override: default, fast, patient (networks of up to 2,000 parameters) or
        reference (the notebooks'); swift has only fast.
      epochs: Passes over the training images.
      batch_size: Training images per step; the incomplete last batch is dropped, different images each epoch.
      optimizer: Optimizer: sgd, adamw or muon.
      learning_rate: Learning rate, or the peak of the schedule.
      schedule: Learning rate over the run: constant, one_cycle (straight up, straight down) or cosine.
      warmup: Fraction of the run, in [0, 1), while the learning rate rises from a tenth of its peak.
      momentum: Momentum of SGD and Muon, beta 1 of AdamW, in [0, 1).
      nesterov: Use Nesterov's form of momentum.
      beta2: Decay of the mean squared gradients of AdamW, and of Muon's Adam, in [0, 1).
      weight_decay: Weight decay of the kernels; batch norm is spared.
      label_smoothing: Share of each label, in [0, 1), spread evenly over the classes.
      average_decay: Decay per step, in [0, 1), of the moving average of the weights, which is scored; 0 for none.
      dropout_rate: Probability in [0, 1) that a unit is dropped; only bn_dropout has dropout layers.
      rotation: Augmentation: rotate each training image by up to this many degrees either way.
      shift: Augmentation: shift it by up to this many pixels down or up, right or left.
      scale: Augmentation: scale it by up to this fraction either way, in [0, 1).
      shear: Augmentation: shear it by up to this many pixels per pixel either way.
      elastic: Augmentation: displace points by this many pixels (standard deviation), neighbors alike.
      plain_epochs: Number of epochs without augmentation, the last ones.
      kernel_init: Initial kernels: he_normal, or torch_uniform, +-1/sqrt(fan_in).
      precision: Type of the activations: float32, or bfloat16; weights and statistics are float32.
      seed: Seed of initialization, shuffling, augmentation and dropout, 0 to 4294967295.
      dataset: Data set: mnist, another name of TensorFlow Datasets, or a path to a folder or an .npz file.
      data_source: Where mnist comes from: bundled (in the package), or tfds (TensorFlow Datasets).
      data_dir: Data directory of TensorFlow Datasets. If not given: its own default.
      held_out: Hold out this many training images, the last ones, and score on them instead of the test images.
      eval_batch_size: Images per step of scoring; changes speed and memory, not the result.
      run_dir: Directory to write the run to. If not given: runs/TIME-ARCH-RECIPE.
    """

    arch: str = "bn_dropout"
    recipe: str = dataclasses.field(default="default", kw_only=False)  # Positional, as in `make_config`.
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
        if self.arch not in NETWORKS:
            from mnist_jax.models import make_model

            make_model(self.arch)
        choices: dict[str, Iterable[str]] = {"recipe": RECIPES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        choices |= {"precision": PRECISIONS, "kernel_init": KERNEL_INITS, "data_source": SOURCES}
        for name, known in choices.items():
            _one_of(name, getattr(self, name), known)
        for names, (least, bound, wanted) in _RANGES.items():
            for name in names.split():
                if not least <= getattr(self, name) < bound:
                    raise InputError(_unusable(name, shown(getattr(self, name)), wanted))


# Minimum and exclusive bound of the numbers, and how errors describe the range.
_RANGES = {
    "epochs eval_batch_size": (1, 10_001, "1 to 10000"),
    "batch_size": (1, math.inf, "1 to the number of training images"),
    "learning_rate": (math.ulp(0), math.inf, "a finite number above 0"),
    "warmup momentum beta2 label_smoothing average_decay dropout_rate scale": (0, 1, "at least 0 and below 1"),
    "plain_epochs": (0, math.inf, "0 or more"),
    "rotation shift shear elastic weight_decay": (0, math.inf, "a finite number of at least 0"),
    "seed": (0, 2**32, "0 to 4294967295"),
    "held_out": (0, math.inf, "0 to the number of training images less one"),
}

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
    "patient": {
        "epochs": 100,
        "learning_rate": 0.07,
        "average_decay": 0.9995,
        "rotation": 5.0,
        "shift": 1.0,
        "scale": 0.05,
        "shear": 0.05,
        "plain_epochs": 20,
    },
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

# What a recipe sets differently for networks other than `bn_dropout`. Without batch norm a step changes the network's
# function more, and the best learning rate is smaller. Label smoothing saves `swift` a fourth epoch; its `default` is
# its `fast`. `accurate` memorizes the training images unless they are distorted more.
ARCH_RECIPES: dict[tuple[str, str], dict[str, Any]] = (
    {
        (recipe, arch): {"learning_rate": rate}
        for arch in ("basic", "lighter", "gap")
        for recipe, rate in (("default", 0.005), ("fast", 0.01))
    }
    | dict.fromkeys((("default", "swift"), ("fast", "swift")), RECIPES["fast"] | {"label_smoothing": 0.05})
    | {("default", "accurate"): {"rotation": 12.0, "shift": 2.0, "scale": 0.12, "shear": 0.12, "elastic": 0.5}}
)


P = ParamSpec("P")


def _typed_as(config: Callable[P, Config]) -> Callable[[Callable[..., Config]], Callable[P, Config]]:
    """A decorator that gives a function the parameters of `config`, for type checkers."""
    return lambda function: function


@_typed_as(Config)
def make_config(recipe: str = "default", arch: str = "bn_dropout", **settings: Any) -> Config:
    """Makes the config of a named recipe.

    Args:
      recipe: a name in `RECIPES`.
      arch: a name in `ARCHS`, or a layout; a recipe may have other values for some networks.
      settings: fields of `Config`, which override the recipe.

    Returns:
      The config.

    Raises:
      InputError: the recipe or a setting is unknown, or a value cannot be used.

    Example:
      >>> mj.make_config("reference", arch="gap", seed=2).learning_rate
      0.01
    """
    recipe, arch = _typed("recipe", recipe, str), _typed("arch", arch, str)
    _one_of("recipe", recipe, RECIPES)
    for name in settings:
        _one_of("setting", name, Config.__dataclass_fields__)
    merged = RECIPES[recipe] | ARCH_RECIPES.get((recipe, arch), {}) | settings
    return Config(recipe=recipe, arch=arch, **merged)


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings with which a training has to be continued, by name: all but `MAY_CHANGE`.

    The number of epochs may change too if the learning rate is constant. Else that of every step depends on it.
    """
    free = {*MAY_CHANGE, *(["epochs"] if config.schedule == "constant" else [])}
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in free}


def require_config(config: Any) -> None:
    """Raises InputError unless this is a `Config`."""
    require(config, Config, "config", "make one by make_config")


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False"}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Converts a number or path of any type to `int`, `float`, `bool` or text."""
    if value is None and kind == str | None:
        return None
    if kind in _KINDS:
        plain = plain_number(value, kind)
    elif isinstance(value, os.PathLike):  # As absolute text it still counts as a path, not as a name.
        plain = str(Path(os.fsdecode(value)).absolute())
    else:
        plain = str(value) if isinstance(value, str) else None
    if plain is None:
        raise InputError(_unusable(name, shown(value), _KINDS.get(kind, "text")))
    return plain


def _one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise InputError(f"unknown {name.replace('_', ' ')} {value!r}; choose from {', '.join(choices)}")


def _unusable(name: str, value: Any, wanted: str) -> str:
    return f"{name.replace('_', ' ')} {value} cannot be used; choose {wanted}"
