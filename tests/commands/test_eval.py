"""eval and submit: what they match by identity, refuse before the work, and say beside a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from trarctl.data.datasets.vqa import VQA
from trarctl.engine import evaluator
from trarctl.registry import DATASETS

Run = Callable[..., tuple[int, str, str]]
ORIGINAL = GOLDEN / "cases" / "vqa_soft_avg"
CLEVR = GOLDEN / "cases" / "clevr_soft_avg_test"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("scored before everything was checked")

    monkeypatch.setattr(evaluator, "score_chosen", fail)


def of(case: Path, data: Path) -> list[object]:
    return ["--ckpt", f"{case}.pkl", "--config", f"{case}.yml", "--data", data, "--gpus", "cpu"]


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval --ckpt a --images DIR", "eval without --report makes no use of --images"),
        ("eval --answers a.json --data DIR --ckpt a", "eval --answers makes no use of --ckpt"),
        ("eval --answers a.json --data DIR --save-scores s.npz", "eval --answers makes no use of --save-scores"),
        (
            "eval --answers a --data DIR --report DIR --config c.yml",
            "eval --answers makes no use of --config, --report",
        ),
        ("eval --compare a b --report DIR --extractor x", "eval --compare makes no use of --extractor"),
        ("eval --compare a b --ckpt c --save-scores s.npz", "eval --compare makes no use of --ckpt, --save-scores"),
        ("eval --compare a b --answers f.json", "eval --compare makes no use of --answers"),
        ("submit --validate a.json --data DIR --ckpt a", "submit --validate makes no use of --ckpt"),
        ("submit --validate a.json --data DIR --out b", "submit --validate makes no use of --out"),
        ("submit --validate a.json --out b.json", "submit --validate makes no use of --out"),
        ("submit --ckpt a.npz --data DIR --config c.yml", "submit of saved scores makes no use of --config"),
        ("submit --ckpt a.npz --save-scores b.npz", "submit of saved scores makes no use of --save-scores"),
        ("submit --ckpt a --ckpt b --save-scores s.npz", "--save-scores keeps the scores of one checkpoint"),
        ("eval --ckpt a.pkl --json a.pkl", "--json a.pkl would overwrite what is read"),
        ("eval --answers a.json --data DIR --json a.json", "--json a.json would overwrite what is read"),
        ("eval --ckpt a --json same --save-scores same", "--save-scores same would overwrite the result of --json"),
        ("train vqa --dry-run --init a.pkl", "train --dry-run makes no use of --init"),
        ("prepare vqa --check --rebuild", "prepare --check makes no use of --rebuild"),
        ("prepare vqa --without-features --pack float16", "prepare --without-features makes no use of --pack"),
        ("prepare vqa --gpus 0", "prepare without --images or --extractor makes no use of --gpus"),
        ("prepare vqa --extractor x152 --backbone x152", "prepare --extractor makes no use of --backbone"),
        ("show vqa --images DIR", "show without --report makes no use of --images"),
        ("show vqa --samples 0 --seed 3", "show --samples 0 makes no use of --seed"),
        ("extract . --extractor patches --out out --weights w.pth", "patches need no weights"),
        ("submit --ckpt a.npz --data DIR --out a.npz", "--out a.npz would overwrite what is read"),
    ],
)
@pytest.mark.usefixtures("there", "nothing_is_scored")
def test_what_would_be_dropped_is_refused(arguments: str, message: str, trarctl: Run) -> None:
    code, out, err = trarctl(*arguments.split())
    assert (code, out) == (3, "")
    assert f"error: {message}" in err


def test_options_that_change_nothing_for_answers_are_named(
    there: Path, golden_data: dict[str, Path], trarctl: Run
) -> None:
    ids = np.load(f"{ORIGINAL}.npz")["question_id"].tolist()
    (there / "a.json").write_text(json.dumps([{"question_id": one, "answer": "yes"} for one in ids]))
    data = golden_data["vqa"]
    plain = trarctl("eval", "--answers", "a.json", "--data", data, "--split", "val", "--json", "-")
    code, out, err = trarctl(
        "eval", "--answers", "a.json", "--data", data, "--split", "val", "--json", "-", "--gpus", "0"
    )
    assert (code, out) == (0, plain[1])
    assert "note:  eval --answers makes no use of --gpus" in err


# Known before the work


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--json", "no/where.json"], 4, "cannot write no/where.json: No such file or directory"),
        (["--save-scores", "file/s.npz"], 4, "cannot write file/s.npz: Not a directory"),
        (["--save-scores", "folder"], 4, "cannot write folder: Is a directory"),
        (["--report", "file"], 4, "cannot write the report to file: File exists"),
        (["--split", "test"], 4, "split test of "),
        (["--split", "nope"], 4, "no split 'nope' in "),
        (["--evaluator", "oficial"], 2, "oficial"),
        (["--ckpt", "missing.pkl"], 5, "no checkpoint at missing.pkl"),
        (["--ckpt", "folder"], 5, "folder is a folder, not a checkpoint"),
    ],
)
@pytest.mark.usefixtures("nothing_is_scored")
def test_what_stands_in_the_way_of_an_evaluation(
    more: list[str], code: int, message: str, there: Path, golden_data: dict[str, Path], trarctl: Run
) -> None:
    (there / "file").write_text("kept")
    (there / "folder").mkdir()
    ended, out, err = trarctl("eval", *of(ORIGINAL, golden_data["vqa"]), *more)
    assert (ended, out) == (code, "")
    assert message in err
    assert (there / "file").read_text() == "kept"
    assert sorted(path.name for path in there.iterdir()) == ["file", "folder"]


@pytest.mark.usefixtures("nothing_is_scored")
def test_functions_that_clevr_does_not_have(there: Path, trarctl: Run) -> None:
    source = Path(shutil.copytree(GOLDEN / "mini_clevr", there / "clevr"))
    file = source / "raw" / "questions" / "CLEVR_val_questions.json"
    content = json.loads(file.read_text())
    content["questions"][5]["program"][-1] = {"function": "same_colour", "inputs": []}
    file.write_text(json.dumps(content))
    arguments = ["--raw", source / "raw", "--features", source / "feats", "--vectors", "none", "--grid", 5]
    if trarctl("prepare", "clevr", *arguments, "--out", "data")[0]:
        return  # refused even earlier
    code, _, err = trarctl("eval", *of(CLEVR, Path("data")), "--split", "val")
    assert code == 4
    assert "same_colour" in err


def test_a_device_is_written_to_and_stays_one(golden_data: dict[str, Path], trarctl: Run) -> None:
    arguments = of(ORIGINAL, golden_data["vqa"])
    assert trarctl("eval", *arguments, "--json", "/dev/null", "--save-scores", "/dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


# Saved scores


def test_scores_are_matched_by_question(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    data = golden_data["clevr"]
    assert trarctl("submit", *of(CLEVR, data), "--save-scores", "s.npz", "--out", "direct.txt")[0] == 0
    assert trarctl("submit", "--ckpt", "s.npz", "--data", data, "--out", "saved.txt")[0] == 0
    with np.load("s.npz") as file:
        arrays = dict(file)
    order = np.random.default_rng(0).permutation(len(arrays["question_id"]))
    np.savez("turned.npz", **{**arrays, **{name: arrays[name][order] for name in ("question_id", "scores", "routes")}})
    code, _, err = trarctl("submit", "--ckpt", "turned.npz", "--data", data, "--out", "turned.txt")
    assert code == 0
    assert "warning: the questions of turned.npz stood in another order than test" in err
    code, _, err = trarctl("submit", "--ckpt", "turned.npz", "--ckpt", "s.npz", "--data", data, "--out", "both.txt")
    assert code == 0
    written = {(there / f"{name}.txt").read_bytes() for name in ("direct", "saved", "turned", "both")}
    assert len(written) == 1


def test_scores_of_val_do_not_go_out_as_test(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    # The ids are the same: CLEVR counts from 0 in each split, and both have 100 questions.
    data = golden_data["clevr"]
    assert trarctl("eval", *of(CLEVR, data), "--split", "val", "--save-scores", "val.npz")[0] == 0
    code, _, err = trarctl("submit", "--ckpt", "val.npz", "--data", data, "--out", "answers.txt")
    assert code == 4
    assert "val.npz holds scores for other questions: those of the split val, asked for is test" in err
    assert not (there / "answers.txt").exists()
    code, _, err = trarctl("submit", "--ckpt", "val.npz", "--data", data, "--split", "val", "--out", "answers.txt")
    assert code == 0, err


# Checkpoints


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_go_nowhere(
    value: float, there: Path, golden_data: dict[str, Path], trarctl: Run
) -> None:
    content = torch.load(f"{ORIGINAL}.pkl", map_location="cpu", weights_only=True)
    content["state_dict"]["proj.bias"][0] = value
    torch.save(content, there / "spoilt.pkl")
    options = ["--config", f"{ORIGINAL}.yml", "--data", golden_data["vqa"], "--gpus", "cpu"]
    for arguments in (
        ["eval", "--ckpt", "spoilt.pkl", *options],
        ["submit", "--ckpt", "spoilt.pkl", *options],
        ["predict", "--ckpt", "spoilt.pkl", *options, "--image", "x.png", "--question", "what?"],
        ["train", "vqa", "--init", "spoilt.pkl", *options, "--name", "new"],
    ):
        code, out, err = trarctl(*arguments)
        assert (code, out) in {(5, ""), (4, "")}, err
        assert "not finite in 1 of" in err or arguments[0] == "predict"
    assert sorted(path.name for path in there.iterdir()) == ["spoilt.pkl"]


def test_the_ending_of_a_checkpoint_does_not_matter(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    shutil.copy(f"{ORIGINAL}.pkl", there / "plain.safetensors")
    options = ["--config", f"{ORIGINAL}.yml", "--data", golden_data["vqa"], "--gpus", "cpu"]
    expected = json.loads(trarctl("eval", "--ckpt", f"{ORIGINAL}.pkl", *options, "--json", "-")[1])["overall"]
    assert json.loads(trarctl("eval", "--ckpt", "plain.safetensors", *options, "--json", "-")[1])["overall"] == expected
    code, out, _ = trarctl("eval", "--compare", "plain.safetensors", f"{ORIGINAL}.pkl", *options, "--json", "-")
    assert code == 0
    assert [row["overall"] for row in json.loads(out)["checkpoints"]] == [expected, expected]


def test_a_checkpoint_that_names_no_words_is_said_to(golden_data: dict[str, Path], trarctl: Run) -> None:
    code, out, err = trarctl("eval", *of(ORIGINAL, golden_data["vqa"]), "--json", "-")
    assert code == 0
    expected = json.loads(Path(f"{ORIGINAL}.json").read_text())["expected"]["accuracy"]["official"]["overall"]
    assert json.loads(out)["overall"] == expected == 9.7
    assert err.count("does not name its words and answers") == 1
    assert "warning: 9.70 % is no better than the commonest answer to every question, 34.90 %" in err


# What stands beside a number


def test_published_results_stand_beside_as_many_questions_only(
    golden_data: dict[str, Path], trarctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["eval", "--compare", f"{ORIGINAL}.pkl", *of(ORIGINAL, golden_data["vqa"])[2:], "--json", "-"]
    code, out, err = trarctl(*arguments)
    assert code == 0
    assert "published" not in out
    assert "published results are of 214,354 questions, not of these 100" in err
    whole = tuple(replace(split, num_questions=100) for split in VQA.splits)
    monkeypatch.setitem(DATASETS._items, "vqa", replace(VQA, splits=whole))
    (row,) = json.loads(trarctl(*arguments)[1])["checkpoints"]
    assert row["difference"] == round(row["overall"] - 67.62, 2)


def test_answers_that_no_site_takes_are_counted(there: Path, golden_data: dict[str, Path], trarctl: Run) -> None:
    truth = json.loads((GOLDEN / "mini_clevr/raw/questions/CLEVR_val_questions.json").read_text())["questions"]
    (there / "blank.txt").write_text(
        "".join(f"{row['answer']} \n" for row in truth[:3]) + "".join(f"{row['answer']}\n" for row in truth[3:])
    )
    code, out, err = trarctl(
        "eval", "--answers", "blank.txt", "--data", golden_data["clevr"], "--split", "val", "--json", "-"
    )
    assert code == 0
    assert json.loads(out)["overall"] == 97.0
    assert "warning: blank.txt: 3 of 100 answers are none that CLEVR has (3 for a blank or a capital letter" in err
