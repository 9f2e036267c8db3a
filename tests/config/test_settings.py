from __future__ import annotations

import pytest

from trarctl.config.settings import FIELDS, RunSettings, from_file, from_text, nearest_key, to_text, to_toml_value


def test_every_setting_says_what_it_is() -> None:
    assert [key for key, field in FIELDS.items() if not field.description] == []


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.batch_size", "64", 64),
        ("train.batch_size", " 64 ", 64),
        ("train.learning_rate", "1e-4", 1e-4),
        ("model.binarize", "true", True),
        ("model.routing", "hard", "hard"),
        ("model.routing", "'hard'", "hard"),
        ("model.spans", "0,1,3", ["0", "1", "3"]),
        ("model.spans", "[0, 1, 3]", [0, 1, 3]),
        ("model.spans", "(0, 1)", ["0", "1"]),
        ("model.spans", "0", ["0"]),
        ("model.spans", "0,", ["0"]),
        ("model.spans", "", []),
        ("model.spans", "[0, 1", "[0, 1"),
        ("train.gradient_clip", "none", None),
        ("train.gradient_clip", "None", None),
        ("run.name", "none", None),
        ("run.name", "2024-01-01", "2024-01-01"),
        ("run.name", "7", "7"),
        ("run.gpus", "0,1", "0,1"),
        ("data.path", "data/x y", "data/x y"),
        ("data.path", '"data/x y"', "data/x y"),
        ("train.batch_size", "1\nother = 2", "1\nother = 2"),
        ("train.batch_size", "2024-01-01", "2024-01-01"),
        ("train.batch_size", "[" * 5000, "[" * 5000),
    ],
)
def test_from_text(key: str, text: str, expected: object) -> None:
    assert from_text(key, text) == expected


def test_from_file_reads_what_toml_cannot_say() -> None:
    assert from_file("train.gradient_clip", "none") is None
    assert from_file("model.spans", "0,1") == ["0", "1"]
    assert from_file("model.routing", "none") == "none"
    assert from_file("train.epochs", 3) == 3


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("model.hiden_size", "model.hidden_size"),
        ("hidden_size", "model.hidden_size"),
        ("model.batch_size", "train.batch_size"),
        ("MODEL.Hidden_Size", "model.hidden_size"),
        ("batchsize", "train.batch_size"),
        ("model.xyzzy", None),
    ],
)
def test_nearest_key(wrong: str, meant: str | None) -> None:
    assert nearest_key(wrong) == meant


def test_values_for_people_and_for_toml() -> None:
    assert to_text(None) == "none"
    assert to_text((0, 1)) == "[0, 1]"
    assert to_text(False) == "false"
    assert to_toml_value(None) == '"none"'
    assert to_toml_value('a "b"\x7f\\') == '"a \\"b\\"\\u007f\\\\"'


@pytest.mark.parametrize(("given", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("off", "off")])
def test_a_switch_reads_the_true_and_false_of_older_runs(given: object, meant: str) -> None:
    assert RunSettings.model_validate({"compile": given}).compile == meant
    text = to_text(given)
    assert RunSettings.model_validate({"compile": from_text("run.compile", text)}).compile == meant


@pytest.mark.parametrize(("text", "meant"), [("False", "off"), ("TRUE", "on"), ("auto", "auto")])
def test_a_switch_of_before_as_text(text: str, meant: str) -> None:
    assert RunSettings.model_validate({"compile": text}).compile == meant
