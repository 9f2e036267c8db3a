"""Both VQA evaluators and both CLEVR groupings, against golden figures and a plain implementation."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.reference_accuracy import Questions, adversarial_questions, plain_vqa_accuracy
from trarctl.config import EvaluatorName
from trarctl.data.datasets.clevr import clevr_accuracy
from trarctl.data.metrics import (
    GroundTruth,
    ceiling,
    commonest_answer,
    exact_match,
    matched_thirds,
    measure,
    plain_accuracy,
    question_prior,
    refuse_unmeasurable,
    vqa_accuracy,
)
from trarctl.errors import DataError, SettingsError

GOLDEN = Path(__file__).parents[1] / "golden"
SCORED_CASES = sorted(path for path in (GOLDEN / "cases").glob("vqa_*.json") if not path.stem.endswith("_test"))
EVALUATORS: tuple[EvaluatorName, ...] = ("official", "upstream")


def _read(path: str) -> dict[str, list]:
    return json.loads((GOLDEN / path).read_text(encoding="utf-8"))


def _percents(shares: np.ndarray) -> list[float]:
    return [round(100 * share, 2) for share in shares.tolist()]


def _one_answer_each(answers: list[str], types: list[str]) -> GroundTruth:
    """Questions with one true answer; types are numbered as they appear."""
    return _answers_each([[answer] for answer in answers], types)


def _answers_each(answers: list[list[str]], types: list[str]) -> GroundTruth:
    strings = list(dict.fromkeys(answer for given in answers for answer in given))
    names = list(dict.fromkeys(types))
    codes = np.full((len(answers), 10), -1)
    for row, given in enumerate(answers):
        codes[row, : len(given)] = [strings.index(answer) for answer in given]
    type_of = np.array([names.index(name) for name in types])
    return GroundTruth(strings, codes, type_of, names, type_of, names)


def _mini_vqa() -> Questions:
    by_id = {
        annotation["question_id"]: annotation
        for annotation in _read("mini_vqa/raw/v2_mscoco_val2014_annotations.json")["annotations"]
    }
    questions = _read("mini_vqa/raw/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = [by_id[question["question_id"]] for question in questions]
    return Questions(
        answers=[[answer["answer"] for answer in annotation["answers"]] for annotation in annotations],
        predictions=[""] * len(annotations),
        answer_type=[annotation["answer_type"] for annotation in annotations],
        question_type=[annotation["question_type"] for annotation in annotations],
    )


@pytest.mark.parametrize(("evaluator", "key"), [("official", "official"), ("upstream", "upstream_trar")])
def test_evaluators_agree_with_their_originals(evaluator: EvaluatorName, key: str) -> None:
    golden = json.loads((GOLDEN / "vqa_accuracy.json").read_text(encoding="utf-8"))
    questions = Questions(golden["ground_truth"], golden["prediction"], golden["answer_type"], golden["question_type"])
    accuracy = vqa_accuracy(questions.predictions, questions.truth(), evaluator)
    assert _percents(accuracy.right) == golden[key]["per_question"]
    assert accuracy.overall == golden[key]["overall"]
    assert accuracy.per_type == golden[key]["per_answer_type"]
    assert accuracy.per_question_type == golden[key]["per_question_type"]


@pytest.mark.parametrize("case", SCORED_CASES, ids=lambda path: path.stem)
def test_figures_of_the_golden_vqa_cases(case: Path) -> None:
    expected = json.loads(case.read_text(encoding="utf-8"))["expected"]
    truth = _mini_vqa().truth()
    for evaluator in EVALUATORS:
        accuracy = vqa_accuracy(expected["answers"], truth, evaluator)
        assert accuracy.overall == expected["accuracy"][evaluator]["overall"]
        assert accuracy.per_type == expected["accuracy"][evaluator]["per_answer_type"]


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", [1, 2])
def test_equals_the_plain_implementation(evaluator: EvaluatorName, seed: int) -> None:
    questions = adversarial_questions(3000, seed)
    accuracy = vqa_accuracy(questions.predictions, questions.truth(), evaluator)
    expected = plain_vqa_accuracy(questions, evaluator)
    assert _percents(accuracy.right) == expected["per_question"]
    assert accuracy.overall == expected["overall"]
    assert accuracy.per_type == expected["per_answer_type"]
    assert accuracy.per_question_type == expected["per_question_type"]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_scoring_changes_nothing(evaluator: EvaluatorName) -> None:
    questions = adversarial_questions(200, seed=3)
    predictions, truth = list(questions.predictions), questions.truth()
    before = copy.deepcopy(truth)
    first = vqa_accuracy(predictions, truth, evaluator)
    assert predictions == questions.predictions
    assert truth.strings == before.strings
    assert np.array_equal(truth.codes, before.codes)
    assert vqa_accuracy(predictions, truth, evaluator).overall == first.overall


@pytest.mark.parametrize(
    ("answers", "prediction", "official", "upstream"),
    [
        (["YES"] * 10, "YES", 100.0, 0.0),
        (["YES"] * 10, "yes", 0.0, 0.0),
        (["yes"] * 10, "Yes!", 0.0, 100.0),
        (["yes"] * 9 + ["yes "], " yes\n", 100.0, 100.0),
        (["two"] * 9 + ["2"], "2", 100.0, 30.0),
        (["yes"] * 3 + ["no"] * 7, "yes", 90.0, 90.0),
        # Fewer annotators than ten: exact match for one, half a match each for two, leave-one-out from three on.
        (["yes"], "yes", 100.0, 100.0),
        (["yes"], "no", 0.0, 0.0),
        (["yes", "no"], "yes", 50.0, 50.0),
        (["yes", "yes"], "yes", 100.0, 100.0),
        (["yes"] * 3, "yes", 66.67, 66.67),
        (["yes", "yes", "no"], "yes", 44.44, 44.44),
        (["yes", "no", "red"], "yes", 22.22, 22.22),
        (["yes"] * 4, "yes", 100.0, 100.0),
    ],
)
def test_one_question(answers: list[str], prediction: str, official: float, upstream: float) -> None:
    truth = Questions([answers], [prediction], ["other"], ["what"]).truth()
    assert vqa_accuracy([prediction], truth, "official").overall == official
    assert vqa_accuracy([prediction], truth, "upstream").overall == upstream


def test_fewer_annotators_are_counted_and_the_rule_is_said() -> None:
    groups = [["yes"] * 10] * 4 + [["yes"]] * 2 + [["no"] * 3]
    questions = Questions(groups, ["yes"] * 7, ["other"] * 7, ["what"] * 7)
    note = vqa_accuracy(questions.predictions, questions.truth()).note
    assert note is not None
    assert note.startswith("of 7 questions 2 have 1, 1 have 3, 4 have 10 of 10 annotators' answers: with K an answer")
    assert note.endswith("averaged over the leave-one-out sets where K is 3 or more; three who agree make 66.67 %")
    whole = Questions(groups[:4], ["yes"] * 4, ["other"] * 4, ["what"] * 4)
    assert vqa_accuracy(whole.predictions, whole.truth()).note is None
    without_three = Questions(groups[:6], ["yes"] * 6, ["other"] * 6, ["what"] * 6)
    note = vqa_accuracy(without_three.predictions, without_three.truth()).note
    assert note is not None
    assert note.endswith("averaged over the leave-one-out sets where K is 3 or more")


def test_official_is_the_default() -> None:
    truth = Questions([["YES"] * 10], ["YES"], ["other"], ["what"]).truth()
    assert vqa_accuracy(["YES"], truth).overall == 100.0


def test_types_that_do_not_occur_are_left_out() -> None:
    truth = Questions([["a"] * 10, ["b"] * 10], ["", ""], ["x", "y"], ["p", "q"]).truth()
    truth.answer_type[:] = 1
    assert vqa_accuracy(["a", "c"], truth).per_type == {"y": 50.0}


def test_another_number_of_answers_is_refused() -> None:
    truth = Questions([["a"] * 10], [""], ["x"], ["p"]).truth()
    with pytest.raises(DataError, match="2 answers for 1 questions"):
        vqa_accuracy(["a", "b"], truth)


def test_a_question_without_answers_is_named() -> None:
    truth = Questions([["a"] * 10, []], ["", ""], ["x", "x"], ["p", "p"]).truth()
    with pytest.raises(DataError, match="question 2 of 2 has no annotator's answer"):
        vqa_accuracy(["a", "b"], truth)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(DataError, match="no question to score"):
        vqa_accuracy([], Questions([], [], [], []).truth())


def test_figures_of_the_golden_clevr_case() -> None:
    questions = _read("mini_clevr/raw/questions/CLEVR_val_questions.json")["questions"]
    expected = _read("cases/clevr_hard_fc_binarize.json")["expected"]
    answers = [question["answer"] for question in questions]
    functions = [question["program"][-1]["function"] for question in questions]
    truth = _one_answer_each(answers, functions)
    official = clevr_accuracy(expected["answers"], truth)
    upstream = clevr_accuracy(expected["answers"], truth, "upstream")
    counted = {name: list(counts) for name, counts in official.counts.items()}
    moved = {name: upstream.counts[name][1] - total for name, (_, total) in official.counts.items()}
    num_equal_integer = functions.count("equal_integer")
    assert counted == expected["accuracy"]["correct_and_total_by_type"]
    assert num_equal_integer > 0
    assert moved == {
        "overall": 0,
        "count": 0,
        "exist": 0,
        "compare_numbers": -num_equal_integer,
        "query_attribute": 0,
        "compare_attribute": num_equal_integer,
    }


@pytest.mark.parametrize(("evaluator", "name"), [("official", "compare_numbers"), ("upstream", "compare_attribute")])
def test_where_equal_integer_counts(evaluator: EvaluatorName, name: str) -> None:
    truth = _one_answer_each(["yes", "yes"], ["equal_integer", "query_size"])
    accuracy = clevr_accuracy(["yes", "no"], truth, evaluator)
    assert accuracy.counts == {"overall": (1, 2), name: (1, 1), "query_attribute": (0, 1)}
    assert accuracy.per_type == {name: 100.0, "query_attribute": 0.0}
    assert (accuracy.overall, accuracy.questions, accuracy.evaluator) == (50.0, 2, evaluator)


def test_unknown_functions_are_all_named() -> None:
    functions = ["count", "fly", *(f"hop{number}" for number in range(10))]
    with pytest.raises(DataError, match=r"fly, hop0, .*, hop8 and 1 more"):
        clevr_accuracy(["x"] * 12, _one_answer_each(["x"] * 12, functions))


def test_plain_accuracy_counts_by_type() -> None:
    truth = _one_answer_each(["red", "yes", "yes"], ["color", "yes/no", "yes/no"])
    accuracy = plain_accuracy(["red", "no", "Yes"], truth)
    assert list(accuracy.counts.items()) == [("overall", (1, 3)), ("color", (1, 1)), ("yes/no", (0, 2))]
    assert (accuracy.overall, accuracy.per_type) == (33.33, {"color": 100.0, "yes/no": 0.0})
    assert accuracy.right.tolist() == [1.0, 0.0, 0.0]
    assert (accuracy.types, accuracy.type_of.tolist()) == (("color", "yes/no"), [0, 1, 1])


def test_types_are_numbered_by_those_that_occur() -> None:
    truth = _one_answer_each(["1", "yes", "2"], ["count", "exist", "count"])
    truth = dataclasses.replace(
        truth, question_type=truth.question_type + 1, question_types=["scene", *truth.question_types]
    )
    accuracy = clevr_accuracy(["1", "no", "2"], truth)
    assert (accuracy.types, accuracy.type_of.tolist()) == (("count", "exist"), [0, 1, 0])
    assert accuracy.right.tolist() == [1.0, 0.0, 1.0]


@dataclasses.dataclass
class Split:
    """Questions of a split."""

    question_tokens: np.ndarray
    is_annotated: bool = False
    name: str = "val"

    def __len__(self) -> int:
        return len(self.question_tokens)

    def truth(self) -> str:
        return "truth"


def test_the_data_set_measures() -> None:
    asked: list[tuple[object, ...]] = []
    data: Any = SimpleNamespace(path="here", spec=SimpleNamespace(metric=lambda *arguments: asked.append(arguments)))
    split: Any = Split(np.zeros((2, 1)), is_annotated=True)
    measure(["yes", "no"], data, split, "upstream")
    refuse_unmeasurable(data, split, "official")
    assert asked == [(["yes", "no"], "truth", "upstream"), (["", ""], "truth", "official")]
    wrong: Any = "best"
    with pytest.raises(SettingsError, match="there is no evaluator 'best'") as unknown:
        measure(["yes", "no"], data, split, wrong)
    assert unknown.value.hint == "choose official or upstream"
    split.is_annotated = False
    with pytest.raises(DataError, match="split val of here has no answers to compare with") as caught:
        measure(["yes"], data, split, "official")
    assert caught.value.hint is not None
    assert "trarctl submit --split val" in caught.value.hint
    assert len(asked) == 2


@pytest.mark.parametrize("blank", ["\n", "\t", " "])
def test_line_ends_and_tabs_are_blanks_to_the_evaluator(blank: str) -> None:
    truth = Questions([["red car"] * 10], [""], ["other"], ["what"]).truth()
    assert vqa_accuracy([f"red{blank}car"], truth, "official").overall == 100.0
    assert vqa_accuracy(["redcar"], truth, "official").overall == 0.0


def test_what_an_accuracy_says_of_itself() -> None:
    truth = Questions([["a"] * 10, ["b"] * 10], ["", ""], ["x", "y"], ["p", "q"]).truth()
    accuracy = vqa_accuracy(["a", "c"], truth, "upstream")
    assert (accuracy.questions, accuracy.evaluator, accuracy.counts) == (2, "upstream", {})
    assert (accuracy.types, accuracy.type_of.tolist()) == (("x", "y"), [0, 1])
    plain = plain_accuracy(["a", "b"], _one_answer_each(["a", "c"], ["x", "x"]))
    assert (plain.questions, plain.evaluator, plain.per_question_type) == (2, "official", {})
    assert plain.right.dtype == np.float64


def test_the_commonest_answer_to_the_same_words() -> None:
    yes, no = 0, 1
    train = SimpleNamespace(
        question_tokens=np.array([[1, 2], [1, 2], [1, 2], [3, 0], [5, 6]]),
        targets=(np.array([0, 1, 2, 3, 5, 6]), np.array([no, yes, yes, no, yes, no]), np.array([9, 9, 9, 2, 8, 9])),
    )
    data: Any = SimpleNamespace(answers=("yes", "no"), split=lambda _name: train)
    asked = np.array([[3, 0], [5, 6], [9, 9], [1, 2]])
    split: Any = Split(question_tokens=asked)
    assert question_prior(data, split) == (["yes", "no", "yes", "yes"], "same words 75 %, commonest answer 25 %")


def test_nothing_is_guessed_without_training_answers() -> None:
    train = SimpleNamespace(
        question_tokens=np.array([[1, 2]]), targets=(np.array([0, 0]), np.array([], int), np.array([]))
    )
    data: Any = SimpleNamespace(answers=("yes", "no"), split=lambda _name: train)
    split: Any = Split(question_tokens=np.array([[1, 2], [3, 4]]))
    assert commonest_answer(data, split) == ["", ""]
    assert question_prior(data, split) == (["", ""], "no training answer at all")


def test_the_best_choice_out_of_an_answer_list() -> None:
    codes = np.full((3, 10), -1)
    codes[0, :3], codes[1, :3], codes[2, :2] = [1, 0, 0], [0, 2, 2], [2, 1]
    truth: Any = SimpleNamespace(codes=codes)
    asked: list[tuple[object, ...]] = []

    def metric(*arguments: object) -> Any:
        asked.append(arguments)
        return SimpleNamespace(overall=50.0)

    # Of the strings 0 to 2 the last is in no list: its two votes count for nothing.
    assert ceiling(metric, truth, ("a", "b"), np.array([0, 1, -1], dtype=np.int32)) == 50.0
    assert asked == [(["a", "a", "b"], truth, "official")]


# Metrics of further sets


def test_thirds_are_counted_to_the_letter_over_the_questions_that_count() -> None:
    given = [["cab"] * 3 + ["taxi"] * 7, ["cab"] * 2 + ["Cab"] * 8, ["dog"] + ["cat"] * 9, ["a"] * 10, ["b"] * 10]
    counted = np.array([True, True, True, False, True])
    truth = _answers_each(given, ["easy", "easy", "easy", "hard", "easy"])
    found = matched_thirds(["cab", "cab", "dog", "a", "nothing"], truth, counted, note="by thirds")
    assert found.right.tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1, 0])
    assert (found.overall, found.questions, found.note) == (50.0, 4, "by thirds")
    assert found.per_type == {"easy": 50.0, "hard": 100.0}
    assert (found.evaluator, found.counts, found.per_question_type) == ("official", {}, {})
    assert [found.types[index] for index in found.type_of] == ["easy", "easy", "easy", "hard", "easy"]
    assert matched_thirds(["x"] * 5, truth, counted, "upstream").evaluator == "upstream"
    with pytest.raises(DataError, match="none of the 5 questions is one that is counted"):
        matched_thirds(["x"] * 5, truth, ~counted & ~np.array([False, False, False, True, False]))
    with pytest.raises(DataError):
        matched_thirds(["x"], truth, counted)


def test_an_exact_match_is_one_after_normalizing_both() -> None:
    truth = _one_answer_each(["Yes", "LEFT lung", "2", "no"], ["CLOSED", "OPEN", "OPEN", "CLOSED"])
    found = exact_match(str.lower)(["yes", "left Lung", "3", "yes"], truth)
    assert (found.overall, found.per_type, found.questions) == (50.0, {"CLOSED": 50.0, "OPEN": 50.0}, 4)
    assert found.counts == {"CLOSED": (1, 2), "OPEN": (1, 2), "overall": (2, 4)}
    assert found.right.tolist() == [1, 1, 0, 0]
    assert found.evaluator == "official"
    assert exact_match(str)(["yes", "left Lung", "2", "no"], truth, "upstream").overall == 50.0
