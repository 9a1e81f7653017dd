"""The API reference has every public name with its arguments, fields and errors, and its examples run."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import sys
import textwrap
import types

import pytest
from conftest import ROOT, finished_run
from PIL import Image

import mnist_jax as mj

PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
ENTRY = re.compile(r"^\.\. (auto|py:)\w+:: mnist_jax\.([\w.]+)\n(?:   :members: (.*)\n)?", re.MULTILINE)
ENTRIES = {name: members for text in PAGES.values() for _, name, members in ENTRY.findall(text)}
DOCUMENTED = [name for text in PAGES.values() for kind, name, _ in ENTRY.findall(text) if kind == "auto"]


def named(name):
    module, _, attribute = f"mnist_jax.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def docstrings(name):
    """Those of an entry, whatever it is, and of its members."""
    members = (ENTRIES[name] or "").split(", ")
    return {member: inspect.getdoc(inspect.getattr_static(named(name), member)) for member in members if member}


def section(doc, title):
    """The names that a section of a docstring describes, and their texts."""
    found = re.search(rf"^{title}:\n((?:  .*\n|\n)+)", f"{doc}\n", re.MULTILINE)
    return dict(re.findall(r"^  (\w+): (\S.*(?:\n    .*)*)", found[1], re.MULTILINE)) if found else {}


def raised(function):
    """The errors that a function raises itself."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield node.exc.func.id
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("require", "refusing"):
            yield "InputError"


def fields(kind):
    """The fields of a named tuple or data class, without those that every Flax module has."""
    names = getattr(kind, "_fields", None) or [field.name for field in dataclasses.fields(kind)]
    return [name for name in names if name not in ("parent", "name") or "flax" not in str(kind.__mro__[-2:])]


def test_every_public_name_has_one_entry():
    entries = [name for text in PAGES.values() for _, name, _ in ENTRY.findall(text)]
    assert len(entries) == len(set(entries)) > 70
    assert not set(mj.__all__) - set(entries)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_arguments_fields_and_errors_are_described(name):
    what, doc = named(name), inspect.getdoc(named(name))
    for member, text in docstrings(name).items():
        function = getattr(what, member)
        parameters = inspect.signature(function).parameters if callable(function) else ()
        assert all(parameter in text for parameter in parameters if parameter != "self")
    if isinstance(what, types.ModuleType) or (isinstance(what, type) and issubclass(what, Exception)):
        assert doc
    elif isinstance(what, type):
        assert list(section(doc, "Attributes")) == fields(what)
    else:
        signature, described = inspect.signature(what), section(doc, "Args")
        assert list(described) == list(signature.parameters)
        for parameter in signature.parameters.values():
            if (
                re.match(r"(?!.*(Callable|float)).*(Array\b|ndarray)", str(parameter.annotation))
                and parameter.name != "key"
            ):
                assert "[" in described[parameter.name], f"{parameter.name} has no shape"
        assert ("\nReturns:\n" in doc) == (signature.return_annotation is not None)
        assert set(raised(what)) <= set(section(doc, "Raises"))


@pytest.fixture(scope="module")
def names():
    """What the reference's first page defines for its examples."""
    names = {"__name__": "example"}
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["index"], re.DOTALL)
    exec(compile(code, "docs/reference/index.md", "exec"), names)
    return names


@pytest.mark.parametrize("page", [page for page in PAGES if page != "index"])
def test_examples_run(page, names, mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    converter = types.SimpleNamespace(to_onnx=lambda *_, **__: types.SimpleNamespace(SerializeToString=lambda: b"onnx"))
    monkeypatch.setitem(sys.modules, "jax2onnx", converter)  # It takes seconds, and test_export.py has it.
    if page == "trained":
        seven = mnist.test.images[list(mnist.test.labels).index(7), :, :, 0]
        Image.fromarray(255 - seven).resize((112, 112)).save("seven.png")
        finished_run(tmp_path / "runs" / "swift", mj.load_pretrained("swift").variables, [0.99], arch="swift")

    def with_docstrings(entry):
        kind, name, _ = entry.groups()
        texts = [inspect.getdoc(named(name)), *docstrings(name).values()] if kind == "auto" else []
        return "\n\n".join([*texts, ""])

    for entry in re.split(r"(?=^\.\. (?:auto|py:))", PAGES[page], flags=re.MULTILINE)[1:]:
        text = ENTRY.sub(with_docstrings, entry)
        assert ">>>" in text or entry.startswith(".. automodule"), entry.splitlines()[0]
    text = ENTRY.sub(with_docstrings, PAGES[page]).replace("```", "\n")
    test = doctest.DocTestParser().get_doctest(text, dict(names), page, f"docs/reference/{page}.md", 0)
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
