"""Many seeds at once: the fit of one, vmapped."""

from collections.abc import Callable, Sequence
from typing import Any

from mnist_jax.data import Mnist
from mnist_jax.recipes import Config
from mnist_jax.steps import TrainState
from mnist_jax.training import EpochMetrics, fit


def fit_seeds(
    config: Config,
    seeds: Sequence[int],
    data: Mnist,
    *,
    on_epoch: Callable[[list[EpochMetrics]], None] | None = None,
    **options: Any,
) -> tuple[TrainState, list[list[EpochMetrics]]]:
    """Trains one network for each seed, all in one program: the whole of `fit`, under `jax.vmap`.

    Each seed has the shuffles, distortions and dropout that it would have alone; results differ from those by rounding.
    Options and errors are those of `fit`, but that a mesh splits the seeds, and that `on_epoch` is called with the
    epoch's metrics of every seed; their `seconds` are those of all seeds together. Returns the final states, each array
    with a leading axis of seeds, and each seed's history.
    """
    report = on_epoch and (lambda progress: on_epoch(list(progress.history[-1])))
    state, history = fit(config, data, seeds=seeds, on_epoch=report, **options)
    return state, [list(epochs) for epochs in zip(*history, strict=True)]
