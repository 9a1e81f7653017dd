import dataclasses
import gzip
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PREPARED, damage, part, pictures, refused
from PIL import Image

from mnist_jax.data import Dataset, Split, as_images, bundled, hold_out, load_dataset, standardize, tfds, to_float
from mnist_jax.data.pictures import open_image

COLORS = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), np.uint8)
LABELS = np.arange(12) % 3
GREY = COLORS[..., :1]
same = partial(chex.assert_trees_all_equal, strict=True)


def from_arrays(train=(COLORS, LABELS), test=(COLORS[:3], LABELS[:3]), **kwargs):
    return Dataset.from_arrays(train, test, **kwargs)


def test_as_images():
    for cast in (np.int64, np.uint16, jnp.asarray, np.ndarray.tolist, np.asfortranarray):
        same(as_images(cast(COLORS)), COLORS)
        same(as_images(cast(COLORS[..., 0])), GREY)
    same(as_images(COLORS[:, :3, :, 0]), GREY[:, :3])  # Three rows, not channels first.
    for dtype in (np.float16, np.float64, jnp.bfloat16, np.float32):
        floats = (COLORS / 255).astype(dtype)
        same(as_images(floats), floats.astype(np.float32))
    assert np.shares_memory(as_images(COLORS[..., 0]), COLORS)
    assert as_images(COLORS[:0]).shape == (0, 4, 5, 3)


REFUSED = [
    ({"test": (COLORS.astype(np.float32), LABELS)}, "^test images are float32 from 0.0 to 255.0; give integers"),
    ({"train": (np.full((12, 2, 2), np.nan), LABELS)}, "^train images are float64 from nan to nan"),
    ({"train": (COLORS > 9, LABELS)}, "images are bool"),
    ({"train": (COLORS[0, 0], LABELS)}, r"images have shape \[5, 3\]"),
    ({"train": ([COLORS[0], COLORS[0, 1:]], LABELS)}, "images differ in shape"),
    ({"train": (np.moveaxis(COLORS.repeat(2, 2), -1, 1), LABELS)}, r"\[12, 3, 4, 10\].*np.moveaxis\(images, 1, -1"),
    ({"train": (np.ma.masked_less(COLORS, 9), LABELS)}, "train images have masked pixels"),
    ({"test": (COLORS, np.ma.masked_less(LABELS, 1))}, "test labels are masked"),
    ({"train": (COLORS, LABELS[:-1])}, "train has 12 images and 11 labels"),
    ({"test": (COLORS[:0], LABELS[:0])}, "test has 0 images"),
    ({"train": (COLORS, np.eye(3)[LABELS])}, r"train labels are float64 \[12, 3\].*argmax.*one-hot"),
    ({"train": (COLORS, LABELS - 1)}, "labels go from -1 to 1"),
    ({"train": (COLORS, LABELS + 2**32)}, "labels go from 4294967296 to 4294967298"),
    ({"classes": "ab"}, "labels go from 0 to 2.* at most 1"),
    ({"classes": "aba"}, "classes are .*; give two or more"),
    ({"test": (COLORS[:, 1:], LABELS)}, r"uint8 \[4, 5, 3\], test images uint8 \[3, 5, 3\]"),
    ({"test": COLORS}, "test is a ndarray; give a pair"),
]
STATISTICS = [
    ({"mean": (0.5, 0.5), "deviation": (0.5, 0.5)}, "mean is .*, deviation .*; give tuples of 3"),
    ({"mean": (0.5, 0.5, np.nan)}, "mean is .*; give tuples of 3 finite"),
    ({"deviation": (0.5, 0, 0.5)}, "deviations above 0"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED + STATISTICS)
def test_arrays_that_are_refused_also_by_replace(change, match):
    if {*change} <= {"train", "test", "classes"}:
        refused(match, from_arrays, **change)
    refused(match, dataclasses.replace, from_arrays(), **change)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, ">i2", jnp.int4])
def test_labels_are_converted(dtype):
    data, labels = from_arrays(train=(COLORS, LABELS[:, None].astype(dtype))), LABELS[::-1].astype(dtype)
    same(data.train, Split(COLORS, LABELS.astype(np.int32)))
    other = dataclasses.replace(data, train=data.train._replace(labels=labels), mean=(0.5,), deviation=(0.25,))
    same(other.train, Split(COLORS, LABELS[::-1].astype(np.int32)))
    assert np.shares_memory(other.train.images, COLORS)
    assert (other.mean, other.test.labels.dtype, other.sha256 != data.sha256) == ((0.5,), np.int32, True)


@pytest.mark.parametrize("scale", [1, 255], ids=["uint8", "float"])
def test_mean_and_deviation_are_those_of_the_training_images(scale):
    images = np.concatenate([COLORS[..., :2], np.full_like(GREY, 77)], -1)
    images = images / 255 if scale == 255 else images
    data = from_arrays((images, LABELS), (images[:3], LABELS[:3]), name="own")
    pixels = images / (255 / scale)
    np.testing.assert_allclose(data.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.deviation, [*pixels.std((0, 1, 2))[:2], 1], rtol=1e-6)
    assert repr(data) == "Dataset('own', train=12, test=3, image_shape=(4, 5, 3), classes=3)"
    with jax.numpy_rank_promotion("raise"):
        standardized = np.asarray(standardize(data.train.images, data.mean, data.deviation), np.float64)
    np.testing.assert_allclose(standardized.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std((0, 1, 2)), [1, 1, 0], atol=1e-5)
    refused("images have 1 channels, the mean 3", standardize, GREY, data.mean, data.deviation)


def test_one_channel_is_standardized_to_the_bit(mnist):
    images = mnist.test.images[:100]
    same(standardize(images, mnist.mean, mnist.deviation), (jnp.asarray(images, jnp.float32) / 255 - 0.1307) / 0.3081)
    np.testing.assert_allclose(to_float(images / 255), images, rtol=1e-6)


def test_hash_is_of_arrays_and_classes():
    data, turned = from_arrays(), (COLORS.reshape(12, 5, 4, 3), LABELS)
    assert data.sha256 == from_arrays(name="other").sha256
    others = ({"classes": "abc"}, {"train": (COLORS, LABELS[::-1])}, {"train": turned, "test": turned})
    assert len({data.sha256, *(from_arrays(**change).sha256 for change in others)}) == 4


def test_hold_out_takes_the_last_training_images(mnist):
    held = hold_out(mnist, 10_000)
    images, labels = mnist.train
    same(held.train, Split(images[:50_000], labels[:50_000]))
    same(held.test, Split(images[50_000:], labels[50_000:]))
    assert all(getattr(held, field) == getattr(mnist, field) for field in ("mean", "deviation", "classes", "name"))
    for size in (0, -1, 60_000):
        refused(str(size), hold_out, mnist, size)
    with pytest.warns(UserWarning, match=r"last 2 .* lack 1 of 3 classes \(a\); shuffle"):
        hold_out(from_arrays(classes="abc"), 2)


def test_bundled_mnist_has_its_statistics_and_a_flipped_bit_is_found(tmp_path, mnist):
    assert (mnist.mean, mnist.deviation, mnist.name) == ((0.1307,), (0.3081,), "mnist")
    assert (mnist.classes, mnist.train.labels.dtype) == (tuple("0123456789"), np.int32)
    images, path = mnist.test.images.copy(), tmp_path / "mnist.npz"
    images[1234, 14, 14, 0] ^= 1
    with np.load(bundled.BUNDLED) as arrays:
        np.savez(path, **{**arrays, "test_images": images})
    refused(f"test images expected SHA-256 a85d8d.*found {bundled.sha256(images)}", bundled.load_bundled, path)


def prepared(data_dir, name, version, **lengths):
    """The small MNIST as another data set's prepared directory, of which as many examples are declared."""
    target = Path(shutil.copytree(PREPARED / "mnist" / "3.0.1", data_dir / name / version))
    short, _, config = name.partition("/")
    for path in target.glob("mnist-*"):
        path.rename(target / path.name.replace("mnist", short, 1))
    info = json.loads((target / "dataset_info.json").read_text()) | {"name": short, "version": version}
    info |= {"configName": config} if config else {}
    for split in info["splits"]:
        split["shardLengths"] = [str(lengths.get(split["name"], 100))]
    (target / "dataset_info.json").write_text(json.dumps(info))
    return data_dir


def test_tfds_gives_what_is_prepared(tmp_path, mnist):
    wanted, small = part(mnist, 300, 100), load_dataset("mnist", source="tfds", data_dir=PREPARED)
    train, test = wanted.train, wanted.test
    assert "tensorflow" not in sys.modules
    same((small.train, small.test), (train, test))
    assert (small.mean, small.classes, small.name) == (mnist.mean, mnist.classes, "mnist")
    fashion = load_dataset("fashion_mnist", data_dir=prepared(tmp_path, "fashion_mnist", "3.0.1", train=300))
    assert (fashion.classes[9], fashion.mean) == ("Ankle boot", from_arrays(train, test).mean)
    # EMNIST is turned, and classes without an example are dropped.
    letters = load_dataset("emnist/letters", data_dir=prepared(tmp_path, "emnist/letters", "3.1.0", train=5, test=2))
    used = sorted({*train.labels[:5], *test.labels[:2]})
    assert (letters.name, letters.classes) == ("emnist/letters", tuple(map(str, used)))
    same(letters.train.images, train.images[:5].swapaxes(1, 2))
    assert [int(letters.classes[label]) for label in letters.train.labels] == train.labels[:5].tolist()


def test_tfds_data_that_does_not_fit(tmp_path):
    refused("'cats_vs_dogs' has the features image, image/filename, label", load_dataset, "cats_vs_dogs")
    (path,) = prepared(tmp_path, "kmnist", "3.0.1").glob("*/*/dataset_info.json")
    path.write_text(path.read_text().replace('"test"', '"validation"'))
    refused("'kmnist' has the splits train, validation; choose", load_dataset, "kmnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_tfds_not_prepared_or_truncated(tmp_path, monkeypatch, name):
    load = partial(load_dataset, name, source="tfds", data_dir=tmp_path)
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: None)
    refused("needs TensorFlow; pip install", load)
    monkeypatch.setattr(tfds.importlib.util, "find_spec", lambda name: object())
    for proxy in ("http_proxy", "https_proxy"):  # Nothing listens on the discard port.
        monkeypatch.setenv(proxy, "http://127.0.0.1:9/")
    refused("origin cannot be reached", load)
    (path,) = prepared(tmp_path, name, "3.0.1").glob("*/*/*train*")
    damage(path, "truncated")
    refused(f"(?i)TFDS cannot read '?{name}", load)


@pytest.mark.parametrize(
    ("dataset", "options", "match"),
    [
        *((name, {}, "name a folder") for name in ("no/", "no.npz", "./no", "~/no", "/no", "C:no", Path("no"))),
        *((name, {}, f"TFDS has no data set '{name}'.*write '{name}/'") for name in ("no", "no/config")),
        ("mnist", {"source": "torch"}, "unknown data source 'torch'; choose from bundled, tfds"),
        ("mnist", {"data_dir": "d"}, "data dir 'd' is only read by data source 'tfds'; choose that"),
        ("no/", {"data_dir": "d"}, "data dir 'd' does not go with path 'no/'"),
        ("no/", {"source": "tfds"}, "data source 'tfds' does not go with path 'no/'"),
        ("kmnist", {"data_dir": "absent"}, "'absent' is not a directory"),
    ],
)
def test_names_and_options(dataset, options, match):
    refused(match, load_dataset, dataset, **options)


def idx(folder, dash="-", packed=""):
    for split in ("train", "t10k"):
        for kind, array in (("images", GREY[..., 0]), ("labels", LABELS.astype(np.uint8))):
            path = folder / f"{split}-{kind}{dash}idx{array.ndim}-ubyte{packed}"
            content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


def npz(folder):
    np.savez(folder / "own.npz", x_train=COLORS, y_train=LABELS, x_test=COLORS, y_test=LABELS)
    return folder / "own.npz"


NUMBERS = ("9", "10", "11")


def numbers(folder):
    return Path(pictures(folder, COLORS, LABELS, NUMBERS))


@pytest.mark.parametrize("write", [idx, partial(idx, dash="."), partial(idx, packed=".gz"), npz])
def test_files_give_their_arrays(tmp_path, write):
    path = write(tmp_path)
    data = load_dataset(path)
    same(data.train, Split(COLORS if write is npz else GREY, LABELS.astype(np.int32)))
    same(data.test, data.train)
    assert data.name == path.stem


@pytest.mark.parametrize(("images", "classes"), [(GREY, NUMBERS), (COLORS, ("10", "9", "a"))])
def test_pictures_give_their_arrays_not_in_order_of_class(tmp_path, images, classes):
    data = load_dataset(pictures(tmp_path, images, LABELS, classes))
    pairs = data.train, (images, LABELS)
    found, wanted = ([(label, x.tobytes()) for x, label in zip(*pair, strict=True)] for pair in pairs)
    assert sorted(found) == sorted(wanted)
    assert sorted(found, key=lambda pair: pair[0]) != found
    assert (data.image_shape, data.classes, data.name) == (images.shape[1:], classes, tmp_path.name)
    same(data.test, data.train)


@pytest.mark.parametrize(
    ("write", "file", "hows"),
    [
        (partial(shutil.copy, bundled.BUNDLED), "mnist.npz", "truncated missing"),
        (npz, "own.npz", "truncated empty flipped text missing"),
        (idx, "train-images-idx3-ubyte", "truncated empty text missing"),
        (partial(idx, packed=".gz"), "t10k-labels-idx1-ubyte.gz", "truncated empty text flipped"),
        (numbers, "train/9/0.png", "truncated empty text"),
    ],
)
def test_damaged_file_is_named(tmp_path, write, file, hows):
    for how in hows.split():
        path = Path(write(tmp_path))
        damage(tmp_path / file, how)
        match = f"{re.escape(str(path))}.*{file.removesuffix('.gz') if path == tmp_path else ''}"
        refused(match, bundled.load_bundled if file == "mnist.npz" else load_dataset, path)


def test_an_npz_file_of_other_arrays_is_named(tmp_path):
    """Other names; pickled objects, which are not loaded."""
    path = tmp_path / "own.npz"
    for names, value in ((["readme"], 0), (["x_train", "y_train", "x_test", "y_test"], None)):
        np.savez(path, **dict.fromkeys(names, np.array([value])))
        refused("own.npz' cannot be read .*x_train, y_train, x_test, y_test", load_dataset, path)


def test_pictures_that_do_not_fit(tmp_path):
    refused("neither the four IDX files nor train/LABEL", load_dataset, tmp_path)
    numbers(tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "test/9/0.png")
    refused(r"test/9/0.png' has shape \[5, 5, 3\], others \[4, 5, 3\]", load_dataset, tmp_path)
    (tmp_path / "test/12").mkdir()
    (tmp_path / "test/9/0.png").rename(tmp_path / "test/12/0.png")
    refused("test/12 has pictures and train/12 none", load_dataset, tmp_path)


def test_pictures_of_every_suffix_are_read_as_predict_does_and_others_counted(tmp_path):
    suffixes = ["png", "PNG", "bmp", "tif", "gif", "webp", "jfif", "jpe", "ppm", "Tiff"]
    image = Image.fromarray(COLORS[0])
    for folder in ("train/a", "train/b", "test/a"):
        (tmp_path / folder).mkdir(parents=True)
        for suffix in suffixes:
            image.save(tmp_path / folder / f"image.{suffix}")
    for file in ("train/a/notes.txt", "train/.hidden", "test/unlabeled.png"):
        (tmp_path / file).touch()
    with pytest.warns(UserWarning, match=r"2 left out, .*notes.txt"):
        data = load_dataset(tmp_path)
    assert np.bincount(data.train.labels).tolist() == [10, 10]
    opened = {np.asarray(open_image(path)).tobytes() for path in (tmp_path / "test" / "a").iterdir()}
    assert opened == {image.tobytes() for image in data.test.images}


RAMP = np.arange(0, 256, 5, np.uint8).repeat(52).reshape(52, 52)
HALF = np.uint8(255 * (np.arange(52) < 20)).repeat(52).reshape(52, 52)
RED = np.full((52, 52, 3), (200, 0, 0), np.uint8)
TURNED = Image.Exif()
TURNED[0x0112] = 3


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (RAMP * np.uint16(257), {}, RAMP),
        (RAMP / np.float32(255), {}, RAMP),
        (RAMP, {"exif": TURNED}, RAMP[::-1, ::-1]),
        (np.dstack([RED, 255 - HALF]), {}, RED),
        (np.dstack([0 * RED, HALF]), {}, np.stack([255 - HALF] * 3, -1)),
        (np.dstack([RED, 255 - HALF])[..., [1, 3]], {}, 0 * RAMP),
    ],
    ids=["16 bits", "floats", "turned", "on opaque paper", "a dark drawing", "grey on opaque paper"],
)
def test_pictures_are_opened_as_8_bits(tmp_path, pixels, options, expected):
    path = tmp_path / ("picture.tif" if pixels.dtype == np.float32 else "picture.png")
    Image.fromarray(pixels).save(path, **options)
    same(np.asarray(open_image(path)), expected.astype(np.uint8))
