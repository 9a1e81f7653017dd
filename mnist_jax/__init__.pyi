from . import losses
from .data import Dataset, Split, hold_out, load_dataset, standardize
from .errors import DivergedError, InputError, StorageError
from .layers import FAST, FLAX
from .models import ARCHS, make_model
from .objective import objective
from .recipes.config import RECIPES, Config, make_config
from .recipes.fits import fit, fit_many, fit_seeds, start
from .recipes.values import make_optimizer, make_setup
from .runs.directory import load_run
from .runs.weights import load_pretrained, load_weights, save_weights
from .runtime import environment, jit
from .scoring import evaluate, predict
from .series.comparing import compare
from .statistics import seed_statistics
from .steps import Metrics, Setup, Streams, Trained, TrainState, eval_step, init_state, train_step
from .summary import count_params, layers_of
from .training import EpochMetrics, Progress, Stopped, epoch_order, train_epoch
from .version import __version__

__all__ = ["__version__"]
__all__ += ["Dataset", "Split", "hold_out", "load_dataset", "standardize"]
__all__ += ["RECIPES", "Config", "make_config", "make_optimizer", "make_setup"]
__all__ += ["Progress", "Stopped", "fit", "fit_many", "fit_seeds", "start"]
__all__ += ["ARCHS", "FAST", "FLAX", "count_params", "layers_of", "losses", "make_model"]
__all__ += ["EpochMetrics", "Metrics", "Setup", "Streams", "TrainState", "Trained", "epoch_order"]
__all__ += ["environment", "eval_step", "init_state", "jit", "train_epoch", "train_step"]
__all__ += ["evaluate", "load_pretrained", "load_run", "load_weights", "predict", "save_weights"]
__all__ += ["DivergedError", "InputError", "StorageError", "compare", "objective", "seed_statistics"]
