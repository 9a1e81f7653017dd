import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mnist_jax import augment
from mnist_jax.augment import Affine, Distortion

affine = jax.jit(augment.affine)
distort = jax.jit(augment.distort, static_argnums=2)


@pytest.fixture(scope="module")
def images(mnist):
    return mnist.train.images[:64]


def test_identity_is_the_input_to_the_bit(images):
    np.testing.assert_array_equal(affine(images, Affine()), images)
    floats = np.random.default_rng(0).normal(size=(3, 9, 12, 2)).astype(np.float32)
    np.testing.assert_array_equal(affine(floats, Affine()), floats)
    np.testing.assert_array_equal(distort(jax.random.key(0), images, Distortion()), images)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, -1), (-28, 0), (40, 2)])
def test_whole_pixel_shifts_are_array_shifts(images, down, right):
    expected = ndimage.shift(images, (0, down, right, 0), order=0)
    np.testing.assert_array_equal(affine(images, Affine(shift_down=down, shift_right=right)), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.floats(-4, 4), st.floats(-6, 6), st.floats(-6, 6), st.floats(0.4, 2.5), st.floats(-1, 1), st.integers(0, 2**31)
)
def test_agreement_with_scipy(rotation, down, right, scale, shear, seed):
    image = np.random.default_rng(seed).uniform(size=(11, 14)).astype(np.float32)
    angle = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    # In rows and columns: drawing goes down, so that up and counter-clockwise change sign.
    forward = angle @ np.array([[1, 0], [-shear, 1]]) * scale
    inverse = np.linalg.inv(forward)
    middle = np.array([5.0, 6.5])
    offset = middle - inverse @ (middle + np.array([down, right]))
    expected = ndimage.affine_transform(image.astype(np.float64), inverse, offset, order=1, mode="grid-constant")
    drawn = affine(image[None, :, :, None], Affine(rotation, down, right, scale, shear))[0, :, :, 0]
    # Float32 coordinates are good to a few millionths of a pixel, and neighbours differ by up to one.
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_each_image_has_its_own_draw_and_they_span_the_range_evenly():
    """The centre of mass of a dot tells the shift: uniform in +-3, down and right apart."""
    dots = np.zeros((4000, 15, 15, 1), np.uint8)
    dots[:, 7, 7] = 255
    drawn = np.asarray(distort(jax.random.key(0), dots, Distortion(shift=3.0)))[..., 0] / 255
    down = (drawn.sum(2) * np.arange(15)).sum(1) - 7
    right = (drawn.sum(1) * np.arange(15)).sum(1) - 7
    for draws in (down, right):
        assert len(np.unique(draws)) > 3900  # Some are equal by rounding.
        assert np.abs(draws).max() <= 3.001
        assert abs(draws.mean()) < 4 * 3 / 3**0.5 / 4000**0.5
        assert draws.std() == pytest.approx(3 / 3**0.5, rel=0.03)
    assert abs(np.corrcoef(down, right)[0, 1]) < 4 / 4000**0.5


def test_displacement_agrees_with_scipy(images):
    """Each pixel is looked up where the displacement says, with bilinear interpolation and zeros outside."""
    displacement = np.random.default_rng(0).normal(scale=3, size=(2, 4, 28, 28)).astype(np.float32)
    drawn = affine(images[:4], Affine(), displacement)
    places = np.mgrid[:28, :28]
    for i in range(4):
        image = np.pad(images[i, :, :, 0].astype(np.float64), 30)
        expected = ndimage.map_coordinates(image, places + 30 + displacement[:, i], order=1)
        np.testing.assert_allclose(drawn[i, :, :, 0], expected, atol=2e-3)


def test_elastic_distortion_is_smooth_and_as_large_as_said():
    """On ramps, whose pixels tell where they were looked up."""
    rows, columns = np.mgrid[:28, :28].astype(np.float32)
    ramps = np.tile(np.stack([rows, columns], -1)[None], (500, 1, 1, 1)) + 100
    drawn = np.asarray(distort(jax.random.key(0), ramps, Distortion(elastic=0.5)))
    moved = (drawn - ramps)[:, 6:22, 6:22]  # Inside, where nothing is looked up beyond the edge.
    assert abs(moved.mean()) < 0.02
    # Between the points of the grid, draws of two to four of them are mixed.
    assert 0.3 < moved.std() < 0.55
    assert np.abs(np.diff(moved, axis=1)).max() < 0.8
    assert np.corrcoef(moved[:, :-1].ravel(), moved[:, 1:].ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(moved[:-1].ravel(), moved[1:].ravel())[0, 1]) < 0.05
