"""The scripts as a user runs them: what they print, what they write, how they refuse."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PREPARED, ROOT, run_script

from mnist_jax import ARCHS, Config, make_config
from mnist_jax.lab import baselines, benchmark, trials

SMALL_DATA = ["--data-source", "tfds", "--data-dir", str(PREPARED)]
SMALL_RUN = [*SMALL_DATA, "--arch", "gap", "--epochs", "2", "--batch-size", "50", "--optimizer", "sgd"]


def assert_refused(result, *parts):
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_train_and_evaluate(script, tmp_path):
    run_dir = tmp_path / "run"
    status, out, err = script("train.py", *SMALL_RUN, "--run-dir", run_dir)
    assert status == 0
    assert not {"\x1b", "\r"} & set(out + err)
    assert "objective not met" in out

    config = json.loads((run_dir / "config.json").read_text())
    assert list(config) == [field.name for field in dataclasses.fields(Config)]
    expected = make_config(arch="gap", epochs=2, batch_size=50, optimizer="sgd", run_dir=str(run_dir))
    assert Config(**config) == dataclasses.replace(expected, data_source="tfds", data_dir=str(PREPARED))

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"]
    assert [list(line) for line in lines] == [keys, keys]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert 0 <= line["test_accuracy"] <= 1
        assert f"epoch {line['epoch']:2d}/2" in out
        assert f"accuracy {line['test_accuracy']:.2%}" in out

    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["objective_met"] is False
    assert [condition["met"] for condition in summary["objective"]] == [False, True, True, True]
    assert summary["environment"]["platform"] == "cpu"
    spent = summary["seconds_of"]
    assert set(spent) == {"starting", "data", "compiling", "training", "saving", "report"}
    assert min(seconds for name, seconds in spent.items() if name != "compiling") > 0
    assert sum(spent.values()) == pytest.approx(summary["seconds"])
    assert spent["compiling"] + spent["training"] > sum(line["seconds"] for line in lines)
    assert f"report {spent['report']:.1f}" in out

    for batch_size in (1000, 33):
        status, out, _ = script("evaluate.py", run_dir, "--json", "--batch-size", batch_size, *SMALL_DATA)
        assert status == 0
        result = json.loads(out)
        assert (result["arch"], result["images"]) == ("gap", 100)
        assert result["test_accuracy"] == lines[-1]["test_accuracy"]
        assert result["test_loss"] == pytest.approx(lines[-1]["test_loss"], rel=1e-5)
    status, out, _ = script("evaluate.py", run_dir, *SMALL_DATA)
    assert out.startswith(f"gap: test accuracy {lines[-1]['test_accuracy']:.2%}")

    # A second run there is refused and what is saved stays.
    before = (run_dir / "metrics.jsonl").read_text()
    assert_refused(script("train.py", *SMALL_RUN, "--run-dir", run_dir), str(run_dir), "--run-dir")
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_held_out_scores_the_objective_and_the_default_run_directory(script, tmp_path):
    status, out, _ = script("train.py", *SMALL_RUN, "--epochs", "1", "--held-out", "100", "--require-objective")
    assert status == 1
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.endswith("-gap-default")
    assert f"runs/{run_dir.name}" in out
    assert re.search(r"  held-out loss \S+ accuracy ", out)
    assert "test" not in out
    assert json.loads((run_dir / "summary.json").read_text())["scored_on"] == "held-out"


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own.
def test_tensorboard_reads_the_events(script, monkeypatch):
    status, _, _ = script("train.py", *SMALL_RUN, "--tensorboard", "--run-dir", "run")
    assert status == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("run/tensorboard").Reload()
    names = ["loss/train", "loss/test", "accuracy/train", "accuracy/test", "learning_rate"]
    assert sorted(events.Tags()["scalars"]) == sorted(names)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for name in names[:4]:
        figure, split = name.split("/")
        assert [event.step for event in events.Scalars(name)] == [1, 2]
        expected = [line[f"{split}_{figure}"] for line in lines]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(expected)
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert rates[0] > rates[1] > 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(script("train.py", *SMALL_RUN, "--tensorboard"), "mnist-jax[tensorboard]")


def test_reproduce_appends_each_seed_and_continues(script, tmp_path):
    out = tmp_path / "seeds.jsonl"
    flags = [*SMALL_DATA, "--arch", "gap", "--epochs", "1", "--batch-size", "50", "--out", out]
    status, printed, _ = script("reproduce.py", *flags, "--seeds", "1")
    assert status == 0
    assert "1 seeds" in printed
    (first,) = out.read_text().splitlines()

    status, printed, _ = script("reproduce.py", *flags, "--seeds", "2")
    assert status == 0
    lines = out.read_text().splitlines()
    assert lines[0] == first
    seeds = [json.loads(line) for line in lines]
    assert [seed["config"]["seed"] for seed in seeds] == [1, 2]
    assert all(len(seed["history"]) == 1 and seed["seconds"] > 0 and seed["environment"] for seed in seeds)
    mean = sum(seed["history"][-1]["test_accuracy"] for seed in seeds) / 2
    assert f"mean {mean:.3%}" in printed

    assert_refused(script("reproduce.py", *flags, "--learning-rate", "0.2"), str(out), "--out")
    assert out.read_text().splitlines() == lines


def test_search_tries_every_combination_once_on_held_out_images(script, tmp_path):
    log = tmp_path / "log.jsonl"
    flags = [*SMALL_DATA, "--held-out", "100", "--arch", "gap", "--epochs", "1", "--batch-size", "50", "--log", log]
    status, printed, _ = script("search.py", *flags, "--vary", "learning-rate=0.01,1e6", "optimizer=sgd")
    assert status == 0
    assert "learning_rate 0.01, optimizer sgd  seed 1001" in printed
    assert "the loss or its gradient is not finite" in printed
    lines = log.read_text().splitlines()
    tried = [json.loads(line) for line in lines]
    assert [trial["config"]["learning_rate"] for trial in tried] == [0.01, 1e6]
    assert all((trial["config"]["held_out"], trial["config"]["seed"]) == (100, 1001) for trial in tried)
    assert ("diverged" in tried[0], "diverged" in tried[1]) == (False, True)
    status, printed, _ = script("search.py", *flags, "--vary", "learning-rate=0.01", "optimizer=sgd", "--seeds", "2")
    assert status == 0
    assert log.read_text().splitlines()[:2] == lines
    assert len(log.read_text().splitlines()) == 3


def test_search_tries_networks_by_their_layout(script, monkeypatch, tmp_path):
    flags = [*SMALL_DATA, "--held-out", "100", "--epochs", "1", "--batch-size", "50", "--log", tmp_path / "log.jsonl"]
    status, printed, _ = script("search.py", *flags, "--vary", "arch=4-pool-s6,4k5-pool-6")
    assert status == 0
    tried = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {trial["config"]["arch"]: trial["parameters"] for trial in tried} == {"4-pool-s6": 166, "4k5-pool-6": 386}
    assert [trial["multiply_adds"] for trial in tried] == [36 * 676 + 60 * 121 + 60, 100 * 576 + 216 * 100 + 60]
    assert "386" in printed


# What is typed, and parts of the one line that answers it.
REFUSED = """
train.py --arch bn                          | 'bn' | bn_dropout
train.py --arch 16-16-pool-16-16-pool-16 --low-resolution-epochs 1 | low resolution 20 | choose more
train.py --recipe best                      | 'best' | reference
train.py --recipe                           | --recipe
train.py --epochs                           | --epochs
train.py --batch-size 60001                 | batch size 60001 | 60000
train.py --held-out 60000                   | 60000 | choose
train.py --data-source torch                | 'torch' | bundled
train.py --data-dir /tmp                    | --data-source tfds
train.py --data-source tfds --data-dir none | 'none'
train.py --run-dir /proc/run                | '/proc/run' | --run-dir
train.py --colour red                       | --colour
train.py --keep 0                           | keep 0 | choose
train.py --checkpoint-every -1              | checkpoint every -1 | choose
train.py --resume absent                    | 'absent' | holds no run
train.py --devices most                     | 'most' | choose
train.py --devices 99                       | devices 99 | choose
train.py --process-id 1                     | --coordinator | give them
evaluate.py                                 | run dir or --arch
evaluate.py absent                          | 'absent' | run
evaluate.py run --batch-size 0              | batch size 0 | choose
evaluate.py --arch bn                       | 'bn' | choose
evaluate.py run --arch gap                  | one of the two
predict.py                                  | no file is given
predict.py x.png --arch bn                  | 'bn'
predict.py x.png --run-dir y                | 'y'
export.py --out x                           | one of the two
export.py --arch gap --format pdf --out x   | 'pdf'
export.py --arch bn --out x                 | 'bn'
compare.py                                  | no run
compare.py absent                           | 'absent'
reproduce.py --seeds 0                      | seeds 0 | choose
reproduce.py --jobs 0                       | jobs 0 | choose
search.py --jobs 2 --scheduler localhost:1  | jobs 2 | drop one
search.py --seeds 0                         | seeds 0 | choose
search.py --vary speed=1                    | 'speed' | choose
search.py --vary epochs=two                 | epochs=two | int
search.py --vary optimizer=adam             | 'adam' | choose
benchmark.py --arch bn                      | 'bn' | bn_dropout
benchmark.py --rounds 0                     | rounds 0 | choose
benchmark.py --contenders numpy             | 'numpy' | flax
benchmark.py --device gpu                   | JAX finds no GPU or TPU here
benchmark.py --device npu                   | 'npu' | choose
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
    assert status == 4
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_help_is_complete_and_fits(script, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = script(name, "--help")
    assert status == 0
    assert out.startswith(f"usage: {name} ")
    assert max(map(len, out.splitlines())) <= 100
    assert "Example: python scripts/" in out


def test_help_shows_the_defaults_of_the_recipe(script):
    assert "0.01" in script("train.py", "--recipe", "reference", "--help")[1]


REFUSALS = {
    "--arch bn": f"unknown arch 'bn'; choose from {', '.join(ARCHS)}, or write a layout that fits 28x28 images, "
    "such as 16-pool-s24p-=2-pool-32",
    "--epochs two": "Error parsing --epochs: invalid literal for int() with base 10: 'two'",
}


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("flags", REFUSALS)
def test_a_refusal_is_the_same_line_whatever_the_terminal(encoding, flags):
    """The box that tyro draws around its errors is another one in ASCII."""
    result = run_script("train.py", *flags.split(), encoding=encoding)
    assert result == (2, "", f"error: {REFUSALS[flags]}; see --help\n")


def test_a_process_of_its_own_refuses_in_one_line():
    command = [sys.executable, ROOT / "scripts" / "train.py", "--epochs", "two"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    error = f"error: {REFUSALS['--epochs two']}; see --help\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", error)


def test_importing_the_package_needs_neither_tyro_nor_tensorflow():
    code = (
        "import sys, mnist_jax; print(sorted({'tyro', 'tensorflow', 'tensorflow_datasets', 'rich'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout in ("[]\n", "['rich']\n")
