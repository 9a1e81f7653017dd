import json

from conftest import part

from mnist_jax import EpochMetrics, make_config
from mnist_jax.lab import benchmark


def test_contenders_take_turns_in_processes_of_their_own():
    rounds = []
    config = make_config("reference", arch="gap", batch_size=8)
    result = benchmark.run(config, ["ours", "ours augmented"], rounds=1, steps=1, threads=1, on_round=rounds.append)
    assert rounds == [1]
    assert list(result["contenders"]) == ["ours", "ours augmented"]
    assert len(result["matmul_flops"]) == 1
    for record in result["contenders"].values():
        assert len(record["step_seconds"]) == len(record["score_seconds"]) == 1
        assert min(record["step_seconds"] + record["score_seconds"]) > 0
        assert record["start"]["first_step"] > record["start"]["compile"] > 0
        assert record["peak_bytes"] > 1e8


def test_what_an_accelerator_is_asked(mnist, monkeypatch):
    """On whatever device there is; training is not at issue here, and none takes place."""
    asked, history = [], [EpochMetrics(1, 0.1, 0.9, 0.1, 0.9, 1.0)]
    monkeypatch.setattr(benchmark, "fit", lambda config, data: asked.append(config.recipe) or (None, history))
    monkeypatch.setattr(benchmark, "fit_seeds", lambda config, data, seeds: (None, [history for _ in seeds]))
    small = part(mnist, 200, 200)
    result = benchmark.accelerator("gap", small, seeds=2, batch_sizes=(100,), epochs=1)
    assert asked == ["default", "default", "fast", "fast"]
    assert (set(result["epoch_seconds"]), set(result["runs"])) == ({100}, {"default", "fast"})
    assert len(result["seeds"]["test_accuracies"]) == 2
    runs = [*result["runs"].values(), result["seeds"]]
    epochs = result["epoch_seconds"][100]
    assert {name: len(seconds) for name, seconds in epochs.items()} == {"ours": 5, "flax": 5}
    seconds = [*epochs["ours"], *epochs["flax"], *(run[which] for run in runs for which in ("first", "again"))]
    assert all(value > 0 for value in seconds)
    json.dumps(result)
