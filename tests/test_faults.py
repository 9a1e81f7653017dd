"""What can go wrong with a run, provoked for real: signals, kills, a full disk, a second process, odd environments."""

import ast
import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from conftest import PREPARED, ROOT, assert_refused, begin, damage, part, refused, run_command, wait_for

from mnist_jax import Config, make_config, save_weights
from mnist_jax.cli import flags, options
from mnist_jax.cli.program import called
from mnist_jax.runs import checkpoints, directory
from mnist_jax.runs.session import session

# A constant rate, so that more epochs may follow; 30 steps an epoch.
FLAGS = ["--no-report", "--data-source", "tfds", "--data-dir", PREPARED, "--arch", "4-pool-4"]
FLAGS += ["--recipe", "reference", "--batch-size", "10", "--average-decay", "0.9", "--rotation", "10"]


def outcome(run_dir):
    """What a run comes to: weights, and metrics without the seconds."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return (run_dir / "weights.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    """The outcome of six epochs in one go."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    status, _, err = run_command("train", *FLAGS, "--epochs", 6, "--run-dir", run_dir)
    assert (status, err) == (0, "")
    return outcome(run_dir)


@pytest.fixture(scope="module")
def three_epochs(environment, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert run_command("train", *FLAGS, "--epochs", 3, "--run-dir", run_dir)[0] == 0
    return run_dir


@pytest.fixture
def run_dir(three_epochs, tmp_path):
    """A run of three epochs, to damage."""
    return shutil.copytree(three_epochs, tmp_path / "run")


def resume(run_dir, *args):
    return run_command("train", "--no-report", "--resume", run_dir, *args)


def finish(run_dir, *args):
    status, _, err = resume(run_dir, *args)
    assert status == 0, err
    return outcome(run_dir)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_mid_epoch_saves_and_says_how_to_go_on(environment, uninterrupted, tmp_path, number, status):
    run_dir = tmp_path / "a [b]"
    process = begin(environment, "train", *FLAGS, "--epochs", 6, "--run-dir", run_dir)
    wait_for((run_dir / "metrics.jsonl").exists, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, err) == (status, "")
    assert out.rstrip().splitlines()[-1] == called("train", "--resume", run_dir)
    assert finish(run_dir) == uninterrupted


def test_a_second_interrupt_leaves_at_once(environment, tmp_path):
    """A step of three seconds and more is under way; there is no waiting for it, and nothing is saved."""
    flags = ["--arch", "basic", "--recipe", "reference", "--batch-size", "2000", "--run-dir", tmp_path / "run"]
    process = begin(environment, "train", *flags)
    wait_for((tmp_path / "run" / ".owner").exists, process)
    # The line that says how many epochs there are is printed before the signals are caught.
    while "epochs of" not in process.stdout.readline():
        pass
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, "to go on" in out, err) == (130, False, "")


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(environment, tmp_path):
    """Soon after another epoch is on disk, while it trains the next or saves one.

    The processes start from one that has imported what they need.
    """
    flags = [*FLAGS, "--batch-size", 100, "--epochs", 40, "--run-dir"]  # Three steps an epoch.
    assert run_command("train", *flags, tmp_path / "whole")[0] == 0
    run_dir, moments, lines = tmp_path / "run", random.Random(0), []
    flags, metrics = [*flags, run_dir], run_dir / "metrics.jsonl"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mnist_jax.cli.train"])
    for _ in range(10):
        process, before = context.Process(target=run_command, args=("train", *flags)), len(lines)
        process.start()
        wait_for(lambda before=before: metrics.exists() and metrics.read_text().count("\n") > before)
        time.sleep(moments.uniform(0, min(json.loads(line)["seconds"] for line in metrics.read_text().splitlines())))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # It was not done yet.
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
        assert max(int(path.stem) for path in (run_dir / "checkpoints").glob("*.safetensors")) >= 3 * len(lines)
        flags = ["--no-report", "--resume", run_dir]
    assert finish(run_dir) == outcome(tmp_path / "whole")
    assert len([*(run_dir / "checkpoints").iterdir()]) == 2


def test_a_full_disk_while_saving(environment, uninterrupted, run_dir):
    """No file may grow beyond 5 kB, as though the disk were full; what was saved goes on where there is room."""
    before = outcome(run_dir)
    limit = (
        "import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (5_000,) * 2); os.execv(sys.argv[1], sys.argv[1:])"
    )
    train = ["-c", "from mnist_jax.cli import main; main()", "train", "--no-report", "--resume", run_dir]
    command = [sys.executable, "-c", limit, sys.executable, *train, "--epochs", "6"]
    # What others compiled is read, but nothing written: that it cannot be is not what this is about.
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1000"
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment | cache)
    assert result.returncode == 4
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert f"'{run_dir / 'checkpoints' / '120.safetensors'}'" in result.stderr
    assert outcome(run_dir) == before
    assert finish(run_dir, "--epochs", 6) == uninterrupted


def test_two_runs_in_one_directory(environment, tmp_path):
    run_dir = tmp_path / "run"
    first = begin(environment, "train", *FLAGS, "--epochs", 1000, "--run-dir", run_dir)
    wait_for((run_dir / "metrics.jsonl").exists, first)
    found = resume(run_dir)
    first.terminate()
    first.communicate()
    assert first.returncode == 143
    status, out, err = found
    assert (status, out, err.count("\n")) == (5, "", 1)
    assert f"is being written by process {first.pid} on" in err


@pytest.mark.parametrize("how", ["missing", "empty", "truncated"])
def test_damage_is_said_aloud_and_mended(uninterrupted, run_dir, how):
    damage(run_dir / "metrics.jsonl", how)
    refused(r"metrics.jsonl' cannot be read .*; resume the run, which writes it", directory.load_epochs, run_dir)
    path = run_dir / "checkpoints" / "90.safetensors"
    damage(path, "truncated")
    status, out, _ = resume(run_dir, "--epochs", 6)
    assert status == 0
    assert f"warning: checkpoint '{path}' is damaged: " in out
    assert f"resuming {run_dir} after step 60" in out
    assert outcome(run_dir) == uninterrupted


def test_a_run_of_version_0_2_is_read_and_not_continued(run_dir):
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints" / "90" / "state").mkdir(parents=True)  # As Orbax wrote it.
    config = json.loads((run_dir / "config.json").read_text()) | {"low_resolution": 20, "low_resolution_epochs": 0}
    (run_dir / "config.json").write_text(json.dumps(config))
    before = outcome(run_dir)
    assert_refused(resume(run_dir), str(run_dir), "0.2")
    status, out, _ = run_command("evaluate", run_dir, "--json")
    assert (status, json.loads(out)["test_accuracy"]) == (0, before[1][-1]["test_accuracy"])
    assert outcome(run_dir) == before


def test_a_session_by_itself(monkeypatch, mnist, tmp_path):
    """It locks the run, times the saving of the weights too, and gives files the mode of the umask."""

    def slowly(*args):
        time.sleep(0.2)
        save_weights(*args)

    monkeypatch.setattr("mnist_jax.runs.session.save_weights", slowly)
    config = make_config("reference", arch="gap", epochs=2, batch_size=100, run_dir=str(tmp_path / "run"))
    told, before = [], os.umask(0o027)
    with session(config, part(mnist, 300, 100)) as run:
        said = r"is being written by process \d+ on .*; wait for it or stop it"
        refused(said, directory.lock(run.run_dir).__enter__)
        state, history = run.fit(on_saved=told.append)
        summary, page = run.finish(state, history[-1])
    os.umask(before)
    assert told == history == directory.load_epochs(run.run_dir)
    assert summary.seconds_of["saving"] >= 0.2
    written = directory.read_record(run.run_dir / "summary.json", directory.Summary)
    assert (written, page, written.version) == (summary, None, 1)
    files = [path for path in run.run_dir.glob("[a-z]*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: 0o640 for path in files}
    assert len(files) == 5
    with directory.lock(run.run_dir):  # It is free again.
        pass


def test_a_diverged_run_keeps_its_last_good_checkpoint(mnist, tmp_path):
    flags = [*FLAGS, "--epochs", 3, "--learning-rate", "1e6", "--run-dir", tmp_path / "run"]
    status, _, err = run_command("train", *flags)
    said = r"error: the loss or its gradient is not finite at step \d+ of 90, in epoch 1; try a smaller learning rate"
    assert re.match(said, err)
    assert (status, err.count("\n")) == (3, 1)
    config = directory.load_config(tmp_path / "run")
    progress, _ = checkpoints.resume(tmp_path / "run", config, part(mnist, 300, 100))
    if progress:
        assert all(abs(leaf).max() < float("inf") for leaf in progress.state.params["conv1"].values())


def test_the_environment_changes_nothing(environment, uninterrupted, tmp_path):
    odd = {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8", "TMPDIR": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    process = begin(environment | odd, "train", *FLAGS, "--epochs", 6, "--run-dir", tmp_path / "run")
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert outcome(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config) if field.type in (int, float)])
def test_every_number_is_accepted_or_refused_by_name(name):
    flag = "--" + name.replace("_", "-")
    for value in ("-1", "nan", "1e400", "0"):
        if value == "0" and name not in ("epochs", "batch_size", "eval_batch_size", "learning_rate"):
            assert getattr(flags.parse(options.TrainOptions, [flag, value], "train").config, name) == 0
        elif Config.__annotations__[name] is int and value in ("nan", "1e400"):
            with pytest.raises(SystemExit):
                flags.parse(options.TrainOptions, [flag, value], "train")
        else:
            refused(name.replace("_", " "), flags.parse, options.TrainOptions, [flag, value], "train")


def test_nothing_is_unpickled():
    """No module of the package imports a serialiser that runs code, and arrays are read without it."""
    for path in sorted((ROOT / "mnist_jax").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
        assert source.count("np.load(") == source.count("allow_pickle=False"), path
