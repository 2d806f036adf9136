"""The scores of a study: each measure of each run, a value for each seed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bloodjax.runtime.files import read_json
from bloodjax.runtime.progress import print_line
from bloodjax.sampling import samples as samples_file
from bloodjax.scoring import scores
from bloodjax.scoring.metrics import METRICS
from bloodjax.scoring.tables import title

ALIKE = ("dataset_digest", "extractor_sha256", "n_real", "n_fake")  # of scores that compare
NEEDED = {"seed", "name", "protocol", "value", "draws", "dataset", *ALIKE}  # keys of a score
DISTANCE = "value"  # the key of the Fréchet distance
BETTER = {DISTANCE: "lower"} | {m.key: m.better for m in METRICS if m.averaged}


class DrawSpread(NamedTuple):
    """The distances of one run's models over several draws of images.

    A draw of real images is a part of those at hand, so that two draws share images: new images
    would spread more. Draws of samples share none.

    Attributes:
        n: number of draws, at least 2; all seeds meet the same real images.
        means: over the draws, float64 [seeds].
        std: sample σ over the draws, averaged over seeds as a variance.
    """

    n: int
    means: np.ndarray
    std: float


class Measurement(NamedTuple):
    """One measure of one run, a value for each seed.

    Attributes:
        run: the name of the run's folder.
        method: the name of the run's method.
        dataset: the name of the data.
        space: the name of the distance, such as "FID".
        measure: a key of `BETTER`.
        seeds: of the trained models.
        values: float64 [seeds].
        draws: of real images; None for measures other than the distance, and for one draw.
        sampling: the same, of samples.
        basis: the values of `ALIKE`; samples compare only if they agree.
    """

    run: str
    method: str
    dataset: str
    space: str
    measure: str
    seeds: tuple[int, ...]
    values: np.ndarray
    draws: DrawSpread | None
    sampling: DrawSpread | None
    basis: tuple[Any, ...]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """The sample standard deviation over seeds, with n - 1."""
        return float(self.values.std(ddof=1))


def read_study(folder: Path) -> list[Measurement]:
    """Return every measure of every run that has scores of two or more seeds.

    The console names the runs that are left out.

    Raises:
        ValueError: no run remains, or the seeds of one run do not compare.
    """
    samples: list[Measurement] = []
    for run in sorted(file.parent for file in folder.glob("*/config.json")):
        every = read_current(run)
        if reason := find_fault(every):
            print_line(f"{run} is left out: {reason}")
            continue
        method = read_json(run / "config.json")["config"]["method"]["name"]
        samples += read_run(run, method, every)
    if not samples:
        raise ValueError(
            f"{folder}: no run with scores of 2 seeds or more; expected the folder of a study, "
            "such as runs/paper"
        )
    return samples


def read_current(run: Path) -> list[scores.Score]:
    """Return the scores of a run, or [] if there are none or the run has other samples by now."""
    if (run / samples_file.NAME).exists():
        current = scores.read_scores(run, samples_file.read_samples(run))
        return current["scores"] if current else []
    file = run / scores.NAME
    return read_json(file)["scores"] if file.exists() else []


def find_fault(every: Sequence[scores.Score]) -> str:
    """Return why a run's scores cannot be used, or ""."""
    if not every:
        return "no scores yet, run --mode=score"
    if not all(score.keys() >= NEEDED for score in every):
        return "an older version scored it, run --mode=score"
    return "" if len({score["seed"] for score in every}) > 1 else "1 seed, expected at least 2"


def read_run(run: Path, method: str, every: Sequence[scores.Score]) -> list[Measurement]:
    """Return the measures of one run, without a fault, in every feature space."""
    samples = []
    for key in dict.fromkeys(map(scores.score_key, every)):
        group = [score for score in every if scores.score_key(score) == key]
        samples += read_space(run, method, group)
    return samples


def read_space(run: Path, method: str, group: Sequence[scores.Score]) -> list[Measurement]:
    """Return the measures of one run in one feature space that all seeds have."""
    basis, *rest = {tuple(score[key] for key in ALIKE) for score in group}
    if rest:
        raise ValueError(f"{run}: seeds differ in {' or '.join(ALIKE)}: score again, --mode=score")
    space = title(*scores.score_key(group[0]))
    draws = {DISTANCE: (read_draws(group, "draws"), read_draws(group, "sampling"))}
    seeds, dataset = tuple(score["seed"] for score in group), group[0]["dataset"]
    columns = {key: [score.get(key) for score in group] for key in BETTER}
    return [
        Measurement(run.name, method, dataset, space, key, seeds, array, *spreads, basis)
        for key, values in columns.items()
        if None not in values
        for array, spreads in [(np.array(values, float), draws.get(key, (None, None)))]
    ]


def read_draws(
    group: Sequence[scores.Score], key: Literal["draws", "sampling"]
) -> DrawSpread | None:
    """Return the spread over draws, None without one; scores hold population σ."""
    draws = [x for score in group if (x := score.get(key))]
    means = [x.get("mean") for x in draws]
    if len(draws) < len(group) or (n := draws[0]["n"]) < 2 or None in means:
        return None
    variance = np.mean([x["std"] ** 2 for x in draws]) * n / (n - 1)
    return DrawSpread(n, np.array(means, float), float(np.sqrt(variance)))


def keep_comparable(samples: Sequence[Measurement]) -> tuple[list[Measurement], list[str]]:
    """Return the samples with the commonest basis of their space, and a note on each other one."""
    common = {}
    for space in {x.space for x in samples}:
        common[space] = Counter(x.basis for x in samples if x.space == space).most_common(1)[0][0]
    notes = []
    for x in samples:
        if x.basis != common[x.space] and x.measure == DISTANCE:
            pairs = zip(ALIKE, x.basis, common[x.space], strict=True)
            unlike = ", ".join(f"{key} is {a}, elsewhere {b}" for key, a, b in pairs if a != b)
            notes.append(f"{x.run} is not ranked with the other runs by {x.space}: {unlike}")
    return [x for x in samples if x.basis == common[x.space]], notes
