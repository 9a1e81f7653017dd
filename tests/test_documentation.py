"""Every command and every piece of code that README and the site show is run, on less data and for fewer epochs."""

import ast
import graphlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest
from conftest import PREPARED, ROOT, part

import mnist_jax
from mnist_jax import cli, hold_out
from mnist_jax.lab import tables

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PAGES}
TINY = ["--arch", "4-pool-4"]
SMALL = ["--data-source", "tfds", "--data-dir", str(PREPARED), "--batch-size", "50", "--epochs", "1"]
USE, CODE, SHELL = "docs/use.md", *(re.compile(rf"```{kind}\n(.*?)```", re.DOTALL) for kind in ("python", "shell"))


def commands(text):
    """The lines of blocks for a shell, each as its words, without comments."""
    lines = [line for block in SHELL.findall(text) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def ours(command):
    """The words of a command of this project after its program: `train --arch gap`; None for another program."""
    words = command[2:] if command[:2] == ["uv", "run"] else command
    words = words[1:] if words[:1] in (["python"], ["mnist-jax"]) else words
    if words and words[0].startswith("scripts/"):
        words = [Path(words[0]).stem.replace("_", "-"), *words[1:]]
    return words if words and words[0] in {*cli.COMMANDS, *FILES} else None


FILES = {
    "bundle-mnist",
    "calibrate",
    "measure-pictures",
    "screenshots",
    "simulate-search",
    "simulate-comparisons",
    "execute-tour",
    "train-reader",
}  # Scripts that are no commands.
LINES = [line for text in DOCUMENTS.values() for line in commands(text)]
SCRIPTS = list(dict.fromkeys(tuple(words) for line in LINES if (words := ours(line))))
# test_jobs.py, test_data.py, test_devices.py and test_scripts.py have these.
ELSEWHERE = ("--scheduler", "--dataset", "--devices", "--device", *FILES)
TOOLS = [line for line in LINES if line[:2] == ["uv", "run"] and line[2] in ("pytest", "ruff")]
ITSELF = ["uv", "run", "pytest"]  # This is it.


def test_no_command_is_left_out():
    assert len(SCRIPTS) >= 20
    rest = [line for line in LINES if line not in TOOLS and not ours(line)]
    programs = {
        "git clone",
        "pip install",
        "uvx pre-commit",
        ".ci/run",
        "uv run",
        "sphinx-build -W",
        "dask scheduler",
        "dask worker",
    }
    assert {" ".join(line[:2]) for line in rest} == programs


def test_the_tests_files_and_functions_they_name_exist():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENTS["docs/promises.md"]))
    defined = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) >= 15
    assert not [name for name in named if f"def {name}(" not in defined]
    folders = "mnist_jax|scripts|tests|results|notebooks|docs"
    named = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w/.-]*\w", "".join(DOCUMENTS.values())))
    examples = {"results/search-ARCH.jsonl", "scripts/NAME.py", "docs/_build"}
    assert len(named) >= 20
    assert not [name for name in named - examples if not (ROOT / name).exists()]
    rows = re.findall(r"\| `(mnist_jax/\S+)` \| `(\w+)` \|", DOCUMENTS["CONTRIBUTING.md"])
    assert len(rows) >= 5
    for file, function in rows:
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")


def test_readme_is_read_in_a_minute():
    """At most 150 lines, and 1,000 words outside tables and code."""
    text = DOCUMENTS["README.md"]
    prose = re.sub(r"```.*?```|^(\||    ).*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("\n") <= 150
    assert 300 < len(prose.split()) <= 1000


def test_links_inside_lead_somewhere():
    """What the site makes itself is checked where it is built."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8"))]
    inside = [(page, link) for page, link in links if not link.startswith(("https://", "made/"))]
    assert len(inside) >= 40
    assert not [link for page, link in inside if not (page.parent / link).exists()]


def imports(path):
    """The files of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "mnist_jax" for alias in node.names):
            yield ROOT / "mnist_jax" / "__init__.py"  # After all others.
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mnist_jax":
            folder = ROOT / node.module.replace(".", "/")
            for name in (alias.name for alias in node.names):
                found = (folder / f"{name}.py", folder.with_suffix(".py"), folder / "__init__.py")
                yield next(file for file in found if file.exists())


def test_no_import_runs_back_up_the_tree():
    """CONTRIBUTING's tree has every file and folder at the top, and each imports from those above only."""
    tree = DOCUMENTS["CONTRIBUTING.md"].split("    mnist_jax/ ", 1)[1].split("    scripts/", 1)[0]
    order = re.findall(r"^      ([\w.]+)/? ", tree, re.MULTILINE)
    package = ROOT / "mnist_jax"
    unlisted = {"__init__.py", "__init__.pyi", "__pycache__", "py.typed"}
    assert set(order) == {path.name for path in package.iterdir()} - unlisted
    graph = {path: list(imports(path)) for path in package.rglob("*.py") if path != package / "__init__.py"}
    for path, imported in graph.items():
        for other in imported:
            assert other != package / "__init__.py", f"{path} imports the package"
            mine, theirs = (order.index(file.relative_to(package).parts[0]) for file in (path, other))
            assert theirs <= mine, f"{path} imports {other}"
    graphlib.TopologicalSorter(graph).prepare()  # Raises where there is a circle.


@pytest.mark.parametrize("command", [command for command in TOOLS if command != ITSELF], ids=" ".join)
def test_tools_understand_their_commands(command):
    tool, arguments = command[2], command[3:]
    collect = ["--collect-only", "-q", "-n", "0", "tests/test_augment.py"]
    dry = collect if tool == "pytest" else ["--check"] * ("format" in arguments)
    command = [sys.executable, "-m", tool, *arguments, *dry]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_commands_work_in_their_order(script, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "insert_tables", lambda text, results: text)  # README stays as it is.
    shorter = {
        "train": [*SMALL, "--no-report"],
        "search": [*SMALL, "--recipe", "reference", "--held-out", "100", "--log", "log.jsonl"],
        "reproduce": [*SMALL, *TINY, "--out", "seeds.jsonl"],
        "benchmark": [*TINY, "--rounds", "1", "--steps", "1", "--contenders", "ours", "--json", "speed.json"],
        "time-to-target": ["--json", "time.json"],
        "estimate-tpu": ["--json", "tpu.json"],
    }
    ran = None
    for name, *given in (words for words in SCRIPTS if not {*words} & {*ELSEWHERE}):
        arguments = [part.replace("RUN_DIR", ran or "") for part in given]
        arguments = [str(PREPARED) if part == "DIR" else part for part in arguments]
        arguments = [str(ROOT / part) if part.startswith(("docs/", "results/default-")) else part for part in arguments]
        monkeypatch.chdir(ROOT if "--table" in arguments else tmp_path)
        few = [] if {"--resume", "--help", "--table"} & {*arguments} else shorter.get(name, [])
        few = [*few, *(["--trainings", "9"] if "--until" in given else [])]
        status, out, err = script(f"{name.replace('-', '_')}.py", *arguments, *few)
        if name in ("time-to-target", "estimate-tpu") and status == 2:
            assert "is not installed" in err
            continue
        assert status == ("--require-objective" in arguments), (name, arguments, err)
        if name == "train" and not ran:
            (run_dir,) = (tmp_path / "runs").iterdir()
            ran = run_dir.name
        if name == "predict":
            assert "seven.png: 7" in out


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param(name, code, id=f"{name} {i}")
        for name, text in DOCUMENTS.items()
        for i, code in enumerate(CODE.findall(text) if name != USE else [])
    ],
)
def test_code_runs_as_it_stands(name, code, mnist, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(mnist_jax, "load_dataset", lambda name: part(mnist, 2000, 100))
    monkeypatch.setattr(mnist_jax, "hold_out", lambda data, size: hold_out(data, size // 10))
    with mock.patch.dict(mnist_jax.ARCHS), mock.patch.dict(mnist_jax.RECIPES):  # What the code adds goes away after it.
        exec(compile(code, name, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_library_is_used_as_its_page_says(capsys):
    """From top to bottom, in one process, on all of MNIST where it is loaded."""
    names = {"__name__": "example"}
    with jax.numpy_rank_promotion("allow"):
        for i, code in enumerate(CODE.findall(DOCUMENTS[USE])):
            exec(compile(code, f"{USE} {i}", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 3
