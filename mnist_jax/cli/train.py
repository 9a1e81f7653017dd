"""Trains a network, reports every epoch, and says whether the objective is met."""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mnist_jax import devices
from mnist_jax.cli.options import TrainOptions
from mnist_jax.cli.program import LastingConsole, called, counted
from mnist_jax.data import Dataset
from mnist_jax.objective import epoch_line
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import load_data, network_of, total_steps
from mnist_jax.runs.session import Clock, session
from mnist_jax.steps import Metrics
from mnist_jax.summary import layers_of
from mnist_jax.training import Stopped


def main(options: TrainOptions) -> int:
    """Trains, prints and writes; returns the exit status."""
    clock, config = Clock(), options.config
    machine = options.devices
    devices.join_processes(machine.coordinator, machine.num_processes, machine.process_id)
    with devices.synchronized() as facts:
        facts["devices"] = machine.devices or "default"
        mesh, data = devices.choose_mesh(machine.devices), load_data(config)
        if mesh:
            devices.require_divisible(config.batch_size, mesh)
    console = LastingConsole(highlight=False, markup=False, soft_wrap=True, quiet=not devices.is_writer())
    with session(config, data, resume=options.resume, clock=clock) as run:
        for line in run.damaged:
            console.print(f"warning: {line}")
        if options.resume:
            step = run.progress.steps if run.progress else 0
            console.print(f"resuming {run.run_dir} after step {step}")
        steps = total_steps(config, run.data) // config.epochs
        console.print(layer_table(config, run.data))
        count = mesh.size if mesh else 1
        console.print(
            f"{counted(config.epochs, 'epoch')} of {counted(steps, 'step')} of {counted(config.batch_size, 'image')}, "
            f"on {counted(count, 'device')}: {jax.devices()[0].device_kind}"
        )
        if not options.no_report:  # Drawing takes a second to import: do it while the first step is compiled.
            threading.Thread(target=importlib.import_module, args=["mnist_jax.reports.report"]).start()
        try:
            with progress_bar(console, config, steps) as show:
                state, history = run.fit(
                    mesh=mesh,
                    on_step=show,
                    on_saved=lambda metrics: console.print(epoch_line(metrics, config.epochs, run.scored_on)),
                )
        except Stopped as stopped:
            console.print(f"stopped after step {int(stopped.progress.state.step)}; to go on:")
            console.print(called("train", "--resume", run.run_dir))
            return run.status

        summary, page = run.finish(state, history[-1], None if options.no_report else partial(drawn, console))
    marks = {False: Text("not met", "bold red"), True: Text("met", "bold green")}
    columns = ("condition", "value", "asked for", "")
    table = Table(
        *columns, title=Text("objective ") + marks[summary.objective_met], box=box.SIMPLE_HEAD, pad_edge=False
    )
    for condition in summary.objective:
        table.add_row(condition["name"], condition["value"], condition["target"], marks[condition["met"]])
    console.print(table)
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in summary.seconds_of.items())
    console.print(f"{summary.seconds:.1f} s in all: {parts}", soft_wrap=False)
    # A path alone on its line can be selected whole, and is where a reader looks: at the end.
    console.print("the report:" if page else "the run:")
    console.print(str(page or run.run_dir))
    return int(options.require_objective and not summary.objective_met)


def drawn(console: Console, run_dir: Path, data: Dataset) -> Path | None:
    """Writes the report; one that cannot be drawn does not cost the run."""
    try:
        from mnist_jax.reports.report import write_report

        # By `mnist-jax train`, or by scripts/train.py.
        typed = sys.argv[2:] if sys.argv[1:2] == ["train"] else sys.argv[1:]
        return write_report(run_dir, data, command=called("train", *typed))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        console.print(f"warning: the report cannot be drawn ({reason}); all else of the run is written")
        return None


def layer_table(config: Config, data: Dataset) -> Table:
    """The network, a line per layer, in 80 columns."""
    layers = layers_of(network_of(config, len(data.classes)), data.image_shape)
    params, fixed, work = (
        sum(getattr(layer, name) for layer in layers) for name in ("params", "fixed", "multiply_adds")
    )
    title = f"{config.arch}: {params:,} parameters" + (f", {fixed:,} fixed, not trained" if fixed else "")
    table = Table("layer", "type", "output", title=title, show_footer=True, box=box.SIMPLE_HEAD, pad_edge=False)
    totals = {"trained": params - fixed, "fixed": fixed} if fixed else {"parameters": params}
    for name, total in totals.items():
        table.add_column(name, f"{total:,}", justify="right")
    table.add_column("receptive\nfield", justify="right")
    table.add_column("multiply-\nadds", f"{work:,}", justify="right")
    for layer in layers:
        counts = [f"{count:,}" if count else "" for count in (layer.params - layer.fixed, layer.fixed)][: len(totals)]
        shape, field = ("x".join(map(str, sizes or ())) for sizes in (layer.shape, layer.receptive_field))
        adds = f"{layer.multiply_adds:,}" if layer.multiply_adds else ""
        table.add_row(layer.name, layer.kind, shape, *counts, field, adds)
    return table


@contextmanager
def progress_bar(console: Console, config: Config, steps: int) -> Iterator:
    """A bar over the steps of the run, for `fit`'s `on_step`; nothing where the output is not a terminal."""
    text = "loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%} {task.fields[rate]:,.0f} images/s"
    columns = ("epoch {task.fields[epoch]}", BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps * config.epochs, epoch=1, loss=0.0, accuracy=0.0, rate=0.0)

        def show(epoch: int, i: int, totals: Metrics) -> None:
            loss, accuracy = totals.mean()
            done = (epoch - 1) * steps + i + 1
            rate = (progress.tasks[task].speed or 0) * config.batch_size
            progress.update(task, completed=done, epoch=epoch, loss=loss, accuracy=accuracy, rate=rate)

        yield show if console.is_terminal else None
