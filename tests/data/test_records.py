"""Raw JSON read in pieces: the same as read whole, and one clear message for each kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trarctl.data.records import read_records
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
    return [record for records in read_records(path, key, piece_bytes=piece_bytes) for record in records]


@pytest.mark.parametrize("piece_bytes", range(1, 40))
@pytest.mark.parametrize("indent", [None, 2])
def test_any_piece_size_reads_the_same(tmp_path: Path, piece_bytes: int, indent: int | None) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"info": {"a": ["\\list", {}]}, "list": TRICKY * 2, "tail": [1]}, indent=indent))
    assert _read(path, piece_bytes) == TRICKY * 2


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='ab,"\\[]{}: é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='k"\\'), inner),
    max_leaves=8,
)


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
        ('{"list": [NaN]}', "not valid JSON"),
        ('{"list": {"a": 1}}', 'has no list "list"'),
        ('{"other": []}', 'has no list "list"'),
        ('{"inner": {"list": []}}', 'has no list "list"'),
        ("[1, 2]", 'has no list "list"'),
        ("\x00\x01", "not valid JSON"),
        ('{"list": [1], "list": [2]}', 'has no list "list"'),
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
