"""The tables and figures of README and the documentation, made by `scripts/make_tables.py`."""

import json
import re

import make_tables
import pytest
from conftest import ROOT, part, run_script
from PIL import Image
from tables import accuracy, figures
from tables.exercise import PUBLIC, layers_table

import mnist_jax
from mnist_jax import ARCHS, layers_of, make_model
from mnist_jax.runs.weights import PRETRAINED

TEXTS = {path: path.read_text("utf-8") for path in make_tables.pages(ROOT)}
FIGURES = ["ladder-light", "ladder-dark", "frontier-light", "frontier-dark", "errors-light", "errors-dark"]


def test_the_tables_are_made_from_the_results():
    """Those of README, the pages and the weights' cards; each table is on a page."""
    assert run_script("make_tables.py", "--check") == (0, "", "")
    assert set(re.findall("<!-- table: (.+?) -->", "".join(TEXTS.values()))) == set(make_tables.TABLES)


def test_the_figures_are_drawn_from_the_results():
    for name in FIGURES:
        path = ROOT / "results" / "figures" / f"{name}.png"
        assert f"results/figures/{path.name}" in "".join(TEXTS.values())
        with Image.open(path) as image:
            assert image.text["Source"] == figures.sources_hash(ROOT / "results"), "make_tables.py draws it again"


def test_figures_are_written_beside_their_sources(tmp_path):
    pytest.importorskip("adjustText", reason="the extra figures is not installed")
    write(tmp_path / "series/default-gap.jsonl", line(1, 0.99, 0.98), line(2, 0.97, 0.995))
    written = figures.write_figures(tmp_path)
    assert [path.stem for path in written] == FIGURES
    for path in written:
        with Image.open(path) as image:
            assert image.text["Source"] == figures.sources_hash(tmp_path)


def test_the_frontier_has_ours_and_the_public_runs_by_size(tmp_path):
    for arch in ("gap", "basic", "4-pool-s6"):  # Of 9,752, 194,884 and 166 parameters.
        write(tmp_path / f"series/default-{arch}.jsonl", line(1, 0.99, arch=arch), line(2, 0.98, arch=arch))
    rows = list(accuracy.frontier_table(tmp_path))[2:]
    sizes = [int(row.split("|")[1].replace(",", "")) for row in rows]
    assert sizes == sorted([166, 9752, *(parameters for parameters, *_ in PUBLIC)])
    assert rows[0] == "| 166 | 98.50 ± 0.71 | | | `4-pool-s6` | 2 | 1 | 98.00 to 99.00 |"
    assert rows[1] == "| 575 | | 98.00 | 98.50 | hexhowells, neural golfing | 1 |  | |"
    (tmp_path / "series/default-4-pool-s6.jsonl").unlink()
    assert list(accuracy.frontier_table(tmp_path))[2].startswith("| 575 | | 98.00 | none so small |")


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def line(seed, *accuracies, errors=(), arch="gap"):
    history = [
        {"epoch": i, "train_loss": 0.1, "train_accuracy": 0.98, "test_loss": 0.1, "test_accuracy": a, "seconds": 1.0}
        for i, a in enumerate(accuracies, 1)
    ]
    trial = {"config": {"arch": arch, "seed": seed}, "history": history, "train_loss": 0.1, "train_accuracy": 0.99}
    return json.dumps(trial | {"errors": list(errors), "seconds": 30.0, "environment": {}})


def test_the_ladder_quotes_the_last_epoch_over_seeds(tmp_path):
    write(tmp_path / "series/reference-gap.jsonl", line(1, 0.99, 0.98), line(2, 0.97, 0.995))
    table = list(accuracy.ladder_table(tmp_path))
    gap = table.index("| `gap` | notebook | 98.28 | 9,752 | 1 | 15 | | | | 98.28 | 98.17 | -0.11 | |")
    assert table[gap + 1] == (
        "| `gap` | reference | 98.75 ± 1.06 | 9,752 | 2 | 2 | 0.750 | 98.00 to 99.50 | 50% | 99.25 ± 0.35 "
        "| 99.00 ± 0.00 | +0.25 | 30 |"
    )
    text = "before\n<!-- table: ladder -->\n{}\n<!-- end -->\nafter\n"
    filled = text.format("\n".join(table))
    assert make_tables.insert_tables(text.format("old"), tmp_path) == filled


def test_errors_are_counted_over_seeds_and_trials_over_settings(tmp_path):
    errors = ([1, 2, 3], [2, 3, 4], [3])
    lines = [line(seed, 0.99, errors=wrong) for seed, wrong in enumerate(errors, 1)]
    write(tmp_path / "series/default-gap.jsonl", *lines)
    table = list(accuracy.errors_table(tmp_path))
    assert table[2:] == ["| `gap` | default | 3 | 2.3 | 1.7 | 0.0 | 0.7 | 1 | 2 | 4 |"]
    settings = ((0.1, 1), (0.1, 2), (0.2, 1))
    tried = [{"config": {"recipe": "fast", "arch": "gap", "learning_rate": r, "seed": s}} for r, s in settings]
    write(tmp_path / "search/gap.jsonl", *(json.dumps(trial | {"seconds": 900.0}) for trial in tried))
    attempt = tried[0] | {"seconds": 900.0, "attempt": {"sam_rho": 0.05}}
    write(tmp_path / "search/attempts-gap.jsonl", json.dumps(attempt))
    assert list(accuracy.trials_table(tmp_path))[2:] == ["| `gap` | 3 | 4 | 1.0 |"]


def test_layers_of_gap_closed_form():
    """Sizes, parameters and multiply-adds are the exercise's; each field is (kernel - 1) * 2**pools wider."""
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in layers_table("gap")]
    assert [(row[0], *row[2:]) for row in cells[2:]] == [
        ("conv1", "26x26x16", "3", "144", "97,344"),
        ("conv2", "24x24x16", "5", "2,304", "1,327,104"),
        ("conv3", "24x24x16", "5", "256", "147,456"),
        ("max pool", "12x12x16", "6", "", ""),
        ("conv4", "10x10x16", "10", "2,304", "230,400"),
        ("conv5", "8x8x16", "14", "2,304", "147,456"),
        ("conv6", "6x6x10", "18", "1,440", "51,840"),
        ("conv7", "6x6x10", "22", "900", "32,400"),
        ("average pool", "10", "28", "", ""),
        ("conv8", "1x1x10", "28", "100", "100"),
        ("sum", "", "", "9,752", "2,034,100"),
    ]
    for arch in ARCHS:
        layers = layers_of(make_model(arch))
        parameters, products = sum(layer.params for layer in layers), sum(layer.multiply_adds for layer in layers)
        assert list(layers_table(arch))[-1] == f"| sum | | | | {parameters:,} | {products:,} |"


CARDS = (PRETRAINED / "README.md").read_text("utf-8")


def test_every_file_of_weights_has_its_card_and_loads_as_it_says(mnist, monkeypatch, capsys):
    """Its accuracy, measured with the pictures, is that of the seed whose errors the weights make."""
    assert set(re.findall("<!-- table: card-(.+?) -->", CARDS)) == {
        path.stem for path in PRETRAINED.glob("*.safetensors")
    }
    for arch in ARCHS:
        seeds = accuracy.seeds_of(ROOT / "results", arch)
        (errors,) = (seed.errors for seed in seeds if seed.config["seed"] == 1)
        card = CARDS.partition(f"<!-- table: card-{arch} -->")[2].partition("<!-- end -->")[0]
        assert f"| test images, these weights | {100 - len(errors) / 100:.2f}% of 10,000 right |" in card
    (code,) = re.findall(r"```python\n(.*?)```", CARDS, re.DOTALL)
    monkeypatch.setattr(mnist_jax, "load_dataset", lambda name: part(mnist, 100, 500))
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    assert re.fullmatch(r"(9\d|100)\.\d\d%\n", capsys.readouterr().out)
