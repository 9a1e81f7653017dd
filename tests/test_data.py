import sys
from functools import partial

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import PREPARED, SHARED, part

import mnist_jax.data as data
from mnist_jax import InputError, Split, hold_out, load_mnist, standardise

same = partial(chex.assert_trees_all_equal, strict=True)


def test_bundled_shapes_and_class_counts(mnist):
    assert mnist.train.images.shape == (60_000, 28, 28, 1)
    assert mnist.test.images.shape == (10_000, 28, 28, 1)
    for split in mnist:
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.labels.shape == split.images.shape[:1]
    # The class counts of LeCun et al.'s files.
    counts = [np.bincount(split.labels).tolist() for split in mnist]
    assert counts[0] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts[1] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_bundled_hashes_are_those_of_the_specification(mnist):
    assert data.sha256(mnist.train.images) == "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b"
    assert data.sha256(mnist.test.images) == "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca"


def test_tfds_equals_bundled_on_a_prepared_directory(mnist):
    small = load_mnist("tfds", PREPARED)
    assert [len(split.labels) for split in small] == [300, 100]
    assert "tensorflow" not in sys.modules
    same(small, part(mnist, 300, 100))


@pytest.mark.skipif(not (SHARED / "mnist" / "3.0.1").is_dir(), reason="no full TFDS copy of MNIST here")
def test_tfds_equals_bundled_on_all_of_mnist(mnist):
    same(load_mnist("tfds", SHARED), mnist)


def test_hold_out_takes_the_last_training_images(mnist):
    held = hold_out(mnist, 10_000)
    same(held.train, part(mnist, 50_000, 0).train)
    same(held.test, Split(mnist.train.images[50_000:], mnist.train.labels[50_000:]))
    for size in (0, -1, 60_000):
        with pytest.raises(InputError, match=str(size)):
            hold_out(mnist, size)


def test_standardise(mnist):
    pixels = np.arange(256, dtype=np.uint8)
    expected = (pixels.astype(np.float64) / 255 - 0.1307) / 0.3081
    assert standardise(pixels).dtype == jnp.float32
    np.testing.assert_allclose(standardise(pixels), expected, rtol=1e-6, atol=1e-6)
    images = np.asarray(standardise(mnist.train.images))
    assert abs(images.mean(dtype=np.float64)) < 1e-3
    assert abs(images.std(dtype=np.float64) - 1) < 1e-3


def damaged(tmp_path, **changes):
    with np.load(data.BUNDLED) as arrays:
        np.savez(tmp_path / "mnist.npz", **{**arrays, **changes})
    return tmp_path / "mnist.npz"


def test_one_flipped_bit_is_found(tmp_path, mnist):
    images = mnist.test.images.copy()
    images[1234, 14, 14, 0] ^= 1
    path = damaged(tmp_path, test_images=images)
    with pytest.raises(InputError, match=f"test images expected SHA-256 a85d8d.*found {data.sha256(images)}"):
        data._load_bundled(path)


def test_missing_images_are_found(tmp_path, mnist):
    path = damaged(tmp_path, train_images=mnist.train.images[:-1])
    with pytest.raises(InputError, match=r"train images expected uint8 \(60000, .*found uint8 \(59999, "):
        data._load_bundled(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "other", "flipped"])
def test_damaged_file_is_named(tmp_path, damage):
    content, path = data.BUNDLED.read_bytes(), tmp_path / "mnist.npz"
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 0x10]) + content[half + 1 :]
    if damage == "other":
        np.savez(path, readme=np.zeros(1))
    elif damage != "missing":
        path.write_bytes({"truncated": content[:half], "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(InputError, match=str(path)) as error:
        data._load_bundled(path)
    assert "\n" not in str(error.value)


def test_unknown_source_and_stray_or_absent_data_dir(tmp_path):
    with pytest.raises(InputError, match="unknown data source 'torch'; choose from bundled, tfds"):
        load_mnist("torch")
    with pytest.raises(InputError, match="only read by --data-source tfds"):
        load_mnist("bundled", tmp_path)
    with pytest.raises(InputError, match="is not a directory"):
        load_mnist("tfds", tmp_path / "absent")


def test_tfds_not_prepared_and_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs TensorFlow: pip install"):
        load_mnist("tfds", tmp_path)


def test_tfds_not_prepared_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: object())
    # Nothing listens on the discard port: what an unreachable origin looks like, at once.
    monkeypatch.setattr(data, "_TFDS_ORIGIN", "http://127.0.0.1:9/")
    with pytest.raises(InputError, match="origin cannot be reached"):
        load_mnist("tfds", tmp_path)


def test_tfds_truncated(tmp_path):
    target = tmp_path / "mnist" / "3.0.1"
    target.mkdir(parents=True)
    for file in (PREPARED / "mnist" / "3.0.1").iterdir():
        content = file.read_bytes()
        (target / file.name).write_bytes(content[: len(content) // 2] if "train" in file.name else content)
    with pytest.raises(InputError, match=r"TFDS cannot read MNIST") as error:
        load_mnist("tfds", tmp_path)
    assert "\n" not in str(error.value)
