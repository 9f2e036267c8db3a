"""The table of files: found, expected, verdict, advice."""

from __future__ import annotations

from pathlib import Path

from tests.data.preparing import GOLDEN, edit_json, write_clevr
from trarctl.data.prepare import PrepareRequest, check


def test_every_file_of_a_golden_set() -> None:
    rows = check(PrepareRequest("vqa", raw=GOLDEN / "mini_vqa/raw"))
    found = {Path(row.file).name: (row.found, row.expected, row.verdict) for row in rows}
    assert found["v2_mscoco_train2014_annotations.json"] == (140, 443_757, "other count")
    assert found["v2_OpenEnded_mscoco_test2015_questions.json"] == (100, 447_793, "other count")
    assert found["VG_questions.json"] == (20, None, "ok")
    assert found["train2014"] == (14, 82_783, "other count")
    assert found["test2015"] == (10, 81_434, "other count")


def test_nothing_is_written(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    check(PrepareRequest("clevr", raw=raw, out=tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_and_what_is_damaged(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path, train=1, val=1)
    (raw / "questions/CLEVR_val_questions.json").unlink()
    edit_json(
        raw / "questions/CLEVR_train_questions.json", lambda content: content["questions"][1].__delitem__("question")
    )
    rows = {row.file: row for row in check(PrepareRequest("clevr", raw=raw, without_features=True))}
    train = rows["questions/CLEVR_train_questions.json"]
    assert train.verdict == "damaged"
    assert 'record 1 has no "question"' in train.advice
    val = rows["questions/CLEVR_val_questions.json"]
    assert (val.verdict, val.expected) == ("missing", 149_991)
    assert "CLEVR_v1.0.zip" in val.advice
    assert rows["questions/CLEVR_test_questions.json"].verdict == "not there, not needed"


def test_files_with_odd_names_are_mentioned(tmp_path: Path) -> None:
    raw = write_clevr(tmp_path)
    (tmp_path / "feats/val/notes.txt").write_text("")
    rows = {Path(row.file).name: row for row in check(PrepareRequest("clevr", raw=raw))}
    assert rows["val"].advice == "are all images there?; 1 files with other names are left out"
