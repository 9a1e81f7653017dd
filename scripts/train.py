"""Trains a network, reports every epoch, and says whether the objective is met."""

import dataclasses
import importlib.util
import itertools
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import psutil
import tyro
from jax.sharding import Mesh
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_jax import cli, data, devices, models, training
from mnist_jax.errors import InputError, LostError
from mnist_jax.lab import analysis
from mnist_jax.optimizers import make_schedule
from mnist_jax.recipes import Config, make_model
from mnist_jax.runs import checkpoints, directory
from mnist_jax.runtime import compilations, environment, seconds_within

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a network on MNIST, reports every epoch, and says whether the objective is met.

    The objective: 99.4% test accuracy, fewer than 10,000 parameters, fewer than 15 epochs, no fully connected
    layer. Writes to a run directory config.json, metrics.jsonl (a line per epoch), checkpoints, summary.json and
    weights.safetensors, and report.html to look at.

    Ctrl-C, or SIGTERM, finishes the step, saves, and prints the command that goes on; a second one leaves at once.

    Exit status: 0 done, 1 objective not met (with --require-objective), 2 bad input, 3 training diverged, 4 cannot
    write, 5 another process lost, 130 interrupted, 143 terminated.

    Example: python scripts/train.py --arch bn_dropout
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    resume: Path | None = None
    """Go on with the run in this directory, from its newest intact checkpoint and with its settings."""
    checkpoint_every: int = 1
    """Epochs from one checkpoint to the next."""
    keep: int = 3
    """How many checkpoints to keep."""
    devices: str | None = None
    """How many devices to split every batch over, or all; if not given, all GPUs or TPU cores, and one CPU."""
    coordinator: str | None = None
    """Of several processes: HOST:PORT where process 0 listens; not needed on a TPU pod, under Slurm or MPI."""
    num_processes: int | None = None
    """Of several processes: how many there are."""
    process_id: int | None = None
    """Of several processes: which one this is, from 0; process 0 prints and writes."""
    report: bool = True
    """Write report.html, and the figures it shows."""
    tensorboard: bool = False
    """Write what TensorBoard reads to RUN_DIR/tensorboard too; needs the extra tensorboard."""
    require_objective: bool = False
    """Exit with status 1 if the objective is not met."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> int:
    """Trains, prints and writes; returns the exit status."""
    compilations()  # They are noted from here on.
    now = time.perf_counter()
    moments = {"begin": psutil.Process().create_time() - time.time() + now, "starting": now}
    for name in ("checkpoint_every", "keep"):
        if getattr(options, name) < 1:
            raise InputError(f"{name.replace('_', ' ')} {getattr(options, name)} cannot be used; choose 1 or more")
    if options.tensorboard and not importlib.util.find_spec("tensorboardX"):
        raise InputError(
            "--tensorboard needs tensorboardX, which is not installed: pip install 'mnist-jax[tensorboard]'"
        )
    devices.join_processes(options.coordinator, options.num_processes, options.process_id)
    mesh = devices.choose_mesh(options.devices)
    config = options.config
    if mesh:
        devices.require_divisible(config.batch_size, mesh)
    mnist = data.load_mnist(config.data_source, config.data_dir)
    if config.held_out:
        mnist = data.hold_out(mnist, config.held_out)
    training.steps_per_epoch(len(mnist.train.labels), config.batch_size)
    run_dir = options.resume or (Path(config.run_dir) if config.run_dir else new_run_dir(config))
    console = Console(highlight=False, soft_wrap=True, quiet=not devices.is_writer())
    if not devices.is_writer():
        return train(options, mnist, mesh, run_dir, console, moments)
    if not options.resume:
        directory.create_run(run_dir, config)
    with directory.lock(run_dir):
        return train(options, mnist, mesh, run_dir, console, moments)


def new_run_dir(config: Config) -> Path:
    """A directory named after the time, and numbered if another run has begun in the same second."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.arch}-{config.recipe}"
    names = (name if i == 1 else f"{name}-{i}" for i in itertools.count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def train(
    options: Options,
    mnist: data.Mnist,
    mesh: Mesh | None,
    run_dir: Path,
    console: Console,
    moments: dict[str, float],
) -> int:
    """The run itself, in a directory that is this process's own, or another's that writes for it.

    `moments`, of `time.perf_counter`, say when each part of the process was over; those of the run are put in.
    """
    config, num_examples = options.config, len(mnist.train.labels)
    progress = None
    if options.resume:
        if devices.is_writer():
            progress, damaged = checkpoints.resume(run_dir, config, num_examples)
            for line in damaged:
                console.print(f"warning: {line}")
            console.print(f"resuming {run_dir} after step {int(progress.state.step) if progress else 0}")
            directory.save_config(run_dir, config)
            directory.save_epochs(run_dir, progress.history if progress else ())
        progress = checkpoints.share(progress, config, num_examples)

    steps = training.steps_per_epoch(num_examples, config.batch_size)
    console.print(layer_table(config.arch, make_model(config)))
    count = mesh.size if mesh else 1
    console.print(
        f"{config.epochs} epochs of {steps} steps of {config.batch_size} on {count} x {jax.devices()[0].device_kind}"
    )
    scored = "held-out" if config.held_out else "test"

    log = event_writer(run_dir, progress) if options.tensorboard and devices.is_writer() else None
    background = ThreadPoolExecutor(1)
    with (
        background,
        progress_bar(console, config, steps) as show,
        cli.catch_signals() as received,
        log or nullcontext(),
    ):
        saved: Future[None] = background.submit(lambda: None)
        if options.report:  # Drawing takes a second to import: here, while the first step is compiled.
            background.submit(importlib.import_module, "mnist_jax.pages.report")

        def save(progress: training.Progress) -> None:
            if devices.is_writer():
                checkpoints.save_checkpoint(run_dir, config, progress, num_examples, options.keep)

        def finish(progress: training.Progress) -> None:
            metrics = progress.history[-1]
            if metrics.epoch % options.checkpoint_every == 0 or metrics.epoch == config.epochs:
                save(progress)
            if devices.is_writer():
                directory.save_epochs(run_dir, progress.history)
            if log:
                rate = float(make_schedule(config, steps * config.epochs)(steps * metrics.epoch - 1))
                with directory.storing(run_dir):
                    write_events(log, metrics, scored, rate)
            console.print(analysis.epoch_line(metrics, config.epochs, scored))

        def on_epoch(progress: training.Progress) -> None:
            """Has an epoch saved, then told of, while the next one runs: what was told of is never lost."""
            nonlocal saved
            saved.result()
            copy = jax.tree.map(np.array, progress._replace(history=()))  # The next step takes its arrays.
            saved = background.submit(finish, copy._replace(history=progress.history))

        def stop() -> bool:
            return bool(received) or (saved.done() and saved.exception() is not None)

        moments["data"] = time.perf_counter()
        try:
            state, history = training.fit(
                config,
                mnist,
                progress=progress,
                mesh=mesh,
                on_step=show,
                on_epoch=on_epoch,
                stop=stop,
            )
            moments["training"] = time.perf_counter()
            saved.result()
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # Of either kind, by the moment of the loss.
            if jax.process_count() == 1 or isinstance(error, InputError):
                raise
            raise LostError(
                f"another process is lost; start all of them again with --resume {run_dir} to go on from the last epoch"
            ) from error
        except training.Stopped as stopped:
            saved.result()
            (progress,) = stopped.args
            save(progress)
            if devices.is_writer():
                directory.save_epochs(run_dir, progress.history)
            console.print(f"stopped after step {int(progress.state.step)}; to go on:")
            console.print(f"python scripts/train.py --resume {run_dir}")
            return 128 + (received[0] if received else signal.SIGTERM)  # Another process was told to.

    conditions = analysis.objective(state.params, config.epochs, history[-1].test_accuracy, scored)
    met = all(condition.met for condition in conditions)
    summary = {
        **history[-1]._asdict(),
        "scored_on": scored,
        "objective": [condition._asdict() for condition in conditions],
        "objective_met": met,
        "environment": environment(),
    }
    page = None
    if devices.is_writer():
        directory.save_result(run_dir, config, state.variables, summary | times(moments, "saving"))
        if options.report:
            from mnist_jax.pages import report

            page = report.write_report(run_dir, mnist.test)
            directory.save_summary(run_dir, summary | times(moments, "report"))

    table = Table(
        "condition", "value", "asked for", "", title=f"objective {'met' if met else 'not met'}", box=box.SIMPLE_HEAD
    )
    for condition in conditions:
        table.add_row(condition.name, condition.value, condition.target, "met" if condition.met else "not met")
    console.print(table)
    took = times(moments)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in took["seconds_of"].items())
    console.print(f"{took['seconds']:.1f} s in all: {parts}")
    look = f", to be looked at in {page}" if page else ""
    console.print(f"the run is in {run_dir}{look}")
    return int(options.require_objective and not met)


def times(moments: dict[str, float], over: str | None = None) -> dict[str, Any]:
    """Seconds since the process began, in all and for each part of it, of which `over` is over now.

    Compiling is apart from the training it is needed for; the epochs' scores and checkpoints are a part of that.
    """
    if over:
        moments[over] = time.perf_counter()
    seconds = {name: end - begin for (_, begin), (name, end) in itertools.pairwise(moments.items())}
    compiling = seconds_within(compilations(), moments["data"], moments["training"])
    spent = {name: seconds.pop(name) for name in ("starting", "data")} | {"compiling": compiling} | seconds
    spent["training"] -= compiling
    return {"seconds": sum(spent.values()), "seconds_of": spent}


def layer_table(arch: str, model: models.Network) -> Table:
    """The network, a line per layer (`nn.tabulate` takes a hundred lines to say it)."""
    layers = models.layers_of(model)
    total = sum(layer.params for layer in layers)
    table = Table("layer", "type", "output", title=arch, show_footer=True, box=box.SIMPLE_HEAD)
    table.add_column("parameters", f"{total:,}", justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.kind, shape, f"{layer.params:,}" if layer.params else "")
    return table


def event_writer(run_dir: Path, progress: training.Progress | None) -> "SummaryWriter":
    """A writer of TensorBoard's event files; what it wrote of epochs that are done again is to be forgotten."""
    from tensorboardX import SummaryWriter

    with directory.storing(run_dir):
        return SummaryWriter(str(run_dir / "tensorboard"), purge_step=len(progress.history) + 1 if progress else None)


def write_events(writer: "SummaryWriter", metrics: training.EpochMetrics, scored: str, rate: float) -> None:
    """An epoch's losses and accuracies, and the learning rate of its last step."""
    for figure in ("loss", "accuracy"):
        for name, told in (("train", "train"), ("test", scored)):
            writer.add_scalar(f"{figure}/{told}", getattr(metrics, f"{name}_{figure}"), metrics.epoch)
    writer.add_scalar("learning_rate", rate, metrics.epoch)
    writer.flush()


@contextmanager
def progress_bar(console: Console, config: Config, steps: int) -> Iterator:
    """A bar over the steps of the run, for `fit`'s `on_step`; nothing where the output is not a terminal."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}"),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps * config.epochs, epoch=1, loss=0.0, accuracy=0.0, rate=0.0)

        def show(epoch: int, i: int, totals: training.Metrics) -> None:
            loss, accuracy = totals.mean()
            done = (epoch - 1) * steps + i + 1
            rate = (progress.tasks[task].speed or 0) * config.batch_size
            progress.update(task, completed=done, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate)

        yield show if console.is_terminal else None


if __name__ == "__main__":
    cli.run(main, Options)
