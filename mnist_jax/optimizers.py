"""Optimizers and learning-rate schedules, made of optax."""

import functools
from typing import Any

import jax
import optax

from mnist_jax.errors import InputError, require
from mnist_jax.summary import is_kernel

OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("constant", "one_cycle", "cosine")

Number = float | jax.Array  # An array where many settings are trained in one program.


def make_schedule(schedule: str, learning_rate: Number, warmup: float, total_steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    `one_cycle` is the triangle of L. N. Smith, "Super-Convergence", arXiv:1708.07120, ending at zero. `cosine` falls as
    in Loshchilov and Hutter, "SGDR", arXiv:1608.03983. `learning_rate` is the peak; both begin at a tenth of it, and
    rise for the fraction `warmup` of all steps.
    """
    if schedule == "one_cycle":
        return optax.linear_onecycle_schedule(total_steps, learning_rate, warmup, 1.0, 10.0, 1e4)  # pyright: ignore[reportArgumentType]
    if schedule == "cosine":
        rising = round(warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(learning_rate / 10, learning_rate, rising, total_steps)  # pyright: ignore[reportArgumentType]
    return optax.constant_schedule(learning_rate)


def optimizer_of(
    optimizer: str,
    schedule: str,
    learning_rate: Number,
    warmup: float,
    total_steps: int,
    momentum: Number,
    nesterov: bool,
    beta2: Number,
    weight_decay: Number,
) -> optax.GradientTransformation:
    """An optimizer by its name in `OPTIMIZERS`, with the learning rates of `make_schedule`.

    Weight decay acts on kernels only, parameters of rank 2 and more: in SGD as a penalty in the gradient, in AdamW and
    Muon decoupled from it (Loshchilov and Hutter, arXiv:1711.05101). Muon (Jordan, "Muon", 2024) orthogonalizes each
    kernel's update and scales it to the size of Adam's (Liu et al., arXiv:2502.16982); the rest gets Adam's.
    """
    rate = make_schedule(schedule, learning_rate, warmup, total_steps)
    if optimizer == "sgd":
        sgd = optax.sgd(rate, momentum, nesterov)
        decays = isinstance(weight_decay, jax.Array) or weight_decay
        return optax.chain(optax.add_decayed_weights(weight_decay, _kernels), sgd) if decays else sgd
    if optimizer == "adamw":
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


def require_plain(optimizer: optax.GradientTransformation, params: Any) -> None:
    """Raises InputError, naming the argument, if `update(grads, state, params)` is not all that an optimizer needs.

    It is traced: the type of those that take more arguments does not tell whether they need them.
    """
    remedy = "give an optax.GradientTransformation, as optax.adam(1e-3) or MultiSteps(...).gradient_transformation()"
    require(optimizer, optax.GradientTransformation, "optimizer", remedy)

    def update(params):
        return optimizer.update(params, optimizer.init(params), params)

    try:
        jax.eval_shape(update, params)
    except Exception as error:  # Of whatever kind the optimizer raises.
        reason = " ".join(str(error).split())[:200]
        said, remedy = f"cannot take a step ({reason})", "choose one that takes these parameters"
        if "missing" in reason:
            missing = reason.partition("argument")[2].strip("s: ")
            said = f"needs {missing} beside gradients, state and parameters, which a step has not"
            remedy = "choose one that needs no more"
        raise InputError(f"optimizer {said}; {remedy}") from error


def _matrix(leaf):
    """How Muon reads a kernel as a matrix: all axes before the last by the last; None for the rest."""
    axes = tuple(range(leaf.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:-1], axes[-1]) if is_kernel(leaf) else None


_kernels, _matrices = (functools.partial(jax.tree.map, function) for function in (is_kernel, _matrix))
