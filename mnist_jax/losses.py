"""Losses: pure functions `(apply, params, images, labels, key) -> (value, (losses, logits, collections))`.

This is the form that `jax.value_and_grad(..., has_aux=True)` takes.

- `apply(params, images, key=None)` runs the network in training mode, from standardized float32 [B, H, W, C] to
  `(logits, collections)`: float32 [B, classes], and the network's other collections as this call changes them, such as
  the running averages of batch norm. Its random streams come from `key`, without one from the step's. It is a pure
  function: it may be called several times, and under any transformation of JAX.
- `images` are standardized float32 [B, H, W, C], `labels` int32 [B]; `key` belongs to this step.
- `value`, float32 [], is minimized.
- `losses`, float32 [B], are reported; `logits`, [B, classes], give the accuracy; `collections` are kept.

A teacher network or an auxiliary term is a closure.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import optax
from jaxtyping import Array, Float, Int, Key

Images = Float[Array, "B H W C"]
Labels = Int[Array, " B"]
Logits = Float[Array, "B classes"]
Losses = Float[Array, " B"]
Params: TypeAlias = Any  # A pytree.
Collections: TypeAlias = dict[str, Any]


class Apply(Protocol):
    """The network in training mode."""

    def __call__(self, params: Params, images: Images, key: Key[Array, ""] | None = None) -> tuple[Logits, Collections]:
        """Returns the logits and the changed collections."""
        ...


Result = tuple[Float[Array, ""], tuple[Losses, Logits, Collections]]
Loss = Callable[[Apply, Params, Images, Labels, Key[Array, ""]], Result]


@dataclasses.dataclass(frozen=True)
class from_logits:
    """Makes a loss of a function of logits and labels, such as those of optax; its mean is minimized.

    Attributes:
      function: `(logits, labels) -> losses`: float32 [B, classes] and int32 [B] to float32 [B].

    Example:
      >>> def focal(logits, labels):
      ...     losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      ...     return losses * (1 - jnp.exp(-losses)) ** 2
      >>> setup = mj.make_setup(config, data, loss=mj.losses.from_logits(focal))
    """

    function: Callable[[Logits, Labels], Losses]

    def __call__(self, apply: Apply, params: Params, images: Images, labels: Labels, key: Key[Array, ""]) -> Result:
        """Returns the mean of the losses, and the losses, the logits and the collections."""
        logits, collections = apply(params, images)
        losses = self.function(logits, labels)
        return losses.mean(), (losses, logits, collections)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy in nats, the default loss.

    Attributes:
      label_smoothing: share of the target, in [0, 1), spread evenly over the classes (Szegedy et al.,
        arXiv:1512.00567). The reported losses have no smoothing.

    Example:
      >>> mj.make_setup(config, data).loss
      CrossEntropy(label_smoothing=0.0)
    """

    label_smoothing: float = 0.0

    def __call__(self, apply: Apply, params: Params, images: Images, labels: Labels, key: Key[Array, ""]) -> Result:
        """Returns the mean with smoothing, and the losses without, the logits and the collections."""
        logits, collections = apply(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        value = losses.mean()
        if self.label_smoothing:
            # The cross-entropy with smoothed targets is a mixture of those with true and with uniform targets.
            value = value + self.label_smoothing * (-jax.nn.log_softmax(logits).mean() - value)
        return value, (losses, logits, collections)
