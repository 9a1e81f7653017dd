"""The exercise's verdict: 99.4%, fewer than 10,000 parameters, fewer than 15 epochs, no fully connected layer."""

from typing import Any, NamedTuple

from mnist_jax.summary import count_dense, count_params
from mnist_jax.training import EpochMetrics

TARGET_ACCURACY = 0.994
PARAMETER_LIMIT = 10_000  # The objective asks for fewer.


class Condition(NamedTuple):
    """One condition of the objective.

    Attributes:
      name: the quantity.
      value: its value, as text.
      target: the value asked for, as text.
      met: whether the condition is met.
    """

    name: str
    value: str
    target: str
    met: bool


def objective(params: Any, epochs: int, accuracy: float, scored_on: str = "test") -> tuple[Condition, ...]:
    """Checks the exercise's four conditions.

    Args:
      params: the network's parameters, a pytree.
      epochs: number of epochs it was trained for.
      accuracy: accuracy after the last epoch, a fraction.
      scored_on: name of the scored split.

    Returns:
      The conditions, each with its name, value, target and whether it is met.

    Example:
      >>> [condition.met for condition in mj.objective(state.params, epochs=3, accuracy=0.9945)]
      [True, True, True, True]
    """
    parameters, dense = count_params(params), count_dense(params)
    wanted = f"at least {TARGET_ACCURACY:.2%}"
    return (
        Condition(f"{scored_on} accuracy", f"{accuracy:.2%}", wanted, accuracy >= TARGET_ACCURACY),
        Condition("parameters", f"{parameters:,}", f"fewer than {PARAMETER_LIMIT:,}", parameters < PARAMETER_LIMIT),
        Condition("epochs", f"{epochs}", "fewer than 15", epochs < 15),
        Condition("fully connected layers", f"{dense}", "none", dense == 0),
    )


def epoch_line(metrics: EpochMetrics, epochs: int, scored: str) -> str:
    """The line that a run prints per epoch; `scored` names the scored split, "test" or "held-out"."""
    seconds = f"{metrics.seconds:.1f}" if metrics.seconds < 100 else f"{metrics.seconds:.0f}"
    return (
        f"epoch {metrics.epoch:{len(str(epochs))}d}/{epochs}  train {metrics.train_accuracy:.2%} (loss "
        f"{metrics.train_loss:.4f})  {scored} {metrics.test_accuracy:.2%} (loss {metrics.test_loss:.4f})  {seconds} s"
    )
