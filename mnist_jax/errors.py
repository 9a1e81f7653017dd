"""The errors a user can cause; the scripts print them in one line and exit with `status`."""

import contextlib
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one line that names the value and the remedy."""

    status = 2


class DivergedError(ArithmeticError):
    """A loss or gradient is no longer finite. The message names the step."""

    status = 3


class StorageError(OSError):
    """A result cannot be written. The message names the place and the remedy."""

    status = 4


class LostError(RuntimeError):
    """Another process of a run is lost. The message says how to go on."""

    status = 5


def require(value: Any, kind: Any, name: str, remedy: str) -> None:
    """Raises InputError unless a value is of a kind, as `isinstance` takes it."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; {remedy}")


@contextlib.contextmanager
def refusing(before: str, after: str) -> Iterator[None]:
    """Turns whatever a user's value makes a library raise into one line: InputError of `before`, reason, `after`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{before}{reason}{after}") from error
