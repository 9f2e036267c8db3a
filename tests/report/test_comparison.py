"""Groups of seeds and paired differences, against numbers that are known without a bootstrap."""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest

from trarctl.config.settings import Settings, from_dict, short_names
from trarctl.data.metrics import Accuracy
from trarctl.engine.evaluations import Answered
from trarctl.report.comparison import (
    Group,
    Verdict,
    conclusion,
    contrasts,
    differing,
    grouped,
    make_groups,
    paired_difference,
    seeds_difference,
)
from trarctl.report.comparison_page import choose_disputed

SHARES = np.array([0.0, 0.3, 0.6, 0.9, 1.0])  # what an answer to a question of VQA can be worth


def settings(**values: object) -> Settings:
    tables: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        table, _, key = name.partition("__")
        tables.setdefault(table, {})[key] = value
    return from_dict(tables, "a test")


def accuracy(right: np.ndarray, type_of: np.ndarray | None = None, counted: np.ndarray | None = None) -> Accuracy:
    types = np.zeros(len(right), dtype=np.int64) if type_of is None else type_of
    names = tuple("abc"[: int(types.max()) + 1])
    return Accuracy(100 * float(right.mean()), {}, {}, {}, len(right), "official", right, types, names, None, counted)


def answered(*rights: np.ndarray, type_of: np.ndarray | None = None) -> list[Answered]:
    return [Answered(accuracy(right, type_of), [""] * len(right)) for right in rights]


# The interval


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    random = np.random.default_rng(1)
    one, other = SHARES[random.integers(5, size=(2, 20_000))]
    found = paired_difference(one, other)
    difference = one - other
    half = 1.959964 * float(difference.std()) / math.sqrt(len(difference))
    assert found.mean == pytest.approx(100 * float(difference.mean()))
    assert found.low == pytest.approx(100 * (float(difference.mean()) - half), abs=0.03)
    assert found.high == pytest.approx(100 * (float(difference.mean()) + half), abs=0.03)


def test_a_small_sample_is_that_of_drawing_questions_one_by_one() -> None:
    random = np.random.default_rng(2)
    one, other = SHARES[random.integers(5, size=(2, 12))]
    drawn = np.random.default_rng(3).integers(12, size=(200_000, 12))
    low, high = np.quantile((one - other)[drawn].mean(axis=1), [0.025, 0.975])
    found = paired_difference(one, other, num_resamples=200_000)
    assert found.low == pytest.approx(100 * low, abs=0.6)
    assert found.high == pytest.approx(100 * high, abs=0.6)


def test_a_constant_difference_has_no_width() -> None:
    one = SHARES[np.random.default_rng(4).integers(5, size=1000)]
    found = paired_difference(one, one - 0.25)
    assert (found.mean, found.low, found.high) == (25.0, 25.0, 25.0)
    assert str(found) == "+25.00 [+25.00, +25.00]"
    same = paired_difference(one, one)
    assert (same.low, same.high, same.is_clear) == (0.0, 0.0, False)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    num_trials, num_questions, truth = 400, 300, 100 * (0.62 - 0.55)
    covered = 0
    for trial in range(num_trials):
        common = random.random(num_questions)  # both are right where it is easy
        one, other = (common < 0.62).astype(float), (common < 0.55).astype(float)
        found = paired_difference(one, other, num_resamples=500, seed=trial)
        covered += found.low <= truth <= found.high
    # Three standard errors around 95 %, and a little for the discreteness of few differences.
    assert 0.91 <= covered / num_trials <= 0.985


def test_the_interval_is_the_same_again_and_another_with_another_seed() -> None:
    one, other = SHARES[np.random.default_rng(6).integers(5, size=(2, 500))]
    assert paired_difference(one, other) == paired_difference(one, other)
    assert paired_difference(one, other, seed=1) != paired_difference(one, other)


def test_questions_of_the_real_size_are_resampled_within_seconds() -> None:
    random = np.random.default_rng(7)
    one, other = (np.mean([SHARES[random.integers(5, size=214_354)] for _ in range(5)], axis=0) for _ in range(2))
    start = time.process_time()
    paired_difference(one, other)
    assert time.process_time() - start < 5


def test_the_interval_over_seeds_is_the_two_sample_t_interval() -> None:
    one, other = [70.0, 72.0, 71.0], [69.0, 68.0, 70.0]
    found = seeds_difference(one, other)
    pooled = math.sqrt((statistics.variance(one) + statistics.variance(other)) / 2)
    half = 2.776445 * pooled * math.sqrt(2 / 3)  # t of 4 degrees of freedom
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0 - half, 2.0 + half), abs=1e-3)
    assert seeds_difference([70.0], other) is None
    many = seeds_difference([1.0, 2.0] * 10, [1.0, 2.0] * 10)
    assert many is not None
    half = 2.024394 * math.sqrt(0.25 * 40 / 38 * 2 / 20)  # t of 38
    assert many.high == pytest.approx(half, abs=0.002)


# Groups


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    runs = [settings(train__learning_rate=rate, train__seed=seed, run__name=f"r{rate}-{seed}".replace(".", "-"))
            for rate in (1e-4, 3e-4) for seed in (1, 2)]  # fmt: skip
    assert differing(runs) == ["train.learning_rate", "train.seed"]
    assert grouped(runs, [""] * 4) == [(0, 1), (2, 3)]
    assert grouped(runs, ["", "3", "", "3"]) == [(0,), (1,), (2,), (3,)]
    assert grouped([runs[0], None, runs[1]], [""] * 3) == [(0, 2), (1,)]
    assert grouped([runs[0], runs[0], runs[1]], [""] * 3) == [(0,), (1,), (2,)]
    first, second = make_groups(runs, [""] * 4, [70.0, 72.0, None, 75.0])
    assert (first.members, first.values, first.mean) == ((0, 1), {"train.learning_rate": "0.0001"}, 71.0)
    assert first.spread == pytest.approx(math.sqrt(2))
    assert (second.members, second.mean, second.spread) == ((3,), 75.0, None)


def test_where_and_on_what_a_run_was_computed_is_no_difference() -> None:
    assert differing([settings(run__gpus="0"), settings(run__gpus="cpu", data__num_workers=0)]) == []
    assert differing([]) == []


def test_names_are_short_where_they_are_clear() -> None:
    assert short_names(["train.seed", "model.dropout"]) == {"train.seed": "seed", "model.dropout": "dropout"}


def test_accuracies_are_averaged_over_seeds_before_they_are_compared() -> None:
    random = np.random.default_rng(8)
    rights = [SHARES[random.integers(5, size=400)] for _ in range(4)]
    type_of = np.arange(400) % 2
    groups = [Group((0, 1), {}, (60.0, 61.0)), Group((2, 3), {}, (59.0, 58.0))]
    best, other = contrasts(groups, answered(*rights, type_of=type_of))
    assert best.verdict is Verdict.BEST
    expected = paired_difference((rights[2] + rights[3]) / 2, (rights[0] + rights[1]) / 2)
    assert other.overall == expected
    is_second = type_of == 1
    assert other.per_type is not None
    assert list(other.per_type) == ["a", "b"]
    by_hand = 100 * float(np.mean((rights[2] + rights[3] - rights[0] - rights[1])[is_second] / 2))
    assert other.per_type["b"].mean == pytest.approx(by_hand)


def test_questions_that_are_not_counted_are_not_compared() -> None:
    one, other = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 1.0])
    counted = np.array([True, True, False, False])
    held = [Answered(accuracy(right, None, counted), [""] * 4) for right in (one, other)]
    found = contrasts([Group((0,), {}, (100.0,)), Group((1,), {}, (50.0,))], held)[1]
    assert found.overall is not None
    assert found.overall.mean == -50.0


@pytest.mark.parametrize(
    ("drop", "first", "second", "verdict", "said"),
    [
        (0.2, (70.0, 70.2), (50.0, 50.1), Verdict.REAL, "all others are lower by more than chance"),
        (0.2, (70.0, 50.0), (60.0, 40.0), Verdict.WITHIN_SEEDS, "not told apart from it: b"),
        (0.2, (70.0,), (50.0,), Verdict.ONE_SEED, "another seed may turn it round (--seeds)"),
        (0.0, (70.0, 70.2), (50.0, 50.1), Verdict.OPEN, "not told apart from it: b"),
    ],
)
def test_verdicts(
    drop: float, first: tuple[float, ...], second: tuple[float, ...], verdict: Verdict, said: str
) -> None:
    random = np.random.default_rng(9)
    right = (random.random(2000) < 0.7).astype(float)
    lower = np.where(random.random(2000) < drop, 0.0, right)
    number = len(first)
    groups = [Group(tuple(range(number)), {}, first), Group(tuple(range(number, 2 * number)), {}, second)]
    found = contrasts(groups, answered(*[right] * number, *[lower] * number))
    assert found[1].verdict is verdict
    text = conclusion(groups, found, ["a", "b"])
    assert text.startswith(f"a is best, {groups[0].mean:.2f} %; ")
    assert text.endswith(said)


# Questions to look at


def test_the_questions_that_differ_most_of_each_type_come_first() -> None:
    right = np.array([[1.0, 1.0, 0.5, 1.0, 0.3], [0.0, 0.9, 0.0, 1.0, 0.0]])
    chosen = choose_disputed(right, np.array([0, 0, 1, 1, 0]), most=3)
    assert chosen.tolist() == [0, 2, 4]
    assert choose_disputed(right, np.array([0, 0, 1, 1, 0]), most=9).tolist() == [0, 2, 4, 1]
