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
