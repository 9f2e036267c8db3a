from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.small_runs import SmallRun, draw, make_run
from trarctl import cli
from trarctl.data.features.patches import Patches
from trarctl.data.features.reading import read_image
from trarctl.data.prepared import open_prepared
from trarctl.engine import predictor
from trarctl.errors import DataError

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
    assert lines[6] == ["route,", "%", "whole", "3x3", "5x5"]
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
        ("q.csv", "image,question\na.png,\n,b\n,\n", "q.csv: line 2 has no question, line 3 has no image\n"),
        ("q.csv", "image,question\n", "q.csv holds no questions\n"),
        ("q.jsonl", '{"image": "a.png"}\nno json\n', "line 1 has no question, line 2 is not a JSON object\n"),
        ("q.csv", "image,question\na.png,b c\nb.png,c\n", "line 2: 'a.png' is missing, line 3: 'b.png' is missing"),
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


def batch(folder: Path, content: str | bytes, name: str = "q.csv") -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.csv", b"\xef\xbb\xbfimage,question\r\na b.png,is there a circle?\r\n"),
        ("q.csv", "image;question\na b.png;is there a circle?\n"),
        ("q.csv", "question\timage\nis there a circle?\ta b.png\n"),
        ("q.csv", "Image, Question\na b.png, is there a circle?\n\n"),
        ("q.csv", "image,question\na b.png,is there a circle?\n".encode("utf-16")),
        ("q.JSONL", '{"question": "is there a circle?", "image": "a b.png", "id": 3}\r\n'),
    ],
)
def test_files_as_spreadsheets_write_them(
    name: str, content: str | bytes, run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(run.picture).save(tmp_path / "a b.png")
    assert cli.run(predict(run, "--batch", batch(tmp_path, content, name), "--json", "-")) == 0
    (one,) = json.loads(capsys.readouterr().out)["predictions"]
    assert (one["question"], one["image"]) == ("is there a circle?", str(tmp_path / "a b.png"))


def test_a_question_over_two_lines_counts_as_one(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = run.picture
    text = f'image,question\n{picture},"what shape\nis it?"\n{picture},\n{picture},"a ""red"" one?"\nno.png,why?\n'
    assert cli.run(predict(run, "--batch", batch(tmp_path, text))) == 4
    assert "q.csv: line 4 has no question, line 6: 'no.png' is missing\n" in capsys.readouterr().err
    text = text.replace(f"{picture},\n", "").replace("no.png,why?\n", "")
    assert cli.run(predict(run, "--batch", batch(tmp_path, text), "--json", "-")) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert [one["question"] for one in found] == ["what shape\nis it?", 'a "red" one?']


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,what, then?", "line 2 has 3 values, expected 2: put quotes around a text with ','\n"),
        ("http://host/a.png,what?", "line 2: 'http://host/a.png' is a URL, expected the path of a file\n"),
        ("file:///a.png,what?", "line 2: 'file:///a.png' is a URL, expected the path of a file\n"),
        ('"data:image/png;base64,AAAA",what?', "line 2: 'data:image/png;base64,AAAA' is the data of a picture, exp"),
        ("a.png ,what?", "line 2: 'a.png ' is missing; it begins or ends with a blank\n"),
        ('a.png,"what?', "line 2 cannot be read: unexpected end of data\n"),
        ("a.png,?!", "line 2: '?!' holds no word\n"),
        ("bad.png,what?", "bad.png is not an image, or is damaged\n"),
    ],
)
def test_a_bad_line_is_named_with_its_number(
    line: str, message: str, run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(run.picture).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no picture")
    assert cli.run(predict(run, "--batch", batch(tmp_path, f"image,question\n{line}\n"))) == 4
    err = capsys.readouterr().err
    assert "line 2" in err
    assert message in err


def test_long_values_are_cut_and_many_lines_counted(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "data:image/png;base64," + "A" * 5000
    rows = "".join(f'"{long}",what is {number}?\n' for number in range(30))
    assert cli.run(predict(run, "--batch", batch(tmp_path, f"image,question\nno.png,what?\n{rows}"))) == 4
    err = capsys.readouterr().err
    assert "q.csv: line 2: 'no.png' is missing, line 3: 'data:image/png;base64,AAA" in err
    assert " and 21 more\n" in err
    assert len(err) < 2500


def test_a_file_in_another_encoding_is_named(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "image,question\na.png,what?\nb.png,größe?\n".encode("latin1")
    assert cli.run(predict(run, "--batch", batch(tmp_path, text))) == 4
    assert "q.csv, line 3: not UTF-8 text\n" in capsys.readouterr().err


def test_outputs_are_tried_before_the_work(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trarctl.engine import predictor

    def fail(*_: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(predictor, "open_predictor", fail)
    for option, name, message in [
        ("--json", "no/o.json", "No such file or directory"),
        ("--json", ".", "Is a directory"),
        ("--save", "no/o.png", "No such file or directory"),
        ("--save", "o.docx", "the format 'docx' is not one of"),
        ("--save", "o", "the format '' is not one of"),
    ]:
        assert cli.run(asking(run, option, str(tmp_path / name))) == 4, name
        err = capsys.readouterr().err
        assert f"error: cannot write {tmp_path / name}: " in err
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_not_lost_where_the_next_cannot_be_written(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "o.json").write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert cli.run(asking(run, "--json", str(tmp_path / "o.json"))) == 4
    assert "o.json: No space left on device\n" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("o.json", "before")]


def test_a_device_is_written_to_and_not_replaced(run: SmallRun) -> None:
    assert cli.run(asking(run, "--json", "/dev/null")) == 0
    assert Path("/dev/null").is_char_device()


def test_options_that_would_be_dropped_are_refused(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = batch(tmp_path, f"image,question\n{run.picture},what?\n")
    assert cli.run(predict(run, "--batch", file, "--top", "2")) == 3
    assert "error: --top with --batch is for --json" in capsys.readouterr().err
    assert cli.run(predict(run, "--batch", file, "--top", "2", "--json", "-")) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["answers"]) == 2
    (tmp_path / "weights.pth").touch()
    assert cli.run(asking(run, "--weights", str(tmp_path / "weights.pth"))) == 3
    assert "were made without weights\n" in capsys.readouterr().err


def test_guesses_are_called_so_once_and_with_a_count(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (9, 9), 200).save(tmp_path / "plain.png")
    questions = ("zebra unicorn?", "quagga?", "is there a zebra?")
    rows = "".join(f"{run.picture},{question}\n" for question in questions) + "plain.png,is it a gnu?\n"
    assert cli.run(predict(run, "--batch", batch(tmp_path, f"image,question\n{rows}"))) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:  ")]
    assert notes[1:] == [
        "note:  no word of 'zebra unicorn?' and 1 more question is in the model's vocabulary: the answer is a guess",
        "note:  'is there a zebra?' and 1 more question have words that are not in the model's vocabulary:"
        " 'zebra', 'gnu'",
        "note:  the picture of 'is it a gnu?' has one color only: the answer is a guess",
    ]


def test_a_question_in_another_script_is_drawn_without_warnings(run: SmallRun, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            cli.run(
                predict(
                    run, "--image", str(run.picture), "--question", "什么 颜色 is it", "--save", str(tmp_path / "x.svg")
                )
            )
            == 0
        )
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")


def test_one_large_photograph_asked_often_is_decoded_once(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two pictures in turn, 150 questions: each is decoded once, and every answer stands beside its question."""
    from trarctl.data.features import reading

    draw("circle", "red", 3).save(tmp_path / "a.png")
    draw("rectangle", "blue", 9).save(tmp_path / "b.png")
    decoded: list[str] = []
    whole = reading.read_image
    monkeypatch.setattr(reading, "read_image", lambda path: decoded.append(path.name) or whole(path))
    questions = ["is there a circle?", "what color is the shape?"]
    rows = [("ab"[index % 2] + ".png", questions[index // 2 % 2]) for index in range(150)]
    text = "".join(f"{picture},{question}\n" for picture, question in rows)
    assert cli.run(predict(run, "--batch", batch(tmp_path, f"image,question\n{text}"), "--json", "-")) == 0
    found = json.loads(capsys.readouterr().out)["predictions"]
    assert decoded == ["a.png", "b.png"]
    assert [(Path(one["image"]).name, one["question"]) for one in found] == rows
    alone = {}
    for picture, question in set(rows):
        options = ("--image", str(tmp_path / picture), "--question", question, "--json", "-")
        assert cli.run(predict(run, *options)) == 0
        alone[picture, question] = json.loads(capsys.readouterr().out)["predictions"][0]["answers"][0]["probability"]
    assert [one["answers"][0]["probability"] for one in found] == pytest.approx([alone[row] for row in rows], abs=1e-6)
    assert len(set(alone.values())) == 4


def test_attention_is_drawn_over_the_upright_picture(run: SmallRun, tmp_path: Path) -> None:
    """A photograph that is stored on its side gives the drawing of the upright one, to the last pixel."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = draw("circle", "red", 3).crop((0, 0, 64, 40))
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    drawn = []
    for name in ("upright.png", "phone.png"):
        options = ("--image", str(tmp_path / name), "--question", "what?", "--save", str(tmp_path / f"drawn-{name}"))
        assert cli.run(predict(run, *options)) == 0
        drawn.append(np.asarray(read_image(tmp_path / f"drawn-{name}")))
    assert np.array_equal(*drawn)


def test_a_picture_beyond_the_bound_is_answered_as_the_hint_says(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRARCTL_MAX_PIXELS", "4095")
    assert cli.run(asking(run)) == 4
    err = capsys.readouterr().err
    assert "0.png has 64 x 64 pixels, more than 4,095 in all (TRARCTL_MAX_PIXELS=4096 allows it)\n" in err
    monkeypatch.setenv("TRARCTL_MAX_PIXELS", "4096")
    assert cli.run(asking(run)) == 0
    monkeypatch.setenv("TRARCTL_MAX_PIXELS", "4 thousand")
    assert cli.run(asking(run)) == 3
    assert "error: TRARCTL_MAX_PIXELS is '4 thousand', expected a number of pixels\n" in capsys.readouterr().err


def test_inputs_are_not_replaced(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run.picture, tmp_path / "a.png")
    file = batch(tmp_path, "image,question\na.png,what?\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    picture = str(tmp_path / "a.png")
    one = ("--image", picture, "--question", "what?")
    for *options, target in (
        (*one, "--save", picture),
        (*one, "--json", picture),
        (*one, "--ckpt", file, "--json", file),
        (*one, "--config", file, "--json", file),
        (*one, "--weights", file, "--json", file),
        ("--batch", file, "--json", file),
        ("--batch", file, "--json", picture),
    ):
        assert cli.run(predict(run, *options, target)) == 3
        assert f"{target} would overwrite what is read\n" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_result_does_not_overwrite_the_other(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "o.svg")
    assert cli.run(asking(run, "--save", target, "--json", target)) == 3
    assert f"error: --json {target} would overwrite the result of --save\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,question,image\na.png,why?,b.png\n", "a.csv has the column image more than once\n"),
        ("a.jsonl", '{"image": "a.png", "image": "b.png", "question": "why?"}\n', "line 1 has image more than once\n"),
        ("a.json", ' [{"image": "a.png", "question": "why?"}, 7]', "row 2 is not a JSON object"),
        ("a.json", '{\n"questions": []}', "-c '.NAME[]' "),
    ],
)
def test_files_that_leave_doubt_are_refused(
    name: str, text: str, message: str, run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert cli.run(predict(run, "--batch", str(tmp_path / name))) == 4
    assert message in capsys.readouterr().err


def test_words_that_the_model_does_not_read_are_counted(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    longest = open_prepared(run.prepared).manifest.text.max_words
    question = " ".join(["red"] * (longest + 3)) + "?"
    assert cli.run(predict(run, "--image", str(run.picture), "--question", question)) == 0
    assert "note:  the last 3 words of 'red red" in capsys.readouterr().err


def test_what_is_odd_about_the_checkpoint_is_shown(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictor.Predictor, "warnings", ("the words have another order",))
    assert cli.run(asking(run)) == 0
    assert "warning: the words have another order\n" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "q.csv")
    assert cli.run(predict(run, "--batch", str(tmp_path / "q.csv"))) == 4
    assert f"{tmp_path}/q.csv is not a file\n" in capsys.readouterr().err


def test_a_loop_of_links_is_no_picture(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    options = ("--question", "what color is it?", "--json", str(tmp_path / "a.json"))
    assert cli.run(predict(run, "--image", str(tmp_path / "a.png"), *options)) == 4
    assert "a.png" in capsys.readouterr().err


def stored_features(run: SmallRun) -> np.ndarray:
    """Those of the picture that is asked about."""
    data = open_prepared(run.prepared)
    split = data.split("val")
    row = split.image_id.tolist().index(0)
    assert data.picture(run.raw, int(split.image[row])) == run.picture
    return np.asarray(data.features.read(split.image[[row]])[0])


def test_ready_features_answer_as_their_picture_does(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = stored_features(run)
    side = round(len(cells) ** 0.5)
    np.save(tmp_path / "cells.npy", cells)
    np.savez(tmp_path / "map.npz", x=cells.reshape(side, side, -1))
    assert cli.run(asking(run, "--json", "-")) == 0
    expected = json.loads(capsys.readouterr().out)
    assert expected["extractor"] == "patches"
    assert expected["predictions"][0]["image_size"] == [64, 64]
    assert expected["predictions"][0]["grid_on_image"] == {"box": [0, 0, 64, 64], "is_transposed": False}
    question = ("--question", "what color is the shape?", "--json", "-")
    for name, more in (
        ("cells.npy", ()),
        ("map.npz", ("--image", str(run.picture), "--save", str(tmp_path / "a.png"))),
    ):
        assert cli.run(predict(run, "--features", str(tmp_path / name), *question, *more)) == 0
        found = json.loads(capsys.readouterr().out)
        (one,), (other,) = found.pop("predictions"), expected["predictions"]
        assert found == {name: value for name, value in expected.items() if name != "predictions"}
        shares, theirs = ({row["answer"]: row["probability"] for row in part["answers"]} for part in (one, other))
        assert shares == pytest.approx(theirs, abs=1e-5)
        assert one["layer_attention"][1] == pytest.approx(other["layer_attention"][1], abs=1e-5)
        at_hand = ("image", "image_size", "grid_on_image")
        assert [one[name] for name in at_hand] == [other[name] if more else None for name in at_hand]
    assert read_image(tmp_path / "a.png").width > 1000


def test_features_that_do_not_fit_are_one_error(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, file = stored_features(run), tmp_path / "a.npy"
    for array, why, hint in (
        (np.vstack([cells[:1], cells]), "has the shape [17, 56], one row more than cells", "array[1:]"),
        (cells.T, "has the shape [56, 16], channels first", "put them last"),
        (cells[:, :9], "features of width 9, expected [16, 56] or [4, 4, 56]", "the model was trained with"),
        (cells * np.nan, "holds 896 values that are NaN or infinite", "good copies"),
    ):
        np.save(file, array)
        assert cli.run(predict(run, "--features", str(file), "--question", "what?")) == 4
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"error: {file} " in captured.err
        assert why in captured.err
        assert hint in captured.err
    assert cli.run(predict(run, "--features", str(tmp_path / "b.npy"), "--question", "what?")) == 4
    assert f"error: {tmp_path / 'b.npy'} is missing\n" in capsys.readouterr().err
    np.save(file, 0 * cells)
    assert cli.run(predict(run, "--features", str(file), "--question", "what shape is it?")) == 0
    said = "the features of 'what shape is it?' are all zero, which counts as padding: the answer is a guess\n"
    assert f"note:  {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "a.npy"], "error: --question is missing\n"),
        (["--features", "a.npy", "--question", "a", "--save", "b.png"], "error: --image is missing\n"),
        (["--features", "a.npy", "--batch", "a.csv"], "predict --features makes no use of --batch\n"),
        (["--features", "a.npy", "--weights", "a.pth"], "predict --features makes no use of --weights\n"),
        (["--image", "a.png", "--images", "a"], "predict without --extractor makes no use of --images\n"),
        (["--extractor", "vgg", "--image", "{picture}", "--question", "a"], "made by patches, not by vgg\n"),
    ],
)
def test_options_about_features_that_do_not_go_together(
    options: list[str], message: str, run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(predict(run, *(one.format(picture=run.picture) for one in options))) == 3
    assert message in capsys.readouterr().err


def test_a_picture_too_narrow_for_the_extractor_is_named(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise DataError("its 9 x 1 pixels are too narrow", "crop it")

    monkeypatch.setattr(Patches, "shrink", refuse)
    Image.new("RGB", (9, 1)).save(tmp_path / "a.png")
    assert cli.run(predict(run, "--batch", batch(tmp_path, "image,question\na.png,what?\n"))) == 4
    assert f"error: line 2: {tmp_path / 'a.png'}: its 9 x 1 pixels are too narrow\n" in capsys.readouterr().err
