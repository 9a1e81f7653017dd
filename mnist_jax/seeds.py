"""Many seeds at once: the fit of one, vmapped."""

from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from mnist_jax.data import Mnist
from mnist_jax.recipes import Config
from mnist_jax.steps import Metrics, TrainState
from mnist_jax.training import EpochMetrics, Progress, fit


def fit_seeds(
    config: Config,
    seeds: Sequence[int],
    data: Mnist,
    *,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
    on_step: Callable[[int, int, Metrics], None] | None = None,
    on_epoch: Callable[[list[EpochMetrics]], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, list[list[EpochMetrics]]]:
    """Trains one network for each seed, all in one program: the whole of `fit`, under `jax.vmap`.

    Each seed has the shuffles, distortions and dropout that it would have alone; results differ from those by rounding.

    Args:
      config: every setting but the seed.
      seeds: the seeds.
      data: what to train on and what to score.
      progress: as in `fit`, of the same seeds.
      mesh: the devices to split the seeds over; None for the default device.
      on_step: as in `fit`; the metrics have an axis of seeds.
      on_epoch: called with the epoch's metrics of every seed; their `seconds` are those of all seeds together.
      stop: as in `fit`.

    Returns:
      The final states, each array with a leading axis of seeds, and each seed's history.

    Raises:
      InputError: the batch size is above the number of training images, or the seeds cannot be split over the devices.
      DivergedError: a loss or gradient of one of the seeds is no longer finite.
      Stopped: as in `fit`.
    """
    report = on_epoch and (lambda progress: on_epoch(list(progress.history[-1])))
    state, history = fit(
        config, data, seeds=seeds, progress=progress, mesh=mesh, on_step=on_step, on_epoch=report, stop=stop
    )
    return state, [list(epochs) for epochs in zip(*history, strict=True)]
