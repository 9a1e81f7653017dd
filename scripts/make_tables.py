"""Makes the tables and figures of README and the documentation from the files in `results/`."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.timings import Record, speed_table, time_table, tpu_table
from tables import accuracy, claims
from tables.cards import WEIGHTS, card_table
from tables.exercise import layers_table

from mnist_jax.cli import run
from mnist_jax.errors import InputError
from mnist_jax.models import ARCHS

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Options:
    """Makes the tables of README.md, docs/ and the weights' cards, and the figures in results/figures/, from results/.

    The figures need the extra figures.

    Exit status: 0 done, 1 a page differs (with --check), 2 bad input.

    Example: python scripts/make_tables.py --check
    """

    check: bool = False
    """Write nothing; name the pages whose tables differ from the results."""


def main(options: Options) -> int:
    """Writes what differs, or with `--check` names it; returns the exit status."""
    made = {page: insert_tables(page.read_text("utf-8"), ROOT / "results") for page in pages(ROOT)}
    differing = [page for page, text in made.items() if page.read_text("utf-8") != text]
    if options.check:
        print(*(f"{page.relative_to(ROOT)} differs from results/" for page in differing), sep="\n", end="")
        return int(bool(differing))
    for page in differing:
        page.write_text(made[page], "utf-8")
    try:
        from tables.figures import write_figures

        differing += write_figures(ROOT / "results")
    except ModuleNotFoundError as error:
        raise InputError(
            f"figures need {error.name}, which is not installed: pip install 'mnist-jax[figures]'"
        ) from error
    print(*(f"wrote {path.relative_to(ROOT)}" for path in differing), sep="\n")
    return 0


def _records(results: Path, *patterns: str) -> Iterator[Record]:
    """The records in files that exist, in the order of the patterns."""
    for pattern in patterns:
        yield from (json.loads(path.read_text("utf-8")) for path in sorted(results.glob(pattern)))


TABLES: dict[str, Callable[[Path], Iterator[str]]] = {
    "front": accuracy.front_table,
    "run": accuracy.run_text,
    "ladder": accuracy.ladder_table,
    "frontier": accuracy.frontier_table,
    "other-data": accuracy.other_data_table,
    "trials": accuracy.trials_table,
    "errors": accuracy.errors_table,
    "devices": accuracy.devices_table,
    "pictures": accuracy.pictures_table,
    "means": claims.means_table,
    "claims": claims.claims_table,
    "claim": claims.claim_line,
    "sentences": claims.sentences,
    "comparisons": claims.simulated_table,
    "speed": lambda results: speed_table(_records(results, *(f"speed/benchmark-{arch}.json" for arch in ARCHS))),
    "time": lambda results: time_table(_records(results, "speed/time-to-target*.json")),
    "time-devices": lambda results: time_table(_records(results, "speed/*/time-to-target*.json")),
    "tpu": lambda results: tpu_table(_records(results, *(f"speed/tpu-{arch}.json" for arch in ARCHS))),
    **{f"layers-{arch}": lambda results, arch=arch: layers_table(arch) for arch in ARCHS},
    **{f"result-{arch}": partial(accuracy.result_table, arch) for arch in ARCHS},
    **{f"card-{name}": partial(card_table, name) for name in WEIGHTS},
}


def pages(folder: Path) -> list[Path]:
    """The pages of a checkout that have tables: README, the documentation, the cards of the weights."""
    found = [folder / "README.md", *sorted((folder / "docs").glob("*.md")), folder / "mnist_jax/pretrained/README.md"]
    return [page for page in found if "<!-- table: " in page.read_text("utf-8")]


def insert_tables(text: str, results: Path) -> str:
    """Fills each block between `<!-- table: KIND -->` and `<!-- end -->`, KIND being a name in `TABLES`."""

    def fill(match: re.Match[str]) -> str:
        return "\n".join([match[1], *TABLES[match[2]](results), match[3]])

    return re.sub("(<!-- table: (.+?) -->).*?(<!-- end -->)", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    run(main, Options)
