import contextlib
import json

from conftest import part

from mnist_jax import EpochMetrics, make_config, seeds, training
from mnist_jax.lab import benchmark, jobs
from mnist_jax.lab.analysis import ratios, spread


def test_ratios_are_taken_round_by_round():
    result = {"contenders": {"ours": {"step_seconds": [1.0, 2.0]}, "flax": {"step_seconds": [3.0, 8.0]}}}
    assert ratios(result, "step_seconds", "flax") == [3.0, 4.0]
    assert spread([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)


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
    monkeypatch.setattr(training, "fit", lambda config, data: asked.append(config.recipe) or (None, history))
    monkeypatch.setattr(seeds, "fit_seeds", lambda config, seeds, data: (None, [history for _ in seeds]))
    small = part(mnist, 200, 200)
    result = benchmark.accelerator("gap", small, seeds=2, batch_sizes=(100,), epochs=1)
    assert asked == ["default", "default", "fast", "fast"]
    assert set(result["epoch_seconds"]) == {100}
    assert set(result["runs"]) == {"default", "fast"}
    assert len(result["seeds"]["test_accuracies"]) == 2
    runs = [*result["runs"].values(), result["seeds"]]
    epochs = result["epoch_seconds"][100]
    assert {name: len(seconds) for name, seconds in epochs.items()} == {"ours": 5, "flax": 5}
    seconds = [*epochs["ours"], *epochs["flax"], *(run[which] for run in runs for which in ("first", "again"))]
    assert all(value > 0 for value in seconds)
    json.dumps(result)


def test_many_seeds_against_one_after_the_other(script, monkeypatch, tmp_path):
    """Each way has its turn as often, and sees as many images; what training does is not at issue here."""
    asked = []
    monkeypatch.setattr(training, "fit", lambda config, data: asked.append((1, len(data.train.labels))))
    monkeypatch.setattr(
        seeds, "fit_seeds", lambda config, seeds, data: asked.append((len(seeds), len(data.train.labels)))
    )
    flags = ["--arch", "gap", "--together", "2", "--rounds", "2", "--steps", "2", "--json", "seeds.json"]
    status, out, _ = script("benchmark.py", *flags)
    assert status == 0
    assert out.startswith("gap, 2 seeds, 2 steps and a score each: together ")
    assert asked == [(2, 256), (1, 256), (1, 256)] * 3  # The first to compile.
    record = json.loads((tmp_path / "seeds.json").read_text())
    assert all(len(record[name]) == 2 and min(record[name]) > 0 for name in ("together", "alone"))


def test_trainings_at_once_against_one_after_the_other(script, monkeypatch, tmp_path):
    """In turns, after one to compile; what training does is not at issue here."""
    asked = []
    monkeypatch.setattr(jobs, "processes", lambda count, cached: contextlib.nullcontext(count))
    monkeypatch.setattr(jobs, "run", lambda tasks, count, *_: asked.append((count, len(tasks))) or [])
    flags = ["--arch", "gap", "--jobs", "3", "--seeds", "4", "--rounds", "2", "--json", "jobs.json"]
    status, out, _ = script("benchmark.py", *flags)
    assert status == 0
    assert out.startswith("gap, fast, 4 seeds, trainings an hour on ")
    assert asked == [(1, 1), *[(3, 4), (1, 4)] * 2]
    record = json.loads((tmp_path / "jobs.json").read_text())
    assert all(len(record[name]) == 2 and min(record[name]) > 0 for name in ("at_once", "one"))
