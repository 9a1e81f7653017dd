"""99.4% on MNIST with fewer than 10,000 parameters, in fewer than 15 epochs, in Flax and JAX."""

from mnist_jax import losses
from mnist_jax.data import Dataset, Split, hold_out, load_dataset, standardize
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.layers import FAST, FLAX
from mnist_jax.models import ARCHS, make_model
from mnist_jax.objective import objective
from mnist_jax.recipes.config import RECIPES, Config, make_config
from mnist_jax.recipes.fits import fit, fit_many, fit_seeds, start
from mnist_jax.recipes.values import make_distortion, make_optimizer, make_setup
from mnist_jax.runs.directory import load_run
from mnist_jax.runs.weights import load_pretrained, load_weights, save_weights
from mnist_jax.runtime import environment, jit, tune_process
from mnist_jax.scoring import evaluate, predict
from mnist_jax.series.comparing import compare
from mnist_jax.statistics import seed_statistics
from mnist_jax.steps import (
    Metrics,
    Setup,
    Streams,
    Trained,
    TrainState,
    eval_step,
    init_state,
    train_step,
    value_and_grad,
)
from mnist_jax.summary import count_params, layers_of
from mnist_jax.training import EpochMetrics, Progress, Stopped, epoch_order, train_epoch
from mnist_jax.version import __version__

__all__ = ["__version__"]
__all__ += ["Dataset", "Split", "hold_out", "load_dataset", "standardize"]
__all__ += ["RECIPES", "Config", "make_config", "make_distortion", "make_optimizer", "make_setup"]
__all__ += ["Progress", "Stopped", "fit", "fit_many", "fit_seeds", "start"]
__all__ += ["ARCHS", "FAST", "FLAX", "count_params", "layers_of", "losses", "make_model"]
__all__ += ["EpochMetrics", "Metrics", "Setup", "Streams", "TrainState", "Trained", "epoch_order"]
__all__ += ["environment", "eval_step", "init_state", "jit", "train_epoch", "train_step", "tune_process"]
__all__ += ["evaluate", "load_pretrained", "load_run", "load_weights", "predict", "save_weights", "value_and_grad"]
__all__ += ["DivergedError", "InputError", "compare", "objective", "seed_statistics"]
