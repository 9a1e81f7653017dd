"""What a command prints, where printing can fail: closed streams, readers that left, names that an encoding lacks."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Lasting:
    """A text stream that goes nowhere once its reader has left, so that the work goes on."""

    def __init__(self, stream: Any) -> None:
        """Wraps a stream that has a file descriptor."""
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes to the stream, or nowhere."""
        with _leaving(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, if it still leads anywhere."""
        with _leaving(self._stream):
            self._stream.flush()


@contextlib.contextmanager
def printing(lasting: bool) -> Iterator[None]:
    """Standard output and error, as a command needs them.

    A closed stream leads nowhere. Characters that the encoding lacks are escaped. When the reader of a pipe leaves, as
    `head` does, a command that is `lasting` goes on to its end. Another exits quietly, with the status of SIGPIPE.

    Args:
      lasting: whether the command does more than print.
    """
    before = sys.stdout, sys.stderr
    _open_closed()
    try:
        with contextlib.ExitStack() as opened:
            for name in ("stdout", "stderr"):
                stream = getattr(sys, name) or opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
                setattr(sys, name, Lasting(stream) if lasting else stream)
            try:
                yield
            finally:
                sys.stdout.flush()  # Else it fails at the exit of the interpreter.
    except BrokenPipeError:
        if lasting:
            raise  # It is not one of these two.
        _lead_nowhere(before[0])
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Opens the standard descriptors that are closed, before a file that is written gets their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def _leaving(stream: Any) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _lead_nowhere(stream)


def _lead_nowhere(stream: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
