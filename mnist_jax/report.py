"""What a person looks at: the tables of README, made from the files in `results/`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_jax import trials
from mnist_jax.analysis import ratios, seed_statistics, spread
from mnist_jax.models import ARCHS, abstract_variables, count_params, create_model

# The notebooks' figures in percent: parameters, best epoch's and last epoch's test accuracy after 15 epochs.
NOTEBOOKS = {"basic": (98.80, 98.76), "lighter": (98.72, 98.72), "gap": (98.28, 98.28), "bn_dropout": (99.42, 99.39)}


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
        "| test accuracy, last epoch | best epoch | train, last epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arch in ARCHS:
        seeds = trials.read(results / f"{recipe}-{arch}.jsonl")
        if not seeds:
            continue
        best, last = NOTEBOOKS[arch]
        params = count_params(abstract_variables(create_model(arch))["params"])
        train = [seed["history"][-1]["train_accuracy"] for seed in seeds]
        rows.append(
            f"| `{arch}` | {params:,} | {last:.2f} ({best:.2f}) | {len(seeds)} | {len(seeds[0]['history'])} "
            f"| {percent(last_epoch(seeds))} | {percent(best_epoch(seeds))} | {percent(train)} |"
        )
    return "\n".join(rows)


def speed_table(results: Path) -> str:
    """Markdown: the step and the scoring of each network against the other contenders, from `benchmark-ARCH.json`."""
    rows = [
        "| network | contender | ms per step, median (min to max) | times ours | images/s "
        "| scoring 10,000, s | times ours | process start to first step, s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arch in ARCHS:
        path = results / f"benchmark-{arch}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        for name, record in result["contenders"].items():
            low, step, high = (1e3 * seconds for seconds in spread(record["step_seconds"]))
            rows.append(
                f"| `{arch}` | {name} | {step:.1f} ({low:.1f} to {high:.1f}) "
                f"| {spread(ratios(result, 'step_seconds', name))[1]:.2f} | {1e3 * result['batch_size'] / step:,.0f} "
                f"| {spread(record['score_seconds'])[1]:.2f} | {spread(ratios(result, 'score_seconds', name))[1]:.2f} "
                f"| {record['start']['first_step']:.1f} | {record['peak_bytes'] / 1e6:.0f} |"
            )
    return "\n".join(rows)


def insert_tables(text: str, results: Path) -> str:
    """Fills each block between `<!-- table: KIND -->` and `<!-- end -->`, KIND being `recipe NAME` or `speed`."""
    opening = "<!-- table: "
    parts = text.split(opening)
    for i, part in enumerate(parts[1:], 1):
        kind, rest = part.split(" -->", 1)
        _, after = rest.split("<!-- end -->", 1)
        made = speed_table(results) if kind == "speed" else recipe_table(results, kind.removeprefix("recipe "))
        parts[i] = f"{kind} -->\n{made}\n<!-- end -->{after}"
    return opening.join(parts)
