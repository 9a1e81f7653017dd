"""The errors a user can cause. Commands print their one line and exit with `status`."""

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any, TypeVar, cast

Plain = TypeVar("Plain", int, float, bool)


class InputError(ValueError):
    """Bad input. The message is one line that names the value and the remedy."""

    status = 2


class DivergedError(ArithmeticError):
    """A loss or gradient is not finite. The message names the step."""

    status = 3


class StorageError(OSError):
    """A result cannot be written. The message names the file or directory and the remedy."""

    status = 4


class LostError(RuntimeError):
    """Another process of a run is lost. The message says how to resume."""

    status = 5


def require(value: Any, kind: Any, name: str, remedy: str) -> None:
    """Raises InputError unless `isinstance(value, kind)`."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; {remedy}")


def plain_number(value: Any, kind: type[Plain]) -> Plain | None:
    """Converts a number of Python, NumPy or JAX to an `int`, `float` or `bool`; returns None if none is equal.

    A truth value is not a number.
    """
    try:
        value = value.item() if getattr(value, "shape", None) == () else value
        if isinstance(value, bool) or kind is bool:
            return value if type(value) is kind else None
        plain = kind(cast(Any, value)) if isinstance(value, numbers.Real) else None
    except (AttributeError, TypeError, ValueError, OverflowError):  # Traced by JAX, NaN, infinite or too large.
        return None
    return plain if plain is None or kind is float or plain == value else None


def require_whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """Returns a whole number of any type as an `int`; raises InputError if it is none, or out of range."""
    plain = plain_number(value, int)
    if plain is None or plain < least or (most is not None and plain > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise InputError(f"{name} {shown(value)} cannot be used; choose {wanted}")
    return plain


def shown(value: Any) -> str:
    """A value in one line of an error."""
    return " ".join(repr(value).split())[:80]


@contextlib.contextmanager
def refusing(before: str, after: str) -> Iterator[None]:
    """Turns any exception in the block into an InputError of one line: `before`, its reason, `after`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{before}{reason}{after}") from error
