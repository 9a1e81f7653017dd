"""The scripts as a user runs them: what they print, what they write, how they refuse."""

import collections
import dataclasses
import importlib.util
import json
import os
import pkgutil
import re
import shutil
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
from mnist_jax.cli import time_to_target
from mnist_jax.cli.program import called
from mnist_jax.errors import DivergedError
from mnist_jax.lab import baselines, benchmark, trials
from mnist_jax.lab.records import Trial
from mnist_jax.training import EpochMetrics

SMALL_DATA = ["--data-source", "tfds", "--data-dir", str(PREPARED)]
SMALL_RUN = [*SMALL_DATA, "--arch", "gap", "--epochs", "2", "--batch-size", "50", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs: its directory, what it printed, and the lines of its metrics."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    status, out, err = run_script("train.py", *SMALL_RUN, "--tensorboard", "--run-dir", run_dir)
    assert (status, "objective not met" in out, {"\x1b", "\r"} & set(out + err)) == (0, True, set())
    return run_dir, out, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_train_and_evaluate(script, trained):
    run_dir, out, lines = trained
    config = json.loads((run_dir / "config.json").read_text())
    assert list(config) == [field.name for field in dataclasses.fields(Config)]
    expected = make_config(arch="gap", epochs=2, batch_size=50, optimizer="sgd", run_dir=str(run_dir))
    assert Config(**config) == dataclasses.replace(expected, data_source="tfds", data_dir=str(PREPARED))
    keys = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
    assert [list(line) for line in lines] == [keys, keys]
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
        result = json.loads(script("evaluate.py", run_dir, "--json", "--batch-size", batch_size, *SMALL_DATA)[1])
        assert (result["arch"], result["images"]) == ("gap", 100)
        assert result["test_accuracy"] == lines[-1]["test_accuracy"]
        assert result["test_loss"] == pytest.approx(lines[-1]["test_loss"], rel=1e-5)
    said = f"gap: test accuracy {lines[-1]['test_accuracy']:.2%}"
    assert script("evaluate.py", run_dir, *SMALL_DATA)[1].startswith(said)
    # A second run there is refused and what is saved stays.
    before = (run_dir / "metrics.jsonl").read_text()
    assert_refused(script("train.py", *SMALL_RUN, "--run-dir", run_dir), str(run_dir), "resume it, or name another")
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_held_out_scores_the_objective_and_the_default_run_directory(script, tmp_path):
    status, out, _ = script("train.py", *SMALL_RUN, "--epochs", "1", "--held-out", "100", "--require-objective")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.endswith("-gap-default")
    assert f"runs/{run_dir.name}" in out
    assert re.search(r"1 epoch of .*  held-out \S+% \(loss ", out, re.DOTALL)
    assert (status, "test" in out) == (1, False)
    assert json.loads((run_dir / "summary.json").read_text())["scored_on"] == "held-out"


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own.
def test_tensorboard_reads_the_events(script, trained, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, _, lines = trained
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    names = ["loss/train", "loss/test", "accuracy/train", "accuracy/test", "learning_rate"]
    assert sorted(events.Tags()["scalars"]) == sorted(names)
    for name in names[:4]:
        figure, split = name.split("/")
        assert [event.step for event in events.Scalars(name)] == [1, 2]
        expected = [line[f"{split}_{figure}"] for line in lines]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected)
    first, last = (event.value for event in events.Scalars("learning_rate"))
    assert first > last > 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(script("train.py", *SMALL_RUN, "--tensorboard"), "mnist-jax[tensorboard]")


def test_reproduce_appends_each_seed_and_continues(script, tmp_path):
    out = tmp_path / "seeds.jsonl"
    flags = [*SMALL_DATA, "--arch", "gap", "--epochs", "1", "--batch-size", "50", "--out", out]
    assert "1 seed: " in script("reproduce.py", *flags, "--seeds", "1")[1]
    (first,) = out.read_text().splitlines()
    printed = script("reproduce.py", *flags, "--seeds", "2")[1]
    lines = out.read_text().splitlines()
    assert lines[0] == first
    seeds = [json.loads(line) for line in lines]
    assert [seed["config"]["seed"] for seed in seeds] == [1, 2]
    assert all(len(seed["history"]) == 1 and seed["seconds"] > 0 and seed["environment"] for seed in seeds)
    mean = sum(seed["history"][-1]["test_accuracy"] for seed in seeds) / 2
    assert f"mean {mean:.3%}" in printed
    assert_refused(script("reproduce.py", *flags, "--learning-rate", "0.2"), str(out), "--out")
    assert out.read_text().splitlines() == lines


def test_series_on_other_data_keep_its_name_not_its_place(script, tmp_path):
    flags = ["--arch", "4-pool-s4", "--epochs", "1", "--batch-size", "8", "--optimizer", "sgd", "--seeds", "1"]
    for folder in ("here", "there"):
        assert "1 seed: " in script("reproduce.py", "--dataset", fruit(tmp_path / folder / "fruit"), *flags)[1]
    (line,) = Path("results/fruit-default-4-pool-s4.jsonl").read_text().splitlines()
    assert json.loads(line)["dataset"] == "fruit"
    assert str(tmp_path) not in line
    other = fruit(tmp_path / "other" / "fruit", 1)
    assert_refused(script("reproduce.py", "--dataset", other, *flags), "other data", "--out")


def test_search_tries_every_combination_once_on_held_out_images(script, tmp_path):
    log = tmp_path / "log.jsonl"
    flags = [*SMALL_DATA, "--held-out", "100", "--epochs", "1", "--batch-size", "50", "--log", log, "--vary"]
    printed = script("search.py", *flags, "arch=gap", "learning-rate=0.01,1e6", "optimizer=sgd")[1]
    assert "learning_rate 0.01, optimizer sgd  seed 1001" in printed
    assert "the loss or its gradient is not finite" in printed
    lines = log.read_text().splitlines()
    tried = sorted(map(json.loads, lines), key=lambda trial: trial["config"]["learning_rate"])  # Any may finish first.
    assert [trial["config"]["learning_rate"] for trial in tried] == [0.01, 1e6]
    assert all((trial["config"]["held_out"], trial["config"]["seed"]) == (100, 1001) for trial in tried)
    assert ("diverged" in tried[0], "diverged" in tried[1]) == (False, True)
    assert script("search.py", *flags, "arch=gap", "learning-rate=0.01", "optimizer=sgd", "--seeds", "2")[0] == 0
    assert (lines, 3) == ((after := log.read_text().splitlines())[:2], len(after))
    # Networks by their layout.
    assert "386" in script("search.py", *flags, "arch=4-pool-s6,4k5-pool-6")[1]
    tried = map(json.loads, log.read_text().splitlines()[3:])
    sizes = {trial["config"]["arch"]: (trial["parameters"], trial["multiply_adds"]) for trial in tried}
    multiply_adds = 36 * 676 + 60 * 121 + 60, 100 * 576 + 216 * 100 + 60
    assert sizes == {"4-pool-s6": (166, multiply_adds[0]), "4k5-pool-6": (386, multiply_adds[1])}


def test_search_goes_on_until_the_best_is_resolved(script, monkeypatch, tmp_path):
    """Accuracies are drawn: learning rate 0.02 is the best by 0.3%, of which one seed is 0.1%; 1.0 diverges."""
    means, log = {0.01: 0.99, 0.02: 0.995, 0.04: 0.992, 0.08: 0.97}, tmp_path / "log.jsonl"

    def train(config, seeds, data, stop):
        if config.learning_rate == 1:
            raise DivergedError("at step 3")
        accuracy = np.random.default_rng(seeds[0] + round(1e4 * config.learning_rate)).normal(
            means[config.learning_rate], 0.001
        )
        trial = Trial(dataclasses.asdict(config), 10, 10, (EpochMetrics(1, 0.1, 0.9, 0.1, accuracy, 1.0),), 0.1, 0.9)
        return [(trial._replace(sha256=data.sha256), {})]

    monkeypatch.setattr(trials, "run", train)
    command = ["search.py", *SMALL_DATA, "--held-out", "100", "--jobs", "1", "--log", log]
    command += ["--vary", "learning_rate=0.01,0.02,0.04,0.08,1.0", "--until", "0.2%", "--trainings"]
    status, out, _ = script(*command, "5")
    assert (status, len(log.read_text().splitlines())) == (0, 5)
    assert out.endswith(
        "\nthe best is not resolved to 0.2% at 95% confidence after 5 trainings; a larger --trainings goes on\n"
    )
    lines = script(*command, "60")[1].splitlines()
    tried = [json.loads(line)["config"] for line in log.read_text().splitlines()]
    assert 8 < len(tried) < 30
    assert lines[-1] == f"the best is resolved to 0.2% at 95% confidence after {len(tried)} trainings"
    ranked = [line.partition(";")[0] for line in lines if "parameters" in line]
    assert (ranked[0], len(ranked)) == ("learning_rate 0.02", 4)
    counts = collections.Counter(config["learning_rate"] for config in tried)
    assert (counts[0.08], counts[1.0]) == (1, 1)
    assert abs(counts[0.02] - max(counts[0.01], counts[0.04])) <= 1
    assert script(*command, "60")[1].splitlines() == lines[-len(lines) + len(tried) - 5 :]


# What is typed, and parts of the one line that answers it.
REFUSED = """
train.py --arch 16-pool-16-pool-16-pool-16  | images of 28x28 are too small | larger images
train.py --recipe                           | --recipe
train.py --epochs                           | --epochs
train.py --held-out 60000                   | 60000 | choose
train.py --run-dir /proc/run                | '/proc/run' | name another
train.py --colour red                       | unknown flag --colour; see --help
train.py --lr 0.1                           | unknown flag --lr; did you mean --learning-rate? See --help
train.py --wd=0.1                           | did you mean --weight-decay?
train.py --batch 8                          | did you mean --batch-size?
train.py --learningrate 0.1                 | did you mean --learning-rate?
train.py --no-nestrov                       | did you mean --no-nesterov?
train.py --keep 0                           | keep 0 | choose
train.py --checkpoint-every -1              | checkpoint every -1 | choose
train.py --resume absent                    | 'absent' | holds no run
train.py --devices 99                       | devices 99 | choose
evaluate.py                                 | run dir or --arch
evaluate.py absent                          | 'absent' | run
evaluate.py run --batch-size 0              | batch size 0 | choose
evaluate.py --arch bn                       | 'bn' are shipped; choose from basic
evaluate.py --arch 16-pool-s24p-pool-32     | '16-pool-s24p-pool-32' are shipped; choose from basic
evaluate.py run --arch gap                  | one of the two
predict.py                                  | no file is given
predict.py x.png --run-dir y                | 'y'
export.py run --arch gap --out x            | one of the two
export.py --arch gap --format pdf --out x   | 'pdf'
compare.py                                  | no run or file
compare.py absent.jsonl                     | no trial
compare.py absent.jsonl absent              | not both
compare.py absent                           | 'absent'
compare.py absent --paired                  | leave them out
reproduce.py --table                        | README.md and results/
reproduce.py --seeds 0                      | seeds 0 | choose
reproduce.py --jobs 0                       | jobs 0 | choose
search.py --jobs 2 --scheduler localhost:1  | jobs 2 | drop one
search.py --seeds 0                         | seeds 0 | choose
search.py --until 0.05                      | '0.05' | as 0.05%
search.py --trainings 9                     | trainings 9 | --until
search.py --until 1% --trainings 0          | trainings 0 | choose more
search.py --held-out 60000                  | cannot hold out 60000 of 60000 | by --held-out
search.py --vary speed=1                    | 'speed' | choose
search.py --vary epochs=two                 | epochs=two | int
search.py --vary optimizer=adam             | 'adam' | choose
benchmark.py --arch bn                      | 'bn' | bn_dropout
benchmark.py --rounds 0                     | rounds 0 | choose
benchmark.py --contenders numpy             | 'numpy' | flax
benchmark.py --device gpu                   | 'gpu' | extra cuda
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_bad_input_is_refused(script, line):
    command, *parts = line.split(" | ")
    assert_refused(script(*command.split()), *parts)


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("benchmark.py --rounds 1 --json absent/speed.json", "absent"),
        ("time_to_target.py --json .", "it is a folder"),
        ("reproduce.py --out file/seeds.jsonl", "file/seeds.jsonl"),
        ("search.py --log file/log.jsonl", "file/log.jsonl"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(script, monkeypatch, command, place):
    for module, name in ((benchmark, "run"), (trials, "run"), (baselines, "torch_network")):
        monkeypatch.setattr(module, name, lambda *args, **options: pytest.fail("this is the work"))
    Path("file").touch()
    assert_refused(script(*command.split()), place, "cannot be written", "name another")


def test_time_to_target_says_what_it_does_and_refuses_without_pytorch(script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(time_to_target, "ours", lambda *args: 17.0)
    seconds = {"train_seconds": 9.0, "test_seconds": 1.0}
    monkeypatch.setattr(baselines, "epoch_seconds", lambda *args: seconds)
    status, out, err = script("time_to_target.py", "--arch", "swift", "--rounds", "1")
    assert (status, "150 (150 to 150)" in out) == (0, True)
    rounds = ("ours, cache cold", "ours, cache warm", "the notebook in PyTorch")
    assert err.splitlines() == [f"round 1 of 1: {what}" for what in rounds]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(script("time_to_target.py"), "PyTorch is not installed", "pip install torch")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("reproduce.py --out seeds.jsonl --weights-dir file/weights", "cannot write 'file/weights'"),
        ("export.py --arch bn_dropout --out absent/x", "cannot write 'absent/x'"),
        (" ".join(["train.py", *SMALL_RUN, "--tensorboard --run-dir run"]), "cannot write to run dir 'run'"),
    ],
)
def test_what_could_not_be_written_is_said_with_its_own_status(script, command, said):
    Path("file").touch()
    Path("run").mkdir()
    Path("run/tensorboard").touch()
    status, _, err = script(*command.split())
    assert (status, err.count("\n"), f"error: {said}" in err) == (4, 1, True)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_help_is_complete_and_fits(monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(ROOT)
    helps, command = {f"python scripts/{name}": run_script(name, "--help")}, name[:-3].replace("_", "-")
    if command in cli.COMMANDS:
        helps[f"mnist-jax {command}"] = run_command(command, "--help")
    for call, (status, out, _) in helps.items():
        assert (status, out.split(" [", 1)[0]) == (0, f"usage: {call.removeprefix('python scripts/')}")
        assert max(map(len, out.splitlines())) <= columns
        assert f"Example: {call} " in out
        assert not re.search(r"None|default: (True|False)", out)


def test_a_flag_says_what_it_does_and_is_listed_where_it_does_something(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    listed = {}
    for command in ("train", "search", "reproduce", "estimate-tpu"):
        lines = run_command(command, "--help")[1].splitlines()
        listed[command] = dict(re.findall(r"^│ (--[a-z-]+)(?: [A-Z]+)? +(.*?) *│$", "\n".join(lines), re.MULTILINE))
    train = listed.pop("train")
    assert train["--no-report"] == "Do not write report.html."
    assert train["--no-nesterov"] == "Do not use Nesterov's form of momentum."
    assert train["--no-compilation-cache"].startswith("Do not keep compiled programs ")
    assert {"--run-dir", "--seed"} <= set(train)
    assert not [command for command, flags in listed.items() if "--run-dir" in flags]
    assert [command for command, flags in listed.items() if "--seed" in flags] == ["reproduce"]
    assert_refused(run_command("search", "--run-dir", "x"), "unknown flag --run-dir")


def test_the_command_lists_its_commands_and_refuses_others():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["mnist-jax"]
    assert pkgutil.resolve_name(entry) is cli.main
    names = {path.stem.replace("_", "-") for path in (ROOT / "scripts").glob("*.py")} - {
        "bundle-mnist",
        "calibrate",
        "execute-tour",
        "measure-pictures",
        "screenshots",
        "simulate-search",
        "simulate-comparisons",
        "train-reader",
    }
    assert set(re.findall(r"^  ([a-z-]+) {2,}\w", run_command("--help")[1], re.MULTILINE)) == names
    assert "0.01" in run_command("train", "--recipe", "reference", "--help")[1]
    assert run_command("--version")[:2] == (0, f"mnist-jax {__version__}\n")
    for args in ([], ["trane"]):
        assert_refused(run_command(*args), "unknown command", "choose from train, evaluate, ")
    assert_refused(run_command("train", "--epochs", "0"), "epochs 0", "choose", "; see --help")


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("python scripts/train.py", "python scripts/train.py"),
        (f"python3 {ROOT}/scripts/train.py", "python3 scripts/train.py"),
        ("/usr/bin/python scripts/train.py", "uv run scripts/train.py"),
        ("python /opt/bin/mnist-jax", "mnist-jax train"),
    ],
)
def test_what_to_type_next_is_as_it_was_called(monkeypatch, typed, printed):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "orig_argv", typed.split())
    monkeypatch.setattr(sys, "argv", typed.split()[1:])
    monkeypatch.setattr(os, "environ", {"UV": "uv"} if "uv" in printed else {})
    assert called("train", "--resume", Path("my runs/a")) == f"{printed} --resume 'my runs/a'"


def test_the_command_from_an_empty_folder(script, mnist):
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
        result = run_script("train.py", flag, value, encoding=encoding)
        assert result == (2, "", f"error: {said}; see --help\n")


def test_help_comes_without_jax_which_the_package_prepares_whoever_imports_it(environment):
    """The garbage collector goes on as before, without what was imported."""
    code = """
import contextlib, gc, io, sys, mnist_jax
from mnist_jax import cli

for name in ("", *cli.COMMANDS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main([*name.split(), "--help"])
    assert not {"jax", "numpy"} & set(sys.modules), name
    assert name or "tyro" not in sys.modules

import jax

jax.numpy.ones(3)
print(jax.config.jax_compilation_cache_dir)
mnist_jax.fit, cli._import("train")
assert gc.isenabled() and gc.get_freeze_count() > 100_000
heavy = {"tensorflow", "tensorflow_datasets", "orbax.checkpoint", "matplotlib", "jinja2", "scipy.special"}
print(heavy & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    cache, heavy = result.stdout.splitlines()
    assert cache.startswith(environment["XDG_CACHE_HOME"])
    assert heavy == "set()"


def fruit(folder, seed=0):
    """Sixteen colored pictures of 12x12, of two classes."""
    labels, images = np.arange(16) % 2, np.random.default_rng(seed).integers(0, 30, (16, 12, 12, 3), np.uint8)
    return pictures(folder, images + 160 * labels.astype(np.uint8)[:, None, None, None], labels, ("apple", "pear"))


def test_a_run_keeps_its_data(script, tmp_path):
    """It is scored on it, its classes have their names, and other data of its name is refused."""
    own, other = fruit(tmp_path / "fruit"), fruit(tmp_path / "garden", 1)
    flags = ["--arch", "4-pool-s4", "--epochs", "2", "--batch-size", "8", "--optimizer", "sgd", "--run-dir", "run"]
    status, out, err = script("train.py", "--dataset", own, *flags)
    assert (status, err) == (0, "")
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "images of fruit" in report
    accuracy = json.loads(Path("run/summary.json").read_text())["test_accuracy"]
    status, out, err = script("evaluate.py", "run", "--json")
    assert (status, err) == (0, "")
    assert (json.loads(out)["dataset"], json.loads(out)["test_accuracy"]) == ("fruit", accuracy)
    status, out, err = script("evaluate.py", "run", "--dataset", other)
    assert (status, err) == (0, "note: the run in run was trained on fruit; it is scored on garden\n")
    assert_refused(script("evaluate.py", "run", "--dataset", "mnist"), "classes 0, 1", "apple, pear", "name other data")
    shutil.copytree("run", "other")
    Path("other/dataset.json").write_text('{"name": "garden", "sha256": "0"}')
    said = "in 'other', 'garden' (0)", "name with --dataset what to score"
    assert_refused(script("compare.py", "run", "other"), *said)
    Path("fruit/test/pear/1.png").write_bytes(Path("fruit/test/apple/0.png").read_bytes())
    for command in (["evaluate.py", "run"], ["train.py", "--resume", "run"], ["compare.py", "run"]):
        assert_refused(script(*command), "'fruit' (SHA-256", "give the run its own data")
    Image.new("L", (28, 28), 200).save("7.png")
    assert_refused(script("predict.py", "7.png", "--run-dir", "run"), "7.png")


def test_a_run_from_before_is_of_mnist(script, trained, tmp_path):
    """It has no record of its data, and settings that are retired since."""
    shutil.copytree(trained[0], "run")
    Path("run/dataset.json").unlink()
    config = json.loads(Path("run/config.json").read_text())
    del config["dataset"]
    Path("run/config.json").write_text(json.dumps(config | {"low_resolution": 20, "low_resolution_epochs": 0}))
    assert script("evaluate.py", "run")[1].startswith("gap: test accuracy")
    assert_refused(script("evaluate.py", "run", "--dataset", fruit(tmp_path / "fruit")), "apple, pear")
    Path("run/config.json").write_text(json.dumps(config | {"low_resolution_epochs": 1}))
    assert_refused(script("evaluate.py", "run"), "low_resolution_epochs", "use the version")
