"""A run on disk from start to end: `with session(...) as run: run.fit(on_saved=...); run.finish(...)`."""

import contextlib
import dataclasses
import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from mnist_jax import devices
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, LostError, require_path
from mnist_jax.objective import objective
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.fits import fit, shared_facts
from mnist_jax.recipes.values import make_setup, part_of
from mnist_jax.runs import checkpoints, directory
from mnist_jax.runs.directory import Summary
from mnist_jax.runs.weights import save_weights
from mnist_jax.runtime import compilations, environment, seconds_within
from mnist_jax.signals import catch_signals
from mnist_jax.steps import TrainState
from mnist_jax.training import EpochMetrics, Progress, Stopped


class Clock:
    """Measures the parts of a process's time: `seconds_of` each finished part. Compiling is not in `training`."""

    def __init__(self) -> None:
        """Ends the part `starting`, in seconds of the processor; compilations are recorded from now on."""
        compilations()
        self.seconds_of: dict[str, float] = {"starting": time.process_time()}
        self._ended: float = time.perf_counter()

    def end(self, part: str) -> None:
        """Ends a part; the next one begins."""
        begun, self._ended = self._ended, time.perf_counter()
        compiling = 0.0
        if part == "training":
            self.seconds_of["compiling"] = compiling = seconds_within(compilations(), begun, self._ended)
        self.seconds_of[part] = self._ended - begun - compiling


@dataclasses.dataclass
class Session:
    """A run that is being written; made by `session`."""

    config: Config
    data: Dataset  # What it trains on and scores.
    run_dir: Path
    clock: Clock  # `fit` and `finish` end the parts `data`, `training`, `saving` and `report`.
    progress: Progress | None = None  # Where the run continues; None for the start.
    damaged: tuple[str, ...] = ()  # A line for each damaged checkpoint that was skipped.
    received: list[int] = dataclasses.field(default_factory=list)  # Signals during `fit`.

    def fit(self, *, on_saved: Callable[[EpochMetrics], None], **options: Any) -> tuple[TrainState, list[EpochMetrics]]:
        """Trains by `fit`, with more options of it, and saves every epoch; then calls `on_saved` with its metrics.

        Raises Stopped if SIGINT or SIGTERM arrived, here or in another process, and has saved the progress; OSError if
        the run cannot be written; LostError if another process is lost.
        """

        def on_epoch(progress: Progress) -> None:
            self._save(progress)
            on_saved(progress.history[-1])

        with catch_signals() as self.received:
            self.clock.end("data")
            try:
                options |= {"progress": self.progress, "on_epoch": on_epoch, "stop": lambda: bool(self.received)}
                state, history = fit(self.config, self.data, **options)
            except Stopped as stopped:
                self._save(stopped.progress)
                raise
            except (jax.errors.JaxRuntimeError, ValueError) as error:  # The kind depends on the moment of the loss.
                if jax.process_count() == 1 or isinstance(error, InputError):
                    raise
                raise LostError(
                    f"another process is lost; resume {str(self.run_dir)!r} in all of them to continue"
                ) from error
        self.clock.end("training")
        return state, history

    def finish(
        self, state: TrainState, last: EpochMetrics, write_report: Callable[[Path, Dataset], Path | None] | None = None
    ) -> tuple[Summary, Path | None]:
        """Writes the final weights and summary.json, then a report: `write_report(run_dir, data)` returns its page.

        `last` are the metrics of the last epoch. Returns the last summary written, and the page, if any.
        """
        conditions = objective(state.params, self.config.epochs, last.test_accuracy, self.scored_on)
        facts = {
            **last._asdict(),
            "scored_on": self.scored_on,
            "objective": [condition._asdict() for condition in conditions],
            "objective_met": all(condition.met for condition in conditions),
            "environment": environment(),
        }
        writes, page = devices.is_writer(), None
        if writes:
            save_weights(self.run_dir / directory.WEIGHTS, make_setup(self.config, self.data).trained(state))
        summary = self._summarize("saving", facts)
        if writes and write_report:
            page = write_report(self.run_dir, self.data)
            summary = self._summarize("report", facts)
        return summary, page

    @property
    def scored_on(self) -> str:
        """The scored images: "test" or "held-out"."""
        return "held-out" if self.config.held_out else "test"

    @property
    def status(self) -> int:
        """The exit status of a stopped process: 128 plus the signal."""
        return 128 + (self.received[0] if self.received else signal.SIGTERM)  # Without one, another process got it.

    def _save(self, progress: Progress) -> None:
        if devices.is_writer():
            checkpoints.save_checkpoint(self.run_dir, progress)
            directory.save_epochs(self.run_dir, progress.history)

    def _summarize(self, part: str, facts: dict[str, Any]) -> Summary:
        """Ends a part of the time, and writes the summary."""
        self.clock.end(part)
        seconds_of = dict(self.clock.seconds_of)
        summary = Summary(**facts | {"seconds": sum(seconds_of.values()), "seconds_of": seconds_of})
        if devices.is_writer():
            directory.save_json(self.run_dir, directory.SUMMARY, summary._asdict())
        return summary


@contextlib.contextmanager
def session(
    config: Config, whole: Dataset, *, resume: Path | None = None, clock: Clock | None = None
) -> Iterator[Session]:
    """A run on disk, from its directory to its summary, locked against other processes.

    A new run is in `config.run_dir`, by default runs/TIME-ARCH-RECIPE; `resume` is the directory of a run to resume.
    `whole` is the whole data set of the config, including held-out images.

    Raises InputError if the directory holds a run already, if the data does not fit or is not the run's, or as
    `checkpoints.resume`; BusyError if another process writes there; OSError if it cannot be written. In several
    processes all raise if one does, or if they differ in config or data.
    """
    with devices.synchronized() as facts:
        data = part_of(config, whole)
        make_setup(config, data)  # Raises if the data does not fit, before anything is written.
        facts |= shared_facts(config, whole) | {"resume": str(resume is not None)}
    with contextlib.ExitStack() as stack:
        with devices.synchronized():  # What the writer refuses ends them all.
            run_dir = require_path(resume or config.run_dir or _new_run_dir(config), "run dir")
            run = Session(config, data, run_dir, clock or Clock())
            if devices.is_writer():
                stack.enter_context(directory.lock(run_dir, new=not resume))
                begin = _resume if resume else _create  # Locked, or another process might begin there too.
                begin(run, whole)
        if resume:
            run.progress = checkpoints.share(run.progress, config, data)
        try:
            yield run
        except Exception as error:
            error.add_note(f"what was saved is in {str(run_dir)!r}")
            raise


def _create(run: Session, whole: Dataset) -> None:
    directory.create_run(run.run_dir, run.config)
    directory.save_json(run.run_dir, directory.DATASET, directory.DatasetRecord(whole.name, whole.sha256)._asdict())


def _resume(run: Session, whole: Dataset) -> None:
    directory.require_same_data(run.run_dir, whole)
    run.progress, run.damaged = checkpoints.resume(run.run_dir, run.config, run.data)
    directory.save_json(run.run_dir, directory.CONFIG, dataclasses.asdict(run.config))
    directory.save_epochs(run.run_dir, run.progress.history if run.progress else ())


def _new_run_dir(config: Config) -> Path:
    """A directory named after the time, with a number if another run began in the same second."""
    path = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.arch}-{config.recipe}"
    others = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not one.exists())
