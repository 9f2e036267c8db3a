"""What ``trarctl show`` says of prepared data, in the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.data.preparing import prepare_golden
from tests.small_runs import make_raw
from trarctl.data.prepared import open_prepared

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small golden set."""
    out = tmp_path_factory.mktemp("show") / "vqa"
    prepare_golden("vqa", out)
    return out


def test_counts_are_those_of_the_raw_files(vqa: Path, trarctl: Run) -> None:
    code, out, _ = trarctl("show", "--data", vqa, "--json", "-")
    assert code == 0
    shown = {one["name"]: one for one in json.loads(out)["splits"]}
    raw = GOLDEN / "mini_vqa/raw"
    questions = json.loads((raw / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    given = json.loads((raw / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    val = shown["val"]
    assert (val["questions"], val["images"]) == (len(questions), len({one["image_id"] for one in questions}))
    texts = [re.sub(r"[-/]", " ", one["question"].lower()) for one in questions]
    starts = Counter(words[0] for text in texts if (words := re.sub(r"""[.,'!?"()*#:;]""", "", text).split()))
    first = dict(val["first_words"])
    assert all(first[word] == pytest.approx(100 * starts[word] / len(questions)) for word in first)
    answers = Counter(answer["answer"] for one in given for answer in one["answers"])
    best, share = val["answers"][0]
    assert answers[best] == max(answers.values())
    assert share == pytest.approx(100 * answers[best] / answers.total())
    types = Counter(one["question_type"] for one in given)
    assert all(types[name] == count for name, count in val["types"])
    assert shown["test"]["answered"] == 0
    assert shown["test"]["reachable"] is None
    assert val["reachable"] == open_prepared(vqa).manifest.text.ceilings["val"]


def test_samples_are_questions_of_the_split(vqa: Path, trarctl: Run) -> None:
    split = open_prepared(vqa).split("val")
    known = {split.question_id[row].item(): split.question_text(row) for row in range(len(split))}
    drawn = []
    for seed in (0, 0, 1):
        code, out, _ = trarctl("show", "--data", vqa, "--split", "val", "--samples", 7, "--seed", seed, "--json", "-")
        assert code == 0
        drawn.append([(one["question_id"], one["question"]) for one in json.loads(out)["samples"]])
        assert len(drawn[-1]) == 7
        assert all(known[id] == text for id, text in drawn[-1])
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_page_with_what_is_shown(vqa: Path, tmp_path: Path, trarctl: Run) -> None:
    code, out, err = trarctl("show", "--data", vqa, "--report", tmp_path / "page")
    assert code == 0
    assert "no images: give their folder with --images DIR" in err
    page = (tmp_path / "page" / "index.html").read_text()
    assert "vqa: what it holds" in page
    assert page.count("<script") == 1  # the one that all pages share
    assert "random samples" in out
    (tmp_path / "page" / "index.html").write_text("mine")
    code, _, err = trarctl("show", "--data", vqa, "--report", tmp_path / "page")
    assert code == 4
    assert "was not written by this program" in err


def test_pictures_that_lay_elsewhere_are_found_again(tmp_path: Path, trarctl: Run) -> None:
    raw, data = tmp_path / "elsewhere", tmp_path / "prepared"
    make_raw(raw)
    code, _, stderr = trarctl("prepare", "easy-vqa", "--raw", raw, "--out", data, "--vectors", "none")
    assert code == 0, stderr
    for folder, num_pictures in ((tmp_path / "with", 6), (tmp_path / "without", 0)):
        code, _, stderr = trarctl("show", "--data", data, "--samples", 6, "--report", folder)
        assert code == 0, stderr
        assert (folder / "index.html").read_text().count("data:image/") == num_pictures
        shutil.rmtree(raw, ignore_errors=True)
    assert "no images: give their folder with --images DIR" in stderr


def test_what_is_not_there(tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trarctl("show")[0] == 3
    code, _, err = trarctl("show", "vqa")
    assert code == 4
    assert "no prepared data in data/vqa/prepared" in err
    assert trarctl("show", "birds")[0] == 2
