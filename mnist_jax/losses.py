"""Losses: functions of the network, a batch and a key, `(apply, images, labels, key) -> (losses, logits)`.

- `apply(images)` runs the network in training: standardized float32 [B, H, W, C] to logits [B, classes]. It may be
  called several times, each time with other dropout, and under `jax.grad`, `jax.jvp` and `jax.vjp`; not under
  `jax.jit`, `jax.vmap` or `jax.checkpoint`.
- `images` are standardized, `labels` int32 [B], `key` is the step's own.
- `losses`, float32 [B], are reported; their mean is minimized, unless a third result, a scalar, is given for that.
- `logits`, [B, classes], are counted against the labels.

A teacher, or an auxiliary term, is a closure.
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
    """Makes a loss of `function(logits, labels)`, which gives float32 [B], such as the losses of optax."""

    function: Callable[[Logits, Labels], Float[Array, " B"]]

    def __call__(self, apply: Apply, images: Images, labels: Labels, key: Key[Array, ""]) -> Plain:
        """The losses of the logits, and the logits."""
        logits = apply(images)
        return self.function(logits, labels), logits


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy, in nats.

    Attributes:
      label_smoothing: share of the target, in [0, 1), spread evenly over the classes (Szegedy et al.,
        arXiv:1512.00567). The losses that are reported are the plain ones.
    """

    label_smoothing: float = 0.0

    def __call__(self, apply: Apply, images: Images, labels: Labels, key: Key[Array, ""]) -> Plain | Minimized:
        """The plain losses, the logits and, with smoothing, what is minimized."""
        logits = apply(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        if not self.label_smoothing:
            return losses, logits
        # Cross-entropy with the smoothed target, as the mixture that it is.
        loss = losses.mean()
        return losses, logits, loss + self.label_smoothing * (-jax.nn.log_softmax(logits).mean() - loss)
