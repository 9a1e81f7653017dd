"""The commands as a user runs them: what they print, what they write, how they refuse."""

import dataclasses
import importlib.util
import json
import pkgutil
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import PREPARED, ROOT, assert_refused, pictures, run_command, run_script
from PIL import Image

from mnist_jax import ARCHS, Config, __version__, cli, make_config
from mnist_jax.cli.program import called
from mnist_jax.series import trials

SMALL_DATA = ["--data-source", "tfds", "--data-dir", str(PREPARED)]
SMALL_RUN = [*SMALL_DATA, "--arch", "gap", "--epochs", "2", "--batch-size", "50", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs: its directory, what it printed, and the lines of its metrics."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    status, out, err = run_command("train", *SMALL_RUN, "--tensorboard", "--run-dir", run_dir)
    assert (status, "objective not met" in out, {"\x1b", "\r"} & set(out + err)) == (0, True, set())
    return run_dir, out, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_train_and_evaluate(call, trained):
    run_dir, out, lines = trained
    config = json.loads((run_dir / "config.json").read_text())
    assert list(config) == [field.name for field in dataclasses.fields(Config)]
    expected = make_config(arch="gap", epochs=2, batch_size=50, optimizer="sgd", run_dir=str(run_dir))
    assert Config(**config) == dataclasses.replace(expected, data_source="tfds", data_dir=str(PREPARED))
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert 0 <= line["test_accuracy"] <= 1
        assert re.search(rf"epoch {line['epoch']}/2 .*  test {line['test_accuracy']:.2%} ", out)
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.splitlines()[-1] == str(run_dir / "report.html")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["test_accuracy"], summary["objective_met"]) == (lines[-1]["test_accuracy"], False)
    assert [condition["met"] for condition in summary["objective"]] == [False, True, True, True]
    found = summary["environment"]
    assert (found["platform"], found["jax"], found["cpu_cores"] > 0) == ("cpu", jax.__version__, True)
    spent = summary["seconds_of"]
    assert set(spent) == {"starting", "data", "compiling", "training", "saving", "report"}
    assert min(seconds for name, seconds in spent.items() if name != "compiling") > 0
    assert sum(spent.values()) == pytest.approx(summary["seconds"])
    assert spent["compiling"] + spent["training"] > sum(line["seconds"] for line in lines)
    assert f"report {spent['report']:.1f}" in out
    for batch_size in (1000, 33):
        result = json.loads(call("evaluate", run_dir, "--json", "--batch-size", batch_size, *SMALL_DATA)[1])
        assert (result["arch"], result["images"]) == ("gap", 100)
        assert result["test_accuracy"] == lines[-1]["test_accuracy"]
        assert result["test_loss"] == pytest.approx(lines[-1]["test_loss"], rel=1e-5)
    said = f"gap: test accuracy {lines[-1]['test_accuracy']:.2%}"
    assert call("evaluate", run_dir, *SMALL_DATA)[1].startswith(said)
    # A second run there is refused and what is saved stays.
    before = (run_dir / "metrics.jsonl").read_text()
    assert_refused(call("train", *SMALL_RUN, "--run-dir", run_dir), str(run_dir), "resume it, or name another")
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_held_out_scores_the_objective_and_the_default_run_directory(call, tmp_path):
    status, out, _ = call("train", *SMALL_RUN, "--epochs", "1", "--held-out", "100", "--require-objective")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.endswith("-gap-default")
    assert f"runs/{run_dir.name}" in out
    assert re.search(r"1 epoch of .*  held-out \S+% \(loss ", out, re.DOTALL)
    assert (status, "test" in out) == (1, False)
    assert json.loads((run_dir / "summary.json").read_text())["scored_on"] == "held-out"


def test_tensorboard_has_the_events(call, trained, monkeypatch):
    from tensorboardX.proto.event_pb2 import Event

    run_dir, _, lines = trained
    (path,) = (run_dir / "tensorboard").iterdir()
    content, figures = path.read_bytes(), {}
    while content:  # The records of TensorFlow: a length, its checksum, the data and theirs.
        (length,) = struct.unpack("<Q", content[:8])
        event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
        for value in event.summary.value:
            figures.setdefault(value.tag, []).append((event.step, value.simple_value))
    rates = figures.pop("learning_rate")
    assert sorted(figures) == ["accuracy/test", "accuracy/train", "loss/test", "loss/train"]
    for name, events in figures.items():
        figure, split = name.split("/")
        expected = [pytest.approx((i, line[f"{split}_{figure}"])) for i, line in enumerate(lines, 1)]
        assert events == expected
    (_, first), (_, last) = rates
    assert first > last > 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(call("train", *SMALL_RUN, "--tensorboard"), "mnist-jax[tensorboard]")


def test_reproduce_appends_each_seed_and_continues(call, tmp_path):
    out = tmp_path / "seeds.jsonl"
    flags = [*SMALL_DATA, "--arch", "gap", "--epochs", "1", "--batch-size", "50", "--out", out, "--jobs", "1"]
    assert "1 seed: " in call("reproduce", *flags, "--seeds", "1")[1]
    (first,) = out.read_text().splitlines()
    printed = call("reproduce", *flags, "--seeds", "2")[1]
    lines = out.read_text().splitlines()
    assert lines[0] == first
    seeds = [json.loads(line) for line in lines]
    assert [seed["config"]["seed"] for seed in seeds] == [1, 2]
    assert all(len(seed["history"]) == 1 and seed["seconds"] > 0 and seed["environment"] for seed in seeds)
    mean = sum(seed["history"][-1]["test_accuracy"] for seed in seeds) / 2
    assert f"mean {mean:.3%}" in printed
    assert_refused(call("reproduce", *flags, "--learning-rate", "0.2"), str(out), "--out")
    assert out.read_text().splitlines() == lines


def test_series_on_other_data_keep_its_name_not_its_place(call, tmp_path):
    flags = ["--arch", "4-pool-s4p-=2", "--epochs", "1", "--batch-size", "8", "--optimizer", "sgd", "--seeds", "1"]
    out = Path("results/series/fruit-default-4-pool-s4p-r2.jsonl")
    old = Path("results/fruit-default-4-pool-s4p-=2.jsonl")
    for folder, file in (("here", out), ("there", old)):
        if file == old:  # Of version 0.2.
            out.rename(old)
        _, printed, _ = call("reproduce", "--dataset", fruit(tmp_path / folder / "fruit"), *flags)
        assert f"appending to {file}\n" in printed
        assert "1 seed: " in printed
    (line,) = old.read_text().splitlines()
    assert json.loads(line)["dataset"] == "fruit"
    assert str(tmp_path) not in line
    other = fruit(tmp_path / "other" / "fruit", 1)
    assert_refused(call("reproduce", "--dataset", other, *flags), "other data", "--out")


def test_search_tries_every_combination_once_on_held_out_images(call, tmp_path):
    log = tmp_path / "log.jsonl"
    flags = [
        *SMALL_DATA,
        "--held-out",
        "100",
        "--epochs",
        "1",
        "--batch-size",
        "50",
        "--jobs",
        "1",
        "--log",
        log,
        "--vary",
    ]
    printed = call("search", *flags, "arch=gap", "learning-rate=0.01,1e6", "optimizer=sgd")[1]
    assert "learning_rate 0.01, optimizer sgd  seed 1001" in printed
    assert "the loss or its gradient is not finite" in printed
    lines = log.read_text().splitlines()
    tried = sorted(map(json.loads, lines), key=lambda trial: trial["config"]["learning_rate"])  # Any may finish first.
    assert [trial["config"]["learning_rate"] for trial in tried] == [0.01, 1e6]
    assert all((trial["config"]["held_out"], trial["config"]["seed"]) == (100, 1001) for trial in tried)
    assert ("diverged" in tried[0], "diverged" in tried[1]) == (False, True)
    assert call("search", *flags, "arch=gap", "learning-rate=0.01", "optimizer=sgd", "--seeds", "2")[0] == 0
    assert (lines, 3) == ((after := log.read_text().splitlines())[:2], len(after))
    # Networks by their layout.
    assert "386" in call("search", *flags, "arch=4-pool-s6,4k5-pool-6")[1]
    tried = map(json.loads, log.read_text().splitlines()[3:])
    sizes = {trial["config"]["arch"]: (trial["parameters"], trial["multiply_adds"]) for trial in tried}
    multiply_adds = 36 * 676 + 60 * 121 + 60, 100 * 576 + 216 * 100 + 60
    assert sizes == {"4-pool-s6": (166, multiply_adds[0]), "4k5-pool-6": (386, multiply_adds[1])}


# What is typed, and parts of the one line that answers it.
REFUSED = """
train --arch 16-pool-16-pool-16-pool-16  | images of 28x28 are too small | larger images
train --held-out 60000                   | 60000 | choose
train --run-dir /proc/run                | '/proc/run' | name another
train --colour red                       | unknown flag --colour; see --help
train --lr 0.1                           | unknown flag --lr; did you mean --learning-rate? See --help
train --resume absent                    | 'absent' | holds no run
train --devices 99                       | devices 99 | choose
evaluate                                 | run dir or --arch
evaluate absent                          | 'absent' | run
evaluate run --arch gap                  | one of the two
predict                                  | no file is given
export --arch gap --format pdf --out x   | 'pdf'
compare                                  | no run or file
compare absent.jsonl absent              | not both
reproduce --seeds 0                      | seeds 0 | choose
search --jobs 2 --scheduler localhost:1  | jobs 2 | drop one
search --vary speed=1                    | 'speed' | choose
search --vary optimizer=adam             | 'adam' | choose
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_bad_input_is_refused(call, line):
    command, *parts = line.split(" | ")
    assert_refused(call(*command.split()), *parts)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("reproduce --out file/seeds.jsonl", "file/seeds.jsonl"),
        ("search --log file/log.jsonl", "file/log.jsonl"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(call, monkeypatch, command, place):
    monkeypatch.setattr(trials, "run", lambda *args: pytest.fail("this is the work"))
    Path("file").touch()
    status, _, err = call(*command.split())
    assert (status, err.count("\n"), place.rpartition("/")[0] in err) == (4, 1, True)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("reproduce --out seeds.jsonl --weights-dir file/weights", "cannot write 'file/weights'"),
        ("export --arch bn_dropout --out absent/x", "cannot write 'absent/x'"),
        (" ".join(["train", *SMALL_RUN, "--tensorboard --run-dir run"]), "cannot write to run dir 'run'"),
    ],
)
def test_what_could_not_be_written_is_said_with_its_own_status(call, command, said):
    Path("file").touch()
    Path("run").mkdir()
    Path("run/tensorboard").touch()
    status, _, err = call(*command.split())
    assert (status, err.count("\n"), f"error: {said}" in err) == (4, 1, True)


def source(name):
    return (ROOT / "scripts" / name).read_text(encoding="utf-8")


SCRIPTS = sorted(str(path.relative_to(ROOT / "scripts")) for path in (ROOT / "scripts").rglob("*.py"))


@pytest.mark.parametrize("name", [*cli.COMMANDS, *(name for name in SCRIPTS if "def main(" in source(name))])
def test_help_is_complete_and_fits(monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run_command(name, "--help") if name in cli.COMMANDS else run_script(name, "--help")
    assert (status, out[:7]) == (0, "usage: ")
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"Example: (mnist-jax|python scripts/\S+) ", out)
    assert not re.search(r"None|default: (True|False)", out)


def test_the_command_lists_its_commands_and_refuses_others():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["mnist-jax"]
    assert pkgutil.resolve_name(entry) is cli.main
    assert re.findall(r"^  ([a-z-]+) {2,}\w", run_command("--help")[1], re.MULTILINE) == list(cli.COMMANDS)
    assert "0.01" in run_command("train", "--recipe", "reference", "--help")[1]
    assert run_command("--version")[:2] == (0, f"mnist-jax {__version__}\n")
    for args in ([], ["trane"]):
        assert_refused(run_command(*args), "unknown command", "choose from train, evaluate, ")
    assert_refused(run_command("train", "--epochs", "0"), "epochs 0", "choose", "; see --help")
    assert_refused(run_script("train.py", "--epochs", "0"), "epochs 0")
    assert_refused(run_command("search", "--run-dir", "x"), "unknown flag --run-dir")  # Search writes no run.


def test_what_to_type_next_is_quoted_and_by_uv_where_it_was(monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    assert called("train", "--resume", Path("my runs/a")) == "mnist-jax train --resume 'my runs/a'"
    monkeypatch.setenv("UV", "/bin/uv")
    assert called("train") == "uv run mnist-jax train"


def test_the_command_from_an_empty_folder(call, mnist):
    """Train, predict and export, with everything written to the current folder."""
    assert run_command("train", *SMALL_RUN, "--epochs", "1", "--run-dir", "my run")[0] == 0
    Image.fromarray(255 - mnist.test.images[0, ..., 0]).save("digit.png")
    assert run_command("predict", "digit.png")[1].startswith("digit.png: 2 ")
    assert run_command("export", "my run", "--out", "digit.html")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"my run", "digit.png", "digit.html"}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_refusal_is_the_same_line_whatever_the_terminal(encoding):
    """The box that tyro draws around its errors is another one in ASCII."""
    form = "or write a layout: layout 'bn' cannot be read at 'bn'; write it as in 16-pool-s24p-=2-pool-32"
    for flag, value, said in (
        ("--arch", "bn", f"unknown arch 'bn'; choose from {', '.join(ARCHS)}, {form}"),
        ("--epochs", "two", "Error parsing --epochs: invalid literal for int() with base 10: 'two'"),
    ):
        result = run_command("train", flag, value, encoding=encoding)
        assert result == (2, "", f"error: {said}; see --help\n")


def test_help_imports_nothing_heavy(environment):
    code = """
import contextlib, io, sys
from mnist_jax import cli

for name in ("", *cli.COMMANDS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main([*name.split(), "--help"])
heavy = {"tensorflow", "tensorflow_datasets", "orbax.checkpoint", "distributed", "matplotlib", "scipy.special", "onnx"}
print(heavy & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout == "set()\n", result.stderr


def fruit(folder, seed=0):
    """Sixteen colored pictures of 12x12, of two classes."""
    labels = np.arange(16, dtype=np.uint8) % 2
    images = np.random.default_rng(seed).integers(0, 30, (16, 12, 12, 3), np.uint8)
    return pictures(folder, images + 160 * labels[:, None, None, None], labels, ("apple", "pear"))


def test_a_run_keeps_its_data(call, tmp_path):
    """It is scored on it, its classes have their names, and other data of its name is refused."""
    own, other = fruit(tmp_path / "fruit"), fruit(tmp_path / "garden", 1)
    flags = ["--arch", "4-pool-s4", "--epochs", "2", "--batch-size", "8", "--optimizer", "sgd", "--run-dir", "run"]
    status, out, err = call("train", "--dataset", own, *flags)
    assert (status, err) == (0, "")
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "images of fruit" in report
    accuracy = json.loads(Path("run/summary.json").read_text())["test_accuracy"]
    status, out, err = call("evaluate", "run", "--json")
    assert (status, err) == (0, "")
    assert (json.loads(out)["dataset"], json.loads(out)["test_accuracy"]) == ("fruit", accuracy)
    status, out, err = call("evaluate", "run", "--dataset", other)
    assert (status, err) == (0, "note: the run in run was trained on fruit; it is scored on garden\n")
    assert_refused(call("evaluate", "run", "--dataset", "mnist"), "classes 0, 1", "apple, pear", "name other data")
    shutil.copytree("run", "other")
    Path("other/dataset.json").write_text('{"name": "garden", "sha256": "0"}')
    said = "in 'other', 'garden' (0)", "name with --dataset what to score"
    assert_refused(call("compare", "run", "other"), *said)
    Path("fruit/test/pear/1.png").write_bytes(Path("fruit/test/apple/0.png").read_bytes())
    for command in (["evaluate", "run"], ["train", "--resume", "run"], ["compare", "run"]):
        assert_refused(call(*command), "'fruit' (SHA-256", "give the run its own data")
    Image.new("L", (28, 28), 200).save("7.png")
    assert_refused(call("predict", "7.png", "--run-dir", "run"), "7.png")


def test_a_run_from_before_is_of_mnist(call, trained, tmp_path):
    """It has no record of its data, and settings that are retired since."""
    shutil.copytree(trained[0], "run")
    Path("run/dataset.json").unlink()
    config = json.loads(Path("run/config.json").read_text())
    del config["dataset"]
    Path("run/config.json").write_text(json.dumps(config | {"low_resolution": 20, "low_resolution_epochs": 0}))
    assert call("evaluate", "run")[1].startswith("gap: test accuracy")
    assert_refused(call("evaluate", "run", "--dataset", fruit(tmp_path / "fruit")), "apple, pear")
    Path("run/config.json").write_text(json.dumps(config | {"low_resolution_epochs": 1}))
    assert_refused(call("evaluate", "run"), "low_resolution_epochs")
