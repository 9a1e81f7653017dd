"""The errors a user can cause. Commands print their one line and exit with `status`."""

import contextlib
from collections.abc import Iterator
from typing import Any


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
