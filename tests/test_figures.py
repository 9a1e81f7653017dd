import io

import numpy as np
import pytest
from PIL import Image

from mnist_jax.reports import figures, themes
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


def test_curves_show_the_history_and_confusion_every_count():
    axis = figures.accuracies(HISTORY, "held-out", 0.994).axes[0]
    train, scored, target = axis.lines
    np.testing.assert_allclose(train.get_ydata(), [90, 90, 90])
    np.testing.assert_allclose(scored.get_ydata(), [95, 95, 95])
    assert target.get_ydata()[0] == pytest.approx(99.4)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["train", "held-out", "99.4"]
    axis = figures.confusion(COUNTS, "0123456789").axes[0]
    assert [int(text.get_text()) for text in axis.texts] == COUNTS.ravel().tolist()
