"""How a command ends where printing fails, a report cannot be drawn, or nobody foresaw the error."""

import contextlib
import os
import subprocess
import sys

import pytest
from conftest import PREPARED, ROOT, run_command

from mnist_jax import cli
from mnist_jax.cli import train
from mnist_jax.reports import report

TINY = ["--data-source", "tfds", "--data-dir", str(PREPARED), "--arch", "8-pool", "--epochs", "1", "--batch-size", "50"]


@pytest.mark.parametrize(
    ("args", "expected"), [(["predict", str(ROOT / "docs/images/digits"), "--show"], 141), (["train", *TINY], 0)]
)
def test_a_training_goes_on_without_its_reader_and_what_only_prints_ends_quietly(args, expected, tmp_path, capsys):
    """Standard output is a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    run_dir = tmp_path / "run"
    args = [*args, *(["--run-dir", str(run_dir), "--no-report"] if args[0] == "train" else [])]
    unread = os.fdopen(writer, "w", buffering=1)
    with unread, contextlib.redirect_stdout(unread), pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert (stop.value.code or 0, capsys.readouterr()) == (expected, ("", ""))
    assert args[0] != "train" or (run_dir / "weights.safetensors").exists()


def test_closed_streams_are_not_given_to_the_files_of_a_run(environment, tmp_path):
    """As in `mnist-jax train ... <&- >&- 2>&-`: what is printed to them would be written into a checkpoint."""
    code = "import os, sys; [os.close(i) for i in range(3)]; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    train = ["-c", "from mnist_jax.cli import main; main()", "train", *TINY, "--run-dir", str(tmp_path / "run")]
    assert subprocess.run([sys.executable, "-c", code, *train, "--no-report"], env=environment).returncode == 0
    assert run_command("train", "--resume", tmp_path / "run", "--no-report")[0] == 0


def test_a_name_that_the_encoding_lacks_is_escaped():
    status, _, err = run_command("predict", "sept\udce9-七.png", encoding="cp1252")
    assert (status, "sept\\udce9-\\u4e03.png" in err.replace("\\\\", "\\")) == (2, True)


def test_the_unforeseen_is_told_apart_from_an_objective_that_is_not_met(call, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "epoch_line", lambda *_: 1 / 0)
    status, _, err = call("train", *TINY, "--run-dir", "run", "--no-report")
    assert status == 70
    line, *traceback = err.splitlines()
    assert line.startswith("error: unforeseen, a bug: ZeroDivisionError")
    assert "what was saved is in 'run'" in line
    assert traceback[0].startswith("Traceback")
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_report_that_cannot_be_drawn_does_not_cost_the_run(call, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "write_report", lambda *_, **__: 1 / 0)
    status, out, err = call("train", *TINY, "--run-dir", "run")
    assert (status, err) == (0, "")
    assert "warning: the report cannot be drawn (ZeroDivisionError" in out
    assert (tmp_path / "run" / "summary.json").exists()
