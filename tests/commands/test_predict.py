from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.small_runs import SmallRun, make_run
from trarctl import cli
from trarctl.data.features.reading import read_image

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tmp_path_factory.mktemp("predict"), "model.routing=hard", "model.binarize=true")


def predict(run: SmallRun, *options: str) -> list[str]:
    return ["predict", "--ckpt", run.name, *run.folder_option, *options]


def asking(run: SmallRun, *options: str) -> list[str]:
    return predict(run, "--image", str(run.picture), "--question", "what color is the shape?", *options)


def test_answers_with_probabilities_and_routes(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(asking(run, "--top", "3")) == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines() if line.strip()]
    assert lines[0] == ["what", "color", "is", "the", "shape?"]
    assert lines[1] == ["answer", "probability,", "%"]
    shares = [float(line[-1]) for line in lines[3:6]]
    assert shares == sorted(shares, reverse=True)
    assert lines[6] == ["route,", "%", "whole", "3x3", "5x5", "7x7"]
    assert [line[:2] for line in lines[8:]] == [["layer", "1"], ["layer", "2"]]
    assert sum(float(share) for share in lines[8][2:]) == pytest.approx(100, abs=0.3)
    assert "trained on easy-VQA: 64 x 64 pictures of one colored shape each; it can only answer " in captured.err
    assert "only the heaviest span of each layer is used" in captured.err


def test_json_holds_everything_and_nothing_else_goes_to_stdout(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(asking(run, "--json", "-", "--top", "100")) == 0
    document = json.loads(capsys.readouterr().out)
    (one,) = document["predictions"]
    assert sum(answer["probability"] for answer in one["answers"]) == pytest.approx(1)
    assert len(one["answer_attention"]) == document["grid_size"] ** 2
    assert sum(one["answer_attention"]) == pytest.approx(1, abs=1e-4)
    assert [sum(layer) for layer in one["layer_attention"]] == pytest.approx([1, 1], abs=1e-4)
    assert one["unknown_words"] == []


def test_saves_a_picture_of_any_photograph(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.jpg"
    Image.effect_mandelbrot((160, 90), (-2, -1, 1, 1), 20).convert("CMYK").save(photo)
    picture = tmp_path / "attention.png"
    arguments = ["--image", str(photo), "--question", "Is there a $zebra_$?", "--save", str(picture)]
    assert cli.run(predict(run, *arguments)) == 0
    err = capsys.readouterr().err
    assert "'Is there a $zebra_$?' has words that are not in the model's vocabulary: '$zebra_$'\n" in err
    assert f"picture written to {picture}\n" in err
    assert read_image(picture).width > 1000


def test_many_questions_from_a_file(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.open(run.picture).save(tmp_path / "a.png")
    (tmp_path / "q.csv").write_text('image,question,note\na.png,"what, then, is it?",x\na.png,is there a circle?,\n')
    rows = [{"image": str(run.picture), "question": "is there a circle?"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert cli.run(predict(run, "--batch", str(tmp_path / "q.csv"), "--json", "-")) == 0
    of_csv = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["question"] for one in of_csv] == ["what, then, is it?", "is there a circle?"]
    assert cli.run(predict(run, "--batch", str(tmp_path / "q.jsonl"), "--json", "-")) == 0
    of_json = json.loads(capsys.readouterr().out)["predictions"]
    assert of_json[0]["answers"][0]["answer"] == of_csv[1]["answers"][0]["answer"]
    assert cli.run(predict(run, "--batch", str(tmp_path / "q.csv"))) == 0
    assert "is there a circle?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", "picture,question\na,b\n", "q.csv has no column image: its first line has 'picture', 'question'\n"),
        ("q.csv", "image,question\na.png,\n,b\n,\n", "q.csv: line 2 has no question, line 3 has no image, line 4 has"),
        ("q.csv", "image,question\n", "q.csv holds no questions\n"),
        ("q.jsonl", '{"image": "a.png"}\nno json\n', "line 1 has no question, line 2 is not a JSON object\n"),
        ("q.csv", "image,question\na.png,b c\nb.png,c\n", "line 2: "),
    ],
)
def test_all_that_is_wrong_with_a_file_is_said_at_once(
    name: str, content: str, message: str, run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert cli.run(predict(run, "--batch", str(tmp_path / name))) == 4
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--question", "a"], "error: --image is missing\n"),
        (["--image", "a.png"], "error: --question is missing\n"),
        (["--batch", "a.csv", "--image", "a.png"], "error: --batch brings its own images and questions\n"),
        (["--batch", "a.csv", "--save", "a.png"], "error: --save draws one picture\n"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(predict(run, *options)) == 3
    assert message in capsys.readouterr().err


def test_unusable_pictures_and_questions(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert cli.run(predict(run, "--image", str(tmp_path / "a.png"), "--question", "what?")) == 4
    assert "a.png is not an image, or is damaged\n" in capsys.readouterr().err
    assert cli.run(predict(run, "--image", str(run.picture), "--question", "?!")) == 4
    assert "error: '?!' holds no word\n" in capsys.readouterr().err
    assert cli.run(asking(run, "--save", str(tmp_path / "no" / "x.png"))) == 4
    assert "x.png: No such file or directory\n" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.run(asking(run, "--save", str(tmp_path / "x.png"))) == 4
    assert 'hint:  pip install "trarctl[report]"\n' in capsys.readouterr().err


def test_features_made_elsewhere_cannot_be_made_of_a_picture(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = GOLDEN / "mini_vqa"
    out = tmp_path / "prepared"
    options = ["--features", str(mini / "feats"), "--grid", "4", "--vectors", "none", "--out", str(out)]
    assert cli.run(["prepare", "vqa", "--raw", str(mini / "raw"), *options]) == 0
    case = GOLDEN / "cases" / "vqa_soft_avg"
    arguments = ["--ckpt", f"{case}.pkl", "--config", f"{case}.yml", "--data", str(out)]
    assert cli.run(["predict", *arguments, "--image", str(run.picture), "--question", "what?"]) == 4
    err = capsys.readouterr().err
    assert f"error: the features in {out} came from files made elsewhere, so trarctl cannot make matching" in err
