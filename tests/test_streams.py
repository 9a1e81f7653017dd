"""How a command ends where printing fails, a report cannot be drawn, or nobody foresaw the error."""

import contextlib
import os
import subprocess
import sys

import pytest
from conftest import PREPARED, ROOT, run_script

from mnist_jax import cli
from mnist_jax.cli import train
from mnist_jax.reports import report

TINY = ["--data-source", "tfds", "--data-dir", str(PREPARED), "--arch", "8-pool", "--epochs", "1", "--batch-size", "50"]


def status(*args):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, args)))
    return stop.value.code or 0


@contextlib.contextmanager
def unread():
    """Standard output is a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, contextlib.redirect_stdout(stream):
        yield


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"]])
def test_a_command_that_only_prints_ends_quietly_with_its_reader(args, capsys):
    with unread():
        assert status(*args) == 141
    assert capsys.readouterr() == ("", "")


def test_a_training_goes_on_without_its_reader(tmp_path):
    with unread():
        assert status("train", *TINY, "--run-dir", tmp_path / "run", "--no-report") == 0
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_closed_streams_lead_nowhere(monkeypatch):
    """As in `mnist-jax --version >&- 2>&-`."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert [status("--version"), status("no-command")] == [0, 2]


@pytest.mark.parametrize(("name", "encoding"), [("sept\udce9.png", "utf-8"), ("七.png", "cp1252")])
def test_a_name_that_the_encoding_lacks_is_escaped(name, encoding):
    code, _, err = run_script("predict.py", name, encoding=encoding)
    assert code == 2
    assert name.encode("ascii", "backslashreplace").decode() in err.replace("\\\\", "\\")


def test_the_unforeseen_is_told_apart_from_an_objective_that_is_not_met(script, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "epoch_line", lambda *_: 1 / 0)
    code, _, err = script("train.py", *TINY, "--run-dir", "run", "--no-report")
    assert code == 70
    line, *traceback = err.splitlines()
    assert line.startswith("error: unforeseen, a bug: ZeroDivisionError")
    assert "what was saved is in 'run'" in line
    assert traceback[0].startswith("Traceback")
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_report_that_cannot_be_drawn_does_not_cost_the_run(script, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "write_report", lambda *_, **__: 1 / 0)
    code, out, err = script("train.py", *TINY, "--run-dir", "run")
    assert (code, err) == (0, "")
    assert "warning: the report cannot be drawn (ZeroDivisionError" in out
    assert (tmp_path / "run" / "summary.json").exists()


def test_figures_need_no_backend():
    """The environment's may not be installed, as where a process has it from Jupyter."""
    code = "from mnist_jax.reports import report; import os; print(os.environ['MPLBACKEND'])"
    env = os.environ | {"MPLBACKEND": "module://absent", "PYTHONPATH": str(ROOT)}
    for backend in ("module://absent", "nonsense"):
        said = subprocess.run(
            [sys.executable, "-c", code], env=env | {"MPLBACKEND": backend}, capture_output=True, text=True, check=True
        )
        assert said.stdout == f"{backend}\n"
