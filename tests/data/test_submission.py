"""Result files: what the sites take, what they would reject, and that nothing half-written stays."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trarctl.data import submission
from trarctl.data.submission import JsonAnswers, LineAnswers, ObjectAnswers, TableAnswers
from trarctl.errors import DataError

IDS = [262144000, 262144001, 393225000]
JSON = JsonAnswers()
LINES = LineAnswers("CLEVR")
CLEVR = SimpleNamespace(answers=("yes", "no", "cube", "3"))


@dataclass
class Split:
    """The questions of a split."""

    question_id: np.ndarray
    is_annotated: bool = True
    name: str = "test"

    def __len__(self) -> int:
        return len(self.question_id)


def _split(ids: Iterable[object]) -> Any:
    return Split(np.array(list(ids)))


def write_vqa(path: Path, ids: Any, answers: list[str], expected: Iterable[object]) -> int:
    return JSON.write(path, ids, answers, CLEVR, _split(expected))


def validate_vqa(path: Path, expected: Iterable[object]) -> list[str]:
    return JSON.problems(path, CLEVR, _split(expected))


def read_vqa(path: Path, expected: Iterable[object]) -> list[str]:
    return JSON.read(path, CLEVR, _split(expected))


def write_clevr(path: Path, answers: list[str]) -> int:
    return LINES.write(path, range(len(answers)), answers, CLEVR, _split(range(len(answers))))


def validate_clevr(path: Path, number: int) -> list[str]:
    return LINES.problems(path, CLEVR, _split(range(number)))


def read_clevr(path: Path, number: int) -> list[str]:
    return LINES.read(path, CLEVR, _split(range(number)))


GOOD = [{"question_id": number, "answer": "yes"} for number in IDS]


def _json_file(folder: Path, value: object) -> Path:
    path = folder / "answers.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_format_says_what_it_is() -> None:
    row = '{"question_id": int, "answer": str}'
    assert JsonAnswers().form == f"a result file is a JSON list with one {row} for each question of the split"
    row = '{"image": str, "text": str}'
    assert JsonAnswers("image", "text", "str").form == (
        f"a result file is a JSON list with one {row} for each question of the split"
    )


def test_a_written_submission_is_valid_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "answers.json"
    size = write_vqa(path, np.array(IDS[::-1]), ["caf\u00e9", "2", "no"], np.array(IDS))
    assert size == path.stat().st_size
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"question_id": IDS[2], "answer": "caf\u00e9"},
        {"question_id": IDS[1], "answer": "2"},
        {"question_id": IDS[0], "answer": "no"},
    ]
    assert validate_vqa(path, IDS) == []
    assert read_vqa(path, np.array(IDS)) == ["no", "2", "caf\u00e9"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (GOOD[:1], "2 of 3 questions have no answer: 262144001, 393225000"),
        ([*GOOD, GOOD[0]], "1 question is answered more than once: 262144000"),
        ([*GOOD, {"question_id": 7, "answer": "x"}], "1 question_id is not in this split: 7"),
        ([*GOOD, *GOOD[:2]], "2 questions are answered more than once: 262144000, 262144001"),
        (
            [*GOOD, {"question_id": 8, "answer": "x"}, {"question_id": 7, "answer": "x"}],
            "2 question_ids are not in this split: 7, 8",
        ),
        (
            [GOOD[0], *({"question_id": number, "answer": " "} for number in IDS[1:])],
            "2 answers are blank: question 262144001, 393225000",
        ),
        ([*GOOD[:2], {"question_id": IDS[2], "answer": " \t"}], "1 answer is blank: question 393225000"),
        ([*GOOD[:2], {"question_id": IDS[2], "answer": 2}], "1 row with an answer that is not text: row 3 has 2"),
        ([*GOOD[:2], {"question_id": IDS[2]}], "1 row with an answer that is not text: row 3 has none"),
        ([*GOOD[:2], {"question_id": IDS[2], "answer": None}], "1 row with an answer that is not text: row 3 has null"),
        (
            [*GOOD, {"question_id": True, "answer": "x"}],
            "1 row with a question_id that is not an integer: row 4 has true",
        ),
        (
            [*GOOD, {"question_id": "7", "answer": "x"}],
            '1 row with a question_id that is not an integer: row 4 has "7"',
        ),
        (
            [*GOOD, {"question_id": 1.0, "answer": "x"}],
            "1 row with a question_id that is not an integer: row 4 has 1.0",
        ),
        ([*GOOD, {"answer": "x"}], "1 row with a question_id that is not an integer: row 4 has none"),
        ([*GOOD, "yes", [1, 2]], '2 rows not an object: row 4 is "yes", row 5 is a list'),
        ({"262144000": "yes"}, "it is not a JSON list but an object"),
        ({"results": GOOD, "n": 3}, 'it is not a JSON list but an object; its key "results" holds a list of 3'),
        (
            [{"question_id": number, "text": "yes"} for number in IDS],
            "3 rows with an answer that is not text: row 1 has none, row 2 has none, row 3 has none;"
            ' their other fields: "text"',
        ),
        (
            {name: [1] * (index + 1) for index, name in enumerate("abcd")},
            'it is not a JSON list but an object; its key "a" holds a list of 1; its key "b" holds a list of 2;'
            ' its key "c" holds a list of 3',
        ),
        ("x" * 38, f'it is not a JSON list but "{"x" * 38}"'),
        ("x" * 39, f'it is not a JSON list but "{"x" * 36}...'),
        (
            [*GOOD, {"id": 4, "answer": "x"}],
            '1 row with a question_id that is not an integer: row 4 has none; their other fields: "id"',
        ),
        ("yes" * 20, f'it is not a JSON list but "{"yes" * 12}...'),
    ],
)
def test_what_the_site_would_reject(tmp_path: Path, rows: object, problem: str) -> None:
    assert validate_vqa(_json_file(tmp_path, rows), IDS) == [problem]


def test_a_part_of_the_test_questions_is_named(tmp_path: Path) -> None:
    split = _split(IDS)
    split.is_annotated = False
    assert JSON.problems(_json_file(tmp_path, GOOD[:1]), CLEVR, split) == [
        "only a part of test is answered, such as test-dev; the site takes all of it",
        "2 of 3 questions have no answer: 262144001, 393225000",
    ]
    assert JSON.problems(_json_file(tmp_path, GOOD), CLEVR, split) == []
    nothing = "3 of 3 questions have no answer: 262144000, 262144001, 393225000"
    assert JSON.problems(_json_file(tmp_path, []), CLEVR, split) == [nothing]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"question_id": 1, "answer": "a"}\n{"question_id": 2, "answer": "b"}\n', "it is JSON Lines, one object a"),
        (b'{"question_id": 1, "answer": "a"}\nb', "it is not valid JSON: "),
        (b'{"question_id": 1}\n{"question_id": 2}', "it is JSON Lines, one object a"),
        (b'{"question_id": 1}\n{"question_id": 2}\n{"question_id": 3}\n{"quest', "it is JSON Lines, one object a"),
        (b"", "it is empty"),
        (b'[{"question_id": 1', "it is not valid JSON: "),
        (b"[NaN]", "it is not valid JSON: "),
        (b'[{"answer": "caf\xe9"}]', "it is not UTF-8 text (byte 16)"),
        (b"\xef\xbb\xbf[]", "it starts with a byte order mark"),
        (b"[" * 100_000, "it is not valid JSON: "),
    ],
)
def test_files_that_are_no_json(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    (found,) = validate_vqa(path, IDS)
    assert found.startswith(problem)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    rows = [GOOD[0], GOOD[0], {"question_id": 9, "answer": ""}, {"question_id": "1", "answer": "x"}]
    assert validate_vqa(_json_file(tmp_path, rows), IDS) == [
        '1 row with a question_id that is not an integer: row 4 has "1"',
        "2 of 3 questions have no answer: 262144001, 393225000",
        "1 question is answered more than once: 262144000",
        "1 question_id is not in this split: 9",
        "1 answer is blank: question 9",
    ]


def test_a_huge_question_id_is_no_integer(tmp_path: Path) -> None:
    (problem,) = validate_vqa(_json_file(tmp_path, [*GOOD, {"question_id": 10**30, "answer": "x"}]), IDS)
    assert problem.startswith("1 row with a question_id that is not an integer: row 4 has 1")


def test_long_lists_are_cut(tmp_path: Path) -> None:
    (problem,) = validate_vqa(_json_file(tmp_path, []), range(1200))
    assert problem == "1,200 of 1,200 questions have no answer: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1,190 more"


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "MOST_BYTES", 100)
    (problem,) = validate_vqa(_json_file(tmp_path, GOOD), IDS)
    assert problem.startswith("it is 0 MB large, more than the 0 MB")
    path = tmp_path / "padded.json"
    for size, problems in ((100, []), (101, ["it is 0 MB large, more than the 0 MB that are plausible"])):
        path.write_bytes(json.dumps(GOOD[:1]).encode().ljust(size))
        assert validate_vqa(path, IDS[:1]) == problems


def test_extra_keys_are_no_problem(tmp_path: Path) -> None:
    assert validate_vqa(_json_file(tmp_path, [row | {"confidence": 0.5} for row in GOOD]), IDS) == []


def test_bad_answers_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text("before", encoding="utf-8")
    with pytest.raises(DataError, match="the site would reject these answers: 1 answer is blank: question 262144001"):
        write_vqa(path, IDS, ["yes", "", "no"], IDS)
    with pytest.raises(DataError, match="2 answers for 3 questions"):
        write_vqa(path, IDS, ["yes", "no"], IDS)
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_vqa(path, IDS, ["yes", "\ud800", "no"], IDS)
    assert path.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot write .*file/answers.json") as caught:
        write_vqa(in_the_way / "answers.json", IDS, ["yes"] * 3, IDS)
    assert caught.value.hint == "choose another file with --out"
    folder = tmp_path / "folder"
    (folder / "full").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot write .*folder: Is a directory"):
        write_vqa(folder, IDS, ["yes"] * 3, IDS)
    with pytest.raises(DataError, match="cannot write .*null"):
        write_vqa(tmp_path / "a\0b", IDS, ["yes"] * 3, IDS)
    assert sorted(tmp_path.iterdir()) == [in_the_way, folder]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def fail(_descriptor: int) -> None:
        raise failure

    path = tmp_path / "answers.json"
    path.write_text("before", encoding="utf-8")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError if isinstance(failure, OSError) else KeyboardInterrupt):
        write_vqa(path, IDS, ["yes"] * 3, IDS)
    assert path.read_text(encoding="utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["missing.json", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    for read in (validate_vqa, read_vqa):
        with pytest.raises(DataError, match="no file|cannot read"):
            read(tmp_path / name, IDS)


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="no file"):
        validate_clevr(tmp_path / "a", 3)


def test_a_blank_answer_can_be_scored(tmp_path: Path) -> None:
    rows = [*GOOD[:2], {"question_id": IDS[2], "answer": ""}]
    assert read_vqa(_json_file(tmp_path, rows), IDS) == ["yes", "yes", ""]


def test_a_result_file_of_another_split_is_refused(tmp_path: Path) -> None:
    path = _json_file(tmp_path, [*GOOD[:2], {"question_id": 5, "answer": "no"}])
    with pytest.raises(
        DataError, match="1 of 3 questions have no answer: 393225000; 1 question_id is not in"
    ) as caught:
        read_vqa(path, IDS)
    assert str(path) in caught.value.what
    assert caught.value.hint is not None
    assert '{"question_id": int, "answer": str}' in caught.value.hint


ALMOST = "(2 for a blank or a capital letter alone)"


def test_a_clevr_submission_is_valid_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    assert write_clevr(path, ["yes", "3", "cube"]) == len("yes\n3\ncube\n")
    assert path.read_bytes() == b"yes\n3\ncube\n"
    assert validate_clevr(path, 3) == []
    assert read_clevr(path, 3) == ["yes", "3", "cube"]


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"yes\nno\ncube", []),
        (b"yes\nno\n", ["2 lines for 3 questions"]),
        (b"yes\nno\ncube\n\n", ["4 lines for 3 questions", "1 line is blank: line 4"]),
        (b"yes\n \n\n", ["2 lines are blank: line 2, 3"]),
        (b"yes\r\nno\r\ncube\r\n", ["lines end in CR LF instead of LF"]),
        (
            b"yes\nYes\nyes \n",
            [f"2 of 3 answers are none that CLEVR has {ALMOST}: 'Yes', 'yes '"],
        ),
        (
            b"Yes\nYes\nsphere\n",
            [f"3 of 3 answers are none that CLEVR has {ALMOST}: 'Yes', 'sphere'"],
        ),
        (b"ball\nno\nno\n", ["1 of 3 answers are none that CLEVR has: 'ball'"]),
        (b"yes\r\nno\ncube\r\n", ["lines end in CR LF instead of LF"]),
        (b"yes\r\nno\r\n", ["2 lines for 3 questions", "lines end in CR LF instead of LF"]),
        (b"yes\r", ["1 line for 3 questions", "lines end in CR instead of LF"]),
        (b"yes\rno\r\ncube\n", ["2 lines for 3 questions", "lines end in CR instead of LF"]),
        (
            b"yes no\rcube\n",
            [
                "1 line for 3 questions",
                "lines end in CR instead of LF",
                "1 of 2 answers are none that CLEVR has: 'yes no'",
            ],
        ),
        (b"yes\rno\rcube\r", ["1 line for 3 questions", "lines end in CR instead of LF"]),
        (b"yes\n\xff\nno\n", ["it is not UTF-8 text (byte 4)"]),
        (b"", ["it is empty"]),
    ],
)
def test_what_is_wrong_with_a_clevr_file(tmp_path: Path, content: bytes, problems: list[str]) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(content)
    assert validate_clevr(path, 3) == problems


def test_bad_clevr_answers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 lines for 2 questions"):
        write_clevr(tmp_path / "answers.txt", ["yes\nno", "cube"])
    with pytest.raises(DataError, match="1 line is blank: line 2"):
        write_clevr(tmp_path / "answers.txt", ["yes", ""])
    with pytest.raises(DataError, match="cannot be written as UTF-8"):
        write_clevr(tmp_path / "answers.txt", ["yes", "\ud800"])
    assert list(tmp_path.iterdir()) == []


def test_clevr_answers_of_another_split_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(b"yes\r\n\r\n")
    assert read_clevr(path, 2) == ["yes", ""]
    with pytest.raises(DataError, match="2 lines for 3 questions") as caught:
        read_clevr(path, 3)
    assert caught.value.hint is not None
    assert "one answer a line" in caught.value.hint


def test_clevr_answers_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="they are not in the order of the questions"):
        LINES.write(tmp_path / "answers.txt", [1, 0], ["yes", "no"], CLEVR, _split([0, 1]))


def test_ids_that_are_text_are_written_and_read_as_text(tmp_path: Path) -> None:
    path, ids = tmp_path / "answers.json", ["q/1", "7"]
    JSON.write(path, np.array(ids), ["yes", "no"], CLEVR, _split(ids))
    assert json.loads(path.read_text())[1] == {"question_id": "7", "answer": "no"}
    assert JSON.read(path, CLEVR, _split(ids[::-1])) == ["no", "yes"]
    path.write_text(json.dumps([{"question_id": 7, "answer": "no"}]))
    assert JSON.problems(path, CLEVR, _split(ids)) == [
        "1 row with a question_id that is not text: row 1 has 7",
        "2 of 2 questions have no answer: q/1, 7",
    ]
    with pytest.raises(DataError, match="2 of 2 questions have no answer"):
        JSON.read(path, CLEVR, _split(ids))


def test_a_file_names_its_data_set(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(b"yes\nball\n")
    (problem,) = LineAnswers("easy-VQA").problems(path, CLEVR, _split(range(2)))
    assert problem == "1 of 2 answers are none that easy-VQA has: 'ball'"


def test_what_is_no_text_cannot_be_scored(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(b"yes\n\xff\n")
    with pytest.raises(DataError, match=r"answers\.txt cannot be scored: it is not UTF-8 text \(byte 4\)"):
        read_clevr(path, 2)


# Answers as objects by id, and as tables


TEXT_IDS = ["22jbM6gDxdaMaunuzgrsBB", "2Cq1Qsp6CbRv3dXkbrxzpa", "2QB2K9PWVQEUkUXtBsGWdy"]


def _keyed(value: object, tmp_path: Path) -> list[str]:
    return ObjectAnswers("direct_answer").problems(_json_file(tmp_path, value), CLEVR, _split(TEXT_IDS))


def test_answers_by_id_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    ObjectAnswers("direct_answer").write(path, np.array(TEXT_IDS), ["cab", "1", "a dog"], CLEVR, _split(TEXT_IDS))
    assert json.loads(path.read_text()) == {
        one: {"direct_answer": answer} for one, answer in zip(TEXT_IDS, ["cab", "1", "a dog"], strict=True)
    }
    assert ObjectAnswers("direct_answer").problems(path, CLEVR, _split(TEXT_IDS)) == []
    assert ObjectAnswers("direct_answer").read(path, CLEVR, _split(TEXT_IDS[::-1])) == ["a dog", "1", "cab"]
    assert ObjectAnswers("direct_answer").form == (
        'a result file is a JSON object {"QUESTION_ID": {"direct_answer": str}} with one entry for each question of the'
        " split"
    )


def test_answers_that_are_texts_alone_are_read_but_not_taken(tmp_path: Path) -> None:
    path = _json_file(tmp_path, dict.fromkeys(TEXT_IDS, "cab"))
    assert ObjectAnswers("direct_answer").read(path, CLEVR, _split(TEXT_IDS)) == ["cab"] * 3
    assert ObjectAnswers("direct_answer").problems(path, CLEVR, _split(TEXT_IDS)) == [
        f"3 answers are texts alone, not an object with direct_answer: question {', '.join(TEXT_IDS)}"
    ]
    one = {TEXT_IDS[0]: "cab"} | {name: {"direct_answer": "yes", "multiple_choice": "no"} for name in TEXT_IDS[1:]}
    assert _keyed(one, tmp_path) == [
        f"1 answer is a text alone, not an object with direct_answer: question {TEXT_IDS[0]}"
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "it is not a JSON object but a list"),
        (b"{", "it is not valid JSON: unexpected end of data: line 1 column 2 (char 1)"),
        (b'{"a": ' + b"[" * 1010 + b"]" * 1010 + b"}", "it is nested too deeply"),
        (b'{"a": 5}', "1 row not an object: row 1 is 5"),
        (
            b'{"a": {"answer": "x"}}',
            '1 row with a direct_answer that is not text: row 1 has none; their other fields: "',
        ),
    ],
)
def test_what_is_no_answer_by_id(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    assert problem in "; ".join(ObjectAnswers("direct_answer").problems(path, CLEVR, _split(TEXT_IDS)))


def test_an_id_that_stands_twice_is_two_answers(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    rows = [f'"{name}": {{"direct_answer": "yes"}}' for name in [*TEXT_IDS, TEXT_IDS[1]]]
    path.write_text("{" + ",".join(rows) + "}")
    (problem,) = ObjectAnswers("direct_answer").problems(path, CLEVR, _split(TEXT_IDS))
    assert problem.endswith(f"more than once: {TEXT_IDS[1]}")


SHARES = np.array([0.25, 0.123456, 1.0], dtype=np.float32)


def test_a_line_for_each_question_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    TableAnswers().for_file(path, SHARES).write(path, np.array(IDS), ["yes", "no", "a, b"], CLEVR, _split(IDS))
    assert path.read_text() == "".join(
        f'{{"id":{one},"answer":"{answer}","probability":{share}}}\n'
        for one, answer, share in zip(IDS, ["yes", "no", "a, b"], ["0.25", "0.1235", "1.0"], strict=True)
    )
    assert TableAnswers().read(path, CLEVR, _split(IDS)) == ["yes", "no", "a, b"]
    assert TableAnswers().form == 'a result file has a line {"id": ID, "answer": str} for each question of the split'
    TableAnswers().write(path, np.array(IDS), ["yes", "no", "3"], CLEVR, _split(IDS))
    assert json.loads(path.read_text().splitlines()[0]) == {"id": IDS[0], "answer": "yes"}
    path.write_text("\n\n".join(json.dumps(row) for row in [{"id": one, "answer": "no"} for one in IDS]))
    assert TableAnswers().problems(path, CLEVR, _split(IDS)) == []
    path.write_text(f'{{"id": {IDS[0]}, "answer": "no"}}\n{{"id": 5,\n')
    (problem,) = TableAnswers().problems(path, CLEVR, _split(IDS))
    assert problem.startswith("line 2 is not valid JSON: ")
    path.write_bytes(b"\xff\xfe")
    assert "UTF-8" in TableAnswers().problems(path, CLEVR, _split(IDS))[0]


@pytest.mark.parametrize("ids", [IDS, ["7", "a,b", 'say "x"']], ids=["numbers", "texts"])
def test_columns_for_the_questions_of_a_table(tmp_path: Path, ids: list[Any]) -> None:
    path = tmp_path / "answers.CSV"
    answers = ["yes", 'a, "b"', "two\nlines"]
    TableAnswers().for_file(path, SHARES).write(path, np.array(ids), answers, CLEVR, _split(ids))
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["id", "answer", "probability"],
        *(
            [str(one), answer, share]
            for one, answer, share in zip(ids, answers, ["0.25", "0.1235", "1.0"], strict=True)
        ),
    ]
    columns = TableAnswers().for_file(path)
    assert columns.form == "a result file has the header id,answer and a line for each question of the split"
    assert columns.read(path, CLEVR, _split(ids[::-1])) == answers[::-1]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert columns.problems(path, CLEVR, _split(ids)) == []
    path.write_text('id,answer\n1,"open\n')
    assert columns.problems(path, CLEVR, _split(ids)) == ["it is not valid CSV: unexpected end of data"]
    assert columns.encode(np.array([]), []) == b"id,answer\n"
    path.write_text("id,answer\n1.0,yes\n")
    problems = "; ".join(columns.problems(path, CLEVR, _split(IDS)))
    assert 'with an id that is not an integer: row 1 has "1.0"' in problems
