"""Checkpoints, from which a run continues after an interruption.

RUN_DIR/checkpoints/STEP.safetensors has the train state, the history and what tells the training from others, with a
hash. So a checkpoint that a crash or a flipped bit has damaged is noticed, named, and skipped for the one before it.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.devices import from_writer
from mnist_jax.errors import InputError
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.fits import abstract_progress
from mnist_jax.runs.directory import load_config
from mnist_jax.runs.files import by_name, misfit, read_arrays, write_arrays
from mnist_jax.training import EpochMetrics, Identity, Progress, require_identity

CHECKPOINTS = "checkpoints"
KEPT = 2


def save_checkpoint(run_dir: Path, progress: Progress) -> None:
    """Writes a checkpoint to a locked run; then removes all but the last two, and damaged ones of later steps.

    Raises OSError if it cannot be written; older checkpoints stay.
    """
    directory = run_dir / CHECKPOINTS
    directory.mkdir(exist_ok=True)
    about = {
        "identity": progress.identity.values,
        "history": [metrics._asdict() for metrics in progress.history],
    }
    write_arrays(directory / f"{progress.steps}.safetensors", by_name(progress._replace(history=())), about)
    paths = _paths(directory)
    kept = sorted(step for step in paths if step <= progress.steps)[-KEPT:]
    for step in paths.keys() - kept:
        paths[step].unlink()


def resume(run_dir: Path, config: Config, data: Dataset) -> tuple[Progress | None, tuple[str, ...]]:
    """Restores the newest intact checkpoint of a locked run.

    Returns the progress, None for the start, and a line for each damaged checkpoint.

    Raises InputError if a setting or the data differs that must not, an intact checkpoint does not fit the training,
    every checkpoint is damaged, or they are of version 0.2; OSError if one cannot be read.
    """
    expected, directory = abstract_progress(config, data), run_dir / CHECKPOINTS
    if any(path.is_dir() for path in directory.glob("*")):
        raise InputError(f"the checkpoints in {str(run_dir)!r} are of mnist_jax 0.2; finish this run with 0.2")
    paths, damaged = _paths(directory), []
    for step in sorted(paths, reverse=True):
        try:
            arrays, about = read_arrays(paths[step])
        except InputError:
            raise
        except ValueError as error:
            damaged.append(f"checkpoint {str(paths[step])!r} is damaged: {error}")
        else:
            return _restored(paths[step], arrays, about, expected), tuple(damaged)
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; no checkpoint is intact; start again in another directory")
    require_identity(abstract_progress(load_config(run_dir), data), expected.identity)
    return None, ()


def share(progress: Progress | None, config: Config, data: Dataset) -> Progress | None:
    """The progress of the writing process, for every process; the others pass None."""
    if jax.process_count() == 1:
        return progress
    epochs = int(from_writer(np.int32(-1 if progress is None else len(progress.history))))
    if epochs < 0:
        return None
    mine = progress or jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_progress(config, data))
    history = np.array(mine.history) if mine.history else np.zeros((epochs, len(EpochMetrics._fields)))
    # Bytes, because JAX would convert float64 to float32.
    arrays, sent = from_writer((mine._replace(history=()), history.view(np.uint8)))
    rows = np.asarray(sent).view(np.float64)
    return arrays._replace(history=tuple(EpochMetrics(int(row[0]), *map(float, row[1:])) for row in rows))


def _restored(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any], expected: Progress) -> Progress:
    """The progress of an intact checkpoint; raises InputError if it is of another training than expected."""
    identity = Identity(tuple(map(tuple, about.get("identity", ()))))
    require_identity(expected._replace(identity=identity), expected.identity)
    leaves = by_name(expected)
    if difference := misfit(arrays, leaves):
        raise InputError(
            f"checkpoint {str(path)!r} does not fit ({difference}); resume with the versions that wrote it, or remove "
            "it to resume from the one before"
        )
    progress = jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in leaves])
    history = tuple(EpochMetrics(**metrics) for metrics in about["history"])
    return jax.device_put(progress)._replace(history=history, identity=identity)


def _paths(directory: Path) -> dict[int, Path]:
    """The checkpoints by their steps."""
    paths = [path for path in directory.glob("*.safetensors") if path.stem.isdecimal()]
    return {int(path.stem): path for path in paths}
