import re

import pytest
from conftest import ROOT

from mnist_jax import ARCHS, layers_of, make_model
from mnist_jax.lab.exercise import layers_table

PAGE = (ROOT / "docs" / "exercise.md").read_text("utf-8")


def on_the_page(name):
    return re.findall(f"<!-- table: {name} -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)


def test_layers_of_gap_closed_form():
    """Sizes, parameters and multiply-adds are the exercise's; each field is (kernel - 1) * 2**pools wider."""
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in layers_table("gap")]
    assert [(row[0], *row[3:]) for row in cells[2:]] == [
        ("conv1", "26", "3", "144", "97,344"),
        ("conv2", "24", "5", "2,304", "1,327,104"),
        ("conv3", "24", "5", "256", "147,456"),
        ("max pool", "12", "6", "", ""),
        ("conv4", "10", "10", "2,304", "230,400"),
        ("conv5", "8", "14", "2,304", "147,456"),
        ("conv6", "6", "18", "1,440", "51,840"),
        ("conv7", "6", "22", "900", "32,400"),
        ("average pool", "1", "28", "", ""),
        ("conv8", "1", "28", "100", "100"),
        ("sum", "", "", "9,752", "2,034,100"),
    ]
    assert [row[1] for row in cells[8:11]] == ["3x3", "3x3, padded", "6x6"]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_page_of_the_exercise_has_every_network_as_it_is(arch):
    table, layers = list(layers_table(arch)), layers_of(make_model(arch))
    assert on_the_page(f"layers-{arch}") == ["\n".join(table)]
    parameters, products = (
        f"{sum(each):,}" for each in zip(*((x.params, x.multiply_adds) for x in layers), strict=True)
    )
    assert table[-1] == f"| sum | | | | | {parameters} | {products} |"
