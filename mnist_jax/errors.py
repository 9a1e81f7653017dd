"""The errors a user can cause. Commands print their one line and exit with `status`."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

Plain = TypeVar("Plain", int, float, bool)


class InputError(ValueError):
    """Bad input. The message is one line that names the value and the remedy."""

    status = 2


class BusyError(InputError):
    """Another process writes there. The message says which, and what to do."""

    status = 5


class DivergedError(ArithmeticError):
    """A loss or gradient is not finite. The message names the step."""

    status = 3


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
        plain = kind(value) if isinstance(value, (int, float)) else None
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


def require_path(path: str | os.PathLike[str], name: str) -> Path:
    """Expands `~` in a path; raises InputError for one that no file can have, and for an address as gs://bucket/run.

    A file that is not there may be meant to be written.
    """
    require(path, (str, os.PathLike), name, "give text or a Path")
    text = re.sub(r"^([A-Za-z][\w+.-]+:)/+", r"\1//", os.fspath(path))  # A Path joins slashes.
    if re.match(r"[A-Za-z][\w+.-]+://", text):
        raise InputError(f"{name} {text!r} is an address, and only a path of this machine can be used; name one")
    try:
        expanded = Path(path).expanduser()
        if b"\0" in os.fsencode(expanded):
            raise ValueError("there is a null character")
        return expanded
    except (RuntimeError, ValueError) as error:  # The home is not known, or the name cannot be encoded.
        raise InputError(f"{name} {text!r} cannot be used ({error}); name a folder or file in full") from error


@contextlib.contextmanager
def refusing(before: str, after: str) -> Iterator[None]:
    """Turns any exception in the block into an InputError of one line: `before`, its text, `after` with the remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{before}{text}{after}") from error
