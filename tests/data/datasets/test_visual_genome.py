"""Questions of Visual Genome, made of its own files by the two rules, against a plain implementation of these."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.preparing import GOLDEN
from tests.data.serving import Served, serving
from trarctl.data import no_progress
from trarctl.data.datasets.visual_genome import ANNOTATIONS, IMAGE_DATA, QUESTION_ANSWERS, QUESTIONS, rebuild
from trarctl.data.datasets.vqa import VQA
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError
from trarctl.registry import DATASETS

PICTURES = np.array([3, 5, 8])
ANSWERS = frozenset({"cat", "2", "on table"})


def write(raw: Path, images: Any, pairs: Any) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    for one, content in ((IMAGE_DATA, images), (QUESTION_ANSWERS, pairs)):
        with zipfile.ZipFile(raw / one.file_name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(one.file_name.removesuffix(".zip"), json.dumps(content))


def read(raw: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    questions, annotations = (json.loads((raw / name).read_text()) for name in (QUESTIONS, ANNOTATIONS))
    return questions["questions"], annotations["annotations"]


def test_both_rules(tmp_path: Path) -> None:
    rng = random.Random(3)  # noqa: S311
    texts = ["A cat.", "Two.", "On the table.", "dog", "  ", "Ünïcode", "CAT", "a"]
    images = [{"image_id": number, "coco_id": rng.choice([None, 3, 4, 5, 8, 9]), "url": "x"} for number in range(300)]
    groups = [
        {
            "id": number,
            "qas": [
                {"qa_id": 1000 * number + k, "image_id": number, "question": f"what, {k}?", "answer": rng.choice(texts)}
                for k in range(rng.randrange(4))
            ],
        }
        for number in rng.sample(range(320), 320)  # twenty without a picture
    ]
    write(tmp_path, images, groups)
    coco = {image["image_id"]: image["coco_id"] for image in images}
    expected = [
        (pair["qa_id"], coco[group["id"]], pair["question"], pair["answer"])
        for group in groups
        if coco.get(group["id"]) in (3, 5, 8)
        for pair in group["qas"]
        if pair["answer"] in ("A cat.", "Two.", "On the table.", "CAT")
    ]
    assert len(expected) > 50
    said = rebuild(tmp_path, PICTURES, ANSWERS, no_progress)
    total = sum(len(group["qas"]) for group in groups)
    assert said.startswith(f"VG_questions.json and VG_annotations.json: {len(expected)} of {total} questions; ")
    assert "a published checkpoint does not fit" in said
    questions, annotations = read(tmp_path)
    assert [(one["question_id"], one["image_id"], one["question"]) for one in questions] == [
        one[:3] for one in expected
    ]
    assert [(one["question_id"], one["image_id"], one["multiple_choice_answer"]) for one in annotations] == [
        (*one[:2], one[3]) for one in expected
    ]
    for annotation in annotations:
        assert [one["answer"] for one in annotation["answers"]] == [annotation["multiple_choice_answer"]] * 10


@pytest.mark.parametrize(
    ("images", "pairs", "message"),
    [
        ([{"image_id": 1, "coco_id": "3"}], [], 'has "3" as "coco_id", expected an integer or null'),
        ([{"image_id": 1}, {"image_id": 1}], [], "image_id 1 appears more than once"),
        ([{"coco_id": 1}], [], 'has no "image_id"'),
        (None, [{"id": 1, "qas": [{"question": "q", "answer": "cat"}]}], 'among its "qas"'),
        (None, [{"id": 1, "qas": [{"qa_id": -1, "question": "q", "answer": "cat"}]}], 'among its "qas"'),
        (None, [{"id": 1, "qas": ["q"]}], 'has "q" among its "qas"'),
        (None, [{"id": 1, "qas": [{"qa_id": 1, "question": "q", "answer": "cat"}] * 2}], "qa_id 1 appears more than"),
        (None, [{"id": 1, "qas": []}, {"id": 2, "qas": []}], "none of its 0 questions has a picture of COCO"),
        (None, {"id": 1}, "does not hold a list"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, images: Any, pairs: Any, message: str) -> None:
    write(tmp_path, [{"image_id": 1, "coco_id": 3}] if images is None else images, pairs)
    with pytest.raises(DataError, match=message):
        rebuild(tmp_path, PICTURES, ANSWERS, no_progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == [IMAGE_DATA.file_name, QUESTION_ANSWERS.file_name]


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / QUESTIONS).write_text("mine")
    with pytest.raises(DataError, match=r"VG_questions.json is there already, and would be replaced"):
        rebuild(tmp_path, PICTURES, ANSWERS, no_progress)
    assert (tmp_path / QUESTIONS).read_text() == "mine"


def test_downloaded_and_prepared(
    trarctl: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = Path(shutil.copytree(GOLDEN / "mini_vqa/raw", tmp_path / "raw"))
    (raw / QUESTIONS).unlink()
    (raw / ANNOTATIONS).unlink()
    annotations = [
        one
        for name in ("train", "val")
        for one in json.loads((raw / f"v2_mscoco_{name}2014_annotations.json").read_text())["annotations"]
    ]
    (answer, _), *_ = Counter(one["multiple_choice_answer"] for one in annotations).most_common(1)
    picture = annotations[0]["image_id"]
    write(
        tmp_path,
        [{"image_id": 7, "coco_id": picture}],
        [
            {
                "id": 7,
                "qas": [
                    {"qa_id": 70 + k, "question": f"vg {k}?", "answer": text} for k, text in enumerate([answer, "rare"])
                ],
            }
        ],
    )
    files = {
        f"/{one.file_name}": Served((tmp_path / one.file_name).read_bytes()) for one in (IMAGE_DATA, QUESTION_ANSWERS)
    }
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(files) as address:
        downloads = tuple(
            replace(one, url=f"{address}/{one.file_name}", num_bytes=None, sha256=None)
            for one in VQA.downloads
            if one.part == "vg"
        )
        monkeypatch.setitem(DATASETS._items, "vqa", replace(VQA, downloads=downloads))
        monkeypatch.setattr("trarctl.data.datasets.vqa.VQA", replace(VQA, min_answer_count=1))
        code, stdout, stderr = trarctl("download", "vg", "--raw", raw)
        assert code == 0, stderr
        assert "note:  VG_questions.json and VG_annotations.json: 1 of 2 questions; their order is not" in stderr
        assert stdout.endswith(f"next: trarctl prepare vqa --raw {raw}\n")
        assert [(one["question_id"], one["image_id"]) for one in read(raw)[0]] == [(70, picture)]
        code, stdout, _ = trarctl("download", "vg", "--raw", raw)
        assert code == 0
        assert stdout.count("unpacked") == 2
    code, _, stderr = trarctl(
        "prepare", "vqa", "--raw", raw, "--out", tmp_path / "out", "--vectors", "none", "--min-answer-count", 1
    )
    assert code == 0, stderr
    assert open_prepared(tmp_path / "out").manifest.text.splits["vg"].questions == 1
    assert "other than 10 answers" not in stderr


def test_the_answers_of_vqa_come_first(trarctl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    write(tmp_path, [], [])
    finish = next(one.finish for one in VQA.downloads if one.finish is not None)
    with pytest.raises(
        DataError, match="are chosen by those of VQA-v2: no v2_mscoco_train2014_annotations.json"
    ) as raised:
        finish(tmp_path, no_progress)
    assert raised.value.hint == f"trarctl download vqa --raw {tmp_path}, and then this again"
