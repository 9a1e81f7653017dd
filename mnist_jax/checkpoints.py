"""A run on disk, and how it goes on after an interruption.

RUN_DIR/config.json          every setting
RUN_DIR/metrics.jsonl        one line per finished epoch
RUN_DIR/checkpoints/STEP/    the train state and all that came before it, by Orbax; STEP.sha256 beside it
RUN_DIR/summary.json         the result, the objective's verdict, the environment
RUN_DIR/weights.safetensors  parameters and batch statistics after the last epoch

A checkpoint counts once the hashes of its files are written, as `sha256sum` has them: what a crash, a full disk or a
flipped bit leaves behind is noticed, named and passed over for the checkpoint before it. One process at a time writes
to a run.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import numpy as np

from mnist_jax.analysis import environment
from mnist_jax.devices import from_writer
from mnist_jax.errors import InputError, StorageError
from mnist_jax.models import Network
from mnist_jax.recipes import Config, make_config
from mnist_jax.training import EpochMetrics, Progress, abstract_progress, make_model
from mnist_jax.weights import load_pretrained, load_weights, replace_file, save_weights

CONFIG, METRICS, SUMMARY, WEIGHTS = "config.json", "metrics.jsonl", "summary.json", "weights.safetensors"
CHECKPOINTS, LOCK, OWNER = "checkpoints", ".lock", ".owner"

# Settings that a run may go on with otherwise: they change where it reads and how it scores, not what it computes.
MAY_CHANGE = ("data_source", "data_dir", "eval_batch_size", "run_dir")


# The run directory ---------------------------------------------------------------------------------------------------


def create_run(run_dir: Path, config: Config) -> None:
    """Makes a run directory and saves the config in it.

    Raises:
      InputError: the directory holds a run already, or cannot be written.
    """
    if (run_dir / CONFIG).exists():
        raise InputError(
            f"run dir {str(run_dir)!r} already holds a run; go on with it by --resume, or name another with --run-dir"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_json(run_dir / CONFIG, dataclasses.asdict(config))
    except OSError as error:
        raise InputError(
            f"run dir {str(run_dir)!r} cannot be written ({error.strerror}); name another with --run-dir"
        ) from error


def load_config(run_dir: Path) -> Config:
    """Reads the config of a run.

    Raises:
      InputError: `run_dir` holds no run, or its config cannot be used.
    """
    path = run_dir / CONFIG
    try:
        return make_config(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{str(run_dir)!r} holds no run ({path.name}: {error.strerror}); name a run dir") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config {str(path)!r} cannot be used: {error}") from error


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run; the system lets go of it when this one ends, however it ends.

    Raises:
      InputError: another process has it.
      StorageError: the directory cannot be written.
    """
    owner, held = run_dir / OWNER, filelock.FileLock(run_dir / LOCK, timeout=0)
    try:
        held.acquire()
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    except filelock.Timeout:
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise InputError(
            f"run dir {str(run_dir)!r} is being written by {who}; wait for it or stop it, or name another"
        ) from None
    except OSError as error:
        held.release()
        raise _unwritable(run_dir, error) from error
    try:
        yield
    finally:
        held.release()


def save_config(run_dir: Path, config: Config) -> None:
    """Writes the settings a run goes on with.

    Raises:
      StorageError: they cannot be written.
    """
    with storing(run_dir):
        _write_json(run_dir / CONFIG, dataclasses.asdict(config))


def save_epochs(run_dir: Path, history: Sequence[EpochMetrics]) -> None:
    """Writes the lines of all finished epochs; a reader finds whole lines only, each epoch once.

    Raises:
      StorageError: it cannot be written.
    """
    lines = "".join(json.dumps(metrics._asdict()) + "\n" for metrics in history)
    with storing(run_dir):
        replace_file(run_dir / METRICS, lambda temporary: temporary.write_text(lines, encoding="utf-8"))


def save_result(run_dir: Path, config: Config, variables: dict[str, Any], summary: dict[str, Any]) -> None:
    """Writes the final weights and the summary of a run.

    Raises:
      StorageError: one of them cannot be written.
    """
    with storing(run_dir):
        save_weights(run_dir / WEIGHTS, config.arch, variables)
        _write_json(run_dir / SUMMARY, summary)


def load_run(run_dir: Path) -> tuple[Config, Network, dict[str, Any]]:
    """The config, the network and the trained variables of a finished run.

    Raises:
      InputError: as `load_config` and `load_weights`.
    """
    config = load_config(run_dir)
    model = make_model(config)
    return config, model, load_weights(run_dir / WEIGHTS, config.arch, model)


def load_trained(run_dir: Path | None, arch: str | None) -> tuple[str, Network, dict[str, Any]]:
    """Name, network and trained variables of a finished run, or of a network as shipped: one of the two is given.

    Raises:
      InputError: both or neither are given, or as `load_run` and `load_pretrained`.
    """
    if (run_dir is None) == (arch is None):
        raise InputError("name either a run dir or --arch, one of the two")
    if run_dir is None:
        return arch, *load_pretrained(arch)
    config, model, variables = load_run(run_dir)
    return config.arch, model, variables


# Checkpoints ---------------------------------------------------------------------------------------------------------


class Resumed(NamedTuple):
    """What a run goes on from: `progress`, None for the very start, and a line for each damaged checkpoint."""

    progress: Progress | None
    damaged: tuple[str, ...]


def save_checkpoint(run_dir: Path, config: Config, progress: Progress, num_examples: int, keep: int = 3) -> None:
    """Writes a checkpoint and waits until it is on disk; of the older ones, the newest `keep - 1` stay.

    Args:
      run_dir: the run's directory, locked.
      config: every setting of the run.
      progress: how far it is.
      num_examples: training images in an epoch.
      keep: how many checkpoints to keep, at least 1.

    Raises:
      StorageError: it cannot be written; the checkpoints before it stay.
    """
    import orbax.checkpoint as ocp  # Takes a second to import.

    step, directory = int(progress.state.step), run_dir / CHECKPOINTS
    if (directory / f"{step}.sha256").exists():  # Stopped just after it was saved.
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
        replace_file(directory / f"{step}.sha256", lambda temporary: temporary.write_text(lines, encoding="utf-8"))
        for hashes in directory.glob("*.sha256"):
            if not hashes.with_suffix("").exists():
                hashes.unlink()


def resume(run_dir: Path, config: Config, num_examples: int) -> Resumed:
    """The newest intact checkpoint of a run; damaged ones that are newer are set aside as `STEP.damaged`.

    Args:
      run_dir: the run's directory, locked.
      config: the settings to go on with.
      num_examples: training images in an epoch.

    Raises:
      InputError: a setting differs that may not, the number of images differs, or every checkpoint is damaged.
    """
    _require_same(load_config(run_dir), config)
    directory = (run_dir / CHECKPOINTS).absolute()
    damaged = []
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        try:
            _verify(directory / str(step))
            tensors, record = _read_checkpoint(run_dir, step)
        except Exception as error:  # Orbax and TensorStore raise whatever they stumble over.
            reason = " ".join(str(error).split())[:200]
            damaged.append(f"checkpoint {directory / str(step)} is damaged: {reason}")
            with storing(run_dir):
                taken = len(list(directory.glob(f"{step}.damaged*")))
                (directory / str(step)).rename(directory / f"{step}.damaged{taken or ''}")
                (directory / f"{step}.sha256").unlink(missing_ok=True)
            continue
        trained = make_config(**record["config"])
        _require_same(trained, config)
        if record["num_examples"] != num_examples:
            raise InputError(
                f"the run in {str(run_dir)!r} trains on {record['num_examples']} images, not {num_examples}; "
                "give it the same data"
            )
        history = tuple(EpochMetrics(**metrics) for metrics in record["history"])
        return Resumed(_rebuild(tensors, config, num_examples)._replace(history=history), tuple(damaged))
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; no checkpoint is intact, so start again in another --run-dir")
    return Resumed(None, ())


def share(progress: Progress | None, config: Config, num_examples: int) -> Progress | None:
    """What the writing process goes on from, for every process; the others give None."""
    if jax.process_count() == 1:
        return progress
    epochs = int(from_writer(np.int32(-1 if progress is None else len(progress.history))))
    if epochs < 0:
        return None
    if progress is None:
        shapes = abstract_progress(config, num_examples)
        progress = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    history = np.zeros((epochs, len(EpochMetrics._fields))) if not progress.history else np.array(progress.history)
    arrays, history = from_writer((progress._replace(history=()), history))
    return arrays._replace(history=tuple(EpochMetrics(int(row[0]), *map(float, row[1:])) for row in history))


def _read_checkpoint(run_dir: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import orbax.checkpoint as ocp

    with _manager(run_dir) as manager:
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
        )
    return {name: np.asarray(leaf) for name, leaf in restored["state"].items()}, restored["record"]


def _rebuild(tensors: dict[str, np.ndarray], config: Config, num_examples: int) -> Progress:
    expected = abstract_progress(config, num_examples)
    names, treedef = list(_named(expected)), jax.tree.structure(expected)
    return jax.tree.unflatten(treedef, [jax.numpy.asarray(tensors[name]) for name in names])


def _named(progress: Progress) -> dict[str, Any]:
    """The arrays of a progress by name, such as `state/params/conv1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(progress._replace(history=()))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint, by its path from the directory above."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {
        path.relative_to(checkpoint.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def _verify(checkpoint: Path) -> None:
    """Raises ValueError, with the reason, unless every file of a checkpoint is what was saved."""
    hashes = checkpoint.with_name(checkpoint.name + ".sha256")
    if not hashes.exists():
        raise ValueError("it was not saved to the end")
    saved = dict(reversed(line.split("  ", 1)) for line in hashes.read_text(encoding="utf-8")[:-1].split("\n"))
    found = _hashes(checkpoint)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            raise ValueError(f"{name} is {'missing' if name not in found else 'not what was saved'}")
    if not saved:
        raise ValueError(f"{hashes.name} is empty")


@contextlib.contextmanager
def _manager(run_dir: Path, keep: int | None = None) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    # Of several processes one writes, and waits for no other.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="writer"
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        create=False,
        multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
    )
    with ocp.CheckpointManager((run_dir / CHECKPOINTS).absolute(), options=options) as manager:
        yield manager


def _require_same(trained: Config, config: Config) -> None:
    """Refuses to go on with another setting than the run was begun with, unless it may change."""
    free = set(MAY_CHANGE)
    if trained.schedule == "constant":  # Otherwise the learning rate of every step depends on how many there are.
        free.add("epochs")
    differing = [
        f"{field.name} is {getattr(config, field.name)!r}, but the run was begun with {getattr(trained, field.name)!r}"
        for field in dataclasses.fields(Config)
        if field.name not in free and getattr(config, field.name) != getattr(trained, field.name)
    ]
    if differing:
        raise InputError(f"cannot resume: {'; '.join(differing)}; give the same settings, or start another run")


# Files ---------------------------------------------------------------------------------------------------------------


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def storing(run_dir: Path) -> Iterator[None]:
    """Raises a `StorageError` for what goes wrong while writing to a run."""
    try:
        yield
    except Exception as error:  # TensorStore reports a full disk as a ValueError.
        raise _unwritable(run_dir, error) from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keeps what a failed write leaves running in Orbax's threads from printing tracebacks until the process ends."""
    hook, logger = sys.unraisablehook, logging.getLogger("absl")
    level = logger.level
    sys.unraisablehook = lambda unraisable: None
    logger.setLevel(logging.CRITICAL + 1)
    yield
    sys.unraisablehook = hook
    logger.setLevel(level)


def _unwritable(run_dir: Path, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())[:300]
    return StorageError(
        f"cannot write to run dir {str(run_dir)!r}: {reason}; what was saved before is intact: make room or mend the "
        f"permissions, then go on with --resume {run_dir}"
    )
