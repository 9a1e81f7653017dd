import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT

from mnist_jax import runtime


def test_compiler_options_are_for_cpu_only(monkeypatch):
    assert runtime.compiler_options(once=True) == {"xla_backend_optimization_level": 0}
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert runtime.compiler_options.__wrapped__() is None
    assert runtime.compiler_options.__wrapped__(once=True) is None


def test_compiler_options_are_accepted():
    for once in (False, True):
        triple = jax.jit(lambda x: 3 * x, compiler_options=runtime.compiler_options(once))
        assert triple(jnp.float32(2)) == 6


def test_options_that_this_jaxlib_does_not_know_are_left_out(monkeypatch):
    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert runtime.compiler_options.__wrapped__() is None


def test_reusing_memory_may_be_said_twice():
    runtime.reuse_freed_memory()
    runtime.reuse_freed_memory()
    assert float(jnp.ones(1 << 20).sum()) == 1 << 20


COMPILE = """
import jax
from mnist_jax import create_model, runtime
directory = runtime.use_compilation_cache()
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: jax.numpy.sin(x @ x).sum())(jax.numpy.ones((64, 64)))
print(directory, sum("cache_hits" in event for event in events))
"""


def compile_once(**environment):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **environment,
    }
    code = COMPILE.replace(
        "events = []", "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); events = []"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    directory, hits = result.stdout.split()
    return directory, int(hits)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is read on Linux only")
def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    directory, hits = compile_once(XDG_CACHE_HOME=str(tmp_path))
    assert directory.startswith(str(tmp_path / "mnist_jax" / "jaxlib-"))
    assert hits == 0
    again, hits = compile_once(XDG_CACHE_HOME=str(tmp_path))
    assert again == directory
    assert hits > 0


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is read on Linux only")
def test_no_cache_where_it_is_off_or_cannot_be_written(tmp_path):
    assert compile_once(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false") == ("None", 0)
    (tmp_path / "file").write_text("in the way")
    assert compile_once(XDG_CACHE_HOME=str(tmp_path / "file")) == ("None", 0)
    assert compile_once(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == str(tmp_path / "own")
