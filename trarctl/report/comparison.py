"""Which of several runs is better, and is it real: settings that differ, groups of seeds, paired differences.

Axes: Q questions, R resamples, V distinct values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trarctl.config.settings import CIRCUMSTANCES, Settings, flat, short_names, to_text
from trarctl.engine.evaluations import Answered

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.engine.evaluator import Chosen

NUM_RESAMPLES = 10_000
SEED = 0  # of the resamples
LEVEL = 0.95
SEED_KEY = "train.seed"
_DRAWS_AT_ONCE = 1 << 22  # 32 MB of counts
# What is no reason for another result; what a run writes is none either.
_UNCOMPARED = (
    *CIRCUMSTANCES,
    *("run.timeout_seconds", "run.save_every", "run.log_every", "run.loggers", "run.keep"),
)
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, 1.96 + 2.5 / n is within 0.01.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Floats = NDArray[np.float64]


class Verdict(Enum):
    """How sure a difference from the best is; the values are what tables show."""

    BEST = "best"
    REAL = "lower"
    ONE_SEED = "lower; one seed"
    WITHIN_SEEDS = "within seed spread"
    OPEN = "not told apart"


@dataclass(frozen=True)
class Row:
    """One checkpoint that is compared."""

    name: str  # as the user named it
    chosen: Chosen
    data: PreparedData
    split: PreparedSplit
    answered: Answered
    settings: Settings | None  # that it was trained with; None for the original's checkpoints

    @property
    def epoch(self) -> str:
        """The epoch that was asked for; empty for the best."""
        return self.name.rpartition("@")[2] if "@" in self.name else ""


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its 95 % interval, in percent points."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Write it as tables show it: ``-0.52 [-0.80, -0.25]``."""
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; figures in percent."""

    members: tuple[int, ...]  # places in the list of runs
    values: dict[str, str]  # settings by which the groups differ, as text
    overall: tuple[float, ...]  # accuracy of each member

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return sum(self.overall) / len(self.overall)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single run."""
        number, mean = len(self.overall), self.mean
        return math.sqrt(sum((one - mean) ** 2 for one in self.overall) / (number - 1)) if number > 1 else None


@dataclass(frozen=True)
class Contrast:
    """A group beside the best one."""

    verdict: Verdict
    overall: Difference | None = None  # from the best over the same questions; None for the best itself
    per_type: dict[str, Difference] | None = None
    over_seeds: Difference | None = None  # the same by the seeds' spread; None without two seeds in each


@dataclass(frozen=True)
class Comparison:
    """Runs in groups of seeds, each group beside the best."""

    names: Sequence[str]  # of the runs
    groups: Sequence[Group]
    contrasts: Sequence[Contrast]  # of each group; empty for a single one, and for runs that answered other questions
    num_questions: int | None

    @property
    def has_seeds(self) -> bool:
        """Whether some group has several runs."""
        return any(len(group.members) > 1 for group in self.groups)

    @property
    def is_by_setting(self) -> bool:
        """Whether the settings that differ tell the groups apart."""
        texts = self._texts
        return all(texts) and len(set(texts)) == len(texts)

    @property
    def labels(self) -> list[str]:
        """Name the groups by the settings that differ, ``learning_rate 0.0003``, or else by their runs."""
        if self.is_by_setting:
            return self._texts
        return [", ".join(self.names[index] for index in group.members) for group in self.groups]

    @property
    def _texts(self) -> list[str]:
        short = short_names(key for group in self.groups[:1] for key in group.values)
        return [", ".join(f"{short[key]} {value}" for key, value in group.values.items()) for group in self.groups]

    @property
    def conclusion(self) -> str:
        """Answer in one sentence; empty without differences."""
        return conclusion(self.groups, self.contrasts, self.labels) if self.contrasts else ""

    def document(self) -> dict[str, object]:
        """Describe the groups for other programs."""
        documents = []
        for place, group in enumerate(self.groups):
            one: dict[str, object] = {
                "runs": [self.names[index] for index in group.members],
                "settings": group.values,
                "mean": group.mean,
                "standard_deviation": group.spread,
            }
            if self.contrasts:
                contrast = self.contrasts[place]
                one["verdict"] = contrast.verdict.name.lower()
                one["difference"] = contrast.overall and asdict(contrast.overall)
                one["difference_over_seeds"] = contrast.over_seeds and asdict(contrast.over_seeds)
                per_type = contrast.per_type or {}
                one["difference_per_type"] = {name: asdict(value) for name, value in per_type.items()}
            documents.append(one)
        bootstrap = {"resamples": NUM_RESAMPLES, "seed": SEED, "level": LEVEL, "questions": self.num_questions}
        return {"groups": documents, "bootstrap": bootstrap if self.contrasts else None}


def compare(
    names: Sequence[str],
    settings: Sequence[Settings | None],
    overall: Sequence[float | None],
    answered: Sequence[Answered] | None,
    *,
    apart: Sequence[object] | None = None,
) -> Comparison:
    """Gather runs into groups, see ``grouped``, and compare these if ``answered`` has results of the same questions."""
    groups = make_groups(settings, apart or [""] * len(names), overall)
    found = contrasts(groups, answered) if answered and len(groups) > 1 else []
    return Comparison(names, groups, found, answered[0].accuracy.questions if answered else None)


def differing(runs: Sequence[Settings | None]) -> list[str]:
    """Dotted keys of the settings that are not the same in all runs, but for where and on what they were computed."""
    tables = [flat(settings) for settings in runs if settings is not None]
    first = tables[0] if tables else {}
    return [key for key in first if key not in _UNCOMPARED and any(one[key] != first[key] for one in tables)]


def value_of(settings: Settings | None, key: str) -> str:
    """A setting as text; empty where settings are not known."""
    return "" if settings is None else to_text(flat(settings)[key])


def grouped(runs: Sequence[Settings | None], apart: Sequence[object]) -> list[tuple[int, ...]]:
    """Gather runs that differ in nothing but their seed, in order of appearance.

    Runs without settings stand alone, and so do those of equal settings whose seeds are equal too, since they are no
    sample of seeds. Runs that ``apart`` tells apart, an epoch for instance, are never gathered.
    """
    found: dict[object, list[int]] = {}
    for index, settings in enumerate(runs):
        key: object = index
        if settings is not None:
            values = flat(settings).items()
            same = [(name, to_text(value)) for name, value in values if name not in (*_UNCOMPARED, SEED_KEY)]
            key = (apart[index], tuple(same))
        found.setdefault(key, []).append(index)
    groups: list[tuple[int, ...]] = []
    for members in found.values():
        seeds = {settings.train.seed for index in members if (settings := runs[index]) is not None}
        groups += [tuple(members)] if len(seeds) in (0, len(members)) else [(index,) for index in members]
    return sorted(groups)


def make_groups(
    runs: Sequence[Settings | None], apart: Sequence[object], overall: Sequence[float | None]
) -> list[Group]:
    """Gather runs into groups, see ``grouped``, without those that have no accuracy yet."""
    keys = [key for key in differing(runs) if key != SEED_KEY]
    groups = []
    for members in grouped(runs, apart):
        first = runs[members[0]]
        values = {} if first is None else {key: value_of(first, key) for key in keys}
        scored = [(index, value) for index in members if (value := overall[index]) is not None]
        if scored:
            groups.append(Group(tuple(index for index, _ in scored), values, tuple(value for _, value in scored)))
    return groups


def paired_difference(
    one: Floats, other: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Difference:
    """Bootstrap the mean of ``one - other`` [Q], shares from 0 to 1, over the questions: the percentile interval.

    Questions are drawn with replacement, both results of a question together. The mean of a resample depends only on
    how often each distinct difference is drawn, of which there are few: drawing these counts, which are multinomial, is
    the same bootstrap, exactly, in time and memory that do not grow with Q.

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    # Rounded, so that what differs by the order of summing only is one value.
    values, counts = np.unique(np.round(one - other, 9), return_counts=True)
    number, random = int(counts.sum()), np.random.default_rng(seed)
    at_once = max(_DRAWS_AT_ONCE // len(values), 1)
    means = [
        random.multinomial(number, counts / number, size=min(at_once, num_resamples - start)) @ values / number
        for start in range(0, num_resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(100 * float(counts @ values / number), 100 * float(low), 100 * float(high))


def seeds_difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """Difference of two means of percent over seeds, by Student's t with the spread of both; None for fewer than two.

    It takes the seeds for the sample and the questions as given; ``paired_difference`` does the reverse.
    """
    if min(len(one), len(other)) < 2:
        return None
    sizes, means = (len(one), len(other)), (float(np.mean(one)), float(np.mean(other)))
    degrees = sum(sizes) - 2
    squares = float(np.var(one)) * sizes[0] + float(np.var(other)) * sizes[1]
    quantile = _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.5 / degrees
    half = quantile * math.sqrt(squares / degrees * (1 / sizes[0] + 1 / sizes[1]))
    mean = means[0] - means[1]
    return Difference(mean, mean - half, mean + half)


def best_of(groups: Sequence[Group]) -> int:
    """The place of the group with the highest mean, the first of equals."""
    return max(range(len(groups)), key=lambda place: (groups[place].mean, -place))


def contrasts(groups: Sequence[Group], answered: Sequence[Answered]) -> list[Contrast]:
    """Compare each group with the best, question by question; a question's accuracy is first averaged over the seeds.

    ``answered`` has the accuracy of each run at the same questions.
    """
    best = groups[best_of(groups)]
    reference = mean_right(best, answered)
    found = []
    for group in groups:
        if group is best:
            found.append(Contrast(Verdict.BEST))
            continue
        right, first = mean_right(group, answered), answered[group.members[0]].accuracy
        counted = slice(None) if first.is_counted is None else first.is_counted
        overall = paired_difference(right[counted], reference[counted])
        per_type = {}
        for index, name in enumerate(first.types):
            is_type = first.type_of == index
            per_type[name] = paired_difference(right[is_type], reference[is_type])
        over_seeds = seeds_difference(group.overall, best.overall)
        verdict = Verdict.OPEN
        if overall.is_clear:
            verdict = Verdict.ONE_SEED if over_seeds is None else Verdict.REAL
            if over_seeds is not None and not over_seeds.is_clear:
                verdict = Verdict.WITHIN_SEEDS
        found.append(Contrast(verdict, overall, per_type, over_seeds))
    return found


def mean_right(group: Group, answered: Sequence[Answered]) -> Floats:
    """Accuracy of each question, 0 to 1, averaged over the runs of a group, [Q]."""
    total: Floats = np.mean([answered[index].accuracy.right for index in group.members], axis=0, dtype=np.float64)
    return total


def conclusion(groups: Sequence[Group], found: Sequence[Contrast], names: Sequence[str]) -> str:
    """Answer in one sentence which group is best, and which others it is not told apart from."""
    best = best_of(groups)
    open_ones = [names[place] for place, one in enumerate(found) if one.verdict in (Verdict.OPEN, Verdict.WITHIN_SEEDS)]
    few = [names[place] for place, one in enumerate(found) if one.verdict is Verdict.ONE_SEED]
    text = f"{names[best]} is best, {groups[best].mean:.2f} %"
    if open_ones:
        text += f"; not told apart from it: {', '.join(open_ones)}"
    elif few:
        text += "; clearly on these questions, with one seed: another seed may turn it round (--seeds)"
    else:
        text += "; all others are lower by more than chance"
    return text
