"""Raw JSON read in pieces: the same as read whole, and one clear message for each kind of damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trarctl.data.records import (
    RawAnnotations,
    RawSplit,
    RecordReader,
    StringTable,
    cut_split,
    flatten,
    refuse_duplicates,
    rows_of,
)
from trarctl.errors import DataError

TRICKY = [
    {"q": 'a "quoted" \\ , ] } { [ text', "deep": [[1, 2], {"x": [3]}]},
    {"q": "\\\\\\", "e": ""},
    {"q": '\\"', "n": [-1.5e3, None, True]},
    "plain, text]",
    7,
    [],
    {},
    {"q": "é ü \U0001f600 \\u00e9"},
]


def _read(path: Path, piece_bytes: int, key: str | None = "list") -> list[Any]:
    return [record for records in RecordReader(path, key).pieces(piece_bytes) for record in records]


@pytest.mark.parametrize("piece_bytes", range(1, 40))
@pytest.mark.parametrize("indent", [None, 2])
def test_any_piece_size_reads_the_same(tmp_path: Path, piece_bytes: int, indent: int | None) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"info": {"a": ["\\list", {}]}, "list": TRICKY * 2, "tail": [1]}, indent=indent))
    assert _read(path, piece_bytes) == TRICKY * 2


@pytest.mark.parametrize("head", ["", " \n", "\ufeff"])
def test_a_list_may_stand_alone_where_that_is_allowed(tmp_path: Path, head: str) -> None:
    path = tmp_path / "file.json"
    wrapped = {"list": TRICKY, "info": {"list": [1]}}
    for content in (TRICKY, wrapped):
        path.write_text(head + json.dumps(content), encoding="utf-8")
        reader = RecordReader(path, "list", may_be_bare=True)
        assert [record for records in reader.pieces(7) for record in records] == TRICKY
        assert reader.frame == ({} if content is TRICKY else {"list": [], "info": {"list": [1]}})
    path.write_text(json.dumps(TRICKY))
    with pytest.raises(DataError, match='has no list "list": it is a list of 8 elements'):
        _read(path, 7)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='ab,"\\[]{}: é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='k"\\'), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(records=st.dictionaries(st.text(alphabet='ab,"\\[]{}: é', min_size=1), _JSON), piece_bytes=st.integers(1, 64))
def test_whatever_an_object_of_records_holds(
    tmp_path_factory: pytest.TempPathFactory, records: dict[str, Any], piece_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(records))
    reader = RecordReader(path, None, is_keyed=True)
    pairs = list[tuple[str, Any]]()
    for found in reader.pieces(piece_bytes):
        keys = reader.keys()
        assert keys is not None
        pairs += zip(keys.tolist(), found, strict=True)
    assert pairs == list(records.items())


@settings(deadline=None)
@given(records=st.lists(_JSON), piece_bytes=st.integers(1, 64))
def test_whatever_the_list_holds(tmp_path_factory: pytest.TempPathFactory, records: Any, piece_bytes: int) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    path.write_text(json.dumps({"list": records}))
    assert _read(path, piece_bytes) == records
    path.write_text(json.dumps(records))
    assert _read(path, piece_bytes, None) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"list": [1, 2', "cut off: it ends inside its list"),
        ('{"list": [1, 2]', "not valid JSON"),
        ('{"list": [1, 2]} x', "not valid JSON"),
        ('{"list": [1,, 2]}', "not valid JSON near byte"),
        ('{"list": [1, 2,]}', "not valid JSON"),
        ('{"list": [,1]}', "not valid JSON"),
        ('{"list": {"a": 1}}', 'has no list "list"'),
        ('{"other": []}', 'has no list "list"'),
        ('{"inner": {"list": []}}', 'has no list "list"'),
        ("[1, 2]", 'has no list "list"'),
        ("\x00\x01", "not valid JSON"),
        ('{"list": [1], "list": [2]}', 'has the list "list" more than once'),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 3, 1000])
def test_damage(tmp_path: Path, text: str, message: str, piece_bytes: int) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        _read(path, piece_bytes)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        _read(tmp_path / "missing.json", 10)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="no file|cannot read"):
        _read(tmp_path / "loop", 10)
    with pytest.raises(DataError, match="no file"):
        _read(tmp_path, 10)


def test_strings_in_one_array_come_back() -> None:
    texts = ["", "red", "é ü", "\U0001f600", ""]
    flat = flatten(texts)
    assert (len(flat), list(flat), flat[3]) == (5, texts, "\U0001f600")
    assert flat.offsets.tolist() == [0, 0, 3, 8, 12, 12]
    assert list(flatten([])) == []


def test_strings_are_numbered_as_they_appear() -> None:
    table = StringTable()
    assert table.codes(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert table.codes(["c", "a"]).tolist() == [2, 1]
    assert list(table) == ["b", "a", "c"]


def _written(tmp_path: Path, records: list[Any]) -> Path:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"questions": records}))
    return path


def test_columns_of_many_pieces_are_joined(tmp_path: Path) -> None:
    path = _written(tmp_path, [{"id": number, "text": f"{number} " * 100} for number in range(5_000)])
    assert path.stat().st_size > 1 << 20
    reader, table = RecordReader(path, "questions"), StringTable()
    ids, texts, codes = reader.collect(
        lambda records: [
            reader.ids(records, "id"),
            reader.texts(records, "text"),
            reader.codes(records, "text", table),
        ]
    )
    assert ids.tolist() == codes.tolist() == list(range(5_000))
    assert ids.dtype == np.int64
    assert list(texts) == [f"{number} " * 100 for number in range(5_000)]
    assert reader.num_records == 5_000


def test_ids_that_are_text_stay_text(tmp_path: Path) -> None:
    path = _written(tmp_path, [{"id": one} for one in ("007", "7", "a/b.png", "é" * 255)])
    reader = RecordReader(path, "questions")
    (ids,) = reader.collect(lambda records: [reader.ids(records, "id", str)])
    assert ids.tolist() == ["007", "7", "a/b.png", "é" * 255]


@pytest.mark.parametrize("bad", ["", "a\0", "x" * 256])
def test_texts_that_cannot_be_ids(tmp_path: Path, bad: str) -> None:
    path = _written(tmp_path, [{"id": "fine"}, {"id": bad}, {"id": 7}])
    reader = RecordReader(path, "questions")
    with pytest.raises(
        DataError, match=r'record 1 has .* as "id", expected a text of 1 .*, record 2 has 7 as "id", expected a text'
    ):
        reader.collect(lambda records: [reader.ids(records, "id", str)])


def test_a_file_without_records(tmp_path: Path) -> None:
    reader = RecordReader(_written(tmp_path, []), "questions")
    with pytest.raises(DataError, match="holds no questions"):
        reader.collect(lambda records: [reader.ids(records, "id")])


@pytest.mark.parametrize("ids", [np.array([30, 10, 20]), np.array(["b", "aa", "a"])])
def test_ids_are_looked_up_in_any_order(ids: Any) -> None:
    wanted = np.concatenate([ids[[2, 0]], ids[:1] * 2 if ids.dtype.kind == "i" else np.array(["bb"])])
    assert rows_of(wanted, ids).tolist() == [2, 0, -1]
    assert rows_of(wanted, ids[:0]).tolist() == [-1, -1, -1]


def test_ids_that_appear_twice_are_named(tmp_path: Path) -> None:
    refuse_duplicates(tmp_path, np.array(["a", "A", "a "]), "id")
    with pytest.raises(DataError, match="id 7, 9 appears more than once"):
        refuse_duplicates(tmp_path, np.array([9, 7, 8, 7, 9, 9]), "id")


@pytest.mark.parametrize(
    "before",
    ['"comment": {"list": [1]}', '"a": [{"list": [1, {"list": []}]}]', '"a": "say \\"list\\": [5]"', '"list ": [4]'],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_a_list_of_the_same_name_further_in(tmp_path: Path, before: str, piece_bytes: int) -> None:
    path = tmp_path / "file.json"
    path.write_text(f'{{{before}, "list": [1, 2, 3], {before.replace("list", "lost")}}}')
    assert json.loads(path.read_text())["list"] == [1, 2, 3]
    assert _read(path, piece_bytes) == [1, 2, 3]


def test_a_split_is_cut_by_its_questions() -> None:
    texts = flatten(["a?", "b?", "", "d?"])
    answers = np.arange(30, dtype=np.int32).reshape(3, 10)
    kinds = np.array([0, 1, 0], dtype=np.int16)
    # The annotations are of questions 3, 0 and 1, and question 2 has none.
    rows = np.array([3, 0, 1], dtype=np.int32)
    annotations = RawAnnotations(rows, answers, answers[:, 0], kinds, ("x", "y"), kinds, ("x", "y"))
    ids, images, sets = np.array([7, 5, 6, 4]), np.array([1, 1, 2, 3]), np.array([0, 0, 1, 1], dtype=np.int8)
    whole = RawSplit("train", ids, images, texts, annotations, sets)
    part = cut_split(whole, "val", np.array([True, False, True, True]))
    assert (part.name, part.question_id.tolist(), part.image_id.tolist()) == ("val", [7, 6, 4], [1, 2, 3])
    assert (list(part.texts), part.image_set.tolist()) == (["a?", "", "d?"], [0, 1, 1])
    assert part.annotations.rows.tolist() == [2, 0]
    assert part.annotations.answers.tolist() == answers[:2].tolist()
    assert (part.annotations.chosen.tolist(), part.annotations.answer_type.tolist()) == ([0, 10], [0, 1])
    assert cut_split(replace(whole, annotations=None, image_set=None), "test", ids > 6).annotations is None
    with pytest.raises(DataError, match="no question is left for the split val"):
        cut_split(whole, "val", ids > 9)
