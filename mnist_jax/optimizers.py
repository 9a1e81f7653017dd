"""The optimiser and the learning-rate schedule that a config asks for."""

import functools

import jax
import optax

from mnist_jax.recipes import Config

_SETTINGS = ("optimizer", "learning_rate", "schedule", "warmup", "momentum", "nesterov", "beta2", "weight_decay")


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimiser a config asks for, its learning-rate schedule laid over `total_steps`.

    Weight decay spares batch norm: it acts on convolution kernels only, in SGD as a penalty in the gradient, in AdamW
    and Muon decoupled from it (Loshchilov and Hutter, arXiv:1711.05101). Muon (Jordan, "Muon", 2024) orthogonalises
    each kernel's update, scaled to the size of Adam's (Liu et al., arXiv:2502.16982); batch norm gets Adam's.
    """
    return _optimizer(Config(**{name: getattr(config, name) for name in _SETTINGS}), total_steps)


@functools.cache  # Runs that differ elsewhere, as in their seed, get the same object, and `jax.jit` compiles once.
def _optimizer(config, total_steps):
    rate, decay, momentum = make_schedule(config, total_steps), config.weight_decay, config.momentum
    if config.optimizer == "sgd":
        sgd = optax.sgd(rate, momentum, config.nesterov)
        return optax.chain(optax.add_decayed_weights(decay, _kernels), sgd) if decay else sgd
    if config.optimizer == "adamw":
        return optax.adamw(rate, momentum, config.beta2, weight_decay=decay, mask=_kernels, nesterov=config.nesterov)
    return optax.contrib.muon(
        rate,
        beta=momentum,
        weight_decay=decay,
        nesterov=config.nesterov,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def make_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0.

    `one_cycle` is the triangle of L. N. Smith, "Super-Convergence", arXiv:1708.07120, ending at zero; `cosine` falls
    as in Loshchilov and Hutter, "SGDR", arXiv:1608.03983.
    """
    if config.schedule == "one_cycle":
        return optax.linear_onecycle_schedule(total_steps, config.learning_rate, config.warmup, 1.0, 10.0, 1e4)
    if config.schedule == "cosine":
        rising = round(config.warmup * total_steps)
        return optax.warmup_cosine_decay_schedule(config.learning_rate / 10, config.learning_rate, rising, total_steps)
    return optax.constant_schedule(config.learning_rate)


def _kernels(params):
    """A tree that says of each parameter whether it is a convolution kernel."""
    return jax.tree.map(lambda leaf: leaf.ndim == 4, params)


def _matrices(params):
    """A tree that says how Muon reads a kernel as a matrix: height, width and inputs by outputs; None for the rest."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda leaf: numbers if leaf.ndim == 4 else None, params)
