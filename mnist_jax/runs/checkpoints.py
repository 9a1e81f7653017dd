"""Checkpoints, from which a run continues after an interruption.

Orbax writes the train state and the history to RUN_DIR/checkpoints/STEP/. STEP.sha256 beside it has the hashes of its
files, in the format of `sha256sum`, and is written last. So a checkpoint that a crash, a full disk or a flipped bit has
damaged is noticed, named, and skipped for the one before it.
"""

import contextlib
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.devices import from_writer
from mnist_jax.errors import InputError
from mnist_jax.recipes.config import MAY_CHANGE, Config, fixed_settings
from mnist_jax.recipes.fits import abstract_progress
from mnist_jax.runs.directory import config_of, load_config, storing, write_text
from mnist_jax.runtime import environment
from mnist_jax.training import EpochMetrics, Progress

CHECKPOINTS = "checkpoints"


class Resumed(NamedTuple):
    """Where a run continues: `progress`, None for the start, and a line for each damaged checkpoint."""

    progress: Progress | None
    damaged: tuple[str, ...]


def save_checkpoint(run_dir: Path, config: Config, progress: Progress, num_examples: int, keep: int = 3) -> None:
    """Writes a checkpoint to a locked run and waits until it is on disk; keeps the `keep` newest.

    Raises StorageError if it cannot be written; older checkpoints stay.
    """
    import orbax.checkpoint as ocp  # The import takes a second.

    step, directory = int(progress.state.step), run_dir / CHECKPOINTS
    if (directory / f"{step}.sha256").exists():  # The run was stopped just after saving it.
        return
    tensors = {name: np.asarray(leaf) for name, leaf in _named(progress).items()}
    record = {
        "config": dataclasses.asdict(config),
        "history": [metrics._asdict() for metrics in progress.history],
        "epoch": len(progress.history),
        "seed": config.seed,
        "best_test_accuracy": max((metrics.test_accuracy for metrics in progress.history), default=None),
        "num_examples": num_examples,
        "environment": environment(),
    }
    with storing(run_dir), _quiet_threads():
        directory.mkdir(exist_ok=True)
        with _manager(run_dir, keep) as manager:
            items = {"state": ocp.args.StandardSave(tensors), "record": ocp.args.JsonSave(record)}
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            manager.wait_until_finished()
        lines = "".join(f"{digest}  {name}\n" for name, digest in _hashes(directory / str(step)).items())
        write_text(directory / f"{step}.sha256", lines)
        for hashes in directory.glob("*.sha256"):
            if not hashes.with_suffix("").exists():
                hashes.unlink()


def resume(run_dir: Path, config: Config, data: Dataset) -> Resumed:
    """Restores the newest intact checkpoint of a locked run; renames newer damaged ones to `STEP.damaged`.

    Only the hashes decide whether a checkpoint is damaged. An intact one that cannot be read is not renamed.

    Raises InputError if a setting differs that must not, the number of training images differs, an intact checkpoint
    cannot be read, or every checkpoint is damaged.
    """
    _require_same(load_config(run_dir), config)
    directory = (run_dir / CHECKPOINTS).absolute()
    damaged = []
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdecimal()]
    for step in sorted(steps, reverse=True):
        checkpoint = directory / str(step)
        try:
            if not (reason := _damage(checkpoint)):
                return Resumed(_restore(run_dir, step, config, data), tuple(damaged))
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise errors of any kind.
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"checkpoint {checkpoint} cannot be read ({what}), though its hashes are right; "
                "resume with the versions that wrote it, or remove it to resume from the one before"
            ) from error
        damaged.append(f"checkpoint {checkpoint} is damaged: {reason}")
        with storing(run_dir):
            taken = len(list(directory.glob(f"{step}.damaged*")))
            checkpoint.rename(directory / f"{step}.damaged{taken or ''}")
            (directory / f"{step}.sha256").unlink(missing_ok=True)
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; no checkpoint is intact, so start again in another directory")
    return Resumed(None, ())


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
    arrays, shared = from_writer((mine._replace(history=()), history.view(np.uint8)))
    rows = np.asarray(shared).view(np.float64)
    return arrays._replace(history=tuple(EpochMetrics(int(row[0]), *map(float, row[1:])) for row in rows))


def _restore(run_dir: Path, step: int, config: Config, data: Dataset) -> Progress:
    """The progress of an intact checkpoint; raises InputError if its config or number of images differs."""
    import orbax.checkpoint as ocp

    items = {"state": ocp.args.StandardRestore(), "record": ocp.args.JsonRestore()}
    with _manager(run_dir) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    record = restored["record"]
    _require_same(config_of(record["config"]), config)
    num_examples = len(data.train.labels)
    if record["num_examples"] != num_examples:
        raise InputError(
            f"the run in {str(run_dir)!r} trains on {record['num_examples']} images, not {num_examples}; "
            "give it the same data"
        )
    expected = abstract_progress(config, data)
    arrays = [jax.numpy.asarray(restored["state"][name]) for name in _named(expected)]
    history = tuple(EpochMetrics(**metrics) for metrics in record["history"])
    return jax.tree.unflatten(jax.tree.structure(expected), arrays)._replace(history=history)


def _named(progress: Progress) -> dict[str, Any]:
    """The arrays of a progress by name, such as `state.params.conv1.kernel`, `state.batch_stats.bn1.mean`."""
    leaves = jax.tree_util.tree_leaves_with_path(progress._replace(history=()))
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {name.replace("state.collections.", "state."): leaf for name, (_, leaf) in zip(names, leaves, strict=True)}


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint, by its path relative to the directory above."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {
        path.relative_to(checkpoint.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def _damage(checkpoint: Path) -> str:
    """Why a checkpoint is damaged; empty if it is intact."""
    hashes = checkpoint.with_name(checkpoint.name + ".sha256")
    if not hashes.exists():
        return "saving it was interrupted"
    try:
        lines = hashes.read_text(encoding="utf-8")[:-1].split("\n")
        saved = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError:
        return f"{hashes.name} was changed"
    found = _hashes(checkpoint)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            return f"{name} {'is missing' if name not in found else 'was changed'}"
    return ""


def _manager(run_dir: Path, keep: int | None = None) -> Any:
    import orbax.checkpoint as ocp

    # One process writes, and does not wait for the others.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="writer"
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
    )
    return ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options)


def _require_same(trained: Config, config: Config) -> None:
    """Raises InputError if a setting differs from the run's that must not."""
    differing = [
        f"{name} is {getattr(config, name)!r}, but the run was begun with {value!r}"
        for name, value in fixed_settings(trained).items()
        if getattr(config, name) != value
    ]
    if differing:
        may = ", ".join(MAY_CHANGE)
        raise InputError(f"cannot resume: {'; '.join(differing)}; give the same settings (only {may} may change)")


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Silences Orbax's threads in the block. After a failed write, they report a closed event loop even after it."""
    hook, level = sys.unraisablehook, logging.root.manager.disable

    def unless_closed(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = unless_closed
    logging.disable()
    try:
        yield
        sys.unraisablehook = hook
    finally:
        logging.disable(level)
