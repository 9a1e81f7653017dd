"""Several processes find each other and compare their versions before JAX joins them, which can only abort."""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from mnist_jax.errors import InputError, LostError

_FIRST_NOTE, _NOTE_EVERY = 3.0, 30.0  # Seconds of waiting until it is said, and said again.
_LINE = 4096  # The most bytes of a greeting or answer.


def meet(
    coordinator: str,
    count: int,
    process: int,
    facts: Mapping[str, Any],
    tell: Callable[[str], object],
    seconds: float = 300.0,
) -> None:
    """Returns in every process once all of them are there, with the port free again.

    Args:
      coordinator: HOST:PORT, where process 0 listens until then.
      count: number of processes.
      process: number of this process, from 0.
      facts: what has to be equal in all processes: JSON values by name.
      tell: is given a line that says who is waited for, now and then.
      seconds: how long to wait.

    Raises:
      InputError: the address cannot be used, the port is taken, two processes have one number, or a fact differs.
      LostError: a process is missing after that time, or process 0 gave up.
    """
    host, port = _address(coordinator)
    wait, facts = _Wait(coordinator, tell, seconds), {"number of processes": count, **facts}
    if process == 0:
        _gather(host, port, count, facts, wait)
    else:
        _greet(host, port, process, facts, wait)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any], process: int) -> str:
    """One line that names what differs in a process from process 0; empty if nothing does."""
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    told = "; ".join(
        f"process {process} has {name} {found.get(name)}, but process 0 {wanted.get(name)}" for name in names
    )
    return told and f"{told}; give all processes the same"


def _address(coordinator):
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"coordinator {coordinator!r} cannot be used; give HOST:PORT, as localhost:1234")
    return host.strip("[]"), int(port)


class _Wait:
    """The time that is left, and what is said meanwhile."""

    def __init__(self, coordinator: str, tell: Callable[[str], object], seconds: float) -> None:
        self.coordinator, self._tell, self._seconds = coordinator, tell, seconds
        self._end, self._next = time.monotonic() + seconds, time.monotonic() + _FIRST_NOTE

    def note(self, missing: str, grace: float = 0.0) -> None:
        """Says now and then who is missing; raises LostError when the time is up, and the seconds of grace."""
        now = time.monotonic()
        if now >= self._end + grace:
            raise LostError(
                f"waited {self._seconds:g} s for {missing} at {self.coordinator}; start all processes with this "
                "address, which must lead to process 0 through any firewall"
            )
        if now >= self._next:
            self._tell(f"waiting for {missing} at {self.coordinator}")
            self._next = now + _NOTE_EVERY


def _gather(host, port, count, wanted, wait):
    """Process 0: listens until all others have greeted it; tells each how that ended."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, _listen(port, wait.coordinator) as listener:
        _require_own_address(host, port, wait.coordinator)
        try:
            while len(there) < count - 1:
                ready, _, _ = select.select([listener, *there.values()], [], [], 0.1)
                for number in [number for number, connection in there.items() if connection in ready]:
                    del there[number]  # A greeting is all it says: it has ended, and may be started again.
                if listener in ready:
                    connection = stack.enter_context(listener.accept()[0])
                    if greeting := _greeting(connection):
                        number, found = greeting
                        told = difference(found, wanted, number)
                        if not told and number in there:
                            told = f"two processes have number {number}; give each its own, from 0"
                        there[number if not told else -number] = connection
                        if told:
                            raise InputError(told)
                missing = [number for number in range(1, count) if number not in there]
                if missing:
                    wait.note(f"{len(missing)} of {count} processes")
        except (InputError, LostError) as error:
            _answer(there.values(), type(error).__name__, str(error))
            raise
        listener.close()
        _answer(there.values(), "", "")


def _require_own_address(host, port, coordinator):
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise InputError(
            f"process 0 cannot be reached at {coordinator} ({error.strerror or error}); "
            "give the name or address of its machine"
        ) from error


def _listen(port, coordinator):
    # The address families that JAX's own service will listen to, and the port has to be free of any other.
    family, address = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if os.name == "posix":  # On Windows it would take the port from another program.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InputError(
            f"process 0 cannot listen at {coordinator} ({error.strerror}); give all processes another port"
        ) from error
    return listener


def _greeting(connection):
    """Number and facts that a process sent; None if it is a stranger's connection."""
    connection.settimeout(5)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        greeting = json.loads(connection.makefile("rb").readline(_LINE))
        return int(greeting["process"]), dict(greeting["facts"])
    connection.close()
    return None


def _answer(connections, kind, message):
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall((json.dumps([kind, message]) + "\n").encode())


def _greet(host, port, process, facts, wait):
    """Another process: greets process 0, and waits until it says how that ended."""
    greeting = (json.dumps({"process": process, "facts": facts}) + "\n").encode()
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
            connection.sendall(greeting)
            connection.settimeout(0.1)
            answer = b"another"
            while answer:
                wait.note("the other processes", grace=10)  # Process 0 knows better who is missing, and says it.
                with contextlib.suppress(TimeoutError):
                    if answer := connection.recv(_LINE):
                        return _read(answer, wait.coordinator)
        wait.note("process 0")  # It is not there yet, or was started again.
        time.sleep(0.2)


def _read(answer, coordinator):
    try:
        kind, message = json.loads(answer)
    except ValueError as error:
        raise InputError(f"another program listens at {coordinator}; give all processes another port") from error
    if kind:
        raise (LostError if kind == LostError.__name__ else InputError)(message)
