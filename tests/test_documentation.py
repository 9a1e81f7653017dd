"""Every command and every piece of code that README and the site show is run, on less data and for fewer epochs."""

import ast
import graphlib
import re
import shlex
from unittest import mock

import jax
import numpy as np
import pytest
from conftest import PREPARED, ROOT, part

import mnist_jax
from mnist_jax import cli, hold_out

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
    if words[:1] == ["scripts/train.py"]:
        return ["train", *words[1:]]
    return words[1:] if words[:1] == ["mnist-jax"] and len(words) > 1 and words[1] in cli.COMMANDS else None


LINES = [line for text in DOCUMENTS.values() for line in commands(text)]
OURS = list(dict.fromkeys(tuple(words) for line in LINES if (words := ours(line))))
ELSEWHERE = ("--scheduler", "--dataset", "--devices")  # test_workers.py, test_data.py and test_devices.py have these.
TOOLS = [line for line in LINES if line[:2] == ["uv", "run"] and line[2] in ("pytest", "ruff")]


def test_no_command_is_left_out():
    assert len(OURS) >= 20
    rest = [line for line in LINES if line not in TOOLS and not ours(line)]
    programs = {
        "git clone",
        "pip install",
        "uvx pre-commit",
        ".ci/run",
        ".ci/versions",
        "uv run",
        "sphinx-build -W",
        "dask scheduler",
        "dask worker",
        "mnist-jax --help",
        *(f"python {path.relative_to(ROOT)}" for path in (ROOT / "scripts").rglob("*.py")),
    }
    assert {" ".join(line[:2]) for line in rest} <= programs


def test_the_tests_files_and_functions_they_name_exist():
    named = set(re.findall(r"`(test_\w+)`", DOCUMENTS["docs/promises.md"]))
    defined = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) >= 15
    assert not [name for name in named if f"def {name}(" not in defined]
    folders = "mnist_jax|scripts|tests|results|notebooks|docs"
    named = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w/.-]*\w", "".join(DOCUMENTS.values())))
    examples = {"results/search/ARCH.jsonl", "docs/_build"}
    assert len(named) >= 20
    assert not [name for name in named - examples if not (ROOT / name).exists()]
    rows = re.findall(r"\| `(mnist_jax/\S+)` \| `(\w+)` \|", DOCUMENTS["CONTRIBUTING.md"])
    assert len(rows) >= 5
    for file, function in rows:
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")


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
    unlisted = {"__init__.py", "__pycache__", "py.typed"}
    assert set(order) == {path.name for path in package.iterdir()} - unlisted
    graph = {path: list(imports(path)) for path in package.rglob("*.py") if path != package / "__init__.py"}
    for path, imported in graph.items():
        for other in imported:
            assert other != package / "__init__.py", f"{path} imports the package"
            mine, theirs = (order.index(file.relative_to(package).parts[0]) for file in (path, other))
            assert theirs <= mine, f"{path} imports {other}"
    graphlib.TopologicalSorter(graph).prepare()  # Raises where there is a circle.


@pytest.mark.slow
def test_commands_work_in_their_order(call, mnist, tmp_path):
    names = ("x_train", "y_train", "x_test", "y_test")
    few = part(mnist, 100, 100)
    np.savez("few.npz", **dict(zip(names, (*few.train, *few.test), strict=True)))
    shorter = {
        "train": [*SMALL, *TINY, "--no-report"],
        "search": [*SMALL, *TINY, "--recipe", "reference", "--held-out", "100", "--log", "log.jsonl", "--jobs", "1"],
        "reproduce": [*SMALL, *TINY, "--out", "seeds.jsonl", "--seeds", "2", "--jobs", "1"],
    }
    run_dir = ""
    for name, *given in (words for words in OURS if not {*words} & {*ELSEWHERE}):
        arguments = [word.replace("RUN_DIR", run_dir) for word in given]
        arguments = [re.sub("^arch=.*", "arch=4-pool-4,4-pool-5", word) for word in arguments]
        arguments = [str(PREPARED) if word == "DIR" else word for word in arguments]
        arguments = [str(ROOT / word) if word.startswith(("docs/", "results/")) else word for word in arguments]
        if name in shorter and not {"--resume", "--help"} & {*arguments}:
            arguments += shorter[name]
        if name == "evaluate" and "--arch" in arguments:
            arguments += ["--dataset", "few.npz"]
        status, out, err = call(name, *arguments)
        assert status == ("--require-objective" in arguments), (name, arguments, err)
        run_dir = run_dir or next(tmp_path.glob("runs/*")).name  # The first command trains.
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
    assert len(capsys.readouterr().out.splitlines()) == 4
