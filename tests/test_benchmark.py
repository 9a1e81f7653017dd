import dataclasses
import os

import mnist_jax as mj
from mnist_jax import make_config
from mnist_jax.lab import benchmark


def test_contenders_take_turns_in_processes_of_their_own():
    told = []
    config = make_config("reference", arch="4-pool-4", batch_size=8)
    result = benchmark.run(config, ["ours", "ours augmented"], rounds=1, steps=1, threads=1, tell=told.append)
    assert told == ["starting ours", "starting ours augmented", "round 1 of 1"]
    assert list(result.contenders) == ["ours", "ours augmented"]
    for record in result.contenders.values():
        assert len(record["step_seconds"]) == len(record["score_seconds"]) == 1
        assert min(record["step_seconds"] + record["score_seconds"]) > 0
        assert record["start"]["first_step"] > 0
        assert record["peak_bytes"] > 1e8


def test_networks_in_one_program_are_timed_together():
    config, data = make_config("reference", arch="4-pool-4", batch_size=8), mj.load_dataset("mnist")
    data = dataclasses.replace(data, test=mj.Split(data.test.images[:20], data.test.labels[:20]))
    contender = benchmark.CONTENDERS["ours, 30 seeds"](dataclasses.replace(config, eval_batch_size=20), data, seeds=2)
    contender.steps(1)
    contender.score()
    assert contender.seeds == 2


def test_contenders_compute_where_they_are_told_and_share_its_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    with benchmark.sharing("cpu"):
        assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ
    assert os.environ["JAX_PLATFORMS"] == ""
