"""Scoring and prediction, in batches of one size."""

import dataclasses
from collections.abc import Iterator
from functools import cache

import jax
import numpy as np
from flax.errors import ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError
from jax.sharding import Mesh
from jaxtyping import Float
from numpy.typing import ArrayLike

from mnist_jax import devices
from mnist_jax.data import Split, as_images
from mnist_jax.data.arrays import as_split
from mnist_jax.errors import InputError, require, require_whole
from mnist_jax.runtime import default_types, jit
from mnist_jax.steps import Metrics, Trained, eval_step


def evaluate(trained: Trained, split: Split, batch_size: int = 250, mesh: Mesh | None = None) -> Metrics:
    """Scores a whole split by cross-entropy and accuracy. Every example counts once, whatever batch size and mesh.

    Args:
      trained: the network, a `Trained`.
      split: the `Split` to score, such as `data.test`.
      batch_size: images per step, 1 or more; it changes speed and memory, not the result.
      mesh: devices that share each batch; None for the default device.

    Returns:
      The sums over the split; `.mean()` is mean loss, in nats, and accuracy.

    Raises:
      InputError: the split has no examples or does not fit the network, or the batch size is below 1.

    Example:
      >>> loss, accuracy = mj.evaluate(trained, data.test).mean()
      >>> 0 <= accuracy <= 1
      True
    """
    require(trained, Trained, "trained", "give a Trained, as setup.trained(state)")
    require(split, Split, "split", "give a Split, as data.test")
    if not len(split.labels):
        raise InputError("there are no images to score; give a split with some")
    split = as_split(*split, len(trained.classes))
    _require_shape(trained, split.images)
    return score(trained, split, require_whole(batch_size, "batch size", 1), mesh)


def score(trained: Trained, split: Split, batch_size: int, mesh: Mesh | None, many: bool = False) -> Metrics:
    """As `evaluate`, without checks; with `many`, variables and metrics have a leading axis of trainings."""
    if mesh and not many:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    split_axis, trainings = (None, 0) if many else (0, None)
    shape = jax.tree.leaves(trained.variables)[0].shape[:1] if many else ()
    totals = devices.put(Metrics.zeros(*shape), mesh, trainings)
    variables = devices.put(trained.variables, mesh, trainings)
    rest = devices.put(dataclasses.replace(trained, variables={}), mesh)
    for batch in _batches(split, batch_size):
        totals = _run(_score_many if many else _score, rest, variables, totals, devices.put(batch, mesh, split_axis))
        if mesh:  # XLA:CPU has as few threads as devices: two programs at once could wait for each other.
            jax.block_until_ready(totals)
    return totals


def predict(trained: Trained, images: ArrayLike, batch_size: int = 250) -> Float[np.ndarray, "N classes"]:
    """Computes the logits of images.

    Args:
      trained: the network, a `Trained`.
      images: [N, H, W] or [N, H, W, C], integers from 0 to 255 or floats in [0, 1].
      batch_size: images per step, 1 or more; it changes speed and memory, not the result.

    Returns:
      Logits, float32 [N, classes].

    Raises:
      InputError: the images do not fit the network, or the batch size is below 1.

    Example:
      >>> mj.predict(trained, data.test.images[:4]).shape
      (4, 3)
    """
    require(trained, Trained, "trained", "give a Trained, as setup.trained(state)")
    images = as_images(images)
    _require_shape(trained, images)
    labels = np.zeros(len(images), np.int32)  # Not used.
    batches = _batches(Split(images, labels), require_whole(batch_size, "batch size", 1))
    logits = jax.device_get([_run(_logits, trained, batch) for batch, _, _ in batches])
    return np.concatenate([np.zeros((0, len(trained.classes)), np.float32), *logits])[: len(images)]


def _score(rest, variables, totals, batch):
    return totals + eval_step(dataclasses.replace(rest, variables=variables), *batch)


_score_many = jax.vmap(_score, in_axes=(None, 0, 0, None))


def _logits(trained, images):
    return trained.model.apply(trained.variables, trained.standardize(images), train=False).astype(np.float32)


def _batches(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images, labels and a mask of those that count, in batches of one size: the last one is filled up with zeros."""
    for begin in range(0, len(split.labels), batch_size):
        images, labels = (array[begin : begin + batch_size] for array in split)
        missing = batch_size - len(labels)
        if missing:
            images, labels = (
                np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in (images, labels)
            )
        yield images, labels, np.arange(batch_size) < batch_size - missing


_NOT_OF_NETWORK = (ScopeParamShapeError, ScopeParamNotFoundError, ScopeCollectionNotFound)


def _run(function, trained, *args):
    """Runs a compiled function; raises InputError if the variables are not of the network."""
    try:
        with default_types():
            return _compiled(function)(trained, *args)
    except _NOT_OF_NETWORK as error:
        raise InputError(
            f"trained does not fit its network ({error.args[0].splitlines()[0]}); give the state of one training"
        ) from error


@cache
def _compiled(function):
    return jit(function)


def _require_shape(trained, images):
    if images.shape[1:] != trained.image_shape:
        shapes = ("x".join(map(str, shape)) for shape in (images.shape[1:], trained.image_shape))
        raise InputError("images have shape {}; the network takes {}; give images of that shape".format(*shapes))
