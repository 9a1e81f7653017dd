"""SIGINT and SIGTERM, noted while JAX computes."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Adds SIGINT and SIGTERM to the list it yields instead of acting on them; a second one ends the process at once.

    The interpreter runs a handler only between its own instructions, not while a step runs or compiles. So a thread
    reads the signals from the wakeup descriptor.
    """
    if not faulthandler.is_enabled():
        # It gives handlers a stack of their own. On the stack of the main thread, in the midst of XLA's matrix kernels,
        # they corrupted the heap: on one core 8 signals of 40 ended in a crash, and with it none of 80.
        faulthandler.enable(sys.__stderr__)
    received, (readable, writable) = [], os.pipe()
    os.set_blocking(writable, False)

    def note() -> None:
        while number := os.read(readable, 1):
            if received:
                os._exit(128 + number[0])
            received.append(number[0])

    numbers = (signal.SIGINT, signal.SIGTERM)
    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    handlers = [signal.signal(number, lambda number, frame: None) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writable)
        thread.join()
        os.close(readable)
