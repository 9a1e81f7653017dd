"""What the package index, pre-commit and a citation are told agrees with the code."""

import re
import tomllib

from conftest import ROOT

import mnist_jax

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version():
    version = mnist_jax.__version__
    assert re.findall(r"^## (\S+) - 2", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[0] == version
    assert re.findall("^version: (.+)", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE) == [version]
    assert f'__version__ = "{version}"' in (ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).read_text("utf-8")


def on_the_index(text):
    """README as the build writes it into the package."""
    for each in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    return text


def test_readme_on_the_index():
    """Every relative address becomes that of a file that is here, and code stays as it is."""
    readme, code = (ROOT / "README.md").read_text("utf-8"), re.compile("```.*?```", re.DOTALL)
    built = on_the_index(readme)
    targets = re.findall(r"v\$HFPR_VERSION/([^\s)\"#]+)", built)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
    assert not re.findall(r'(?:\]\(|(?:src|srcset|href)=")(?!\w+:|#)\S+', code.sub("", built))
    assert code.findall(built) == code.findall(readme)


def test_pre_commit_has_the_versions_of_the_gate():
    pinned = re.findall(r"--with (\S+)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert len(pinned) == 3
    assert set(pinned) < set((ROOT / "constraints.txt").read_text("utf-8").split())


def test_workflows_install_extras_that_exist():
    texts = [path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    extras = re.findall(r'"\.\[(\w+)\]"', "".join(texts))
    assert len(extras) >= 2
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
