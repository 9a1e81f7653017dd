import ast
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import pytest
from conftest import refused, run_command

import mnist_jax
from mnist_jax import devices, fit, make_config, runtime
from mnist_jax.series import workers


def test_compiler_options_are_for_cpu_only_and_those_that_this_jaxlib_does_not_know_left_out(monkeypatch):
    assert runtime.compiler_options(True)["xla_backend_optimization_level"] == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert runtime.compiler_options.__wrapped__(False) is None
    assert runtime.compiler_options.__wrapped__(True) is None
    monkeypatch.undo()

    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert runtime.compiler_options.__wrapped__(False) is None
    assert runtime.compiler_options.__wrapped__(True) == {"xla_backend_optimization_level": 0}


COMPILE = """
import os, sys
import jax
before = dict(jax.config.values), dict(os.environ)
import mnist_jax as mj
assert (dict(jax.config.values), dict(os.environ)) == before
assert not {"dask", "matplotlib", "onnx", "orbax", "tensorflow_datasets"} & sys.modules.keys()
used = bool(sys.argv[1:]) and jax.jit(lambda x: x + 1)(1)
assert mj.runtime._jax_was_used() == bool(used)
mj.tune_process()
changed = {name for name, value in jax.config.values.items() if before[0][name] != value}
cache = {"jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"}
assert cache <= changed <= cache | ({"jax_cpu_enable_async_dispatch"} if not used else set()), changed
directory, events = jax.config.values["jax_compilation_cache_dir"], []
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: jax.numpy.sin(x @ x).sum())(jax.numpy.ones((64, 64)))
print(directory, sum("cache_hits" in event for event in events))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is read on Linux only")
def test_a_second_process_with_as_many_cores_finds_what_the_first_has_compiled(tmp_path):
    """Importing changes nothing in them; `tune_process` sets the cache even after JAX is used, as in the second."""
    found = []
    for cores, *used in (("1",), ("1", "used"), ("2",)):
        command = [sys.executable, "-c", COMPILE, *used]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "NPROC": cores}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(result.stdout.split())
    (directory, before), (again, hits), (other, after) = found
    assert directory.startswith(str(tmp_path / "mnist_jax" / "jaxlib-"))
    assert again == directory
    assert (int(before), int(hits) > 0) == (0, True)
    assert other != directory
    assert int(after) == 0


@pytest.fixture
def no_cache(environment):
    """JAX's own settings, as they are in a new process."""
    names = "jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs"
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is read on Linux only")
def test_the_cache_is_as_the_user_has_set_it_and_none_where_it_cannot_be_written(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    assert runtime.use_compilation_cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert runtime.use_compilation_cache().is_relative_to(tmp_path)
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 7.0  # What the user has set stays.
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert runtime.use_compilation_cache() == tmp_path / "own"
    jax.config.update("jax_enable_compilation_cache", False)
    assert runtime.use_compilation_cache() is None
    assert not list(tmp_path.glob("own/*"))


def test_seconds_of_compiling():
    """Spans count once where they lie in each other, and only between the moments asked for."""
    spans = [(1.0, 4.0), (2.0, 3.0), (3.5, 5.0), (7.0, 9.0)]
    assert runtime.seconds_within(spans, 0.0, 10.0) == 6.0
    assert runtime.seconds_within(spans, 2.5, 8.0) == 3.5
    assert runtime.seconds_within([], 0.0, 1.0) == 0.0
    noted = runtime.compilations()
    before = len(noted)
    start = time.perf_counter()
    jax.jit(lambda x: x * 3 + before)(1.0)
    assert 0 < runtime.seconds_within(noted[before:], start, time.perf_counter()) <= time.perf_counter() - start


@pytest.mark.parametrize(
    ("variable", "used", "done"),
    [
        ("ANOTHER", False, ["cache", "allocator"]),
        ("ANOTHER", True, ["cache"]),
        ("MNIST_JAX_LEAVE_PROCESS", False, []),
        ("MALLOC_ARENA_MAX", False, ["cache"]),
        ("JAX_CPU_ENABLE_ASYNC_DISPATCH", False, ["cache"]),
    ],
)
def test_tune_process_sets_what_the_user_has_not(monkeypatch, variable, used, done):
    found = []
    monkeypatch.setattr(runtime, "use_compilation_cache", lambda: found.append("cache"))
    monkeypatch.setattr(runtime, "reuse_freed_memory", lambda: found.append("allocator"))
    monkeypatch.setattr(runtime, "_jax_was_used", lambda: used)
    monkeypatch.setenv(variable, "1")
    runtime.tune_process()
    assert found == done


def test_what_runs_once_is_traced_once_and_runs_inside_another_program():
    traces = []

    def double(x, times):
        traces.append(times)
        return x * 2**times

    double_once = partial(runtime.run_once, double, static_argnums=1)
    assert [double_once(3.0, 2), double_once(4.0, 2)] == [12, 16]
    assert traces == [2]
    assert runtime.jit(lambda x: double_once(x, 2) + 1)(3.0) == 13
    assert jax.grad(double_once)(3.0, 2) == 4
    assert type(runtime.jit(double)) is type(jax.jit(double))


def test_a_device_that_is_not_there_is_named(monkeypatch):
    """JAX says nothing of a missing GPU: it is an assertion."""
    config = make_config(arch="gap")

    def none():
        raise AssertionError

    monkeypatch.setattr(jax, "default_backend", none)
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", "cuda")
    try:
        for call in (runtime.backend, devices.make_mesh, lambda: fit(config, None), mnist_jax.environment):
            refused("JAX_PLATFORMS=cuda", call)
        status, _, err = run_command("train", "--arch", "gap")
    finally:
        jax.config.update("jax_platforms", before)
    assert (status, err.count("\n")) == (2, 1)
    assert "JAX_PLATFORMS=cuda" in err


UNIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}


@pytest.mark.skipif(sys.platform == "win32", reason="nothing has to be removed there")
def test_what_windows_and_macos_lack_is_not_imported_and_not_called(monkeypatch):
    """No module of Unix alone at the top of a file. (A run there is for the tests in CI, which has both.)"""
    files = sorted(Path(runtime.__file__).parent.rglob("*.py"))
    top = [node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
    assert not UNIX & {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    for module, name in ((os, "sched_getaffinity"), (signal, "pthread_sigmask")):
        monkeypatch.delattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(runtime.ctypes, "CDLL", lambda name: pytest.fail("there is no glibc"))
        for system in ("win32", "darwin"):
            patch.setattr(sys, "platform", system)
            runtime.reuse_freed_memory()
    monkeypatch.setattr(Path, "open", mock.Mock(side_effect=FileNotFoundError))  # There is no /proc.
    assert mnist_jax.environment()["cpu"]
    with workers._without_sigint():
        assert len(runtime.cores()) == os.cpu_count()
