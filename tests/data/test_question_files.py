"""How tables are read: every form that people keep them in, and what is no table at all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from trarctl.data.question_files import read_rows
from trarctl.errors import DataError

NEEDED = {"image": ("image",), "question": ("question",)}
ROWS = [
    {"image": "a.png", "question": "what is \u00e4?", "answer": "7"},
    {"image": "b, c.png", "question": 'is it\n"so"?', "answer": ""},
    {"image": "d.png", "question": "who?", "answer": "x|y"},
]
CSV = """image,question,answer
a.png,what is \u00e4?,7
"b, c.png","is it
""so""?",
d.png,who?,x|y
"""


def _read(path: Path, **more: Any) -> list[tuple[str, Any]]:
    return [(str(place), row) for place, row in read_rows(path, NEEDED, "a hint", **more)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "list"])
def test_a_table_in_any_encoding(form: str, encoding: str, tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    text = {"csv": CSV, "jsonl": lines, "list": json.dumps(ROWS, ensure_ascii=False, indent=2)}[form]
    path = tmp_path / {"csv": "t.csv", "jsonl": "t.jsonl", "list": "t.json"}[form]
    path.write_bytes(text.encode(encoding))
    places = {"csv": ["line 2", "line 3", "line 5"], "list": ["row 1", "row 2", "row 3"]}
    assert _read(path) == list(zip(places.get(form, ["line 1", "line 2", "line 3"]), ROWS, strict=True))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("image,question\rx,y\rz,w\r", (2, 3)),
        ("\n \nimage,question\n\nx,y\n\nz,w\n", (5, 7)),
        ("\r\n,,\r\nIMAGE; Question ;\r\nx; y;\r\n;;\r\nz;w;;;\r\n", (4, 6)),
        ("image,question\nx,y,,\nz,w, \n", (2, 3)),
        ("\timage\tquestion\n1\tx\ty\n2\tz\tw\n", (2, 3)),
        ('{"image": "x", "question": "y"}\r\r{"image": "z", "question": "w"}\r', (1, 3)),
    ],
)
def test_breaks_blank_rows_and_commas_too_many(text: str, places: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / ("t.jsonl" if text.startswith("{") else "t.csv")
    path.write_bytes(text.encode())
    found = [(place, (row["image"], row["question"])) for place, row in _read(path)]
    assert found == [(f"line {places[0]}", ("x", "y")), (f"line {places[1]}", ("z", "w"))]


def test_numbers_keep_their_digits_and_texts_their_blanks(tmp_path: Path) -> None:
    rows = [{"image": " a ", "question": "q", "id": 2**64 + 1, "answer": [1.50, True, None, "01"]}]
    for name, text in (("t.jsonl", json.dumps(rows[0])), ("t.json", json.dumps(rows))):
        (tmp_path / name).write_text(text)
        assert [row for _, row in _read(tmp_path / name)] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b"\n,,\n \n", "t.csv is empty"),
        ("t.csv", b"PK\3\4rest", "is a zip archive, as workbooks of spreadsheets are"),
        ("t.csv", gzip.compress(CSV.encode(), mtime=0), "is compressed by gzip"),
        ("t.csv", b"PAR1rest", "is a Parquet file"),
        ("t.csv", b"image,question\na.png,wh\0at\n", "line 2 has the character NUL"),
        ("t.csv", "image,question\na,b\n\u00e9,\u00e9\n".encode("latin1"), "line 3: not UTF-8 text"),
        ("t.csv", "image,question\na,b\n".encode("utf-16")[:-1], "line [23]: not UTF-16 text"),
        ("t.csv", b"image,question,Question \na,b,c\n", "has the column question more than once"),
        ("t.csv", b"image,question,id,ID\na,b,c,d\n", "has the column id more than once"),
        ("t.csv", b"picture,question\na,b\n", "has no column image: its first line has 'picture', 'question'"),
        ("t.json", b'{\n"questions": []}', "is one JSON object over several lines"),
        ("t.json", b"[1,", "is cut off|is not valid JSON"),
    ],
)
def test_what_is_no_table(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        _read(tmp_path / name, others={"id": ("id",)})
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", "7", "is not a JSON object"),
        ("t.jsonl", "{", "is not a JSON object"),
        ("t.json", "[[1]]", "is not a JSON object"),
        ("t.jsonl", '{"image": "a", "question": "is \\ud83d it?"}', r"has '\ud83d', half of a character"),
        ("t.json", '[{"image": "a", "question": "is \\ud83d it?"}]', r"has '\ud83d', half of a character"),
        ("t.csv", "image,question\na,b,c\n", "has 3 values, expected 2: put quotes around a text with ','"),
        ("t.csv", 'image,question\na,"b\n', "cannot be read: unexpected end of data"),
    ],
)
def test_rows_that_are_none(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    if text == "{":
        (tmp_path / name).write_text('{"image": "a", "question": "b"}\n{')
    assert [row for _, row in _read(tmp_path / name)][-1] == message
