"""What the package index, pre-commit, the workflows and a citation are told agrees with the code."""

import re
import tomllib

from conftest import ROOT

import mnist_jax


def read(path):
    return (ROOT / path).read_text("utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))


def test_one_version():
    version = mnist_jax.__version__
    assert re.findall(r"^## (\S+) - 2", read("CHANGELOG.md"), re.MULTILINE)[0] == version
    assert re.findall("^version: (.+)", read("CITATION.cff"), re.MULTILINE) == [version]
    assert f'__version__ = "{version}"' in read(PROJECT["tool"]["hatch"]["version"]["path"])


def test_readme_on_the_index():
    """As the build writes it: every relative address is that of a file that is here, and code stays as it is."""
    built, code = read("README.md"), re.compile("```.*?```", re.DOTALL)
    for change in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        built = re.sub(change["pattern"], change["replacement"], built)
    targets = re.findall(r"v\$HFPR_VERSION/([^\s)\"#]+)", built)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
    assert not re.findall(r'(?:\]\(|(?:src|srcset|href)=")(?!\w+:|#)\S+', code.sub("", built))
    assert code.findall(built) == code.findall(read("README.md"))


def test_pre_commit_and_the_workflows_install_what_there_is():
    pinned = re.findall(r"--with (\S+)", read(".pre-commit-config.yaml"))
    assert set(pinned) < set(read("constraints.txt").split())
    texts = [path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    extras = re.findall(r'"\.\[(\w+)\]"', "".join(texts))
    assert min(len(pinned), len(extras)) >= 2
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
