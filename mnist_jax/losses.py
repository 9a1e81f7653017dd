"""Losses: functions `(apply, images, labels, key) -> (losses, logits)` of the network, a batch and a key.

- `apply(images)` runs the network in training mode, from standardized float32 [B, H, W, C] to logits [B, classes]. It
  may be called several times, each with new dropout, and under `jax.grad`, `jax.jvp` and `jax.vjp`, but not under
  `jax.jit`, `jax.vmap` or `jax.checkpoint`.
- `images` are standardized float32 [B, H, W, C], `labels` int32 [B]; `key` belongs to this step.
- `losses`, float32 [B], are reported, and their mean is minimized. A third result, a scalar, is minimized instead.
- `logits`, [B, classes], give the accuracy.

A teacher network or an auxiliary term is a closure.
"""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int, Key

Images = Float[Array, "B H W C"]
Labels = Int[Array, " B"]
Logits = Float[Array, "B classes"]
Apply = Callable[[Images], Logits]
Plain = tuple[Float[Array, " B"], Logits]
Minimized = tuple[Float[Array, " B"], Logits, Float[Array, ""]]
Loss = Callable[[Apply, Images, Labels, Key[Array, ""]], Plain | Minimized]


@dataclasses.dataclass(frozen=True)
class from_logits:
    """Makes a loss of a function of logits and labels, such as those of optax.

    Attributes:
      function: `(logits, labels) -> losses`: float32 [B, classes] and int32 [B] to float32 [B].

    Example:
      >>> def focal(logits, labels):
      ...     losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      ...     return losses * (1 - jnp.exp(-losses)) ** 2
      >>> setup = mj.make_setup(config, data, loss=mj.losses.from_logits(focal))
    """

    function: Callable[[Logits, Labels], Float[Array, " B"]]

    def __call__(self, apply: Apply, images: Images, labels: Labels, key: Key[Array, ""]) -> Plain:
        """Returns the losses and the logits."""
        logits = apply(images)
        return self.function(logits, labels), logits


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

    def __call__(self, apply: Apply, images: Images, labels: Labels, key: Key[Array, ""]) -> Plain | Minimized:
        """Returns the losses without smoothing, the logits and, with smoothing, the scalar to minimize."""
        logits = apply(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if not self.label_smoothing:
            return losses, logits
        # The cross-entropy with smoothed targets is a mixture of those with true and with uniform targets.
        loss = losses.mean()
        return losses, logits, loss + self.label_smoothing * (-jax.nn.log_softmax(logits).mean() - loss)
