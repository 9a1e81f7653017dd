import json
import os

import numpy as np
import pytest
from conftest import assert_refused, refused
from PIL import Image
from scipy import ndimage

from mnist_jax.data import pictures
from mnist_jax.deploy.digits import fit_box
from mnist_jax.deploy.images import find_images, load_image


def stroke(height=28, width=28):
    """A slanted bar on black, float [H, W] up to 255."""
    y, x = np.mgrid[:height, :width]
    middle = width / 2 + (y - height / 2) * 0.3
    bar = 255.0 * (np.abs(x - middle) < width / 10)
    bar[: height // 6] = bar[-height // 6 :] = 0
    return bar


@pytest.fixture
def png(tmp_path):
    """Saves grey values as a PNG."""

    def save(grey, name="digit.png", **options):
        Image.fromarray(np.asarray(grey, np.uint8)).save(tmp_path / name, **options)
        return tmp_path / name

    return save


def test_what_mnist_has_is_what_comes_out(mnist, png):
    """MNIST's own digits, drawn large and dark on light: scaled and centred back to about where they were."""
    differences = []
    for image in mnist.test.images[:50, :, :, 0]:
        large = np.kron(255 - image, np.ones((8, 8)))
        found = load_image(png(np.pad(large, ((70, 10), (0, 130)), constant_values=255)))
        assert (found.shape, found.dtype) == ((28, 28, 1), np.uint8)
        differences.append(np.abs(found[..., 0].astype(float) - image).mean())
    assert np.median(differences) < 8  # Of 255; a shift by one pixel alone is 20.


@pytest.mark.parametrize("size", [(28, 28), (200, 100), (40, 300), (5, 9)])
def test_the_box_is_twenty_pixels_and_its_mass_in_the_middle(size):
    image = fit_box(stroke(*size) / 255)
    ink = image[..., 0] > 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert ndimage.center_of_mass(image[..., 0]) == pytest.approx([14, 14], abs=0.6)


def test_light_and_dark_and_transparency_are_the_same_digit(png, tmp_path):
    grey = np.uint8(stroke(80, 80))
    expected, dark = load_image(png(grey)).astype(int), Image.fromarray(255 - grey)
    saved = {
        "inverted.PNG": dark,
        "white-alpha.png": Image.fromarray(np.dstack([np.full((80, 80, 3), 255, np.uint8), grey])),
        "cmyk.jfif": dark.convert("CMYK"),
        "frames.gif": dark,
    }
    for name, picture in saved.items():
        frames = {"save_all": True, "append_images": [Image.new("L", (80, 80))]} if name == "frames.gif" else {}
        picture.save(tmp_path / name, **frames)
        # What JPEG adds beside an edge may move the digit by a pixel.
        limit = 15 if name == "cmyk.jfif" else 0.5
        assert np.abs(load_image(tmp_path / name).astype(int) - expected).mean() < limit, name
    assert {path.name for path in find_images(tmp_path)} == {*saved, "digit.png"}


def test_refusals(png, tmp_path, monkeypatch):
    """One of each class: damaged, another format, too large, no file, nothing to see, an absent decoder."""
    whole = png(np.random.default_rng(0).integers(0, 255, (99, 99)))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("a seven")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10_000)
    png(np.zeros((99, 102)), "huge.png")
    os.mkfifo(tmp_path / "pipe.png")
    png(np.full((50, 50), 90), "flat.png")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    expected = {
        "cut.png": "give an intact PNG",
        "text.png": "give an intact PNG",
        "huge.png": "102x99 pixels.*up to 25,000,000",
        "pipe.png": "is not a regular file",
        "flat.png": "shows nothing",
        "phone.heic": "pip install pillow-heif|give an intact",  # By whether it is installed.
    }
    for name, match in expected.items():
        refused(f"{name}.*({match})", load_image, tmp_path / name)
    (tmp_path / "folder").mkdir()
    refused("holds no pictures", find_images, tmp_path / "folder")


def test_predict_answers_what_it_can(call, mnist, png, tmp_path):
    """Two hundred test digits, drawn large and dark on light, among files that cannot be used."""
    (tmp_path / "digits").mkdir()
    labels = mnist.test.labels[:200].tolist()
    for i, image in enumerate(mnist.test.images[:200, :, :, 0]):
        png(255 - np.kron(image, np.ones((4, 4))), f"digits/{i:03d}.png")
    (tmp_path / "digits" / "broken.png").write_text("no")
    status, out, err = call("predict", tmp_path / "digits", tmp_path / "absent.png", "--json")
    broken, absent = err.splitlines()
    assert (status, "broken.png" in broken, "absent.png" in absent) == (2, True, True)
    answers = [json.loads(line) for line in out.splitlines()]
    right = [answer["digit"] == label for answer, label in zip(answers, labels, strict=True)]
    assert np.mean(right) >= 0.98
    assert all(abs(sum(answer["probabilities"]) - 1) < 1e-4 for answer in answers)
    status, out, err = call("predict", tmp_path / "digits" / "000.png")
    assert (status, err) == (0, "")
    assert f"000.png: {labels[0]}  " in out
    two = call("predict", tmp_path / "digits" / "000.png", "--arch", "gap", "--run-dir", tmp_path)
    assert_refused(two, "name either a run dir or --arch")
