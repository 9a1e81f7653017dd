"""What is compared: series of trials, files of them, or plain accuracies; and the result in words."""

import collections
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mnist_jax.differences import Comparison, Series, compare_series
from mnist_jax.errors import InputError, plain_number, require_path, shown
from mnist_jax.series.records import Trial, read_trials, settings

Source: TypeAlias = Sequence[Trial] | Mapping[int, float] | ArrayLike | str | os.PathLike[str]


def compare(a: Source, b: Source, *, images: Literal["fixed", "sampled"] = "fixed", paired: bool = False) -> Comparison:
    """Tells whether A is more accurate than B: the difference of two series of seeds, and how sure it is.

    Without pairs this is the test of Welch, "The generalization of 'Student's' problem", Biometrika 34, 1947: the
    variance is the sum of both series' variances over seeds, each divided by its seeds. With pairs it is Student's test
    of the differences by seed. Both are about these images.

    `images="sampled"` makes a claim about all images that these were drawn from. The mixed model of seeds, images and
    their interaction adds the variance over images of the mean difference, divided by the images, less that of the
    interaction, which is in the variance over seeds. The variance over seeds is at least that of the interaction. All
    are estimated from mean squares, and the degrees of freedom are Satterthwaite's: Searle, Casella and McCulloch,
    "Variance Components", 1992, chapter 4.

    Args:
      a: trials of one setting, the path of a file that `reproduce` or `search` wrote, accuracies by seed, fractions, or
        an array: accuracies [seeds], or bool [seeds, images], true where the prediction is right.
      b: another such series.
      images: "fixed" for a claim about the scored images, "sampled" for one about all images they were drawn from.
      paired: pair the seeds that both have, or arrays by position, and leave out the others. Whether that helps is a
        matter of `correlation`.

    Returns:
      The difference A less B, its 95% interval and its p-value.

    Raises:
      InputError: If a series has fewer than two seeds, one setting twice or a diverged seed, if the images are not
        the same, or if what `images` or `paired` needs is missing.

    Example:
      >>> result = mj.compare({1: 0.994, 2: 0.995, 3: 0.996}, {1: 0.993, 2: 0.994, 3: 0.992})
      >>> f"{result.difference:.2%} ({result.low:.2%} to {result.high:.2%}), p = {result.p_value:.3f}"
      '0.20% (-0.03% to 0.43%), p = 0.070'
    """
    one, other = series_of(a), series_of(b)
    return compare_series(one, other, images=images, paired=paired)


def series_of(source: Source) -> Series:
    """A series from trials, a file or accuracies; raises InputError as `compare`."""
    if isinstance(source, str | os.PathLike):
        series = list(read_series(require_path(source, "results")).values())
        if len(series) > 1:
            raise InputError(f"results {str(source)!r} hold {len(series)} settings; give the trials of one")
        return series[0]
    if isinstance(source, Mapping):
        for seed, accuracy in source.items():
            plain = plain_number(accuracy, float)
            if plain is None or not 0 <= plain <= 1:
                raise InputError(f"accuracy {shown(accuracy)} of seed {seed} cannot be used; give a fraction")
        return Series({seed: float(accuracy) for seed, accuracy in source.items()})
    values: list[Any] = [*source] if isinstance(source, Iterable) else [source]
    if all(isinstance(value, Trial) for value in values):
        return _series(values, "a series")
    return _series_of_array(np.asarray(values))


def _series_of_array(array: np.ndarray) -> Series:
    """The series of accuracies [seeds], or of bool [seeds, images]."""
    if array.dtype == bool and array.ndim == 2 and array.size:
        errors = {i: tuple(np.flatnonzero(~row).tolist()) for i, row in enumerate(array)}
        accuracies = dict(enumerate(array.mean(1).tolist()))
        return Series(accuracies, errors, array.shape[1], f"{array.shape[1]:,} images")
    if array.dtype.kind != "f" or array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        kind = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{kind} cannot be compared; give accuracies [seeds] from 0 to 1, or bool [seeds, images]")
    return Series(dict(enumerate(array.tolist())))


def read_series(path: Path) -> dict[str, Series]:
    """The series of a file of trials, one for each of its settings, by the file's name and what differs.

    A setting of which a seed diverged is left out where there are others. Raises InputError as `read_trials`, and if
    there is none.
    """
    groups: dict[frozenset[tuple[str, Any]], list[Trial]] = {}
    for trial in read_trials(path):
        attempt = frozenset((name, str(value)) for name, value in (trial.attempt or {}).items())
        groups.setdefault(settings(trial.config, seed=0) | attempt, []).append(trial)
    if not groups:
        raise InputError(f"results {str(path)!r} hold no trial; name a file that reproduce or search wrote")
    whole = {key: trials for key, trials in groups.items() if all(trial.history for trial in trials)} or groups
    return {
        ", ".join([path.stem, *label]): _series(trials, f"results {str(path)!r}")
        for label, trials in zip(_labels([*whole]), whole.values(), strict=True)
    }


def _labels(groups: Sequence[frozenset[tuple[str, Any]]]) -> list[list[str]]:
    """What tells groups of settings apart, in words: all that varies or, of much, what most have not."""
    times = collections.Counter(item for group in groups for item in group)
    varied = {name for (name, _), count in times.items() if count < len(groups)}
    most = {item for item in times if times[item] > len(groups) / 2} if len(varied) > 3 else set()
    labels = []
    for group in groups:
        label = [f"{name} {value}" for name, value in sorted(group - most, key=str) if name in varied]
        labels.append(label or ["as most"] * bool(most))
    return labels


def _series(trials: Sequence[Trial], name: str) -> Series:
    """The series of trials of one setting; raises InputError if a seed is there twice, diverged, or on other data."""
    accuracies, errors = {}, {}
    for trial in trials:
        seed = trial.config["seed"]
        if not trial.history:
            raise InputError(f"{name} has seed {seed}, which diverged; leave it out, and say so")
        if seed in accuracies:
            raise InputError(f"{name} has seed {seed} twice; give the trials of one setting")
        accuracies[seed], errors[seed] = trial.history[-1].test_accuracy, trial.errors
    scored = {(trial.dataset, trial.config.get("held_out", 0)) for trial in trials}
    hashes = {trial.sha256 for trial in trials if trial.sha256}
    if len(scored) > 1 or len(hashes) > 1:
        raise InputError(f"{name} has trials on different data; give those of the same images")
    if not trials:
        return Series({})
    # A trial has the images that it gets wrong, but not how many there are.
    worst = min(accuracies, key=lambda seed: accuracies[seed])
    count = round(len(errors[worst]) / (1 - accuracies[worst])) if errors[worst] else 0
    known = count and all(round(count * (1 - accuracies[seed])) == len(errors[seed]) for seed in errors)
    ((dataset, held_out),) = scored
    words = f"{held_out:,} held-out" if held_out else f"{count:,} test" if count else "the test"
    text = f"{words} images of {dataset}" + "".join(f" ({sha256[:8]})" for sha256 in hashes if dataset != "mnist")
    return Series(accuracies, errors if known else None, count if known else None, text)


def sentence(a: tuple[str, Series], b: tuple[str, Series], result: Comparison, pairs: int = 1) -> str:
    """A comparison as a sentence that a paper can print.

    `a` and `b` are names and series; `pairs` is the number of pairs that Holm's method corrected for.
    """
    (name, one), (other_name, other) = a, b
    seeds = one.accuracies.keys(), other.accuracies.keys()
    if result.paired:
        seeds = (seeds[0] & seeds[1],) * 2
    first, second = (
        f"{100 * statistics.fmean(series.accuracies[seed] for seed in used):.3f}%, {len(used)} "
        + ("pairs" if result.paired else "seeds")
        for series, used in zip((one, other), seeds, strict=True)
    )
    test, random = "a mixed model of seeds and images", "seeds and images are random"
    if result.images == "fixed":
        test, random = "paired t-test" if result.paired else "Welch's t-test", "seeds are random, images fixed"
    kind, corrected = "95% confidence interval", ""
    if pairs > 1:
        kind, corrected = f"simultaneous {kind}", f", corrected by Holm's method for {pairs} pairs"
    evidence = f"({kind} {interval(result)}, {p_text(result.p_value)}{corrected}, {test}; {random})."
    where = f"On {one.scored}, " if one.scored else ""
    by = f"{100 * abs(result.difference):.3f} percentage points"
    subject, than = f"{where}{name} (mean accuracy {first})", f"{other_name} ({second})"
    if result.p_value < 0.05:
        more = "more" if result.difference > 0 else "less"
        return f"{subject} is {more} accurate than {than} by {by} {evidence}"
    return f"{subject} and {than} cannot be told apart: they differ by {by} {evidence}"


def interval(result: Comparison) -> str:
    """The 95% interval in percentage points."""
    return f"{100 * result.low:.3f} to {100 * result.high:.3f}" if result.stderr else "unbounded"


def p_text(p_value: float) -> str:
    """A p-value with two digits."""
    return f"p = {p_value:.2g}" if p_value >= 1e-4 else "p < 0.0001"
