"""The commands as a user runs them: what they print, what they write, how they refuse."""

import dataclasses
import errno
import json
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

from mnist_jax import Config, __version__, cli, make_config
from mnist_jax.cli.flags import parse
from mnist_jax.cli.options import ExportOptions
from mnist_jax.cli.program import called, describe
from mnist_jax.series import trials

SMALL_DATA = ["--data-source", "tfds", "--data-dir", str(PREPARED)]
ONE_EPOCH = [*SMALL_DATA, "--epochs", "1", "--batch-size", "50"]
ON_FRUIT = ["--arch", "4-pool-s4", "--epochs", "1", "--batch-size", "8", "--optimizer", "sgd"]
SMALL_RUN = [*SMALL_DATA, "--arch", "gap", "--epochs", "2", "--batch-size", "50", "--optimizer", "sgd"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs: its directory, what it printed, and the lines of its metrics."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    status, out, err = run_script("train.py", *SMALL_RUN, "--run-dir", run_dir)
    assert (status, "objective not met" in out, {"\x1b", "\r"} & set(out + err)) == (0, True, set())
    return run_dir, out, [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_train_and_evaluate(call, trained):
    run_dir, out, lines = trained
    config = json.loads((run_dir / "config.json").read_text())
    expected = make_config(arch="gap", epochs=2, batch_size=50, optimizer="sgd", run_dir=str(run_dir))
    assert config == dataclasses.asdict(dataclasses.replace(expected, data_source="tfds", data_dir=str(PREPARED)))
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert re.search(rf"epoch {line['epoch']}/2 .*  test {line['test_accuracy']:.2%} ", out)
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert out.splitlines()[-1] == str(run_dir / "report.html")
    assert "mnist-jax train --data-source tfds" in (run_dir / "report.html").read_text(encoding="utf-8")
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["test_accuracy"], summary["objective_met"]) == (lines[-1]["test_accuracy"], False)
    assert [condition["met"] for condition in summary["objective"]] == [False, True, True, True]
    assert summary["environment"]["jax"] == jax.__version__
    assert sum(summary["seconds_of"].values()) == pytest.approx(summary["seconds"])
    result = json.loads(call("evaluate", run_dir, "--json")[1])
    expected = {"arch": "gap", "dataset": "mnist", "images": 100}
    assert result == expected | {name: pytest.approx(lines[-1][name]) for name in ("test_accuracy", "test_loss")}
    assert f"{lines[-1]['test_accuracy']:.2%}" in call("evaluate", run_dir)[1]
    # A second run there is refused and what is saved stays.
    before = (run_dir / "metrics.jsonl").read_text()
    assert_refused(call("train", *SMALL_RUN, "--run-dir", run_dir), str(run_dir), "resume it, or name another")
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_run_on_held_out_images_in_its_default_directory(call, mnist, tmp_path):
    """Everything, of other commands too, is written to the current folder."""
    status, out, _ = call("train", *SMALL_RUN, "--epochs", "1", "--held-out", "100", "--require-objective")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.endswith("-gap-default")
    assert (status, "held-out" in out, "test" in out) == (1, True, False)
    assert json.loads((run_dir / "summary.json").read_text())["scored_on"] == "held-out"
    Image.fromarray(255 - mnist.test.images[0, ..., 0]).save("digit.png")
    assert call("predict", "digit.png")[1].startswith("digit.png: 2 ")
    assert call("export", run_dir, "--out", "digit.html")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"runs", "digit.png", "digit.html"}


def fruit(folder, seed=0):
    """Sixteen colored pictures of 12x12, of two classes."""
    labels = np.arange(16, dtype=np.uint8) % 2
    images = np.random.default_rng(seed).integers(0, 30, (16, 12, 12, 3), np.uint8)
    return pictures(folder, images + 160 * labels[:, None, None, None], labels, ("apple", "pear"))


def test_reproduce_appends_each_seed_and_continues(call, tmp_path):
    """A file keeps the name of its data, not its place; other data of that name and other settings are refused."""
    name = "fruit-default-4-pool-s4p-=2.jsonl"
    new, out = Path("results/series") / name.replace("=", "r"), Path("results") / name

    def reproduce(folder, *more, seed=0):
        data = fruit(tmp_path / folder / "fruit", seed)
        layout = ["--arch", "4-pool-s4p-=2"]
        return call("reproduce", "--dataset", data, *ON_FRUIT, *layout, "--jobs", "1", "--seeds", "2", *more)

    printed = reproduce("here", "--seeds", "1")[1]
    assert f"appending to {new}\n" in printed
    assert "1 seed: " in printed
    (first,) = new.read_text().splitlines()
    new.rename(out)  # As version 0.2 named it.
    printed = reproduce("there")[1]
    assert f"appending to {out}\n" in printed
    lines = out.read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    assert lines[0] == first
    assert [(trial["config"]["seed"], trial["dataset"]) for trial in trials] == [(1, "fruit"), (2, "fruit")]
    assert f"mean {sum(trial['history'][-1]['test_accuracy'] for trial in trials) / 2:.3%}" in printed
    assert_refused(reproduce("here", "--learning-rate", "0.2"), str(out), "--out")
    assert_refused(reproduce("other", seed=1), "other data", "--out")
    assert (out.read_text().splitlines(), str(tmp_path) in first) == (lines, False)


def test_search_tries_every_combination_once_on_held_out_images(call, tmp_path):
    log = tmp_path / "log.jsonl"

    def search(*args):
        before = log.read_text().splitlines() if log.exists() else []
        status, out, _ = call("search", *ONE_EPOCH, "--held-out", "100", "--jobs", "1", "--log", log, *args)
        lines = log.read_text().splitlines()
        assert (status, lines[: len(before)]) == (0, before)
        return out, [json.loads(line) for line in lines[len(before) :]]

    # A flag that takes many takes them one by one too.
    more = ("--vary", "learning-rate=1e6", "--vary", "optimizer=sgd", "nesterov=True")
    out, tried = search("--vary", "arch=4-pool-6", "learning-rate=0.01", *more)
    assert "learning_rate 0.01, optimizer sgd" in out
    assert "the loss or its gradient is not finite" in out
    assert [trial["config"]["learning_rate"] for trial in tried] == [0.01, 1e6]
    assert all((trial["config"]["held_out"], trial["config"]["seed"]) == (100, 1001) for trial in tried)
    assert ["diverged" in trial for trial in tried] == [False, True]
    _, tried = search("--vary", "arch=4-pool-6", "learning-rate=0.01", "optimizer=sgd", "--seeds", "2")
    assert [trial["config"]["seed"] for trial in tried] == [1002]
    # Networks by their layout.
    _, tried = search("--vary", "arch=4-pool-s6,4k5-pool-6")
    sizes = {trial["config"]["arch"]: (trial["parameters"], trial["multiply_adds"]) for trial in tried}
    assert sizes == {"4-pool-s6": (166, 36 * 676 + 60 * 121 + 60), "4k5-pool-6": (386, 100 * 576 + 216 * 100 + 60)}


def test_export_takes_networks_together_and_one_by_one():
    for args in (["--arch", "swift", "small"], ["--arch", "swift", "--arch", "small"]):
        assert sum(parse(ExportOptions, ["--out", "x", *args], "export").arch, ()) == ("swift", "small")


# What is typed, and parts of the answer: one line, or the box of tyro around a flag that it refuses.
REFUSED = """
train --arch 16-pool-16-pool-16-pool-16  | images of 28x28 are too small | larger images
train --recipe slow                      | 'slow' | choose
train --resume absent                    | 'absent' | holds no run
train --devices 99                       | devices 99 | choose
train --colour red                       | ─ | --colour | red
train --epochs two                       | ─ | --epochs | two
train --arch                             | ─ | --arch
evaluate                                 | run dir or --arch
evaluate run --arch gap                  | one of the two
predict                                  | no file is given
export --arch gap --format pdf --out x   | ─ | --format | pdf
compare                                  | no run or file
compare absent.jsonl absent              | not both
reproduce --seeds 0                      | seeds 0 | choose
search --jobs 2 --scheduler localhost:1  | jobs 2 | drop one
search --run-dir run                     | ─ | --run-dir
search --vary speed=1                    | 'speed' | choose
search --vary epochs=two                 | epochs 'two' | choose
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_bad_input_is_refused(call, line):
    command, *parts = (part.strip() for part in line.split(" | "))
    status, out, err = call(*command.split())
    assert (status, out, [part for part in parts if part not in err]) == (2, "", [])
    assert parts[0] == "─" or (err[:7], err.count("\n")) == ("error: ", 1)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("reproduce --out file/seeds.jsonl", "file"),
        ("search --log file/log.jsonl", "file"),
        ("reproduce --out seeds.jsonl --weights-dir file/weights", "file/weights"),
        ("export --arch gap --out absent/x", "absent/x"),
        ("train --run-dir /proc/run", "/proc/run"),
    ],
)
def test_what_cannot_be_written_is_named_before_the_work(call, monkeypatch, command, file):
    monkeypatch.setattr(trials, "run", lambda *args: pytest.fail("this is the work"))
    Path("file").touch()
    status, _, err = call(*command.split())
    assert (status in (2, 4), err.count("\n"), f"'{file}" in err, "; " in err) == (True, 1, True, True)


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free space"), (errno.EBADMSG, "name another")])
def test_an_error_of_the_system_has_its_file_and_the_remedy_for_its_cause(number, remedy):
    error = OSError(number, "it says", "a file")
    error.add_note("the rest is kept")
    line, status = describe(error)
    assert line.startswith("it says: 'a file'; ")
    assert (remedy in line, "the rest is kept" in line, status) == (True, True, 4)


SCRIPTS = (path for path in sorted((ROOT / "scripts").rglob("*.py")) if "def main(" in path.read_text("utf-8"))


@pytest.mark.parametrize("name", [*cli.COMMANDS, *(str(path.relative_to(ROOT / "scripts")) for path in SCRIPTS)])
def test_help_is_complete_and_fits(monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run_command(name, "--help") if name in cli.COMMANDS else run_script(name, "--help")
    usage, *lines = out.splitlines()  # tyro does not wrap the first.
    assert (status, usage[:7], max(map(len, lines)) <= 80) == (0, "usage: ", True)
    assert re.search(r"Example: (mnist-jax|python scripts/\S+) ", out)


def test_settings_have_their_groups_and_the_defaults_of_a_recipe():
    out = run_command("train", "--recipe", "reference", "--help")[1]
    assert re.findall(r"(\w+) options ─", out) == ["data", "network", "optimizer", "distortion", "run", "devices"]
    assert not [field.name for field in dataclasses.fields(Config) if f"--{field.name.replace('_', '-')}" not in out]
    assert "(default: 0.01)" in out


def test_the_command_lists_its_commands_and_refuses_others():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["mnist-jax"]
    assert pkgutil.resolve_name(entry) is cli.main
    assert re.findall(r"^  ([a-z-]+) {2,}\w", run_command("--help")[1], re.MULTILINE) == list(cli.COMMANDS)
    assert run_command("--version")[:2] == (0, f"mnist-jax {__version__}\n")
    for args in ([], ["trane"]):
        assert_refused(run_command(*args), "unknown command", "choose from train, evaluate, ")
    assert_refused(run_script("train.py", "--epochs", "0"), "epochs 0", "choose")


def test_what_to_type_next_is_quoted_and_by_uv_where_it_was(monkeypatch):
    assert called("train", "--resume", Path("my runs/a")) == "mnist-jax train --resume 'my runs/a'"
    monkeypatch.setenv("UV", "/bin/uv")
    assert called("train") == "uv run mnist-jax train"


def test_help_imports_nothing_heavy(environment):
    code = """
import contextlib, io, sys
from mnist_jax import cli

for name in ([], *([name] for name in cli.COMMANDS)):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main([*name, "--help"])
print({"tensorflow_datasets", "distributed", "matplotlib", "scipy.special", "scipy.ndimage", "onnx"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout == "set()\n", result.stderr


def test_a_run_keeps_its_data(call, tmp_path):
    """It is scored on it, its classes have their names, and other data of its name is refused."""
    data, other = fruit(tmp_path / "fruit"), fruit(tmp_path / "garden", 1)
    assert call("train", "--dataset", data, *ON_FRUIT, "--run-dir", "run")[::2] == (0, "")
    assert "images of fruit" in Path("run/report.html").read_text(encoding="utf-8")
    status, out, err = call("evaluate", "run", "--json")
    assert (status, json.loads(out)["dataset"], err) == (0, "fruit", "")
    status, out, err = call("evaluate", "run", "--dataset", other)
    assert (status, "trained on fruit" in err, "scored on garden" in err) == (0, True, True)
    assert_refused(call("evaluate", "run", "--dataset", "mnist"), "classes 0, 1", "apple, pear", "name other data")
    shutil.copytree("run", "other")
    Path("other/dataset.json").write_text('{"name": "garden", "sha256": "0"}')
    assert_refused(call("compare", "run", "other"), "in 'other', 'garden' (0)", "name with --dataset what to score")
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
