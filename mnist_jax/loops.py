"""The loop over the steps of an epoch: one program on a GPU or TPU, step by step on a CPU."""

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import jax
from jax import lax

from mnist_jax.runtime import backend, compiler_options, default_types


def loop(
    body: Callable,
    steps: range,
    state: Any,
    totals: Any,
    own: Any,
    shared: Any,
    static: Hashable,
    *,
    many: bool = False,
    on_step: Callable[[int, Any], None] | None = None,
    stop: Callable[[Any], bool] = lambda totals: False,
) -> tuple[Any, Any]:
    """Runs `state, totals = body(i, state, totals, own, shared, static)` for each i in `steps`.

    On a GPU or TPU this is one program. On a CPU each step is dispatched by itself, because XLA runs the same body
    several times slower inside a loop.

    Args:
      body: a pure function. Its arguments are pytrees of arrays, except `static`.
      steps: consecutive numbers; if empty, state and totals are returned.
      state: changed by the body; donated.
      totals: changed by the body and readable by the host: on a CPU, those of step i - 1 while step i runs.
      own: arrays of each seed.
      shared: arrays that all seeds share.
      static: compiled into the program.
      many: whether `state`, `totals` and `own` have a leading axis of seeds, over which the body is vmapped.
      on_step: on a CPU, called as `on_step(i, totals)` after each step.
      stop: on a CPU, called with the totals of the step before after each step; true ends the loop.
    """
    if not steps:
        return state, totals
    if backend() != "cpu":
        with default_types():
            return program(body, many, True)(steps.start, steps.stop, state, totals, own, shared, static)
    step, i = program(body, many, False), steps.start
    several = any(len(leaf.devices()) > 1 for leaf in jax.tree.leaves(totals))
    for i in steps:
        before = totals
        with default_types():
            state, totals = step(i, state, totals, own, shared, static)
        if several:  # XLA has as few threads as devices: two steps at once can take them all and wait for each other.
            jax.block_until_ready((state, totals))
        if on_step and i > steps.start:
            on_step(i - 1, before)
        if stop(before):
            break
    if on_step:
        on_step(i, totals)
    return state, totals


@cache
def program(body: Callable[..., Any], many: bool, whole: bool) -> Callable[..., Any]:
    """The jitted program of `loop`: one step, or with `whole` all of them."""
    function = steps_of(body, many) if whole else step_of(body, many)
    return jax.jit(
        function, static_argnames="static", donate_argnames="state", compiler_options=compiler_options(False)
    )


def step_of(body: Callable, many: bool) -> Callable:
    """One step of a loop, as a function `(i, state, totals, own, shared, static) -> (state, totals)`."""

    def step(i, state, totals, own, shared, static):
        def one(state, totals, own):
            return body(i, state, totals, own, shared, static)

        return (jax.vmap(one) if many else one)(state, totals, own)

    step.__name__ = body.__name__  # Logs and profiles show it.
    return step


def steps_of(body: Callable, many: bool) -> Callable:
    """All steps of a loop, as a function `(start, stop, state, totals, own, shared, static) -> (state, totals)`."""
    step = step_of(body, many)

    def steps(start, stop, state, totals, own, shared, static):
        return lax.fori_loop(start, stop, lambda i, carry: step(i, *carry, own, shared, static), (state, totals))

    steps.__name__ = body.__name__
    return steps
