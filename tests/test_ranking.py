from mnist_jax.series.ranking import ranking
from mnist_jax.series.records import Trial
from mnist_jax.training import EpochMetrics


def test_a_ranking_is_whole_and_tells_what_cannot_be_told():
    spread, names = (0.0, 0.0004, -0.0004), ["arch " + "16-s24-pool-" * 8 + str(i) for i in range(5)]
    means = dict(zip(names, (0.99, 0.9949, 0.995, 0.9948, 0.993), strict=True))

    def trial(accuracy):
        return Trial({}, 9752, 2_000_000, (EpochMetrics(1, 0.1, 0.98, 0.1, accuracy, 1.0),), 0.1, 0.98)

    trials = {name: [trial(mean + each) for each in spread] for name, mean in means.items()}
    trials[names[3]] = trials[names[3]][:1]
    trials[names[4]] = [Trial({}, diverged="at step 3")]
    head, *lines = ranking(trials)
    rows = list(zip(lines[:8:2], lines[1:8:2], strict=True))
    assert [title.partition(";")[0] for title, _ in rows] == [names[i] for i in (2, 1, 3, 0)]
    assert [figures[0] for _, figures in rows] == [" ", "=", "?", " "]
    assert {len(line) for line in (head, *(figures for _, figures in rows))} == {80}
    assert "99.490%  0.040%     3  -0.010%   -0.139% to +0.119%" in rows[1][1]
    assert [line[0] for line in lines[8:]] == ["=", "?"]
    assert list(ranking({})) == [head]
