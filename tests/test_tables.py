import json
import re
import statistics

import pytest
from conftest import ROOT
from PIL import Image

from mnist_jax import InputError
from mnist_jax.lab import figures, records, tables, timings
from mnist_jax.statistics import seed_statistics

PAGES = {path: path.read_text("utf-8") for path in tables.pages(ROOT)}


def test_the_tables_are_made_from_the_results():
    assert {ROOT / "README.md", ROOT / "docs" / "results.md"} <= set(PAGES)
    assert set(re.findall("<!-- table: (.+?) -->", "".join(PAGES.values()))) == set(tables.TABLES)
    for page, text in PAGES.items():
        assert tables.insert_tables(text, ROOT / "results") == text, page


def test_smaller_distortions_suit_fashion_mnist():
    """On held-out images, as the page of results says."""
    reached = {0: [], 7: []}
    for trial in records.read_trials(ROOT / "results" / "search-fashion-mnist.jsonl"):
        assert (trial.config["arch"], trial.config["held_out"], trial.dataset) == ("small", 10_000, "fashion-mnist")
        reached[trial.config["rotation"]].append(trial.history[-1].test_accuracy)
    assert (len(reached[0]), len(reached[7])) == (2, 2)
    assert min(reached[0]) > max(reached[7])


FIGURES = ["ladder-light", "ladder-dark", "frontier-light", "frontier-dark", "errors-light", "errors-dark"]


def test_the_figures_are_drawn_from_the_results():
    for name in FIGURES:
        path = ROOT / "results" / f"{name}.png"
        assert f"results/{path.name}" in "".join(PAGES.values())
        with Image.open(path) as image:
            assert image.text["Source"] == figures.sources_hash(ROOT / "results"), "reproduce.py --table draws it again"


def test_figures_are_written_beside_their_sources(tmp_path, monkeypatch):
    write(tmp_path / "default-gap.jsonl", line(1, 0.99, 0.98), line(2, 0.97, 0.995))
    before = figures.sources_hash(tmp_path)
    written = figures.write_figures(tmp_path)
    assert [path.stem for path in written] == FIGURES
    for path in written:
        with Image.open(path) as image:
            assert image.text["Source"] == before
    write(tmp_path / "reference-gap.jsonl", line(1, 0.99))
    hashes = {before, figures.sources_hash(tmp_path)}
    monkeypatch.setattr(figures, "PUBLIC", tables.PUBLIC[1:])
    assert len({*hashes, figures.sources_hash(tmp_path)}) == 3


def test_the_frontier_has_ours_and_the_public_runs_by_size(tmp_path):
    for arch in ("gap", "basic", "4-pool-s6"):  # Of 9,752, 194,884 and 166 parameters.
        write(tmp_path / f"default-{arch}.jsonl", line(1, 0.99), line(2, 0.98))
    write(tmp_path / "fast-lighter.jsonl", line(1, 0.99))
    points = [(point.arch, point.parameters, len(point.seeds)) for point in tables.frontier(tmp_path)]
    assert points == [("4-pool-s6", 166, 2), ("gap", 9752, 2)]
    rows = list(tables.frontier_table(tmp_path))[2:]
    sizes = [int(row.split("|")[1].replace(",", "")) for row in rows]
    assert sizes == sorted([166, 9752, *(parameters for parameters, *_ in tables.PUBLIC)])
    assert rows[0] == "| 166 | 98.50 ± 0.71 | | | `4-pool-s6` | 2 | 1 | 98.00 to 99.00 |"
    assert rows[1] == "| 575 | | 98.00 | 98.50 | hexhowells, neural golfing | 1 |  | |"
    (tmp_path / "default-4-pool-s6.jsonl").unlink()
    assert list(tables.frontier_table(tmp_path))[2].startswith("| 575 | | 98.00 | none so small |")


def test_a_run_is_quoted_as_it_was_printed(tmp_path):
    write(tmp_path / "default-swift.jsonl", line(2, 0.97), line(1, 0.99, 0.9812))
    assert list(tables.run_text(tmp_path)) == [
        "```",
        "epoch 1/2  train 98.00% (loss 0.1000)  test 99.00% (loss 0.1000)  1.0 s",
        "epoch 2/2  train 98.00% (loss 0.1000)  test 98.12% (loss 0.1000)  1.0 s",
        "```",
    ]


def test_seed_statistics_closed_form():
    accuracies = [0.994, 0.995, 0.993, 0.996]
    std = statistics.stdev(accuracies)
    assert seed_statistics(accuracies) == pytest.approx((4, 0.9945, std, std / 2, 0.993, 0.996, 0.75))
    assert seed_statistics([0.99]) == (1, 0.99, None, None, 0.99, 0.99, 0.0)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")


def line(seed, *accuracies, errors=()):
    history = [
        {"epoch": i, "train_loss": 0.1, "train_accuracy": 0.98, "test_loss": 0.1, "test_accuracy": a, "seconds": 1.0}
        for i, a in enumerate(accuracies, 1)
    ]
    trial = {"config": {"seed": seed}, "history": history, "train_loss": 0.1, "train_accuracy": 0.99}
    return json.dumps(trial | {"errors": list(errors), "seconds": 30.0, "environment": {}})


def test_the_ladder_quotes_the_last_epoch_over_seeds(tmp_path):
    write(tmp_path / "reference-gap.jsonl", line(1, 0.99, 0.98), line(2, 0.97, 0.995))
    write(tmp_path / "fast-bn_dropout.jsonl", line(1, 0.994))
    table = list(tables.ladder_table(tmp_path))
    assert len(table) == 2 + 4 + 2
    gap = table.index("| `gap` | notebook | 98.28 | 9,752 | 1 | 15 | | | | 98.28 | 98.17 | -0.11 | |")
    assert table[gap + 1] == (
        "| `gap` | reference | 98.75 ± 1.06 | 9,752 | 2 | 2 | 0.750 | 98.00 to 99.50 | 50% | 99.25 ± 0.35 "
        "| 99.00 ± 0.00 | +0.25 | 30 |"
    )
    assert (
        table[-1]
        == "| `bn_dropout` | fast | 99.40 | 9,920 | 1 | 1 |  | 99.40 to 99.40 | 100% | 99.40 | 99.00 | -0.40 | 30 |"
    )
    text = "before\n<!-- table: ladder -->\n{}\n<!-- end -->\nafter\n<!-- table: errors -->\n{}\n<!-- end -->\n"
    filled = text.format("\n".join(table), "\n".join(tables.errors_table(tmp_path)))
    assert tables.insert_tables(text.format("old", ""), tmp_path) == filled
    assert tables.insert_tables(filled, tmp_path) == filled


def test_errors_are_counted_over_seeds_and_trials_over_settings(tmp_path):
    errors = ([1, 2, 3], [2, 3, 4], [3])
    lines = [line(seed, 0.99, errors=wrong) for seed, wrong in enumerate(errors, 1)]
    write(tmp_path / "default-gap.jsonl", *lines)
    write(tmp_path / "fast-gap.jsonl", lines[0])
    table = list(tables.errors_table(tmp_path))
    assert table[2:] == ["| `gap` | default | 3 | 2.3 | 1.7 | 0.0 | 0.7 | 1 | 2 | 4 |"]
    settings = ((0.1, 1), (0.1, 2), (0.2, 1))
    tried = [{"config": {"recipe": "fast", "arch": "gap", "learning_rate": r, "seed": s}} for r, s in settings]
    lines = [json.dumps(trial | {"seconds": 900.0}) for trial in tried]
    other = tried[2]["config"] | {"seed": 2}
    lines.append(json.dumps({"config": other, "diverged": "at once"}))
    write(tmp_path / "search-gap.jsonl", *lines)
    assert list(tables.trials_table(tmp_path))[2:] == ["| `gap` | 2 | 4 | 0.8 |"]
    attempt = tried[0] | {"seconds": 900.0, "attempt": {"sam_rho": 0.05}}
    write(tmp_path / "attempts-gap.jsonl", json.dumps(attempt))
    assert list(tables.trials_table(tmp_path))[2:] == ["| `gap` | 3 | 5 | 1.0 |"]


def test_speed_table_takes_ratios_round_by_round(tmp_path):
    start = {"first_step": 5.0, "compile": 2.0}
    ours = {"start": start, "step_seconds": [0.02, 0.04, 0.03], "score_seconds": [1.0, 1.0, 1.0], "peak_bytes": 5e8}
    flax = {"start": start, "step_seconds": [0.08, 0.08, 0.09], "score_seconds": [2.0, 1.0, 3.0], "peak_bytes": 6e8}
    result = records.Speed("gap", 128, {"ours": ours, "flax": flax}, 20, 2, {})._asdict()
    (tmp_path / "benchmark-gap.json").write_text(json.dumps(result | {"matmul_flops": [1e9]}))  # As older ones have.
    table = list(tables.TABLES["speed"](tmp_path))
    assert table[2] == "| `gap` | ours | 30.0 (20.0 to 40.0) | 1.00 | 4,267 | 1.00 | 1.00 | 5.0 | 500 |"
    assert table[3] == "| `gap` | flax | 80.0 (80.0 to 90.0) | 3.00 | 1,600 | 2.00 | 2.00 | 5.0 | 600 |"
    fast = ours | {"step_seconds": [0.006], "score_seconds": [0.09], "seeds": 30}
    one = ours | {"step_seconds": [0.0008], "score_seconds": [0.009]}
    result = records.Speed("gap", 128, {"ours": one, "ours, 30 seeds": fast}, 20, 2, {})
    assert [row.split(" | ")[2:7] for row in list(timings.speed_table([result]))[2:]] == [
        ["0.800 (0.800 to 0.800)", "1.00", "160,000", "0.0090", "1.00"],
        ["0.200 (0.200 to 0.200)", "0.25", "640,000", "0.0030", "0.33"],
    ]


def test_time_table_takes_ratios_round_by_round(tmp_path):
    assert len(list(tables.TABLES["time"](tmp_path))) == 2
    result = {"arch": "swift", "torch_arch": "gap", "epochs": 3, "torch": [], "torch_epochs": 15, "environment": {}}
    result["torch_seconds_scaled"] = [600.0, 500.0, 700.0]
    result |= {"cold": [50.0, 100.0, 70.0], "warm": [40.0, 50.0, 50.0]}
    path = tmp_path / "time-to-target.json"
    path.write_text(json.dumps(result))
    assert list(tables.TABLES["time"](tmp_path))[2:] == [
        "| `gap` | the notebook in PyTorch, scaled from one epoch | 15 | 600 (500 to 700) | 1.0 |",
        "| `swift` | `fast`, nothing compiled before | 3 | 70 (50 to 100) | 10.0 |",
        "| `swift` | `fast`, programs in the cache | 3 | 50 (40 to 50) | 14.0 |",
    ]
    for text, said in (('{"version": 2}', "format 2, newer than 1"), ("{}", "missing"), ("[]", "cannot be read")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"time-to-target.json' .*{said}"):
            list(tables.TABLES["time"](tmp_path))
