from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trarctl.config.original_yaml import translate
from trarctl.config.resolve import resolve
from trarctl.config.settings import Settings
from trarctl.errors import SettingsError

CASES = sorted((Path(__file__).parents[1] / "golden" / "cases").glob("*.yml"))


def dataset_of(file: Path) -> str:
    return file.name.split("_")[0]


def read(tmp_path: Path, text: str, dataset: str = "vqa") -> Settings:
    return resolved(tmp_path, text, dataset)[0]


def resolved(tmp_path: Path, text: str, dataset: str = "vqa") -> tuple[Settings, list[str]]:
    file = tmp_path / "trar.yml"
    file.write_text(text)
    result = resolve(dataset, file, environ={})
    return result.settings, [note.removeprefix(str(file)) for note in result.notes]


def refusal(tmp_path: Path, text: str) -> tuple[str, str]:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    return caught.value.what.replace(f"{tmp_path}/", ""), str(caught.value.hint)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_every_golden_file_reads_as_it_is(file: Path) -> None:
    given = yaml.safe_load(file.read_text())
    result = resolve(dataset_of(file), file, environ={})
    model, train = result.settings.model, result.settings.train
    assert result.notes == []
    assert (model.num_layers, model.hidden_size, model.feed_forward_size) == (2, 32, 64)
    assert (model.num_heads, model.flat_mlp_size, model.flat_out_size) == (4, 32, 48)
    assert (model.dropout, model.word_embedding_size) == (0.1, 20)
    assert model.flat_glimpses == given["FLAT_GLIMPSES"]
    assert model.spans == tuple(given["ORDERS"])
    assert model.grid_size == given["IMG_SCALE"]
    assert (model.routing, model.pooling, model.binarize) == (given["ROUTING"], given["POOLING"], given["BINARIZE"])
    assert (train.temperature_policy, train.temperature_max, train.temperature_min) == (1, 10.0, 0.1)
    assert (train.batch_size, train.accumulation, train.gradient_clip) == (64, 1, None)
    assert train.learning_rate == float(given["LR_BASE"])
    assert (train.decay_factor, train.decay_epochs) == (0.2, (10, 12))
    assert (train.warmup_epochs, train.epochs) == (3, 13)
    assert (train.loss, train.loss_reduction) == (given["LOSS_FUNC"], "sum")
    assert (train.adam_betas, train.adam_epsilon) == ((0.9, 0.98), 1e-9)


def test_the_keys_of_all_golden_files_have_an_origin() -> None:
    file = CASES[0]
    origins = {origin.text for origin in resolve(dataset_of(file), file, environ={}).origins.values()}
    taken = {f"{file.name} ({key})" for key in yaml.safe_load(file.read_text())} - {
        f"{file.name} ({key})" for key in ("MODEL_USE", "OPT", "OPT_PARAMS", "USE_BBOX_FEAT")
    }
    assert taken <= origins


def test_swapped_routing_and_pooling_are_put_right(tmp_path: Path) -> None:
    settings, notes = resolved(tmp_path, "ROUTING: 'attention'\nPOOLING: 'hard'\n")
    assert (settings.model.routing, settings.model.pooling) == ("hard", "attention")
    assert notes == [": ROUTING and POOLING are swapped there; taken as routing hard, pooling attention"]


def test_pooling_under_its_older_name(tmp_path: Path) -> None:
    settings, notes = resolved(tmp_path, "ROUTING: hard\nROUTING_MODE: attention\nFEATURES: grid\n")
    assert (settings.model.routing, settings.model.pooling) == ("hard", "attention")
    assert notes == []


@pytest.mark.parametrize("text", ["ROUTING: soft\nBINARIZE: True\n", "BINARIZE: 'True'\n"])
def test_binarize_with_soft_routing_is_ignored_as_the_original_does(tmp_path: Path, text: str) -> None:
    settings, notes = resolved(tmp_path, text)
    assert not settings.model.binarize
    assert len(notes) == 1
    assert "without effect, since routing is soft" in notes[0]


def test_clipping_and_reduction(tmp_path: Path) -> None:
    assert read(tmp_path, "GRAD_NORM_CLIP: -1").train.gradient_clip is None
    assert read(tmp_path, "GRAD_NORM_CLIP: 0").train.gradient_clip is None
    assert read(tmp_path, "GRAD_NORM_CLIP: 5").train.gradient_clip == 5.0
    assert read(tmp_path, "LOSS_REDUCTION: elementwise_mean").train.loss_reduction == "mean"
    assert "train.loss_reduction must be 'sum' or 'mean'" in refusal(tmp_path, "LOSS_REDUCTION: none")[0]


def test_validation_switch_and_seed(tmp_path: Path) -> None:
    settings = read(tmp_path, "EVAL_EVERY_EPOCH: 'False'\nSEED: 7\nTRAIN_SPLIT: train+val\n")
    assert (settings.run.validate_every, settings.train.seed, settings.data.split) == (0, 7, "train+val")


def test_missing_optimizer_parameters_are_those_of_adam(tmp_path: Path) -> None:
    settings, notes = resolved(tmp_path, "OPT: Adam\n")
    assert (settings.train.adam_betas, settings.train.adam_epsilon) == ((0.9, 0.999), 1e-8)
    assert [note[:22] for note in notes] == [": no betas in OPT_PARA", ": no eps in OPT_PARAMS"]
    assert read(tmp_path, "OPT_PARAMS: {betas: [0.8, 0.9], eps: 1.0e-7}").train.adam_betas == (0.8, 0.9)
    assert read(tmp_path, "MAX_EPOCH: 4").train.adam_betas == (0.9, 0.98)


def test_keys_without_meaning_are_named(tmp_path: Path) -> None:
    settings, notes = resolved(
        tmp_path, "NUM_WORKERS: 8\nPIN_MEM: True\nVERBOSE: True\nFEAT_SIZE: {vqa: {}}\nGPU: '0, 1'\nVERSION: x\n"
    )
    assert settings == resolve("vqa", environ={}).settings
    assert [note.split()[1] for note in notes] == ["NUM_WORKERS", "PIN_MEM", "VERBOSE", "FEAT_SIZE", "GPU", "VERSION"]


def test_data_set_of_the_file_chooses_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "trar.yaml"
    file.write_text("DATASET: clevr\n")
    assert resolve(config=file, environ={}).settings.model.spans == (0, 1, 3)


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("HIDEN_SIZE: 3", "trar.yml: unknown key HIDEN_SIZE", "did you mean HIDDEN_SIZE?"),
        ("hidden_size: 3", "trar.yml: unknown key hidden_size", "did you mean HIDDEN_SIZE?"),
        (
            "model: {hidden_size: 3}\nqqq: 1",
            "trar.yml: unknown keys model, qqq",
            "did you mean MODEL?",
        ),
        (
            "MODEL_USE: mcan",
            "trar.yml (MODEL_USE: 'mcan'): must be TRAR: trarctl has no other model",
            "set MODEL_USE to TRAR",
        ),
        (
            "USE_BBOX_FEAT: True",
            "trar.yml (USE_BBOX_FEAT: True): must be False: there is no bounding-box branch",
            "set USE_BBOX_FEAT to False",
        ),
        ("OPT: SGD", "trar.yml (OPT: 'SGD'): must be Adam: trarctl has no other optimizer", "set OPT to Adam"),
        ("OPT_PARAMS: {beta: 1}", "trar.yml: unknown key OPT_PARAMS.beta", "did you mean betas?"),
        (
            "OPT_PARAMS: {weight_decay: '0.1'}",
            "trar.yml (OPT_PARAMS.weight_decay: '0.1'): trarctl's Adam has no weight_decay",
            "remove weight_decay from OPT_PARAMS",
        ),
        (
            "OPT_PARAMS: [1]",
            "trar.yml (OPT_PARAMS: [1]): must be a table of parameters",
            "OPT_PARAMS: {betas: '(0.9, 0.98)', eps: '1e-9'}",
        ),
    ],
)
def test_refusals(tmp_path: Path, text: str, what: str, hint: str) -> None:
    assert refusal(tmp_path, text) == (what, hint)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("BATCH_SIZE: 0", "trar.yml (BATCH_SIZE: 0): train.batch_size must be greater than 0"),
        ("LOSS_FUNC: mse", "trar.yml (LOSS_FUNC: 'mse'): train.loss must be 'bce', 'kld' or 'ce'"),
        ("ROUTING: attention", "trar.yml (ROUTING: 'attention'): model.routing must be 'soft' or 'hard'"),
        ("ORDERS: 3", "trar.yml (ORDERS: 3): model.spans must be a list, such as 0,1,2"),
        (
            "OPT_PARAMS: {betas: '(0.9, 1.98)'}",
            "trar.yml (OPT_PARAMS.betas: (0.9, 1.98)): train.adam_betas[1] must be less than 1",
        ),
        (
            "OPT_PARAMS: {betas: '__import__(\"os\").getcwd()'}",
            "trar.yml (OPT_PARAMS.betas: '__import__(\"os\").getcwd()'): train.adam_betas[0] must be a number",
        ),
        (
            "GRAD_ACCU_STEPS: 3",
            "trar.yml (GRAD_ACCU_STEPS: 3): accumulation 3 does not divide batch_size 64 (nearest that do: 2 and 4)",
        ),
    ],
)
def test_wrong_values_name_the_key_and_the_limit(tmp_path: Path, text: str, what: str) -> None:
    assert refusal(tmp_path, text)[0] == what


def test_all_unknown_keys_are_listed_but_not_without_end() -> None:
    with pytest.raises(SettingsError) as caught:
        translate({f"QQ{index}": 1 for index in range(12)}, "x.yml")
    assert caught.value.what.endswith("QQ8, QQ9 and 2 more")
