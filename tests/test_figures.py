import base64
import colorsys
import io
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageColor

from mnist_jax.reports import figures, themes
from mnist_jax.reports.report import picture_of_digits
from mnist_jax.statistics import calibration, confusion
from mnist_jax.training import EpochMetrics

HISTORY = [EpochMetrics(i, 0.5 / i, 0.9, 0.4 / i, 0.95, 1.0) for i in (1, 2, 3)]
RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.dirichlet(np.ones(10), 200)
LABELS = RANDOM.integers(0, 10, 200)
COUNTS = confusion(LABELS, PROBABILITIES.argmax(1))


@pytest.mark.parametrize("theme", [themes.LIGHT, themes.DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.losses(HISTORY, "test"),
        lambda: figures.accuracies(HISTORY, "held-out", 0.994),
        lambda: figures.confusion(COUNTS, "0123456789"),
        lambda: figures.reliability(calibration(PROBABILITIES, LABELS)),
        lambda: figures.digits(RANDOM.integers(0, 255, (13, 28, 28, 1)).astype(np.uint8), ["1 not 7"] * 13),
        lambda: figures.digits(np.zeros((0, 28, 28, 1), np.uint8), []),
        lambda: figures.learning_rates(np.linspace(0, 1, 9)),
        lambda: figures.kernels(RANDOM.normal(size=(3, 3, 1, 16))),
    ],
)
def test_every_picture_is_drawn_on_its_paper(draw, theme):
    image = Image.open(io.BytesIO(themes.png(draw, theme)))
    assert image.format == "PNG"
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 0 or draw().axes[0].images  # Something is on it, unless there is nothing to show.
    if draw().axes[0].axison:
        paper = tuple(int(theme["paper"][i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[0, 0]) == paper


def test_a_dark_picture_has_its_own_paper_and_ink_and_the_hues_of_the_light_one():
    draw = partial(figures.losses, HISTORY, "test")
    light, dark = (Image.open(io.BytesIO(file)) for file in themes.light_and_dark(draw))
    drawn = Image.open(io.BytesIO(themes.png(draw, themes.LIGHT)))
    np.testing.assert_array_equal(light, drawn.convert("RGB"))
    for part in ("paper", "ink"):
        before, after = (np.array(ImageColor.getrgb(theme[part])) for theme in (themes.LIGHT, themes.DARK))
        places = (np.asarray(light) == before).all(-1)
        assert places.any()
        assert abs(np.asarray(dark)[places].astype(int) - after).max() <= 1
    for color in (figures.BLUE, figures.ORANGE, figures.GREEN):
        was = ImageColor.getrgb(color)
        now = themes.darkened(Image.new("RGB", (1, 1), was)).getpixel((0, 0))
        turn = abs(colorsys.rgb_to_hls(*was)[0] - colorsys.rgb_to_hls(*now)[0])
        assert min(turn, 1 - turn) < 0.05


def test_photographs_are_not_darkened():
    images, gray = np.full((1, 28, 28, 3), (200, 30, 40), np.uint8), np.full((1, 28, 28, 1), 255, np.uint8)
    middles = {}
    for name, shown in (("photograph", images), ("digit", gray)):
        page = picture_of_digits(shown, ["1 not 7"], "One error.")
        pixels = [Image.open(io.BytesIO(base64.b64decode(page[theme]))).convert("RGB") for theme in ("light", "dark")]
        middles[name] = [each.getpixel((each.width // 20, each.height // 3)) for each in pixels]
    assert middles["photograph"] == [(200, 30, 40)] * 2
    assert middles["digit"] == [ImageColor.getrgb(theme["ink"]) for theme in (themes.LIGHT, themes.DARK)]


def test_curves_show_the_history_and_confusion_every_count():
    axis = figures.accuracies(HISTORY, "held-out", 0.994).axes[0]
    train, scored, target = axis.lines
    np.testing.assert_allclose(train.get_ydata(), [90, 90, 90])
    np.testing.assert_allclose(scored.get_ydata(), [95, 95, 95])
    assert target.get_ydata()[0] == pytest.approx(99.4)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train", "held-out", "99.4"]
    axis = figures.confusion(COUNTS, "0123456789").axes[0]
    assert [int(text.get_text()) for text in axis.texts] == COUNTS.ravel().tolist()


@pytest.mark.parametrize("sizes", [(3936,), (194_884, 719), (9408, 9910)])
def test_a_comparison_shows_runs_of_any_size(sizes):
    """Every mark is within the axes, and so is a tick at least."""
    axis = figures.comparison({f"{size}": (size, [HISTORY]) for size in sizes}, "test", 0.994).axes[0]
    (low, high), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert all(low < size < high for size in sizes)
    assert bottom < 95 < 99.4 < top
    for (first, last), ticks in (((low, high), axis.get_xticks()), ((bottom, top), axis.get_yticks())):
        assert any(first <= tick <= last for tick in ticks)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_each_of_many_runs_has_a_look_of_its_own_and_the_legend_covers_none(count):
    names = [f"network {i}, recipe" for i in range(count)]
    figure = figures.comparison({name: (10_000, [HISTORY, HISTORY]) for name in names}, "test", 0.994)
    figure.draw_without_rendering()
    lines = [line for line in figure.axes[1].get_lines() if line.get_label() in {f"{name} (2)" for name in names}]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == count
    (legend,) = figure.legends
    assert not any(axis.get_tightbbox().overlaps(legend.get_window_extent()) for axis in figure.axes)
    assert legend.get_window_extent().y0 >= 0
