"""What the benchmarks report: their records, and tables of them in Markdown, line by line."""

import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from mnist_jax.runtime import environment

Record = dict[str, Any]  # As it is in its JSON file.


def tell(line: str) -> None:
    """Says on standard error what begins."""
    print(line, file=sys.stderr, flush=True)


def measured_on() -> Record:
    """The environment of a time measurement."""
    return environment() | {"load_average": os.getloadavg()}


def report(table: Iterable[str], record: Record, path: Path | None) -> None:
    """Prints a table, and writes the record that it shows to the file of `--json`, if one was given."""
    Console(width=120).print(Markdown("\n".join(table)))
    if path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios of two contenders' seconds, round by round."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def head(columns: str) -> list[str]:
    """The first two lines of a table."""
    return [columns, "|---" * (columns.count("|") - 1) + "|"]


def speed_table(measured: Iterable[Record]) -> Iterator[str]:
    """The step and the scoring of each contender; those of one network, where it trains several."""
    yield from head(
        "| network | contender | ms per step, median (min to max) | times ours | images/s "
        "| scoring 10,000, s | times ours | process start to first step, s | peak MB |"
    )
    for result in measured:
        ours = result["contenders"]["ours"]
        for name, timing in result["contenders"].items():
            seeds = timing.get("seeds", 1)
            steps, scores = ([each / seeds for each in timing[key]] for key in ("step_seconds", "score_seconds"))
            low, step, high = (1e3 * seconds for seconds in spread(steps))
            yield (
                f"| `{result['arch']}` | {name} | {_rounded(step, 1)} ({_rounded(low, 1)} to {_rounded(high, 1)}) "
                f"| {ratio(steps, ours['step_seconds']):.2f} | {1e3 * result['batch_size'] / step:,.0f} "
                f"| {_rounded(spread(scores)[1], 2)} | {ratio(scores, ours['score_seconds']):.2f} "
                f"| {timing['start']['first_step']:.1f} | {timing['peak_bytes'] / 1e6:.0f} |"
            )


def _rounded(value: float, digits: int) -> str:
    """A positive number with so many decimals, or two more where it would have one figure or none."""
    return f"{value:.{digits + 2 * (value < 10 ** (1 - digits))}f}"


def time_table(measured: Iterable[Record]) -> Iterator[str]:
    """The whole process of `fast` against the notebook's recipe in PyTorch."""
    yield from head("| network | process | epochs | seconds, median (min to max) | times as fast |")
    for result in measured:
        scaled, arch = result["torch_seconds_scaled"], result["arch"]
        torch_arch = result.get("torch_arch") or arch  # Early records are of the same network.
        for name, process, epochs, seconds in (
            (torch_arch, "the notebook in PyTorch, scaled from one epoch", result["torch_epochs"], scaled),
            (arch, "`fast`, nothing compiled before", result["epochs"], result["cold"]),
            (arch, "`fast`, programs in the cache", result["epochs"], result["warm"]),
        ):
            low, middle, high = spread(seconds)
            times = ratio(scaled, seconds)
            yield f"| `{name}` | {process} | {epochs} | {middle:.0f} ({low:.0f} to {high:.0f}) | {times:.1f} |"


def tpu_table(estimated: Iterable[Record]) -> Iterator[str]:
    """The TPU compiler's estimates for each network."""
    yield from head(
        "| network | a step of | cycles, ours | Flax's layers | ours / Flax's | temporaries, MB | Flax's "
        "| compiled in, s | Flax's |"
    )
    for result in estimated:
        for name, found in result["programs"].items():
            ours, flax = found["ours"], found["flax"]
            yield (
                f"| `{result['config']['arch']}` | {name} | {ours['cycles']:,} | {flax['cycles']:,} "
                f"| {ours['cycles'] / flax['cycles']:.2f} "
                f"| {ours['temporary_bytes'] / 1e6:.0f} | {flax['temporary_bytes'] / 1e6:.0f} "
                f"| {ours['compile_seconds']:.0f} | {flax['compile_seconds']:.0f} |"
            )
