"""A run on disk from start to end: `with session(config, data) as run: run.fit(tell=...); run.finish(...)`."""

import contextlib
import dataclasses
import importlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import devices
from mnist_jax.data import Dataset
from mnist_jax.errors import InputError, LostError, require_path
from mnist_jax.objective import objective
from mnist_jax.optimizers import make_schedule
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.fits import fit, shared_facts
from mnist_jax.recipes.values import make_setup, part_of, total_steps
from mnist_jax.runs import checkpoints, directory
from mnist_jax.runs.directory import Summary
from mnist_jax.runs.weights import save_weights
from mnist_jax.runtime import compilations, environment, seconds_within
from mnist_jax.signals import catch_signals
from mnist_jax.steps import TrainState
from mnist_jax.training import EpochMetrics, Progress, Stopped


class Clock:
    """Measures the parts of a process's time, from its start."""

    def __init__(self) -> None:
        """Ends the part `starting`; compilations are recorded from now on."""
        compilations()
        now = time.perf_counter()
        self._moments = {"begin": now - _process_age(), "starting": now}

    def end(self, part: str) -> None:
        """Ends a part; the next one begins."""
        self._moments[part] = time.perf_counter()

    def seconds(self) -> dict[str, Any]:
        """`seconds` in all, and `seconds_of` each finished part.

        `training` includes the epochs' scores and checkpoints. `compiling` is separate.
        """
        moments = self._moments
        spent = {name: end - begin for (_, begin), (name, end) in itertools.pairwise(moments.items())}
        compiling = seconds_within(compilations(), moments["data"], moments["training"])
        parts = {name: spent.pop(name) for name in ("starting", "data")} | {"compiling": compiling} | spent
        parts["training"] -= compiling
        return {"seconds": sum(parts.values()), "seconds_of": parts}


def _process_age() -> float:
    """Seconds since the start of this process; where it is not Linux, those that the processor worked for it."""
    if sys.platform != "linux":
        return time.process_time()
    ticks = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()[19]  # proc(5): `starttime`.
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Session:
    """A run that is being written; made by `session`.

    Attributes:
      config: every setting of the run.
      data: the data it trains on and scores.
      run_dir: its directory.
      keep: number of checkpoints to keep.
      checkpoint_every: epochs between checkpoints; the last epoch always has one.
      clock: measures time; `fit` and `finish` end the parts `data`, `training`, `saving` and `report`.
      progress: where the run continues; None for the start.
      damaged: a line for each damaged checkpoint that was skipped.
      received: signals received during `fit`.
      background: the thread that saves; free for other work until the first epoch ends.
    """

    config: Config
    data: Dataset
    run_dir: Path
    keep: int = 3
    checkpoint_every: int = 1
    clock: Clock = dataclasses.field(default_factory=Clock)
    progress: Progress | None = None
    damaged: tuple[str, ...] = ()
    received: list[int] = dataclasses.field(default_factory=list)
    background: ThreadPoolExecutor = dataclasses.field(default_factory=lambda: ThreadPoolExecutor(1))

    def fit(
        self, *, tell: Callable[[EpochMetrics], None], tensorboard: bool = False, **options: Any
    ) -> tuple[TrainState, list[EpochMetrics]]:
        """Trains by `fit`; saves every epoch while the next one runs.

        Args:
          tell: called with the metrics of each epoch, from another thread, once the epoch is on disk.
          tensorboard: whether to write RUN_DIR/tensorboard too; needs tensorboardX.
          options: more arguments of `fit`.

        Raises:
          Stopped: SIGINT or SIGTERM arrived, here or in another process. The progress is saved.
          StorageError: the run cannot be written.
          LostError: another process is lost.
        """
        log = self._event_writer() if tensorboard and devices.is_writer() else contextlib.nullcontext()
        with log as events, self.background as background, catch_signals() as self.received:
            saved: Future[None] = background.submit(lambda: None)

            def finish(progress: Progress) -> None:
                metrics = progress.history[-1]
                due = metrics.epoch % self.checkpoint_every == 0 or metrics.epoch == self.config.epochs
                self._save(progress, checkpoint=due)
                if events:
                    self._write_events(events, metrics)
                tell(metrics)

            def on_epoch(progress: Progress) -> None:
                """Saves an epoch and then reports it, while the next one runs. So no reported epoch is lost."""
                nonlocal saved
                saved.result()
                saved = background.submit(finish, progress)

            def stop() -> bool:
                return bool(self.received) or (saved.done() and saved.exception() is not None)

            self.clock.end("data")
            try:
                options |= {"progress": self.progress, "on_epoch": on_epoch, "stop": stop}
                state, history = fit(self.config, self.data, **options)
                self.clock.end("training")
                saved.result()
            except Stopped as stopped:
                saved.result()
                self.progress = stopped.progress
                self._save(stopped.progress)
                raise
            except (jax.errors.JaxRuntimeError, ValueError) as error:  # The kind depends on the moment of the loss.
                if jax.process_count() == 1 or isinstance(error, InputError):
                    raise
                raise LostError(
                    f"another process is lost; resume {str(self.run_dir)!r} in all of them to continue"
                ) from error
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
        if write := devices.is_writer():
            with directory.storing(self.run_dir):
                save_weights(self.run_dir / directory.WEIGHTS, make_setup(self.config, self.data).trained(state))

        def save(part: str) -> Summary:
            self.clock.end(part)
            summary = Summary(**facts | self.clock.seconds())
            if write:
                directory.save_json(self.run_dir, directory.SUMMARY, summary._asdict())
            return summary

        summary, page = save("saving"), None
        if write and write_report:
            page = write_report(self.run_dir, self.data)
            summary = save("report")
        return summary, page

    @property
    def scored_on(self) -> str:
        """The scored images: "test" or "held-out"."""
        return "held-out" if self.config.held_out else "test"

    @property
    def status(self) -> int:
        """The exit status of a stopped process: 128 plus the signal."""
        return 128 + (self.received[0] if self.received else signal.SIGTERM)  # Without one, another process got it.

    def _save(self, progress: Progress, checkpoint: bool = True) -> None:
        if devices.is_writer():
            if checkpoint:
                checkpoints.save_checkpoint(self.run_dir, self.config, progress, len(self.data.train.labels), self.keep)
            directory.save_epochs(self.run_dir, progress.history)

    def _event_writer(self) -> Any:
        """A writer of TensorBoard's event files, which drops events of epochs that are trained again."""
        writer = importlib.import_module("tensorboardX").SummaryWriter
        purge = len(self.progress.history) + 1 if self.progress else None
        with directory.storing(self.run_dir):
            return writer(str(self.run_dir / "tensorboard"), purge_step=purge)

    def _write_events(self, events: Any, metrics: EpochMetrics) -> None:
        """Writes the losses and accuracies of an epoch, and the learning rate of its last step."""
        config, steps = self.config, total_steps(self.config, self.data)
        schedule = make_schedule(config.schedule, config.learning_rate, config.warmup, steps)
        rate = schedule(steps // config.epochs * metrics.epoch - 1)
        with directory.storing(self.run_dir):
            for figure, name in itertools.product(("loss", "accuracy"), ("train", "test")):
                told = self.scored_on if name == "test" else name
                events.add_scalar(f"{figure}/{told}", getattr(metrics, f"{name}_{figure}"), metrics.epoch)
            events.add_scalar("learning_rate", float(np.asarray(rate)), metrics.epoch)
            events.flush()


@contextlib.contextmanager
def session(config: Config, whole: Dataset, *, resume: Path | None = None, **options: Any) -> Iterator[Session]:
    """A run on disk, from its directory to its summary, locked against other processes.

    Args:
      config: every setting; `config.run_dir` is the directory, by default runs/TIME-ARCH-RECIPE.
      whole: the whole data set of the config, including held-out images.
      resume: directory of a run to resume, instead of a new run.
      options: `keep`, `checkpoint_every` and `clock` of the `Session`.

    Raises InputError if the directory holds a run already or cannot be written, if the data does not fit or is not the
    run's, or as `checkpoints.resume`; BusyError if another process writes there. In several processes all raise if one
    does, or if they differ in config or data.
    """
    with devices.together() as facts:
        data = part_of(config, whole)
        make_setup(config, data)  # Raises if the data does not fit, before anything is written.
        facts |= shared_facts(config, whole) | {"resume": str(resume is not None)}
    writer = devices.is_writer()
    with contextlib.ExitStack() as stack:
        with devices.together():  # What the writer refuses ends them all.
            run_dir = require_path(resume or config.run_dir or _new_run_dir(config), "run dir")
            run = Session(config, data, run_dir, **options)
            if writer:
                stack.enter_context(directory.lock(run.run_dir, new=not resume))
            if writer and not resume:  # Locked, or another process that begins there would get this config.
                directory.create_run(run.run_dir, config)
                known = directory.DatasetRecord(whole.name, whole.sha256)
                directory.save_json(run.run_dir, directory.DATASET, known._asdict())
            if resume and writer:
                directory.require_same_data(resume, whole)
                run.progress, run.damaged = checkpoints.resume(resume, config, data)
                directory.save_json(resume, directory.CONFIG, dataclasses.asdict(config))
                directory.save_epochs(resume, run.progress.history if run.progress else ())
        if resume:
            run.progress = checkpoints.share(run.progress, config, data)
        try:
            yield run
        except Exception as error:
            error.add_note(f"what was saved is in {str(run.run_dir)!r}")
            raise


def _new_run_dir(config: Config) -> Path:
    """A directory named after the time, with a number if another run began in the same second; the writer makes it."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.arch}-{config.recipe}"
    path = Path("runs") / name
    for i in itertools.count(2):
        try:
            if devices.is_writer():
                path.mkdir(parents=True)
        except FileExistsError:
            path = path.with_name(f"{name}-{i}")
            continue
        except OSError:
            pass  # `directory.lock` says why.
        break
    return path
