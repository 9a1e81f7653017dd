"""Optimizers and learning-rate schedules, by optax."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from mnist_jax.errors import InputError, require
from mnist_jax.summary import is_kernel

Number = float | jax.Array  # An array where one program trains many settings.


def make_schedule(schedule: str, learning_rate: Number, warmup: float, total_steps: int) -> optax.Schedule:
    """Makes a learning-rate schedule.

    `one_cycle` is the triangle of L. N. Smith, "Super-Convergence", arXiv:1708.07120, ending at zero. `cosine` decays
    as in Loshchilov and Hutter, "SGDR", arXiv:1608.03983. Both begin at a tenth of the peak.

    Args:
      schedule: "constant", "one_cycle" or "cosine".
      learning_rate: the peak, above 0; float, or float32 [].
      warmup: fraction of all steps, in [0, 1), in which the learning rate rises.
      total_steps: number of steps of the run.

    Returns:
      A function from the step, counted from 0, to its learning rate.

    Example:
      >>> rate = jax.jit(optimizers.make_schedule("one_cycle", 0.02, 0.2, total_steps=10))
      >>> [round(float(rate(step)), 4) for step in (0, 2, 10)]
      [0.002, 0.02, 0.0]
    """
    if schedule == "one_cycle":
        return optax.linear_onecycle_schedule(total_steps, learning_rate, warmup, 1.0, 10.0, 1e4)  # pyright: ignore[reportArgumentType]
    if schedule == "cosine":
        rising = round(warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(learning_rate / 10, learning_rate, rising, total_steps)  # pyright: ignore[reportArgumentType]
    return optax.constant_schedule(learning_rate)


@functools.cache
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
    """Makes an optimizer with the learning rates of `make_schedule`.

    Weight decay acts on kernels only, parameters of rank 2 and more: in SGD as a penalty in the gradient, in AdamW and
    Muon decoupled from it (Loshchilov and Hutter, arXiv:1711.05101). Muon (Jordan, "Muon", 2024) orthogonalizes each
    kernel's update and scales it to the size of Adam's (Liu et al., arXiv:2502.16982). Other parameters use Adam.

    Args:
      optimizer: "sgd", "adamw" or "muon".
      schedule: as for `make_schedule`, like the next three.
      learning_rate: the peak, above 0; float, or float32 [].
      warmup: fraction of all steps, in [0, 1).
      total_steps: number of steps of the run.
      momentum: momentum of SGD and Muon, beta 1 of AdamW, in [0, 1).
      nesterov: whether to use Nesterov's form of momentum.
      beta2: decay of the mean squared gradients of AdamW, and of Muon's Adam, in [0, 1).
      weight_decay: 0 or more.

    Returns:
      The optimizer, for equal settings the same object. (`optimizer_of.__wrapped__` takes arrays too.)

    Example:
      >>> adamw = optimizers.optimizer_of("adamw", "cosine", 1e-3, 0.1, 100, 0.9, False, 0.999, 1e-2)
      >>> setup = mj.make_setup(config, data, optimizer=adamw)
    """
    rate = make_schedule(schedule, learning_rate, warmup, total_steps)
    if optimizer == "sgd":
        sgd = optax.sgd(rate, momentum, nesterov)
        decays = isinstance(weight_decay, jax.Array) or weight_decay
        return optax.chain(optax.add_decayed_weights(weight_decay, _kernels), sgd) if decays else sgd
    if optimizer == "adamw":
        return optax.adamw(rate, momentum, beta2, weight_decay=weight_decay, mask=_kernels, nesterov=nesterov)
    return _looped(
        optax.contrib.muon(
            rate,
            beta=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            adam_b2=beta2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    )


def _looped(muon: optax.GradientTransformation, iterations: int = 5) -> optax.GradientTransformation:
    """Muon whose iterations are a loop on a CPU, which compiles sooner than optax's unrolled ones; states are alike.

    Optax loops where each iteration has coefficients of its own. Updates are equal to the bit. They would not be with
    kernels above 4,096 parameters, which XLA fuses otherwise, so these stay unrolled.
    """

    def loop(updates, state, params):
        coefficients = optax.tree.get(state, "ns_coeffs")
        repeated = jnp.broadcast_to(coefficients, (iterations, 3))
        updates, state = muon.update(updates, optax.tree.set(state, ns_coeffs=repeated), params)
        return updates, optax.tree.set(state, ns_coeffs=coefficients)

    def update(updates, state, params=None):
        if max((leaf.size for leaf in jax.tree.leaves(updates)), default=0) > 4096:
            return muon.update(updates, state, params)
        return lax.platform_dependent(updates, state, params, cpu=loop, default=muon.update)

    return optax.GradientTransformation(muon.init, update)


# The extra arguments of optax's conventions that an optimizer may need; those that take one set may refuse others.
_EXTRA_ARGS = ((), ("value",), ("value", "grad", "value_fn"), ("grad_fn",))


@dataclasses.dataclass(frozen=True)
class _Update:
    """The update of an optimizer with those extra arguments that it needs."""

    update: Callable[..., Any]
    names: tuple[str, ...]

    def __call__(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return self.update(updates, state, params, **{name: extra_args[name] for name in self.names})


def with_extra_args(optimizer: optax.GradientTransformation, params: Any) -> optax.GradientTransformation:
    """An optimizer that takes the extra arguments `value`, `grad`, `value_fn` and `grad_fn`, and uses those it needs.

    Tracing finds out: the type of an optimizer says that it takes extra arguments, not which.

    Args:
      optimizer: an optax optimizer that needs none of them; `value` (`reduce_on_plateau`, `polyak_sgd`); `value`,
        `grad` and `value_fn` (line searches, L-BFGS); or `grad_fn` (`sam` with `opaque_mode`).
      params: shapes of the parameters.

    Raises:
      InputError: this is no optimizer, or it cannot take a step with any of these.
    """
    remedy = "give an optax.GradientTransformation: optax.adam(1e-3), or MultiSteps(...).gradient_transformation()"
    require(optimizer, optax.GradientTransformation, "optimizer", remedy)
    functions = {"value_fn": _sum_of_squares, "grad_fn": lambda params, _: params}
    reasons = []
    for names in _EXTRA_ARGS:
        update = _Update(optimizer.update, names)

        def take(params, update=update):
            return update(params, optimizer.init(params), params, value=jnp.float32(0), grad=params, **functions)

        try:
            jax.eval_shape(take, params)
        except Exception as error:  # Optimizers raise errors of any kind.
            reasons.append(" ".join(str(error).split())[:200])
        else:
            return optax.GradientTransformationExtraArgs(optimizer.init, update)
    raise InputError(f"optimizer cannot take a step ({reasons[0]}); choose one that takes these parameters")


def _sum_of_squares(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def _matrix(leaf):
    """The axes by which Muon reads a kernel as a matrix, all but the last by the last; None for other parameters."""
    axes = tuple(range(leaf.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[:-1], axes[-1]) if is_kernel(leaf) else None


_kernels, _matrices = (functools.partial(jax.tree.map, function) for function in (is_kernel, _matrix))
