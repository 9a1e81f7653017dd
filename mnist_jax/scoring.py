"""Scoring and prediction, each one `loops.loop` over a pure body."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from numpy.typing import ArrayLike

from mnist_jax import devices
from mnist_jax.data import Split, as_images
from mnist_jax.data.arrays import as_split
from mnist_jax.errors import InputError, require, require_whole
from mnist_jax.loops import loop
from mnist_jax.steps import Metrics, Trained, eval_step


def evaluate(
    trained: Trained, split: Split, batch_size: int = 250, mesh: Mesh | None = None, many: bool = False
) -> Metrics:
    """Scores a whole split by cross-entropy and accuracy. Every example counts once, whatever batch size and mesh.

    Args:
      trained: the network, a `Trained`.
      split: the `Split` to score, such as `data.test`.
      batch_size: images per step, 1 or more; it changes speed and memory, not the result.
      mesh: devices that share each batch, or the seeds; None for the default device.
      many: whether the variables have a leading axis of seeds; the metrics then have it too.

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
    if not isinstance(split.images, jax.Array):
        split = as_split(*split, len(trained.classes))
    _require_shape(trained, split.images)
    batch_size = min(require_whole(batch_size, "batch size", 1), len(split.labels))
    if mesh and not many:
        batch_size = -(-batch_size // mesh.size) * mesh.size
    split = devices.put(split, mesh)
    order = devices.put(_in_order(len(split.labels), batch_size), mesh, axis=None if many else 1)
    seeds = jax.tree.leaves(trained.variables)[0].shape[:1] if many else ()
    totals = devices.put(Metrics.zeros(*seeds), mesh, axis=0 if many else None)
    return loop(eval_body, range(len(order)), None, totals, trained, (split, order), None, many=many)[1]


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
    order = _in_order(len(images), min(require_whole(batch_size, "batch size", 1), max(len(images), 1)))
    *shared, logits = jax.device_put((images, order, np.zeros((*order.shape, len(trained.classes)), np.float32)))
    logits, _ = loop(predict_body, range(len(order)), logits, None, trained, shared, None)
    return np.asarray(logits).reshape(-1, len(trained.classes))[: len(images)]


def eval_body(i: Any, _: None, totals: Metrics, trained: Trained, shared: Any, static: None) -> tuple[None, Metrics]:
    """Scores the i-th batch. Indices past the end read the last example and do not count."""
    split, order = shared
    batch = order[i]
    mask = batch < len(split.labels)
    return None, totals + eval_step(trained, split.images[batch], split.labels[batch], mask)


def predict_body(i: Any, logits: Any, _: None, trained: Trained, shared: Any, static: None) -> tuple[Any, None]:
    """Writes the logits of the i-th batch."""
    images, order = shared
    batch = trained.standardize(images[order[i]])
    return logits.at[i].set(trained.model.apply(trained.variables, batch, train=False)), None


def _in_order(num_examples, batch_size):
    """Indices int32 [steps, batch_size] of all examples; they run past the end where the last batch is not full."""
    steps = -(-num_examples // batch_size)
    return np.arange(steps * batch_size, dtype=np.int32).reshape(steps, batch_size)


def _require_shape(trained, images):
    if images.shape[1:] != trained.image_shape:
        shapes = ("x".join(map(str, shape)) for shape in (images.shape[1:], trained.image_shape))
        raise InputError("images have shape {}; the network takes {}; give images of that shape".format(*shapes))
