"""What the TPU's own compiler makes of the programs, for a v5e that need not be there."""

import importlib.metadata
import importlib.util
import json
import re

import pytest
from conftest import ROOT, refused

from mnist_jax import make_config
from mnist_jax.lab import tpu
from mnist_jax.lab.tables import NOTEBOOKS

missing = importlib.util.find_spec("libtpu") is None
needs_compiler = pytest.mark.skipif(missing, reason="the TPU's compiler, libtpu, is not installed")


def estimated(program, seeds, arch, config, mesh, layers):
    """The estimate of a program: as it was recorded, where it and the compiler are the same, else compiled anew."""
    record = json.loads((ROOT / "results" / f"tpu-{arch}.json").read_text(encoding="utf-8"))
    lowered = tpu.lower_program(program, config, mesh, seeds, tpu.LAYERS[layers])
    found = record["programs"][f"{program} of {seeds} seeds" if seeds else program][layers]
    same = all(record["environment"][name] == importlib.metadata.version(name) for name in ("jaxlib", "libtpu"))
    return found if same and found["program_sha256"] == tpu.program_sha256(lowered) else tpu.estimate(lowered)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arch", "seeds"),
    [
        *((program, arch, 0) for program in ("epoch", "scoring") for arch in (*NOTEBOOKS, "swift")),
        ("epoch", "bn_dropout", 8),
    ],
)
def test_our_layers_take_no_more_cycles_than_those_of_flax(program, arch, seeds):
    config, mesh = make_config(arch=arch), tpu.make_mesh("v5e:1x1")
    ours, flax = (estimated(program, seeds, arch, config, mesh, layers) for layers in tpu.LAYERS)
    # Scoring is the same program but for its batch norm.
    assert 0 < ours["cycles"] <= 1.001 * flax["cycles"]
    assert ours["temporary_bytes"] > 0


@needs_compiler
def test_an_epoch_on_four_chips_reduces_and_gathers_nothing():
    """Sums of batch norm, and gradients, over all; and nothing in float64, or that the host would have to answer."""
    text = tpu.lower_program("epoch", make_config(), tpu.make_mesh("v5e:2x2")).compile().as_text()
    collectives = re.findall(r" = (.*) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    kinds = {kind for _, kind in collectives}
    assert kinds == {"all-reduce"}
    reduced = " ".join(shape for shape, _ in collectives)
    assert reduced.count("f32[16]") >= 2 * 2 * 4  # Of four of the six layers of batch norm: two sums, there and back.
    assert "f32[3,3,16,16]" in reduced
    assert "f32[32,26,26,16]" in text  # A quarter of a batch of 128,
    assert "f32[128,26,26,16]" not in text  # and nowhere the whole.
    assert not re.findall(r"\bf64\[| (?:infeed|outfeed|send|recv)\(", text)


@needs_compiler
def test_estimates_are_printed_and_written(script, monkeypatch, tmp_path):
    found = {"cycles": 5, "temporary_bytes": 10**6, "compile_seconds": 1.0}
    asked = []
    monkeypatch.setattr(tpu, "lower_program", lambda program, *_: asked.append(program))
    monkeypatch.setattr(tpu, "estimate", lambda lowered: found)
    status, out, _ = script("estimate_tpu.py", "--arch", "gap", "--seeds", "2", "--json", "x.json")
    assert status == 0
    assert asked == ["epoch"] * 4 + ["scoring"] * 2
    assert "epoch of 2 seeds" in out
    record = json.loads((tmp_path / "x.json").read_text())
    assert list(record["programs"]) == ["epoch", "epoch of 2 seeds", "scoring"]
    assert record["programs"]["scoring"]["flax"]["cycles"] == 5


@needs_compiler
def test_a_topology_that_is_none():
    refused("topology 'v5e:9x9x9' cannot be compiled for", tpu.make_mesh, "v5e:9x9x9")


def test_without_the_compiler_it_says_what_to_install(script, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err = script("estimate_tpu.py")
    assert (status, err) == (2, "error: the TPU's compiler is not installed: pip install libtpu (0.5 GB, Linux)\n")


def test_the_step_is_the_dearest_loop():
    text = """
%body.1 (p: (s32[])) -> (s32[]) {
  %a = f32[2]{0} fusion(%p), metadata={op_name="jit(f)/while/body/conv1/conv"}, backend_config={"estimated_cycles":"70"}
  %b = (f32[3]{0}, f32[3]{0}) fusion(%p), backend_config={"estimated_cycles":"5"}
}
%body.2 (p: (s32[])) -> (s32[]) {
  %c = f32[2]{0} fusion(%p), backend_config={"estimated_cycles":"9"}
}
ENTRY %main (p: (s32[])) -> (s32[]) {
  %w = (s32[]) while(%p), condition=%c.1, body=%body.1
  %v = (s32[]) while(%w), condition=%c.2, body=%body.2
}
"""
    assert tpu._step_cycles(text) == 75
