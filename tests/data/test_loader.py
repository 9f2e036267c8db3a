from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from trarctl.data.features.resident import ResidentFeatures
from trarctl.data.loader import (
    epoch_order,
    load_batches,
    scoring_plan,
    scoring_samples,
    training_plan,
    training_samples,
    trimmed_length,
)
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.errors import DataError


@pytest.fixture
def vqa(golden_data: dict[str, Path]) -> PreparedData:
    return open_prepared(golden_data["vqa"])


@pytest.fixture
def clevr(golden_data: dict[str, Path]) -> PreparedData:
    return open_prepared(golden_data["clevr"])


def test_a_batch_holds_what_the_files_hold(vqa: PreparedData) -> None:
    samples, split = training_samples(vqa, "train", "bce"), vqa.split("train")
    indices = np.array([5, 3, 3, 60])
    batch = samples.batch(indices)
    rows = split.training_order[indices]
    assert np.array_equal(batch.question_id, split.question_id[rows])
    width = batch.question_tokens.shape[1]
    assert np.array_equal(batch.question_tokens.numpy(), split.question_tokens[rows][:, :width])
    assert not split.question_tokens[rows][:, width:].any()
    expected = vqa.features.read(split.image[rows].astype(np.int64))
    assert np.array_equal(batch.cells().numpy(), expected)
    assert len(batch.features) == len(set(split.image[rows].tolist())) < 4


def test_soft_targets_and_label_distribution(vqa: PreparedData) -> None:
    offsets, answer, count = vqa.split("train").targets
    row = int(vqa.split("train").training_order[7])
    counts = np.zeros(len(vqa.answers))
    counts[answer[offsets[row] : offsets[row + 1]]] = count[offsets[row] : offsets[row + 1]]
    soft = training_samples(vqa, "train", "bce").batch(np.array([7])).target
    share = training_samples(vqa, "train", "kld").batch(np.array([7])).target
    assert soft is not None
    assert share is not None
    scale = np.array([0, 0.3, 0.6, 0.9, 1], dtype=np.float32)
    assert np.array_equal(soft.numpy()[0], scale[np.minimum(counts, 4).astype(int)])
    torch.testing.assert_close(share[0], torch.tensor(counts / 10, dtype=torch.float32))


def test_labels(clevr: PreparedData) -> None:
    target = training_samples(clevr, "train", "ce").batch(np.arange(160)).target
    assert target is not None
    truth = clevr.split("train").truth()
    assert [clevr.answers[index] for index in target] == [truth.strings[code] for code in truth.codes[:, 0]]


def test_splits_follow_one_another(vqa: PreparedData) -> None:
    samples = training_samples(vqa, "train+val+vg", "bce")
    parts = [vqa.split(name) for name in ("train", "val", "vg")]
    expected = np.concatenate([part.question_id[part.training_order] for part in parts])
    assert len(samples) == len(expected)
    assert np.array_equal(samples.batch(np.arange(len(samples))).question_id, expected)


def test_a_split_without_answers_cannot_be_trained_on(vqa: PreparedData) -> None:
    with pytest.raises(DataError, match="split test of .* has no answers to train on"):
        training_samples(vqa, "train+test", "bce")


def test_each_epoch_sees_each_sample_once_in_its_own_order() -> None:
    first = epoch_order(100, seed=3, epoch=0, shuffle=True)
    again = epoch_order(100, seed=3, epoch=0, shuffle=True)
    second = epoch_order(100, seed=3, epoch=1, shuffle=True)
    other = epoch_order(100, seed=4, epoch=0, shuffle=True)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert sorted(first) == sorted(second) == list(range(100))
    assert np.array_equal(epoch_order(4, seed=0, epoch=0, shuffle=False), np.arange(4))


def test_a_plan_can_go_on_in_the_middle() -> None:
    whole = training_plan(50, batch_size=8, seed=0, epoch=2, shuffle=True)
    rest = training_plan(50, batch_size=8, seed=0, epoch=2, shuffle=True, first_step=4)
    assert len(whole) == 6
    assert all(np.array_equal(left, right) for left, right in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_score_each_question_once(num_processes: int) -> None:
    seen = Counter(
        int(row)
        for rank in range(num_processes)
        for rows in scoring_plan(103, batch_size=10, rank=rank, num_processes=num_processes)
        for row in rows
    )
    assert seen == Counter(range(103))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_come_in_order(vqa: PreparedData, num_workers: int) -> None:
    samples = scoring_samples(vqa, "val")
    batches = list(load_batches(samples, scoring_plan(100, batch_size=7), num_workers=num_workers))
    assert [len(batch) for batch in batches] == [7] * 14 + [2]
    assert np.array_equal(np.concatenate([batch.question_id for batch in batches]), vqa.split("val").question_id)
    assert batches[0].target is None


@pytest.mark.parametrize("split", ["train", "train+val"])
def test_batches_of_kept_features_are_those_of_the_files(split: str, vqa: PreparedData) -> None:
    samples = training_samples(vqa, split, "bce")
    plan = [*training_plan(len(samples), batch_size=20, seed=1, epoch=0, shuffle=True), np.arange(1)]
    in_memory = ResidentFeatures(vqa.features, samples.images)
    on_device = ResidentFeatures(vqa.features, samples.images, device=torch.device("cpu"))
    # As many questions as images are kept, in another order than those.
    plan.append(np.arange(len(samples.images)))
    plain, copied, indexed = (
        list(load_batches(samples, plan, num_workers=2, kept=kept)) for kept in (None, in_memory, on_device)
    )
    assert {batch.image is None for batch in plain} == {True, False}
    for right, one, other in zip(plain, copied, indexed, strict=True):
        assert [tensor.numpy().tobytes() for tensor in one.tensors()] == [
            tensor.numpy().tobytes() for tensor in right.tensors()
        ]
        assert other.features is on_device.on_device
        assert other.cells().numpy().tobytes() == right.cells().numpy().tobytes()
        assert torch.equal(other.question_tokens, right.question_tokens)


def test_the_images_of_samples(vqa: PreparedData) -> None:
    split = vqa.split("train")
    images = training_samples(vqa, "train", "bce").images
    assert images.tolist() == sorted(set(split.image[split.training_order].tolist()))


def test_an_early_end_leaves_no_thread_behind(vqa: PreparedData) -> None:
    batches = load_batches(scoring_samples(vqa, "val"), scoring_plan(100, batch_size=1), num_workers=2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(batches)


def test_trimming_keeps_all_columns_where_a_question_is_empty() -> None:
    tokens = np.array([[4, 5, 0, 0], [6, 0, 0, 0]])
    assert trimmed_length(tokens) == 2
    assert trimmed_length(np.vstack([tokens, np.zeros((1, 4), dtype=np.int64)])) == 4


def test_questions_without_a_known_answer_are_counted_before_training(vqa: PreparedData) -> None:
    split = vqa.split("train")
    offsets = split.targets[0].tolist()
    num_lost = sum(offsets[row] == offsets[row + 1] for row in split.training_order.tolist())
    assert num_lost > 0
    with pytest.raises(DataError, match=f"^{num_lost} of 140 training questions of train have no answer out of the"):
        training_samples(vqa, "train", "ce")
    training_samples(vqa, "train", "bce")
