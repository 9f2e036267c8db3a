"""``trarctl settings`` and the page that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trarctl.config.settings import FIELDS

Run = Callable[..., tuple[int, str, str]]
PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_what_the_program_says(trarctl: Run) -> None:
    code, out, _ = trarctl("settings", "--markdown")
    assert code == 0
    assert PAGE.read_text(encoding="utf-8") == out, "make it again: trarctl settings --markdown > docs/settings.md"


def test_every_setting_is_listed(trarctl: Run) -> None:
    code, out, _ = trarctl("settings")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(FIELDS)


def test_one_setting(trarctl: Run) -> None:
    code, out, _ = trarctl("settings", "train.batch_size")
    assert code == 0
    assert out.splitlines() == [
        "train.batch_size: Samples of one optimizer step, over all GPUs and parts.",
        "  values   a whole number, 1 to 999,999",
        "  default  64; 128 for easy-vqa",
        "  set by   --batch-size VALUE, --set train.batch_size=VALUE, TRARCTL_TRAIN_BATCH_SIZE=VALUE",
    ]


def test_recipes_by_value(trarctl: Run) -> None:
    code, out, _ = trarctl("settings", "model.routing", "--json", "-")
    assert code == 0
    (found,) = json.loads(out)["settings"]
    assert found["values"] == "soft or hard"
    assert found["recipes"]["hard"] == ["clevr", "clevr-cogent"]
    assert found["option"] is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model.num_layers", "a whole number, 1 to 64"),
        ("model.dropout", "a number, 0 or more, below 1"),
        ("model.binarize", "true or false"),
        ("model.pooling", "avg, attention or fc"),
        ("train.decay_factor", "a number, above 0, at most 1"),
        ("train.gradient_clip", "none; or a number, above 0"),
        ("train.adam_betas", "2 values, each a number, 0 or more, below 1"),
        ("run.loggers", "a list, each tensorboard or wandb"),
        ("run.save_every", "such as 500 or 10m"),
        ("run.folder", "a path"),
    ],
)
def test_values(text: str, values: str, trarctl: Run) -> None:
    assert f"  values   {values}\n" in trarctl("settings", text)[1]


@pytest.mark.parametrize(
    ("text", "first"), [("lr", "train.learning_rate"), ("max-epochs", "train.epochs"), ("depth", "model.num_layers")]
)
def test_names_of_other_programs(text: str, first: str, trarctl: Run) -> None:
    assert trarctl("settings", text)[1].startswith(f"{first}: ")


def test_a_table_or_a_part_of_a_name(trarctl: Run) -> None:
    keys = [line.split()[0] for line in trarctl("settings", "temperature")[1].splitlines()[2:]]
    assert keys == ["train.temperature_policy", "train.temperature_max", "train.temperature_min"]
    assert len(trarctl("settings", "model")[1].splitlines()) == 2 + sum(key.startswith("model.") for key in FIELDS)


def test_an_unknown_setting(trarctl: Run) -> None:
    code, _, err = trarctl("settings", "xyz")
    assert code == 3
    assert "unknown setting xyz" in err
    assert "tables are data, model, train or run" in err


def test_options_that_do_not_go_together(trarctl: Run) -> None:
    code, _, err = trarctl("settings", "lr", "--markdown")
    assert code == 3
    assert "leave out KEY and --json" in err
