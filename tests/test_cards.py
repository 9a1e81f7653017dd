import re

import pytest
from conftest import ROOT, part

import mnist_jax
from mnist_jax.lab.cards import WEIGHTS, card_table
from mnist_jax.lab.records import read_trials
from mnist_jax.runs.weights import PRETRAINED

CARDS = (PRETRAINED / "README.md").read_text("utf-8")


def test_every_file_of_weights_has_its_card():
    section = r"^## (\S+)\n[^<#]+<!-- table: card-(\S+) -->\n(.*?)\n<!-- end -->"
    found = re.findall(section, CARDS, re.MULTILINE | re.DOTALL)
    assert [title for title, *_ in found] == [name for _, name, _ in found]
    assert {name for _, name, _ in found} == {path.stem for path in PRETRAINED.glob("*.safetensors")}
    assert {name: text for _, name, text in found} == {
        name: "\n".join(card_table(name, ROOT / "results")) for name in WEIGHTS
    }


@pytest.mark.parametrize("arch", mnist_jax.ARCHS)
def test_a_card_quotes_its_own_file(arch):
    """The accuracy, measured with the pictures, is that of the seed whose errors the weights make."""
    (errors,) = (x.errors for x in read_trials(ROOT / "results" / f"default-{arch}.jsonl") if x.config["seed"] == 1)
    assert f"| test images, these weights | {100 - len(errors) / 100:.2f}% of 10,000 right |" in "\n".join(
        card_table(arch, ROOT / "results")
    )


def test_cards_load_as_they_say(mnist, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", CARDS, re.DOTALL)
    monkeypatch.setattr(mnist_jax, "load_dataset", lambda name: part(mnist, 100, 500))
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    assert re.fullmatch(r"(9\d|100)\.\d\d%\n", capsys.readouterr().out)
