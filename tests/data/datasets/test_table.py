"""One's own tables: what they may look like, how they are parted, and which rows are refused."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trarctl.data import no_progress
from trarctl.data.datasets.table import Tables
from trarctl.data.metrics import measure
from trarctl.data.prepare import PrepareReport, PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.data.records import RawData
from trarctl.errors import DataError, SettingsError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
Rows = Sequence[Mapping[str, Any]]


def picture(path: Path, number: int) -> str:
    """Write a picture that no other number has; its color goes by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8), list(COLORS.values())[number % 3])
    image.putpixel((number % 8, number // 8 % 8), (number % 256, number // 256, 7))
    image.save(path)
    return list(COLORS)[number % 3]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """Sixty questions about thirty pictures in folders, with any names."""
    found: list[dict[str, Any]] = []
    for number in range(30):
        name = f"{'ab'[number % 2]}/Bild {number} \u00fc.png"
        color = picture(tmp_path / "photos" / name, number)
        found.append({"image": name, "question": "What color?", "answer": color, "id": f"c{number:02}"})
        found.append({"image": name, "question": "Is it red?", "answer": color == "red", "id": f"r{number:02}"})
    return found


def write(path: Path, rows: Rows, **more: Any) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    encoding = more.pop("encoding", "utf-8")
    with path.open("w", newline="", encoding=encoding) as file:
        table = csv.DictWriter(file, list(rows[0]), **more)
        table.writeheader()
        table.writerows(
            [{k: "yes" if v is True else "no" if v is False else v for k, v in row.items()} for row in rows]
        )
    return path


def prepared(folder: Path, **options: Any) -> PrepareReport:
    grid = options.pop("grid", 2)
    options = {"name": "own", **options}
    request = PrepareRequest(
        "table",
        options=options,
        out=folder / "out",
        images=options.pop("images", folder / "photos"),
        grid=grid,
        vectors="none",
    )
    return prepare(request)


def content(report: PrepareReport) -> dict[str, list[tuple[Any, str, str, list[str]]]]:
    """Id, picture, question and answers of each question by split."""
    data, found = open_prepared(report.out), {}
    for name in data.split_names:
        split = data.split(name)
        answers: list[list[str]] = [[] for _ in range(len(split))]
        if split.is_annotated:
            truth = split.truth()
            answers = [[truth.strings[code] for code in codes if code >= 0] for codes in truth.codes.tolist()]
        ids, images = split.question_id.tolist(), split.image_id.tolist()
        texts = [split.question_text(row) for row in range(len(split))]
        found[name] = list(zip(ids, images, texts, answers, strict=True))
    return found


def place(path: Path) -> float:
    return int(hashlib.sha256(path.read_bytes()).hexdigest()[:12], 16) / 16**12


@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "semicolons", "utf-16", "BOM"])
def test_every_form_of_a_table_is_the_same_data(form: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {
        "tsv": {"delimiter": "\t"}, "semicolons": {"delimiter": ";"}, "utf-16": {"encoding": "utf-16"},
        "BOM": {"encoding": "utf-8-sig", "lineterminator": "\r\n"},
    }  # fmt: skip
    table = write(tmp_path / f"t.{form if form in ('jsonl', 'tsv') else 'csv'}", rows, **ways.get(form, {}))
    found = content(prepared(tmp_path, questions=table))
    expected: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for row in rows:
        at = place(tmp_path / "photos" / row["image"])
        split = "train" if at < 0.8 else "val" if at < 0.9 else "test"
        answer = {True: "yes", False: "no"}.get(row["answer"], row["answer"])
        expected[split].append((row["id"], row["image"], row["question"], [answer]))
    assert found == {split: questions for split, questions in expected.items() if questions}


def test_a_parquet_table_is_read_like_the_others(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    columns = {"Image": [row["image"] for row in rows], "question": [row["question"] for row in rows]}
    columns |= {"answers": [[str(row["answer"])] for row in rows], "id": [row["id"] for row in rows]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    lines = [{**row, "answer": str(row["answer"])} for row in rows]
    expected = content(prepared(tmp_path, questions=write(tmp_path / "t.jsonl", lines)))
    assert content(prepared(tmp_path, questions=tmp_path / "t.parquet")) == expected
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        prepared(tmp_path, questions=tmp_path / "t.parquet")


def test_features_are_those_of_each_picture(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = open_prepared(prepared(tmp_path, questions=write(tmp_path / "t.jsonl", rows)).out)
    assert data.name == "own"
    assert (data.manifest.images.grid_size, data.manifest.images.backbone) == (2, "patches")
    split = data.split("train")
    features = data.features.read(split.image.astype(np.int64))[..., :3].mean(axis=1)
    strongest = [list(COLORS)[one] for one in features.argmax(axis=-1).tolist()]
    color_of = {row["image"]: row["answer"] for row in rows[::2]}
    assert strongest == [color_of[image] for image in split.image_id.tolist()]


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files and a copy of each, which are told apart by their content alone."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(80):
        (folder / f"{number}.png").write_bytes(f"content {number % 40}".encode())
    return folder


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 79), min_size=1, max_size=60), st.integers(1, 60))
def test_a_growing_table_moves_no_picture(many_files: Path, images: list[int], cut: int) -> None:
    """Whatever rows are appended: a question stays in its split, and no content is in two."""

    def split_of_ids(some: list[int]) -> dict[int, str]:
        rows = [{"image": f"{one}.png", "question": "is it?", "answer": "no"} for one in some]
        table, data = write(many_files / "t.jsonl", rows), RawData()
        tables = Tables({"name": "own", "questions": table})
        read = [tables.read_split(many_files, files, data, no_progress) for files in tables.splits()]
        return {id: split.name for split in read for id in split.question_id.tolist()}

    whole = split_of_ids(images)
    assert split_of_ids(images[:cut]).items() <= whole.items()
    assert sorted(whole) == list(range(1, len(images) + 1))
    for number, image in enumerate(images, start=1):
        at = place(many_files / f"{image}.png")
        assert whole[number] == ("train" if at < 0.8 else "val" if at < 0.9 else "test")
    splits = {(image % 40, whole[number]) for number, image in enumerate(images, start=1)}
    assert len(splits) == len({content for content, _ in splits})


def test_copies_of_a_picture_stay_together(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "photos" / f"{number}.png", number)
        picture(tmp_path / "photos" / f"copy of {number}.png", number)
    names = [f"{copy}{number}.png" for number in range(40) for copy in ("", "copy of ")]
    table = write(tmp_path / "t.csv", [{"image": name, "question": "is it?", "answer": "yes"} for name in names])
    found = content(prepared(tmp_path, questions=table))
    for split in found.values():
        held = [image.removeprefix("copy of ") for _, image, _, _ in split]
        assert all(held.count(name) == 2 for name in held)


def test_a_table_for_each_split(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    tables = {
        "train": rows[:40],
        "val": rows[38:50],
        "test": [{"image": r["image"], "question": r["question"]} for r in rows[50:]],
    }
    files = {name: write(tmp_path / f"{name}.jsonl", part) for name, part in tables.items()}
    report = prepared(tmp_path, **files)
    found = content(report)
    assert [one[0] for one in found["train"]] == [row["id"] for row in rows[:40]]
    assert [one[0] for one in found["test"]] == list(range(1, 11))
    assert not open_prepared(report.out).split("test").is_annotated
    assert any("2 of the 12 questions of val are in train too" in warning for warning in report.warnings)
    images = [{row["image"] for row in tables[name]} for name in ("train", "val", "test")]
    both = f"val.jsonl: {len(images[0] & images[1])} of the {len(images[1])} pictures of val stand in train too"
    assert (len(images[0] & images[1]), [both in warning for warning in report.warnings].count(True)) == (1, 1)
    assert images[1].isdisjoint(images[2])
    assert not any("of test stand in" in warning for warning in report.warnings)


def test_a_column_says_the_split(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    names = ["training"] * 40 + ["dev"] * 10 + ["TEST"] * 10
    table = write(tmp_path / "t.csv", [{**row, "split": name} for row, name in zip(rows, names, strict=True)])
    found = content(prepared(tmp_path, questions=table))
    assert {name: len(split) for name, split in found.items()} == {"train": 40, "val": 10, "test": 10}


def test_names_of_columns(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    renamed = [
        {"QID": n, "Image_Name": r["image"], "question": r["question"], "Label": r["answer"], "kind": "CLOSED"}
        for n, r in enumerate(rows)
    ]
    report = prepared(tmp_path, questions=write(tmp_path / "t.csv", renamed), column=["type=kind"])
    assert [one[0] for one in content(report)["train"]][:2] == [row["QID"] for row in renamed][:2]
    assert any(
        "image_name as image, label as answer, qid as id" in note.replace("kind as type, ", "")
        or "image_name as image" in note
        for note in report.notes
    )
    data = open_prepared(report.out)
    split = data.split("train")
    truth = [answers[0] for *_, answers in content(report)["train"]]
    assert measure(truth, data, split, "official").per_type == {"CLOSED": 100.0}


@pytest.mark.parametrize(
    ("answers", "guess", "score"),
    [
        (["A Dog."], "dog", 100.0),
        (["dog", "cat"], "dog", 50.0),
        (["dog", "dog", "cat"], "dog", 100 * (1 / 3 + 1 / 3 + 2 / 3) / 3),
        (["dog"] * 4, "the dog", 100.0),
        (["dog"] * 3 + ["cat"] * 7, "dog", 100 * (3 * 2 / 3 + 7 * 1) / 10),
        (["2"], "two", 100.0),
    ],
)  # fmt: skip
def test_the_score_of_several_answers(answers: list[str], guess: str, score: float, tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png", 1)
    row = {"image": "a.png", "question": "what?", "answers": answers, "split": "train"}
    data = open_prepared(prepared(tmp_path, questions=write(tmp_path / "t.jsonl", [row])).out)
    assert measure([guess], data, data.split("train"), "official").overall == pytest.approx(score, abs=0.01)


def test_raw_answers_are_compared_as_they_are(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png", 1)
    rows = [{"image": "a.png", "question": "what?", "answer": " The  A-4 ", "split": "train"}]
    table = write(tmp_path / "t.csv", rows)
    data = open_prepared(prepared(tmp_path, questions=table, answers="raw").out)
    assert data.answers == ("the a-4",)
    assert measure(["THE a-4"], data, data.split("train"), "official").overall == 100.0
    assert measure(["a-4"], data, data.split("train"), "official").overall == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,what?,cat\n", "has no column image and no column question: its first line has 'a.png', 'wh"),
        ("image,text,answer\na.png,what?,cat\n", "has no column question"),
        ("image,question,answer\na.png,,cat\n", "1 unusable row: line 2 has no question"),
        ("image,question,answer\n" + "a.png, ,cat\n" * 12,
         r"12 unusable rows: line 2 has no question, .*11 has.* and 2 more$"),
        ("image,question,answer,Answer\na.png,what?,cat,dog\n", "has the column answer more than once"),
        ("id,image,question,answer\n,a.png,what?,cat\n", "1 unusable row: line 2 has no id"),
        (f"id,image,question,answer\n{'x' * 256},a.png,what?,cat\n",
         "has the id .*, expected an integer or a text of 1 to"),
        (f"image,question,answer\n{'x' * 2000}.png,what?,cat\n",
         "line 2 has an image of 2,004 characters, expected at m"),
        ("image,question,answer\n../photos/a.png,what?,cat\n", "line 2: '../photos/a.png' leads out of"),
        ("image,question,answer\n/etc/passwd,what?,cat\n", "line 2: '/etc/passwd' leads out of"),
        ("image,question,answer\nhttps://x.org/a.png,what?,cat\n", "line 2: .* is a URL, expected the path of a file"),
        ("image,question,answer\ndata:image/png;base64AA,what?,cat\n", "line 2: .* is the data of a picture"),
        ("image,question,answer\na.png,what?,cat\nb.png,what?,cat\nc/d.png,is it?,no\n",
         r"2 pictures are not in .*: line 3: 'b.png' is missing, line 4: 'c/d.png' is missing"),
        ("id,image,question,answer\n7,a.png,what?,cat\n7,a.png,is it?,no\n", "id 7 appears more than once"),
        ("image,question,answer\na.png,what?,cat\na.png,is it?,\n",
         "1 of the 2 questions of train have no answer: line 3$"),
        ("image,question,answer\n" + "a.png,what?,cat\na.png,is it?, \n" * 20,
         "20 of the 40 questions of train have no answer: line 3, line 5, .* and 10 more$"),
        ("image,question,antwort\na.png,what?,cat\n", "no question of train has an answer"),
        ("id,image,question,answer,split\n7,a.png,what?,cat,train\n7,a.png,is it?,no,val\n",
         "id 7 appears more than o"),
        ("image,question,answer,split\na.png,what?,cat,train\na.png,is it?,no,\n", "1 of 2 rows have no split, such"),
        ("image,question,answer,split\na.png,what?,cat,holdout\n", "line 2 has the split \"holdout\", expected"),
        ("image,question,answer\n", "holds no questions"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a.png", 26)  # content that belongs to train
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        prepared(tmp_path, questions=tmp_path / "t.csv")
    assert (error.value.exit_code, bool(error.value.hint)) == (4, True)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_two_encodings_and_endless_lines(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"image,question,answer\na.png,wo?,caf\xc3\xa9\na.png,wo?,caf\xe9\n")
    with pytest.raises(DataError, match=r"t\.csv, line 3: not UTF-8 text"):
        prepared(tmp_path, questions=table)
    with table.open("wb") as file:
        file.truncate(2 << 30)  # sparse: nothing is stored
    with pytest.raises(DataError, match=r"line 1 is longer than 1,000,000 characters"):
        prepared(tmp_path, questions=table)
    table.unlink()
    table.mkdir()
    with pytest.raises(DataError, match=r"no file t\.csv|is not a file|no file"):
        prepared(tmp_path, questions=table)


def test_pictures_that_cannot_be_read(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    names = sorted({row["image"] for row in rows})[:2]
    for name, damage in zip(names, (b"no picture", b"\x89PNG\r\n\x1a\n"), strict=True):
        (tmp_path / "photos" / name).write_bytes(damage)
    with pytest.raises(DataError) as error:
        prepared(tmp_path, questions=write(tmp_path / "t.jsonl", rows))
    assert error.value.what.startswith("2 image files are unusable")
    assert all(Path(name).name in error.value.what for name in names), error.value.what
    assert error.value.exit_code == 4
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_all_missing_pictures_are_named(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    gone = [{**row, "image": f"photos/{row['image']}"} for row in rows]
    with pytest.raises(DataError) as error:
        prepared(tmp_path, questions=write(tmp_path / "t.jsonl", gone))
    assert "t.jsonl: 30 pictures are not in " in error.value.what
    assert all(f"line {line}: {gone[line - 1]['image']!r} is missing" in error.value.what for line in range(1, 60, 2))
    assert error.value.hint == f"they are in its parent: --images {tmp_path}"


def test_missing_pictures_can_be_left_out(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    rows += [{"image": "gone.png", "question": "is it?", "answer": "no", "id": "x"}]
    table = write(tmp_path / "t.jsonl", rows)
    report = prepared(tmp_path, questions=table, skip_missing=True)
    assert sum(len(split) for split in content(report).values()) == 60
    assert [w for w in report.warnings if "1 picture is not in" in w and "; 1 questions are left out" in w]


def test_what_the_val_answers_can_reach(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    val = [{**row, "answer": "purple" if number < 3 else row["answer"]} for number, row in enumerate(rows[40:50])]
    files = {"train": write(tmp_path / "a.jsonl", rows[:40]), "val": write(tmp_path / "b.jsonl", val)}
    assert prepared(tmp_path, **files).manifest.text.ceilings == {"val": 70.0}


@pytest.mark.parametrize(
    ("suffix", "ids", "expected", "num_warned"),
    [
        (".csv", ["9007199254740993", "-5", "0"], [2**53 + 1, -5, 0], 0),
        (".csv", ["007", "7", "x,1"], ["007", "7", "x,1"], 0),
        (".csv", ["1", "2", str(2**63)], ["1", "2", str(2**63)], 0),
        (".jsonl", [2**63 - 1, -7, 0], [2**63 - 1, -7, 0], 0),
        (".jsonl", ["1", "2", "3"], ["1", "2", "3"], 0),
        (".jsonl", ["None", "nan", "e\u0301"], ["None", "nan", "e\u0301"], 0),
        (".jsonl", ["1", 2, 3], ["1", "2", "3"], 2),
        (".jsonl", [1, 2, 2**64], ["1", "2", str(2**64)], 3),
    ],
)
def test_ids_return_as_they_are(
    suffix: str, ids: list[Any], expected: list[Any], num_warned: int, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png", 26)
    table = tmp_path / f"t{suffix}"
    write(table, [{"id": one, "image": "a.png", "question": "what?", "answer": "cat"} for one in ids])
    tables, data = Tables({"name": "own", "questions": table}), RawData()
    found = tables.read_split(tmp_path, tables.splits()[0], data, no_progress)
    assert found.question_id.tolist() == expected
    warned = [f"{table}: ids that are numbers", f"return as texts: {num_warned}"] if num_warned else []
    assert [all(part in warning for part in warned) for warning in data.warnings] == [True] * bool(num_warned)


def test_what_is_odd_about_answers_and_columns(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 26)
    row = {"image": "a.png", "question": "what?", "question_type": "x", "answer_type": "y", "answers": "z"}
    rows = [{**row, "answer": "['a', 'b']"}, {**row, "answer": ["a", "b"]}, {**row, "answer": 7.5}]
    tables = Tables({"name": "own", "questions": write(tmp_path / "t.jsonl", rows)})
    data = RawData()
    found = tables.read_split(tmp_path, tables.splits()[0], data, no_progress)
    assert found.annotations is not None
    names = list(data.answers)
    assert [names[code] for code in found.annotations.answers[1:, 0]] == ["a", "7.5"]
    assert data.warnings == [
        f"{tmp_path}/t.jsonl: answers that look like lists, but are one text each: line 1; in CSV, several answers are"
        " separated by |"
    ]
    assert data.notes == [
        f"{tmp_path}/t.jsonl: columns taken: question_type as type; columns left aside: answers, answer_type"
    ]
    for wrong, message in (
        ({"answer": float("nan")}, "no question of train has an answer"),
        ({"question ": "again"}, "line 1 has question more than once"),
        ({"id": "a\0"}, "line 1 has the id .*, expected an integer or a text of 1 to 255"),
        ({"answer": {"a": 1}}, 'line 1 has the answer {"a": 1}, expected text or a number'),
    ):
        tables = Tables({"name": "own", "questions": write(tmp_path / "t.jsonl", [{**row, "answer": "z", **wrong}])})
        with pytest.raises(DataError, match=message):
            tables.read_split(tmp_path, tables.splits()[0], RawData(), no_progress)
    tables = Tables({"name": "own", "questions": write(tmp_path / "t.jsonl", rows), "column": ["type=kind"]})
    with pytest.raises(DataError, match=r"t\.jsonl has no column kind"):
        tables.read_split(tmp_path, tables.splits()[0], RawData(), no_progress)


@pytest.mark.parametrize("suffix", [".png", ""])
def test_own_features_are_named_after_the_picture_with_its_suffix_or_without(
    suffix: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    value = {row["image"]: number + 1 for number, row in enumerate(rows)}
    for image, number in value.items():
        path = tmp_path / "feats" / f"{image.removesuffix('.png')}{suffix}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full((4, 3), number, dtype=np.float32)
        array[:, 0] = [0.1, 0.2, 0.3, 0.4]
        np.save(path, array)
    table = write(tmp_path / "t.jsonl", rows)
    request = PrepareRequest("table", options={"name": "own", "questions": table}, features=tmp_path / "feats",
                             out=tmp_path / "out", grid=2, vectors="none")  # fmt: skip
    # With the pictures beside them, the table is split by their content, as without features.
    photos = tmp_path / "photos"
    by_content = open_prepared(prepared(tmp_path / "by content", questions=table, images=photos).out)
    for images in (None, photos):
        data = open_prepared(prepare(replace(request, images=images)).out)
        for name in data.split_names:
            split = data.split(name)
            found = data.features.read(split.image.astype(np.int64))[:, 0, 2].tolist()
            assert found == [value[image] for image in split.image_id.tolist()]
    assert data.own_pictures() == photos
    for name in by_content.split_names:
        assert data.split(name).image_id.tolist() == by_content.split(name).image_id.tolist()
    if not suffix:
        twin = rows[0]["image"].replace(".png", ".jpg")
        write(table, [*rows, {**rows[0], "id": "twin", "image": twin}])
        with pytest.raises(DataError, match=r"\.npy would hold the features of both .*\.jpg and .*\.png"):
            prepare(request)


@pytest.mark.parametrize("name", ["vqa", "table", "Own", "../x", "a b"])
def test_names_that_are_taken_or_no_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of your own data"):
        prepared(tmp_path, name=name, questions=tmp_path / "t.csv")


def test_a_table_needs_a_name_and_files(tmp_path: Path) -> None:
    for options in ({}, {"name": "own"}, {"questions": tmp_path / "t.csv"}, {"name": "own", "val": tmp_path / "v.csv"}):
        with pytest.raises(
            SettingsError, match="a table needs a name, and one file of questions or one for each split"
        ):
            prepare(PrepareRequest("table", options=options))
    both = {"name": "own", "questions": tmp_path / "t.csv", "train": tmp_path / "u.csv"}
    with pytest.raises(SettingsError, match="a table needs a name"):
        prepare(PrepareRequest("table", options=both))


def test_nothing_to_do_the_second_time(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", rows)
    assert not prepared(tmp_path, questions=table).was_current
    assert prepared(tmp_path, questions=table).was_current
    assert not prepared(tmp_path, questions=table, answers="raw").was_current
    write(table, rows[:50])
    assert not prepared(tmp_path, questions=table, answers="raw").was_current
