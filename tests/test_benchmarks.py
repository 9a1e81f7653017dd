"""The benchmarks of `scripts/benchmarks/`, and what the TPU's own compiler makes of the programs."""

import importlib.metadata
import importlib.util
import json
import re

import estimate_tpu
import pytest
import speed
import time_to_target
import timings
from conftest import ROOT, assert_refused, refused, run_script

from mnist_jax import make_config

missing = importlib.util.find_spec("libtpu") is None
needs_compiler = pytest.mark.skipif(missing, reason="the TPU's compiler, libtpu, is not installed")


def test_contenders_take_turns_in_processes_of_their_own(capsys, mnist):
    config = make_config("reference", arch="4-pool-4", batch_size=8)
    record = speed.measure(config, ["ours", "ours augmented"], rounds=1, steps=1, threads=1)
    assert capsys.readouterr().err.splitlines() == ["starting ours", "starting ours augmented", "round 1 of 1"]
    for timing in record["contenders"].values():
        assert min(timing["step_seconds"] + timing["score_seconds"]) > 0
        assert timing["start"]["first_step"] > 0
        assert timing["peak_bytes"] > 1e8
    assert len(list(timings.speed_table([record]))) == 4


def test_tables_take_ratios_round_by_round():
    start = {"first_step": 5.0}
    ours = {"start": start, "step_seconds": [0.02, 0.04, 0.03], "score_seconds": [1.0, 1.0, 1.0], "peak_bytes": 5e8}
    flax = {"start": start, "step_seconds": [0.08, 0.08, 0.09], "score_seconds": [2.0, 1.0, 3.0], "peak_bytes": 6e8}
    many = ours | {"step_seconds": [0.6] * 3, "score_seconds": [0.09] * 3, "seeds": 30}
    record = {"arch": "gap", "batch_size": 128, "contenders": {"ours": ours, "flax": flax, "ours, 30 seeds": many}}
    assert list(timings.speed_table([record]))[2:] == [
        "| `gap` | ours | 30.0 (20.0 to 40.0) | 1.00 | 4,267 | 1.00 | 1.00 | 5.0 | 500 |",
        "| `gap` | flax | 80.0 (80.0 to 90.0) | 3.00 | 1,600 | 2.00 | 2.00 | 5.0 | 600 |",
        "| `gap` | ours, 30 seeds | 20.0 (20.0 to 20.0) | 0.67 | 6,400 | 0.0030 | 0.00 | 5.0 | 500 |",
    ]
    record = {"arch": "swift", "torch_arch": "gap", "epochs": 3, "torch_epochs": 15}
    record |= {"torch_seconds_scaled": [600.0, 500.0, 700.0], "cold": [50.0, 100.0, 70.0], "warm": [40.0, 50.0, 50.0]}
    assert list(timings.time_table([record]))[2:] == [
        "| `gap` | the notebook in PyTorch, scaled from one epoch | 15 | 600 (500 to 700) | 1.0 |",
        "| `swift` | `fast`, nothing compiled before | 3 | 70 (50 to 100) | 10.0 |",
        "| `swift` | `fast`, programs in the cache | 3 | 50 (40 to 50) | 14.0 |",
    ]


def estimated(program, seeds, arch, config, mesh, layers):
    """The estimate of a program: as it was recorded, where it and the compiler are the same, else compiled anew."""
    record = json.loads((ROOT / "results" / "speed" / f"tpu-{arch}.json").read_text(encoding="utf-8"))
    lowered = estimate_tpu.lower_program(program, config, mesh, seeds, estimate_tpu.LAYERS[layers])
    found = record["programs"][f"{program} of {seeds} seeds" if seeds else program][layers]
    same = all(record["environment"][name] == importlib.metadata.version(name) for name in ("jaxlib", "libtpu"))
    known = same and found["program_sha256"] == estimate_tpu.program_sha256(lowered)
    return found if known else estimate_tpu.estimate(lowered)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arch", "seeds"),
    [
        *((program, arch, 0) for program in ("epoch", "scoring") for arch in (*time_to_target.NOTEBOOKS, "swift")),
        ("epoch", "bn_dropout", 8),
    ],
)
def test_our_layers_take_no_more_cycles_than_those_of_flax(program, arch, seeds):
    config, mesh = make_config(arch=arch), estimate_tpu.make_mesh("v5e:1x1")
    ours, flax = (estimated(program, seeds, arch, config, mesh, layers) for layers in estimate_tpu.LAYERS)
    # Scoring is the same program but for its batch norm.
    assert 0 < ours["cycles"] <= 1.001 * flax["cycles"]
    assert ours["temporary_bytes"] > 0


@needs_compiler
def test_an_epoch_on_four_chips_reduces_and_gathers_nothing():
    """Sums of batch norm, and gradients, over all; and nothing in float64, or that the host would have to answer."""
    mesh = estimate_tpu.make_mesh("v5e:2x2")
    text = estimate_tpu.lower_program("epoch", make_config(), mesh).compile().as_text()
    collectives = re.findall(r" = (.*) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
    kinds = {kind for _, kind in collectives}
    assert kinds == {"all-reduce"}
    reduced = " ".join(shape for shape, _ in collectives)
    assert reduced.count("f32[16]") >= 2 * 2 * 4  # Of four of the six layers of batch norm: two sums, there and back.
    assert "f32[3,3,16,16]" in reduced
    assert "f32[32,26,26,16]" in text  # A quarter of a batch of 128,
    assert "f32[128,26,26,16]" not in text  # and nowhere the whole.
    assert not re.findall(r"\bf64\[| (?:infeed|outfeed|send|recv)\(", text)
    refused("topology 'v5e:9x9x9' cannot be compiled for", estimate_tpu.make_mesh, "v5e:9x9x9")


def test_without_the_compiler_or_pytorch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(run_script("benchmarks/estimate_tpu.py"), "pip install libtpu")
    assert_refused(run_script("benchmarks/time_to_target.py"), "pip install torch")
