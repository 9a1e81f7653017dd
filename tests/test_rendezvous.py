"""Processes that meet before JAX joins them; here they are threads."""

import contextlib
import functools
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import free_port, refused, wait_for

from mnist_jax import rendezvous
from mnist_jax.errors import InputError, LostError
from mnist_jax.rendezvous import meet

FACTS = {"jax": "1.0"}


@pytest.fixture
def address():
    return f"localhost:{free_port()}"


def outcomes(*calls, seconds=10.0):
    """How each call of `meet` ends: "there", or its error; and what was told."""
    told = []

    def call(arguments):
        try:
            meet(*arguments, told.append, seconds)
        except (InputError, LostError) as error:
            return error
        return "there"

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls)), told


def test_all_meet_and_leave_the_port_free(address):
    assert outcomes(*((address, 4, i, FACTS) for i in (2, 0, 3, 1)))[0] == ["there"] * 4
    assert outcomes((address, 1, 0, FACTS))[0] == ["there"]


@pytest.mark.parametrize(
    ("count", "process", "facts", "said"),
    [
        (2, 1, {"jax": "2.0"}, "process 1 has jax 2.0, but process 0 1.0; give all processes the same"),
        (3, 2, FACTS, "process 2 has number of processes 3, but process 0 2; give all processes the same"),
    ],
)
def test_what_differs_is_named_in_all(address, count, process, facts, said):
    ended, _ = outcomes((address, 2, 0, FACTS), (address, count, process, facts))
    assert [(type(error), str(error)) for error in ended] == [(InputError, said)] * 2


def test_two_with_one_number(address):
    ended, _ = outcomes(*((address, 3, i, FACTS) for i in (0, 1, 1)))
    assert [str(error) for error in ended] == ["two processes have number 1; give each its own, from 0"] * 3


def test_missing_processes_are_waited_for_aloud(address, monkeypatch):
    monkeypatch.setattr(rendezvous, "_FIRST_NOTE", 0.0)
    (zero, one), told = outcomes((address, 3, 0, FACTS), (address, 3, 1, FACTS), seconds=0.7)
    assert f"waiting for 1 of 3 processes at {address}" in told or f"waiting for 2 of 3 processes at {address}" in told
    assert isinstance(zero, LostError)
    assert str(zero).startswith(
        f"waited 0.7 s for 1 of 3 processes at {address}; start all processes with this address"
    )
    assert isinstance(one, LostError)
    (alone,), told = outcomes((address, 2, 1, FACTS), seconds=0.3)
    assert told == [f"waiting for process 0 at {address}"]
    assert str(alone).startswith(f"waited 0.3 s for process 0 at {address}")


def test_strangers_and_restarts_do_no_harm(address):
    """Whoever says nothing of use is no process, and a process that ended may be started again."""
    greeting = {"process": 1, "facts": {"number of processes": 3, **FACTS}}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcomes, (address, 3, 0, FACTS))
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"", json.dumps(greeting).encode() + b"\n"):
            wait_for(functools.partial(reached, address, sent))
        ended, _ = outcomes((address, 3, 1, FACTS), (address, 3, 2, FACTS))
        assert [*ended, *first.result()[0]] == ["there"] * 3


def reached(address, sent):
    host, port = address.split(":")
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, port)) as stranger:
        stranger.sendall(sent)
        return True


def test_a_port_that_is_taken_and_an_address_that_cannot_be_used():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("^process 0 cannot listen at localhost:.*; give all processes another port$", begin, port, 0)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(answer, taken)
            refused("^another program listens at localhost:.*; give all processes another port$", begin, port, 1)
    refused("^process 0 cannot be reached at nowhere.invalid:", meet, f"nowhere.invalid:{port}", 2, 0, FACTS, print)
    for coordinator in ("localhost", ":1", "localhost:0", "localhost:x", "localhost:65536"):
        refused(f"^coordinator '{coordinator}' cannot be used; give HOST:PORT", meet, coordinator, 2, 0, FACTS, print)


def begin(port, process):
    meet(f"localhost:{port}", 2, process, FACTS, print)


def answer(listener):
    with listener.accept()[0] as connection:
        connection.sendall(b"\0\0\x12\x04")
