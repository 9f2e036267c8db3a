from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trarctl.config.resolve import ALL_SETTINGS, Origin, Resolved, Source, amend, from_dict, resolve
from trarctl.config.settings import FIELDS, Settings, nested
from trarctl.errors import SettingsError
from trarctl.registry import DATASETS, SPAN_SHAPES

DATASET_NAMES = f"{', '.join(map(repr, DATASETS.built_in[:-1]))} or {DATASETS.built_in[-1]!r}"


@pytest.fixture(autouse=True)
def cross(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span shape beside the built-in ones."""
    monkeypatch.setitem(SPAN_SHAPES._items, "cross", object())


def settle(**given: Any) -> Settings:
    return resolve(**{"environ": {}, **given}).settings


def refusal(**given: Any) -> tuple[str, str]:
    with pytest.raises(SettingsError) as caught:
        settle(**given)
    return caught.value.what, str(caught.value.hint)


def toml(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my.toml"
    file.write_text(text)
    return file


# Precedence


def test_without_anything_the_vqa_recipe_holds() -> None:
    result = resolve(environ={})
    assert result.settings.data.dataset == "vqa"
    assert result.origins["data.dataset"] == Origin(Source.DEFAULT, "default")
    assert result.origins["train.epochs"] == Origin(Source.RECIPE, "recipe vqa")
    assert result.origins["model.hidden_size"] == Origin(Source.DEFAULT, "default")
    assert set(result.origins) == set(FIELDS)


def test_later_sources_win(tmp_path: Path) -> None:
    steps: list[tuple[dict[str, Any], int, Source, str]] = [
        ({"dataset": "clevr"}, 16, Source.RECIPE, "recipe clevr"),
        ({"config": toml(tmp_path, "[train]\nepochs = 21\n")}, 21, Source.FILE, "my.toml"),
        ({"environ": {"TRARCTL_TRAIN_EPOCHS": "22"}}, 22, Source.ENVIRONMENT, "TRARCTL_TRAIN_EPOCHS"),
        ({"options": {"train.epochs": (23, "--epochs")}}, 23, Source.OPTION, "--epochs"),
        ({"sets": ["train.epochs=24"]}, 24, Source.SET, "--set"),
    ]
    given: dict[str, Any] = {"environ": {}}
    for change, epochs, source, text in steps:
        given |= change
        result = resolve(**given)
        assert result.settings.train.epochs == epochs
        assert result.origins["train.epochs"] == Origin(source, text)
        assert result.origins["train.epochs"].is_users_choice == (source is not Source.RECIPE)


@pytest.mark.parametrize("name", ["recipe-x.toml", "default.toml", "recipe.yml"])
def test_a_file_is_a_file_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("IMG_SCALE: 3\n" if name.endswith("yml") else "[model]\ngrid_size = 3\n")
    origin = resolve(config=file, environ={}).origins["model.grid_size"]
    assert origin.is_users_choice
    assert origin.text.startswith(name)


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRARCTL_TRAIN_SEED", "5")
    assert resolve().settings.train.seed == 5
    assert "TRARCTL_TRAIN_SEED" in os.environ


def test_options_that_were_not_given_change_nothing() -> None:
    assert settle(options={"train.epochs": (None, "--epochs")}) == settle()


def test_text_of_options_is_read_like_that_of_set() -> None:
    assert settle(options={"model.spans": ("0,2", "--spans")}).model.spans == (0, 2)
    assert settle(options={"run.gpus": ("0,1", "--gpus")}).run.gpus == "0,1"


def test_both_spellings_of_a_variable() -> None:
    assert settle(environ={"TRARCTL_MODEL__HIDDEN_SIZE": "64"}).model.hidden_size == 64
    assert settle(environ={"TRARCTL_MODEL_HIDDEN_SIZE": "64"}).model.hidden_size == 64
    assert settle(environ={"TRARCTL_MODEL_SPANS": "[0, 2]"}).model.spans == (0, 2)
    assert settle(environ={"TRARCTL_MODEL_SPANS": "0,2"}).model.spans == (0, 2)
    assert settle(environ={"TRARCTL_MODEL_HIDDEN_SIZE": "", "OTHER": "x"}) == settle()


def test_set_reads_every_kind_of_value() -> None:
    settings = settle(
        sets=[
            "model.hidden_size=256",
            "model.spans=0,1",
            "train.decay_epochs=[3, 4]",
            "train.adam_betas=0.8,0.9",
            "train.learning_rate=1e-3",
            "train.gradient_clip=0.5",
            "run.gpus=0,1",
            "run.name=2024-01-01",
            "data.path=some where/x",
        ]
    )
    assert (settings.model.hidden_size, settings.model.spans) == (256, (0, 1))
    assert (settings.train.decay_epochs, settings.train.adam_betas) == ((3, 4), (0.8, 0.9))
    assert (settings.train.learning_rate, settings.train.gradient_clip) == (1e-3, 0.5)
    assert (settings.run.gpus, settings.run.name) == ("0,1", "2024-01-01")
    assert settings.data.path == Path("some where/x")
    assert settle(sets=["train.gradient_clip=0.5", "train.gradient_clip=none"]).train.gradient_clip is None


def test_the_data_set_of_any_source_chooses_the_recipe(tmp_path: Path) -> None:
    file = toml(tmp_path, "[data]\ndataset = 'clevr'\n")
    assert settle(config=file).model.spans == (0, 1, 3)
    assert settle(config=file, dataset="vqa").model.spans == (0, 1, 2, 3)
    assert settle(dataset="vqa", sets=["data.dataset=clevr"]).model.spans == (0, 1, 3)


def test_soft_routing_silences_the_binarize_of_a_recipe() -> None:
    result = resolve("clevr", environ={}, sets=["model.routing=soft"])
    assert not result.settings.model.binarize
    assert result.notes == ["recipe clevr (model.binarize = true): without effect, since routing is soft"]
    assert result.origins["model.binarize"].text == "recipe clevr, off with soft routing"


def test_the_toml_shows_every_setting_and_its_origin() -> None:
    lines = resolve("clevr", environ={}).to_toml().splitlines()
    assert [line.split(" = ")[0] for line in lines] == list(FIELDS)
    assert "model.spans = [0, 1, 3]  # recipe clevr" in lines
    assert "model.binarize = true  # recipe clevr" in lines
    assert 'run.name = "none"  # default' in lines
    assert 'data.dataset = "clevr"  # DATASET' in lines


def test_spans_of_another_shape(tmp_path: Path) -> None:
    assert settle(sets=["model.spans=0,cross:2"]).model.spans == (0, "cross:2")
    assert settle(sets=['model.spans=[0, "cross:2"]']).model.spans == (0, "cross:2")
    assert settle(config=toml(tmp_path, '[model]\nspans = ["cross:2", 1, "window:3"]\n')).model.spans == (
        "cross:2",
        1,
        "window:3",
    )


def test_the_variable_of_plugins_is_no_setting() -> None:
    assert settle(environ={"TRARCTL_PLUGINS": "some_module"}) == settle()


def test_values_are_validated_without_torch() -> None:
    code = (
        "import sys; from trarctl.config.resolve import resolve;"
        " resolve('clevr', sets=['model.pooling=avg', 'run.attention=cpu', 'model.spans=0,window:2']);"
        " print([name for name in ('torch', 'numpy', 'spacy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# Messages


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (
            {"options": {"train.batch_size": (0, "--batch-size")}},
            "--batch-size 0: train.batch_size must be greater than 0",
        ),
        ({"sets": ["model.routing=softt"]}, "--set model.routing=softt: model.routing must be 'soft' or 'hard'"),
        ({"sets": ["model.spans=0,x"]}, "--set model.spans=0,x: model.spans[1] must be a whole number"),
        ({"sets": ["model.spans=-1"]}, "--set model.spans=-1: model.spans[0] must be 0 or more"),
        (
            {"sets": ["model.spans=0,cros:2"]},
            "--set model.spans=0,cros:2: model.spans[1] must be SHAPE:SIZE with a shape of 'window' or 'cross'",
        ),
        (
            {"sets": ["model.spans=cross:0"]},
            "--set model.spans=cross:0: model.spans[0] must be SHAPE:SIZE with a size of 1 or more",
        ),
        (
            {"sets": ["model.spans=cross:x"]},
            "--set model.spans=cross:x: model.spans[0] must be SHAPE:SIZE with a size of 1 or more",
        ),
        ({"sets": ["data.dataset=vqa2"]}, f"--set data.dataset=vqa2: data.dataset must be {DATASET_NAMES}"),
        ({"sets": ["model.pooling=max"]}, "--set model.pooling=max: model.pooling must be 'avg', 'attention' or 'fc'"),
        (
            {"sets": ["run.attention=gpu"]},
            "--set run.attention=gpu: run.attention must be 'auto', 'reference', 'cpu' or 'triton'",
        ),
        (
            {"sets": ["run.save_every=0"]},
            "--set run.save_every=0: run.save_every must be a number of steps from 1, such as 500, or of minutes,"
            " such as 10m",
        ),
        ({"sets": ["model.spans="]}, "--set model.spans=: model.spans must have 1 or more values"),
        ({"sets": ["model.dropout=1"]}, "--set model.dropout=1: model.dropout must be less than 1"),
        (
            {"sets": ["train.batch_size=true"]},
            "--set train.batch_size=true: train.batch_size must not be true or false",
        ),
        ({"sets": ["train.batch_size=1.5"]}, "--set train.batch_size=1.5: train.batch_size must be a whole number"),
        (
            {"sets": ["train.learning_rate=nan"]},
            "--set train.learning_rate=nan: train.learning_rate must be a finite number",
        ),
        ({"sets": ["train.adam_betas=0.9"]}, "--set train.adam_betas=0.9: train.adam_betas[1] lacks a value"),
        ({"environ": {"TRARCTL_TRAIN_SEED": "x"}}, "TRARCTL_TRAIN_SEED=x: train.seed must be a whole number"),
        ({"sets": ["train.epochs"]}, "--set train.epochs: must be KEY=VALUE"),
        (
            {"sets": ["run.name=a/b"]},
            "--set run.name=a/b: run.name may hold up to 200 letters, digits, '.', '_' and '-',"
            " and begins with a letter or a digit",
        ),
    ],
)
def test_a_wrong_value_names_source_value_and_limit(given: dict[str, Any], what: str) -> None:
    assert refusal(**given)[0] == what


def test_a_wrong_value_comes_with_its_meaning() -> None:
    what, hint = refusal(sets=["train.epochs=0"])
    assert what == "--set train.epochs=0: train.epochs must be greater than 0"
    assert hint == f"train.epochs: passes over the training split; {ALL_SETTINGS}"


def test_a_contradiction_blames_the_later_source() -> None:
    what, hint = refusal(options={"train.accumulation": (3, "--accu")})
    assert what == "--accu 3: accumulation 3 does not divide batch_size 64 (nearest that do: 2 and 4)"
    assert hint == (
        "change one: train.accumulation comes from --accu 3, train.batch_size from recipe vqa (train.batch_size = 64)"
    )
    assert refusal(dataset="clevr", options={"train.batch_size": (7, "--batch-size")})[0] == (
        "--batch-size 7: accumulation 2 does not divide batch_size 7 (nearest that do: 1 and 7)"
    )


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"sets": ["model.hidden_size=60"]}, "hidden_size 60 must be a multiple of num_heads 8"),
        ({"sets": ["model.hidden_size=9", "model.num_heads=3"]}, "hidden_size 9 must be even: the router halves it"),
        ({"sets": ["model.binarize=true"]}, "binarize needs hard routing, got routing 'soft'"),
        ({"sets": ["train.temperature_min=11"]}, "temperature_min 11.0 is above temperature_max 10.0"),
        ({"sets": ["train.loss=ce"]}, "loss 'ce' does not fit vqa: use bce or kld"),
        ({"dataset": "clevr", "sets": ["train.loss=bce"]}, "loss 'bce' does not fit clevr: use ce"),
        (
            {"dataset": "clevr", "sets": ["data.split=train+val+vg"]},
            "split 'train+val+vg' is none that clevr trains on: use train or train+val",
        ),
    ],
)
def test_contradictions(given: dict[str, Any], what: str) -> None:
    message = refusal(**given)[0]
    assert message.endswith(f": {what}")
    assert message.startswith("--set ")


def test_several_wrong_values_are_all_named() -> None:
    what, _ = refusal(sets=["train.epochs=0", "train.batch_size=0", "model.routing=x"])
    assert what.splitlines() == [
        "--set model.routing=x: model.routing must be 'soft' or 'hard'",
        "--set train.epochs=0: train.epochs must be greater than 0",
        "--set train.batch_size=0: train.batch_size must be greater than 0",
    ]


def test_unknown_names_suggest_the_nearest(tmp_path: Path) -> None:
    assert refusal(sets=["model.hiden_size=3"]) == (
        "--set model.hiden_size=3: unknown setting model.hiden_size",
        "did you mean model.hidden_size?",
    )
    assert refusal(sets=["x.y=3"])[1] == f"settings are in the tables data, model, train, run; {ALL_SETTINGS}"
    assert refusal(environ={"TRARCTL_MODEL_HIDENSIZE": "3"}) == (
        "unknown environment variable TRARCTL_MODEL_HIDENSIZE",
        "did you mean TRARCTL_MODEL_HIDDEN_SIZE?",
    )
    assert refusal(environ={"TRARCTL_BATCH_SIZE": "3"})[1] == "did you mean TRARCTL_TRAIN_BATCH_SIZE?"
    assert "TRARCTL_TRAIN_SEED" in refusal(environ={"TRARCTL_XYZZY": "3"})[1]
    assert refusal(sets=["lr=3"])[1] == refusal(sets=["train.lr=3"])[1] == "did you mean train.learning_rate?"
    for name in ("version", "train.optimizer", "train.weight_decay"):
        assert "did you mean" not in refusal(sets=[f"{name}=3"])[1]
    file = toml(tmp_path, "[train]\nepoch = 3\n")
    assert refusal(config=file) == (f"{file}: unknown setting train.epoch", "did you mean train.epochs?")
    file = toml(tmp_path, "[trian]\nepochs = 3\n")
    assert refusal(config=file) == (f"{file}: unknown table trian", "did you mean [train]?")
    file = toml(tmp_path, "epochs = 3\n")
    assert refusal(config=file) == (f"{file}: unknown setting epochs", "did you mean train.epochs?")


def test_two_spellings_of_one_variable_must_agree() -> None:
    pair = {"TRARCTL_TRAIN_SEED": "1", "TRARCTL_TRAIN__SEED": "1"}
    assert settle(environ=pair).train.seed == 1
    assert refusal(environ=pair | {"TRARCTL_TRAIN_SEED": "2"}) == (
        "TRARCTL_TRAIN_SEED and TRARCTL_TRAIN__SEED are the same setting, train.seed, with different values",
        "unset TRARCTL_TRAIN__SEED",
    )


def test_an_option_for_no_setting_is_our_own_mistake() -> None:
    with pytest.raises(KeyError, match="--epoch sets train.epoch"):
        settle(options={"train.epoch": (3, "--epoch")})


# Files


def test_wrong_value_in_a_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "[train]\nbatch_size = 0\n")
    assert refusal(config=file)[0] == f"{file} (batch_size = 0): train.batch_size must be greater than 0"


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    file = toml(tmp_path, f"[train]\nbatch_size = '{'x' * 5000}'\n")
    assert len(refusal(config=file)[0]) < 200 + len(str(file))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.toml", b"[train\n", "Expected ']' at the end of a table declaration (at line 1, column 7)"),
        ("x.yml", b"A: [1\n", "while parsing a flow sequence"),
        ("x.yml", b"!!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
        ("x.yml", b"- 1\n", "holds no settings"),
        ("x.json", b"{", "Expecting property name enclosed in double quotes"),
        ("x.json", b"[" * 100_000, "is nested too deeply"),
        ("x.toml", b"\xff\xfe", "is not UTF-8 text"),
        ("x.ini", b"", "settings are read from .toml, .yml, .yaml or .json files, not .ini"),
        ("x", b"", "settings are read from .toml, .yml, .yaml or .json files, not one without ending"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    what, _ = refusal(config=file)
    assert what.startswith(f"{file}: {message}")
    assert "\n" not in what


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert refusal(config=tmp_path / "no.toml")[0] == f"cannot read {tmp_path}/no.toml: No such file or directory"
    (tmp_path / "folder.toml").mkdir()
    assert refusal(config=tmp_path / "folder.toml")[0] == f"cannot read {tmp_path}/folder.toml: Is a directory"


def test_empty_files_change_nothing(tmp_path: Path) -> None:
    for name in ("x.toml", "x.yml"):
        (tmp_path / name).write_text("")
        assert settle(config=tmp_path / name) == settle()


# Round trips


@st.composite
def some_settings(draw: st.DrawFn) -> Settings:
    dataset = draw(st.sampled_from(["vqa", "clevr", "easy-vqa"]))
    heads = draw(st.integers(1, 8))
    batch, parts = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    values: dict[str, object] = {
        "data.dataset": dataset,
        "data.path": draw(st.none() | text.map(lambda part: Path(f"p{part}"))),
        "model.num_heads": heads,
        "model.hidden_size": 2 * heads * draw(st.integers(1, 9)),
        "model.spans": draw(st.lists(st.integers(0, 9) | st.just("window:2"), min_size=1).map(tuple)),
        "model.dropout": draw(st.floats(0, 0.999)),
        "train.batch_size": batch * parts,
        "train.accumulation": parts,
        "train.loss": "bce" if dataset == "vqa" else "ce",
        "train.learning_rate": draw(st.floats(1e-300, 1e300)),
        "train.gradient_clip": draw(st.none() | st.floats(1e-9, 1e9)),
        "run.name": draw(
            st.none() | st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z").filter(lambda name: name.lower() != "none")
        ),
    }
    return Settings.model_validate(nested(values))


@given(some_settings())
def test_json_round_trip(settings: Settings) -> None:
    assert from_dict(json.loads(json.dumps(settings.model_dump(mode="json"))), "settings.json") == settings


@given(settings=some_settings())
def test_toml_round_trip(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> None:
    file = tmp_path_factory.mktemp("toml") / "settings.toml"
    file.write_text(Resolved(settings, dict.fromkeys(FIELDS, Origin(Source.SET, "--set")), []).to_toml(), "utf-8")
    assert settle(config=file) == settings


def test_settings_of_a_run_serve_as_config(tmp_path: Path) -> None:
    settings = settle(dataset="clevr", sets=["train.epochs=3"])
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings.model_dump(mode="json")))
    assert settle(config=file) == settings


def test_stored_settings_that_do_not_fit_name_their_file() -> None:
    with pytest.raises(SettingsError) as caught:
        from_dict({"train": {"epochs": 0, "epoch": 1}}, "runs/x/settings.json")
    assert caught.value.what.splitlines() == [
        "runs/x/settings.json: train.epochs must be greater than 0, got 0",
        "runs/x/settings.json: train.epoch is no setting",
    ]


def test_amend_changes_some_settings_of_a_run() -> None:
    settings = settle(dataset="clevr")
    result = amend(settings, "run x", options={"train.epochs": (20, "--epochs")}, sets=["run.keep=1"])
    assert (result.settings.train.epochs, result.settings.run.keep) == (20, 1)
    assert result.settings.model == settings.model
    assert result.origins["train.epochs"] == Origin(Source.OPTION, "--epochs")
    assert result.origins["model.spans"] == Origin(Source.RUN, "run x")
    with pytest.raises(SettingsError, match="--epochs 0: train.epochs must be greater than 0"):
        amend(settings, "run x", options={"train.epochs": (0, "--epochs")})


# What is odd, or does nothing


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.yml", "LR_BASE: 1e-4\nMAX_EPOCH: 3\nLR_BASE: 1e-3\n", "has the key LR_BASE more than once"),
        ("a.yml", "OPT_PARAMS: {eps: 1e-9, eps: 1e-8}\n", "has the key eps more than once"),
        ("a.json", '{"train": {"epochs": 5, "epochs": 6}}', "has the key epochs more than once"),
        ("a.json", '{"train": {"epochs": 5}, "run": {}, "train": {}}', "has the key train more than once"),
        ("a.toml", "[train]\nepochs = 5\nepochs = 6\n", "Cannot overwrite a value"),
        ("a.yml", "SEED: 1\nMAX_EPOCH: 010\n", "line 2: YAML reads 010 as 8: write 8, or the number meant"),
        ("a.yml", "SEED: 1:30\n", "line 1: YAML reads 1:30 as 90"),
        ("a.yml", "ORDERS: [0, 01]\n", "line 1: YAML reads 01 as 1"),
    ],
)
def test_what_a_file_says_twice_or_means_otherwise(tmp_path: Path, name: str, text: str, reason: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    what, hint = refusal(config=file)
    assert what.startswith(f"{file}: ")
    assert reason in what
    assert hint.startswith("correct the file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "MAX_EPOCH: 10\nSEED: 0\n"),
        ("a.yml", "MAX_EPOCH: '010'\n"),
        ("a.yml", "MAX_EPOCH: 0xA\n"),
        ("a.yml", "<<: {MAX_EPOCH: 10}\n"),
        ("a.yml", "\ufeffMAX_EPOCH: 10\n"),
        ("a.toml", "\ufeff[train]\nepochs = 10\n"),
        ("a.json", '\ufeff{"train": {"epochs": 10}}'),
    ],
)
def test_ten_epochs_in_many_ways(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert settle(config=file).train.epochs == 10


def test_numbers_as_text_in_a_choice(tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text("TAU_POLICY: '2'\n")
    assert settle(config=file).train.temperature_policy == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("train.epochs=99999999999999999999", "train.epochs must be a smaller number"),
        ("model.spans=0,2147483648", "model.spans must be a smaller number"),
        ("run.folder=", "run.folder must not be empty"),
        ("data.path=  ", "data.path must not be empty"),
        ("run.folder=a\0b", "run.folder must not hold a line break or another control character"),
        ("run.folder=ru\nns", "run.folder must not hold a line break or another control character"),
        ("train.learning_rate=-inf", "train.learning_rate must be a finite number"),
        ("train.seed=\u0663", "train.seed must be a whole number"),
        (f"run.name={'a' * 201}", "run.name may hold up to 200 letters"),
    ],
)
def test_odd_values(change: str, reason: str) -> None:
    assert reason in refusal(sets=[change])[0]


def test_what_the_user_asked_for_in_vain_is_noted() -> None:
    def notes(**given: Any) -> list[str]:
        return resolve(**{"environ": {}, **given}).notes

    assert notes() == notes(sets=["train.decay_epochs=11,12"]) == []
    assert notes(sets=["train.decay_epochs=2,13,40"]) == [
        "--set train.decay_epochs=2,13,40: without effect, since epoch 13 is not reached in 13"
    ]
    assert notes(environ={"TRARCTL_TRAIN_TEMPERATURE_MAX": "3"}) == [
        "TRARCTL_TRAIN_TEMPERATURE_MAX=3: without effect, since routing is soft"
    ]
    assert notes(sets=["train.temperature_max=3", "model.routing=hard"]) == []


@pytest.mark.parametrize(
    ("dataset", "epochs", "decay", "warmup"),
    [
        ("vqa", 13, (10, 12), 3),  # the recipe's own
        ("vqa", 26, (20, 24), 3),  # 2 * 10 and 2 * 12
        ("vqa", 20, (15, 18), 3),  # 15.4 and 18.5, that is 240/13 = 18.46
        ("vqa", 5, (4,), 1),  # 3.8; 4.6 would be after the end; warm-up 1.15
        ("vqa", 2, (1,), 0),
        ("vqa", 1, (), 0),
        ("easy-vqa", 3, (2,), 0),  # 2.5, rounded up, would be after the end
        ("easy-vqa", 12, (10,), 0),
        ("clevr", 8, (7,), 2),  # 6.5 and 7.5; warm-up 1.5
    ],
)
def test_a_recipes_schedule_follows_the_number_of_epochs(
    dataset: str, epochs: int, decay: tuple[int, ...], warmup: int
) -> None:
    result = resolve(dataset=dataset, environ={}, options={"train.epochs": (epochs, "--epochs")})
    train, recipe = result.settings.train, resolve(dataset=dataset, environ={}).settings.train
    assert (train.decay_epochs, train.warmup_epochs) == (decay, warmup)
    changed = train.decay_epochs != recipe.decay_epochs or train.warmup_epochs != recipe.warmup_epochs
    assert len(result.notes) == changed
    assert train.model_copy(update=recipe.model_dump(include={"epochs", "decay_epochs", "warmup_epochs"})) == recipe


def test_what_the_schedule_became_is_said_once(tmp_path: Path) -> None:
    result = resolve(dataset="vqa", environ={}, options={"train.epochs": (4, "--epochs")})
    assert result.notes == [
        "the recipe's schedule is fitted to 4 epochs: "
        "train.decay_epochs = [3] ([10, 12] of 13 epochs), train.warmup_epochs = 1 (3 of 13 epochs)"
    ]
    assert result.origins["train.decay_epochs"] == Origin(Source.RECIPE, "recipe vqa, fitted to 4 epochs")
    again = resolve(config=toml(tmp_path, result.to_toml()), environ={})
    assert (again.settings, again.notes) == (result.settings, [])


def test_a_schedule_of_the_users_stays(tmp_path: Path) -> None:
    fewer = {"train.epochs": (4, "--epochs")}
    assert settle(options=fewer, sets=["train.decay_epochs=2,3"]).train.decay_epochs == (2, 3)
    assert settle(options=fewer, sets=["train.decay_epochs=10,12"]).train.decay_epochs == (10, 12)
    assert settle(options=fewer, config=toml(tmp_path, "[train]\ndecay_epochs = [3]")).train.decay_epochs == (3,)
    assert settle(options=fewer, environ={"TRARCTL_TRAIN_WARMUP_EPOCHS": "2"}).train.warmup_epochs == 2
    original = tmp_path / "trar.yml"
    original.write_text("MAX_EPOCH: 20\n")
    assert settle(config=original).train.decay_epochs == (10, 12)  # the original's own, whatever its epochs
    assert amend(settle(), "run x", options={"train.epochs": (26, "--epochs")}).settings.train.decay_epochs == (10, 12)
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[train]\nepochs = 10\ndecay_epochs = [5, 9]\nwarmup_epochs = 0\n")
    assert settle(recipe=str(recipe)).train.decay_epochs == (5, 9)
    assert settle(recipe=str(recipe), options={"train.epochs": (20, "--epochs")}).train.decay_epochs == (10, 18)


@pytest.mark.parametrize("name", ["a.yml", "a.toml", "a.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert refusal(config=tmp_path / name) == (f"{tmp_path / name} is a pipe, not a file", "--config FILE")


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!int x", "!!int [1]", "!!bool x", "!!timestamp x", "!!omap [1]", "!!float ''"]
)
def test_values_that_yaml_cannot_build(tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.yml"
    file.write_text(f"MAX_EPOCH: {value}\n")
    assert refusal(config=file)[0].startswith(f"{file}: ")
