"""99.4% on MNIST with fewer than 10,000 parameters, in fewer than 15 epochs, in Flax and JAX."""

from mnist_jax.data import Mnist, Split, hold_out, load_mnist, standardise
from mnist_jax.errors import DivergedError, InputError, StorageError
from mnist_jax.lab.analysis import objective, seed_statistics
from mnist_jax.models import ARCHS, count_params, create_model
from mnist_jax.optimizers import make_optimizer
from mnist_jax.recipes import RECIPES, Config, make_config, make_model
from mnist_jax.runs.directory import load_run
from mnist_jax.runs.weights import load_pretrained, load_weights, save_weights
from mnist_jax.runtime import environment
from mnist_jax.seeds import fit_seeds
from mnist_jax.steps import Metrics, TrainState, eval_step, init_state, train_step
from mnist_jax.training import EpochMetrics, Progress, Stopped, evaluate, fit, predict, train_epoch

__all__ = [
    "ARCHS",
    "RECIPES",
    "Config",
    "DivergedError",
    "EpochMetrics",
    "InputError",
    "Metrics",
    "Mnist",
    "Progress",
    "Split",
    "Stopped",
    "StorageError",
    "TrainState",
    "count_params",
    "create_model",
    "environment",
    "eval_step",
    "evaluate",
    "fit",
    "fit_seeds",
    "hold_out",
    "init_state",
    "load_mnist",
    "load_pretrained",
    "load_run",
    "load_weights",
    "make_config",
    "make_model",
    "make_optimizer",
    "objective",
    "predict",
    "save_weights",
    "seed_statistics",
    "standardise",
    "train_epoch",
    "train_step",
]
