"""What a person looks at: the tables of README, made from the files in `results/`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_jax.analysis import seed_statistics
from mnist_jax.models import ARCHS, abstract_variables, count_params, create_model

# The notebooks' figures in percent: parameters, best epoch's and last epoch's test accuracy after 15 epochs.
NOTEBOOKS = {"basic": (98.80, 98.76), "lighter": (98.72, 98.72), "gap": (98.28, 98.28), "bn_dropout": (99.42, 99.39)}


def read_seeds(path: Path) -> list[dict[str, Any]]:
    """The finished seeds of a file that `scripts/reproduce.py` writes, one JSON object per line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_epoch(seeds: Sequence[dict[str, Any]]) -> list[float]:
    """Test accuracy after the last epoch of each seed."""
    return [seed["history"][-1]["test_accuracy"] for seed in seeds]


def best_epoch(seeds: Sequence[dict[str, Any]]) -> list[float]:
    """Test accuracy after the best epoch of each seed: what the notebooks quote, chosen on the test set."""
    return [max(epoch["test_accuracy"] for epoch in seed["history"]) for seed in seeds]


def percent(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, for instance `99.41 ± 0.05`, in percent."""
    result = seed_statistics(accuracies)
    spread = "" if result.std is None else f" ± {100 * result.std:.2f}"
    return f"{100 * result.mean:.2f}{spread}"


def recipe_table(results: Path, recipe: str) -> str:
    """Markdown: each network trained with a recipe, beside the notebooks' figures."""
    rows = [
        "| network | parameters | notebook, last of 15 epochs (best) | seeds | epochs "
        "| test accuracy, last epoch | best epoch | train, last epoch | seconds per seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arch in ARCHS:
        seeds = read_seeds(results / f"{recipe}-{arch}.jsonl")
        if not seeds:
            continue
        best, last = NOTEBOOKS[arch]
        params = count_params(abstract_variables(create_model(arch))["params"])
        train = [seed["history"][-1]["train_accuracy"] for seed in seeds]
        seconds = sum(seed["seconds"] for seed in seeds) / len(seeds)
        rows.append(
            f"| `{arch}` | {params:,} | {last:.2f} ({best:.2f}) | {len(seeds)} | {len(seeds[0]['history'])} "
            f"| {percent(last_epoch(seeds))} | {percent(best_epoch(seeds))} | {percent(train)} | {seconds:.0f} |"
        )
    return "\n".join(rows)


def insert_tables(text: str, results: Path) -> str:
    """Replaces each block between `<!-- recipe NAME -->` and `<!-- end -->` by that recipe's table."""
    parts = text.split("<!-- recipe ")
    for i, part in enumerate(parts[1:], 1):
        recipe, rest = part.split(" -->", 1)
        _, after = rest.split("<!-- end -->", 1)
        parts[i] = f"{recipe} -->\n{recipe_table(results, recipe)}\n<!-- end -->{after}"
    return "<!-- recipe ".join(parts)
