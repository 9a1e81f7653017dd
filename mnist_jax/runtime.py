"""How XLA compiles and loops, and a process allocates: what speed takes beside the program itself."""

import ctypes
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxlib
import platformdirs
from jax import lax


@cache
def compiler_options(once: bool = False) -> dict[str, str | int] | None:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend; None where it needs none.

    Recent versions of XLA:CPU hand wide convolutions to YNNPACK, which takes six times as long as Eigen for a kernel
    gradient; the option leaves YNNPACK the matrix products, at which it is good. Results change by rounding. A program
    that runs `once`, such as initialisation, takes longer to optimise than to run, and is not optimised.
    """
    if jax.default_backend() != "cpu":
        return None
    if once:
        return {"xla_backend_optimization_level": 0}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # An older jaxlib knows neither the option nor YNNPACK convolutions.
        return None
    return options


@cache
def jit(function: Callable, static: tuple[str, ...] = (), once: bool = False) -> Callable:
    """`jax.jit`, once per function, with the compiler options of the backend, which is not known at import."""
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(once))


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
    """`state, totals = body(i, state, totals, own, shared, static)` for each i of `steps`.

    On GPU and TPU one program. On a CPU XLA runs the same body several times slower inside a loop, so there each step
    is dispatched by itself.

    Args:
      body: a pure function; its other arguments but `static` are pytrees of arrays.
      steps: consecutive numbers, at least one.
      state: what the body changes; donated.
      totals: what it changes and may be read meanwhile: on a CPU that of step i - 1 while step i runs.
      own: what each seed has for itself.
      shared: what all seeds have in common.
      static: compiled into the program.
      many: whether `state`, `totals` and `own` have a leading axis of seeds, over which the body is vmapped.
      on_step: on a CPU called as `on_step(i, totals)` after each step.
      stop: on a CPU asked after each step, given the totals of the step before, whether to leave out the rest.
    """
    if jax.default_backend() != "cpu":
        return program(body, many, True)(steps.start, steps.stop, state, totals, own, shared, static)
    step = program(body, many, False)
    for i in steps:
        before = totals
        state, totals = step(i, state, totals, own, shared, static)
        if on_step and i > steps.start:
            on_step(i - 1, before)
        if stop(before):
            break
    if on_step:
        on_step(i, totals)
    return state, totals


@cache
def program(body: Callable, many: bool, whole: bool) -> Callable:
    """What `loop` runs, jitted: one step, `whole` for all of them."""
    function = steps_of(body, many) if whole else step_of(body, many)
    return jax.jit(function, static_argnames="static", donate_argnames="state", compiler_options=compiler_options())


def step_of(body: Callable, many: bool) -> Callable:
    """One step of a loop, as a function `(i, state, totals, own, shared, static) -> (state, totals)`."""

    def step(i, state, totals, own, shared, static):
        def one(state, totals, own):
            return body(i, state, totals, own, shared, static)

        return (jax.vmap(one) if many else one)(state, totals, own)

    step.__name__ = body.__name__  # What logs and profiles show.
    return step


def steps_of(body: Callable, many: bool) -> Callable:
    """All steps of a loop, as a function `(start, stop, state, totals, own, shared, static) -> (state, totals)`."""
    step = step_of(body, many)

    def steps(start, stop, state, totals, own, shared, static):
        return lax.fori_loop(start, stop, lambda i, carry: step(i, *carry, own, shared, static), (state, totals))

    steps.__name__ = body.__name__
    return steps


def reuse_freed_memory() -> None:
    """Lets the C allocator keep what a training step frees, for the next step; on Linux with glibc, else nothing.

    XLA:CPU allocates its scratch space (40 MB, `basic` 140) anew at every step. By default glibc hands it back to the
    kernel each time, and nine thousand page faults a step cost a third of the time. Call once, before JAX is first
    used: glibc keeps blocks above 64 MB for the main thread only, so steps must run there, which JAX decides early.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # Names and numbers of <malloc.h>.
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs in the user's cache directory, so that the next process need not compile them again.

    One directory per jaxlib version and processor: code compiled for one may not run on another. A directory that the
    user has given JAX (`JAX_COMPILATION_CACHE_DIR`) is left as it is, and so is `JAX_ENABLE_COMPILATION_CACHE=false`.
    Returns the directory, or None where it cannot be written or the cache is off: then everything is compiled anew.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:
        return Path(jax.config.jax_compilation_cache_dir)
    name = re.sub(r"[^\w.]+", "-", f"jaxlib-{jaxlib.__version__}-{platform.machine()}-{cpu_name()}")
    directory = Path(platformdirs.user_cache_dir("mnist_jax")) / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return directory


@cache
def compilations() -> list[tuple[float, float]]:
    """When JAX has traced and compiled, as `(begin, end)` of `time.perf_counter`, from the first call on; it grows."""
    spans: list[tuple[float, float]] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            spans.append((end - seconds, end))

    jax.monitoring.register_event_duration_secs_listener(note)
    return spans


def seconds_within(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between two moments that any of the spans covers, which may lie in each other."""
    seconds, covered = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, covered), min(stop, end)
        seconds, covered = seconds + max(stop - start, 0.0), max(covered, stop)
    return seconds


def environment(others: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, of other packages too, and hardware of this process, for the record beside a result."""
    packages = ("mnist-jax", "jax", "jaxlib", "flax", "optax", "numpy", *others)
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu": cpu_name(),
        "cpu_cores": int(os.environ.get("NPROC") or len(cores())),  # As XLA counts its threads.
    }


def cores() -> list[int]:
    """The processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
