"""SIGINT and SIGTERM, noted while JAX computes."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


def _give_handlers_a_stack() -> None:
    """Gives signal handlers a separate stack.

    On the main thread's stack, during XLA's matrix kernels, a handler can corrupt the heap: on one core 8 of 40 signals
    crashed the process, with a separate stack none of 80.
    """
    if not faulthandler.is_enabled():
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # A notebook has no stderr file.
            faulthandler.enable(sys.__stderr__ or sys.stderr)


def _noted_elsewhere(number: int, frame: Any) -> None:
    """The handler of `catch_signals`, which reads signals from the wakeup descriptor instead."""


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C was pressed. The first raises nothing, the second acts as before.

    Works on the main thread only, if SIGINT is neither ignored nor caught by `catch_signals`; else it returns False.
    """
    before, received = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or before is _noted_elsewhere or not callable(before):
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if received:
            before(number, frame)
        received.append(number)

    _give_handlers_a_stack()
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yields a list to which SIGINT and SIGTERM are appended, instead of acting. A second one ends the process at once.

    The interpreter runs handlers only between its instructions, not while a step runs or compiles. So a thread reads
    the signals from the wakeup descriptor.
    """
    received, (readable, writable) = [], os.pipe()
    if hasattr(os, "set_blocking"):  # Windows has it from Python 3.12 on, and does not ask for it.
        os.set_blocking(writable, False)

    def note() -> None:
        while number := os.read(readable, 1):
            if received:
                os._exit(128 + number[0])
            received.append(number[0])

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    _give_handlers_a_stack()
    descriptor = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted_elsewhere) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writable)
        thread.join()
        os.close(readable)
