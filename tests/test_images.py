import json
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import assert_refused
from PIL import Image
from scipy import ndimage

from mnist_jax import InputError
from mnist_jax.deploy.digits import fit_box
from mnist_jax.deploy.images import MAX_PIXELS, find_images, load_image


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


def test_light_and_dark_colours_depths_and_transparency_are_the_same_digit(png, tmp_path):
    grey = stroke(80, 80)
    expected = load_image(png(grey)).astype(int)
    dark = 255 - grey
    alpha = np.zeros((80, 80, 4), np.uint8)
    alpha[..., 3] = grey
    white = alpha.copy()
    white[..., :3] = 255
    wide = (dark * 257).astype(np.uint16)
    pictures = {
        "inverted.png": Image.fromarray(dark.astype(np.uint8)),
        "colour.png": Image.fromarray(np.stack([dark, dark, dark], -1).astype(np.uint8)),
        "palette.png": Image.fromarray(dark.astype(np.uint8)).convert("P"),
        "alpha.png": Image.fromarray(alpha),
        "white-alpha.png": Image.fromarray(white),
        "deep.png": Image.fromarray(wide),
        "photo.jpg": Image.fromarray(dark.astype(np.uint8)),
        "digit.webp": Image.fromarray(dark.astype(np.uint8)),
        "cmyk.jpeg": Image.fromarray(np.stack([dark] * 3, -1).astype(np.uint8)).convert("CMYK"),
    }
    pictures["float.tiff"] = Image.fromarray(np.float32(dark / 255))
    pictures["frames.gif"] = Image.fromarray(dark.astype(np.uint8))
    for name, picture in pictures.items():
        frames = {"save_all": True, "append_images": [Image.new("L", (80, 80))]} if name.startswith("frames") else {}
        picture.save(tmp_path / name, **frames)
        found = load_image(tmp_path / name).astype(int)
        # What JPEG adds beside an edge may move the digit by a pixel.
        assert np.abs(found - expected).mean() < (15 if name.endswith((".jpg", ".jpeg", ".webp")) else 0.5), name


def test_refusals(png, tmp_path):
    (tmp_path / "text.png").write_text("a seven")
    whole = png(np.random.default_rng(0).integers(0, 255, (99, 99)))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "huge.png").write_bytes(blank_png(20_000, 20_000))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    png(np.full((50, 50), 90), "flat.png")
    expected = {
        "absent.png": "No such file",
        "text.png": "not an intact picture",
        "cut.png": "cannot be read",
        "huge.png": f"up to {MAX_PIXELS:,}",
        "pipe.png": "is not a regular file",
        "phone.heic": "pip install pillow-heif|not an intact picture",  # By whether it is installed.
        "flat.png": "shows nothing",
    }
    for name, reason in expected.items():
        with pytest.raises(InputError, match=reason) as error:
            load_image(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe.png")
    with pytest.raises(InputError, match=r"holds no \.png, \.jpg, .* file"):
        find_images(tmp_path / "folder")


def blank_png(width, height):
    """The head of a picture that would fill 400 MB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_predict_answers_what_it_can(call, mnist, png, tmp_path):
    """Two hundred test digits, drawn large and dark on light, among files that cannot be used."""
    (tmp_path / "digits").mkdir()
    for i, image in enumerate(mnist.test.images[:200, :, :, 0]):
        png(255 - np.kron(image, np.ones((4, 4))), f"digits/{i:03d}.png")
    (tmp_path / "digits" / "broken.png").write_text("no")
    status, out, err = call("predict", tmp_path / "digits", tmp_path / "absent.png", "--json")
    assert status == 2
    assert err.count("\n") == 2
    assert "broken.png" in err
    assert "absent.png" in err
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 200
    right = [answer["digit"] == label for answer, label in zip(answers, mnist.test.labels[:200], strict=True)]
    assert np.mean(right) >= 0.98
    assert all(abs(sum(answer["probabilities"]) - 1) < 1e-4 for answer in answers)
    status, out, err = call("predict", tmp_path / "digits" / "000.png")
    assert (status, err) == (0, "")
    assert f"000.png: {mnist.test.labels[0]}  " in out
    two = call("predict", tmp_path / "digits" / "000.png", "--arch", "gap", "--run-dir", tmp_path)
    assert_refused(two, "name either a run dir or --arch")
