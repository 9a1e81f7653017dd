"""Compiler options, compilation cache and memory allocator; versions and hardware of the process."""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import platformdirs
from jax._src.core import trace_state_clean  # There is no public way to ask.

from mnist_jax.errors import InputError
from mnist_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")  # Those that decide what a training computes.


def backend() -> str:
    """The platform that JAX computes on: "cpu", "gpu" or "tpu". Starts JAX, if nothing has yet.

    Raises InputError if JAX cannot start.
    """
    try:
        return jax.default_backend()
    except (AssertionError, RuntimeError) as error:  # An assertion says nothing; it stands for no device.
        asked = jax.config.values["jax_platforms"]
        reason = " ".join(str(error).partition(" (")[0].split()) or "there is no such device"
        raise InputError(
            f"JAX cannot start{f' with JAX_PLATFORMS={asked}' if asked else ''}: {reason}; "
            "set JAX_PLATFORMS=cpu, or install JAX for the device (pip install 'mnist-jax[cuda]' or 'mnist-jax[tpu]')"
        ) from error


# Older versions of JAX have it in another module.
_enable_x64 = (jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")).enable_x64


@contextlib.contextmanager
def default_types() -> Iterator[None]:
    """JAX's default types and random bits, whatever the process has set: 32 bits, standard promotion, new Threefry.

    A context and a decorator. JAX, Flax and optax make arrays of the default types, which `JAX_ENABLE_X64` or
    `JAX_NUMPY_DTYPE_PROMOTION` would change.
    """
    with _enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.threefry_partitionable(True):
        yield


@cache
def compiler_options(once: bool) -> dict[str, str | int] | None:
    """Options for `jax.jit(..., compiler_options=...)` on the default backend; None if it needs none.

    Recent versions of XLA:CPU hand wide convolutions to YNNPACK, which takes six times as long as Eigen for a kernel
    gradient. The option gives YNNPACK only the matrix products, where it is fast. Results change by rounding. A program
    that runs `once`, such as initialization, takes longer to compile than to run: it is not optimized, and the older
    emitters, which compile sooner, write its code.
    """
    if backend() != "cpu":
        return None
    if once:
        return {"xla_backend_optimization_level": 0, **_known("xla_cpu_use_fusion_emitters", False)}
    return _known("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_DOT") or None


def _known(name: str, value: str | int) -> dict[str, str | int]:
    """An option, if this jaxlib knows it: older ones have no YNNPACK for convolutions, newer ones no other emitters."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return {name: value}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with the compiler options that make a program fast on the backend, which it starts.

    Args:
      function: the function to compile.
      options: options of `jax.jit`, such as `static_argnames`.

    Returns:
      The jitted function. JAX refuses it inside another jitted function: use the plain one there.

    Example:
      >>> step = mj.jit(mj.train_step, static_argnames="setup")
    """
    return jax.jit(function, compiler_options=compiler_options(False), **options)


def run_once(function: Callable[..., Any], *args: Any, static_argnums: int | tuple[int, ...] = ()) -> Any:
    """Calls a function that runs seldom, compiled without optimization; while JAX traces another, as it is."""
    return (_unoptimized(function, static_argnums) if trace_state_clean() else function)(*args)


@cache
def _unoptimized(function, static_argnums):
    return jax.jit(function, static_argnums=static_argnums, compiler_options=compiler_options(True))


def tune_process() -> None:
    """Makes training fast in this process: sets JAX's compilation cache and dispatch, and the memory allocator.

    The commands and the fits call it; call it before a loop of your own, before JAX is used. What the user has set, by
    environment variables or `jax.config`, stays. MNIST_JAX_LEAVE_PROCESS=1 in the environment leaves everything as it
    is. Once JAX is used, only the compilation cache can still be set.

    Example:
      >>> mj.tune_process()
    """
    if os.environ.get("MNIST_JAX_LEAVE_PROCESS"):
        return
    use_compilation_cache()
    chosen = ("GLIBC_TUNABLES", "LD_PRELOAD", "JAX_CPU_ENABLE_ASYNC_DISPATCH")
    if not _jax_was_used() and not any(name.startswith("MALLOC_") or name in chosen for name in os.environ):
        reuse_freed_memory()


def _jax_was_used() -> bool:
    try:
        from jax._src import xla_bridge  # There is no public way to ask without starting a backend.

        return xla_bridge.backends_are_initialized()
    except (ImportError, AttributeError):
        return True


def reuse_freed_memory() -> None:
    """Lets the C allocator keep the memory that a training step frees; on Linux with glibc only.

    XLA:CPU allocates its scratch space (40 MB, `basic` 140) anew at every step. By default glibc returns it to the
    kernel each time, and nine thousand page faults per step cost a third of the time. Call it once, before JAX is first
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
    """Keeps compiled programs in the user's cache directory for the next process.

    Each jaxlib version, processor and number of cores has its own directory: code compiled for one processor may not
    run on another, and code compiled for one core uses one core wherever it runs. Call it again after a change of the
    cores that this process may use. The user's `JAX_COMPILATION_CACHE_DIR` and `JAX_ENABLE_COMPILATION_CACHE=false`
    stay. Returns the directory, or None if it cannot be written or the cache is off.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    base = Path(platformdirs.user_cache_dir("mnist_jax"))
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen and Path(chosen).parent != base:
        return Path(chosen)
    parts = f"jaxlib-{jaxlib.version.__version__}", platform.machine(), cpu_name(), f"cores-{_threads()}"
    directory = base / re.sub(r"[^\w.]+", "-", "-".join(parts))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 1:  # JAX's default.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return directory


@cache
def compilations() -> list[tuple[float, float]]:
    """Begin and end, by `time.perf_counter`, of each tracing and compiling since the first call; the list grows."""
    spans: list[tuple[float, float]] = []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            spans.append((end - duration_secs, end))

    jax.monitoring.register_event_duration_secs_listener(note)
    return spans


def seconds_within(spans: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between two moments that at least one span covers; spans may overlap."""
    seconds, covered = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, covered), min(stop, end)
        seconds, covered = seconds + max(stop - start, 0.0), max(covered, stop)
    return seconds


def environment(others: Sequence[str] = ()) -> dict[str, Any]:
    """Versions and hardware of this process, to be recorded with a result.

    Args:
      others: more packages whose versions to include.

    Returns:
      Versions by package, `python`, `platform`, `devices`, `cpu` and `cpu_cores`.

    Example:
      >>> mj.environment()["platform"] in ("cpu", "gpu", "tpu")
      True
    """
    return {
        "python": platform.python_version(),
        "mnist-jax": __version__,
        **{name: importlib.metadata.version(name) for name in (*PACKAGES, *others)},
        "platform": backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpu": cpu_name(),
        "cpu_cores": int(_threads()),
    }


@cache
def sources() -> str:
    """Version of this package, and the first digits of the SHA-256 of its sources."""
    content = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return f"{__version__} of sources {hashlib.sha256(content).hexdigest()[:12]}"


def versions() -> dict[str, str]:
    """What all processes of a run have to have alike: versions of packages, and the sources of this one."""
    return {"mnist-jax": sources()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def cores() -> list[int]:
    """The processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _threads() -> str:
    """The number of cores as XLA counts them."""
    return os.environ.get("NPROC") or str(len(cores()))


def cpu_name() -> str:
    """The processor's name."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
