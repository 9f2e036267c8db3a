"""The recipe of each data set: the published figures, and recipes that a plugin brings."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trarctl.config import settings as config
from trarctl.config.resolve import Origin, Source, resolve
from trarctl.config.settings import FIELDS, Settings, dataset_names, nested, recipe_of
from trarctl.errors import SettingsError
from trarctl.registry import DATASETS, load_plugins


@pytest.mark.parametrize("dataset", dataset_names())
def test_every_data_set_has_a_valid_recipe_of_known_keys(dataset: str) -> None:
    recipe = recipe_of(dataset).values
    assert set(recipe) <= set(FIELDS)
    settings = Settings.model_validate(nested({"data.dataset": dataset, **recipe}))
    assert settings.data.dataset == dataset


def test_published_figures_of_vqa() -> None:
    settings = Settings.model_validate(nested({"data.dataset": "vqa", **recipe_of("vqa").values}))
    model, train = settings.model, settings.train
    assert (model.spans, model.grid_size, model.routing, model.pooling) == ((0, 1, 2, 3), 8, "soft", "avg")
    assert (train.batch_size, train.accumulation, train.learning_rate) == (64, 1, 1e-4)
    assert (train.epochs, train.warmup_epochs, train.decay_epochs, train.decay_factor) == (13, 3, (10, 12), 0.2)
    assert (train.loss, train.loss_reduction, train.temperature_policy) == ("bce", "sum", 1)
    assert (train.adam_betas, train.adam_epsilon) == ((0.9, 0.98), 1e-9)
    assert (model.hidden_size, model.num_heads, model.feed_forward_size, model.num_layers) == (512, 8, 2048, 6)


def test_published_figures_of_clevr() -> None:
    settings = Settings.model_validate(nested({"data.dataset": "clevr", **recipe_of("clevr").values}))
    model, train = settings.model, settings.train
    assert (model.spans, model.grid_size, model.routing, model.pooling) == ((0, 1, 3), 14, "hard", "fc")
    assert model.binarize
    assert (train.batch_size, train.accumulation, train.learning_rate) == (64, 2, 4e-5)
    assert (train.epochs, train.warmup_epochs, train.decay_epochs) == (16, 3, (13, 15))
    assert (train.loss, train.loss_reduction, train.temperature_policy) == ("ce", "sum", 0)


# Data sets of plugins


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Write the recipe of a data set that a plugin adds, and the plugin."""
    recipe = tmp_path / "birds.toml"
    (tmp_path / "my_birds.py").write_text(
        f"from trarctl.config.settings import register_recipe\nregister_recipe('birds', {str(recipe)!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRARCTL_PLUGINS", "my_birds")
    monkeypatch.setattr(config, "_RECIPES", dict(config._RECIPES))
    load_plugins.cache_clear()
    config._read_recipe.cache_clear()

    def write(text: str) -> Path:
        recipe.write_text(text)
        return recipe

    yield write
    load_plugins.cache_clear()
    sys.modules.pop("my_birds", None)


def test_a_plugin_adds_a_data_set(birds: Callable[[str], Path]) -> None:
    path = birds('losses = ["ce", "bce"]\nsplits = ["all"]\n[data]\nsplit = "all"\n[train]\nepochs = 3\nloss = "ce"\n')
    assert dataset_names() == (*DATASETS.built_in, "birds")
    recipe = recipe_of("birds")
    assert (recipe.path, recipe.losses, recipe.splits) == (path, ("ce", "bce"), ("all",))
    result = resolve("birds")
    assert (result.settings.data.dataset, result.settings.train.epochs) == ("birds", 3)
    assert result.origins["train.epochs"] == Origin(Source.RECIPE, "recipe birds")
    with pytest.raises(SettingsError, match="split 'train' is none that birds trains on: use all"):
        resolve("birds", sets=["data.split=train"])
    with pytest.raises(SettingsError, match="loss 'kld' does not fit birds: use ce or bce"):
        resolve("birds", sets=["train.loss=kld"])


def test_a_recipe_like_none(birds: Callable[[str], Path]) -> None:
    path = birds('like = "crows"\nlosses = ["ce"]\nsplits = ["train"]\n')
    assert "birds" in dataset_names()  # loads the plugin
    with pytest.raises(SettingsError, match=f"{path}: like = 'crows' is no built-in recipe"):
        recipe_of("birds")


def test_a_recipe_like_anothers(birds: Callable[[str], Path]) -> None:
    birds('like = "clevr"\nlosses = ["ce"]\nsplits = ["train"]\n[train]\nepochs = 3\n')
    assert "birds" in dataset_names()
    assert dict(recipe_of("birds").values) == {**recipe_of("clevr").values, "train.epochs": 3}


def test_a_data_set_brings_its_recipe(birds: Callable[[str], Path]) -> None:
    path = birds('losses = ["bce"]\nsplits = ["train"]\n')
    (path.parent / "my_birds.py").write_text(
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "from trarctl.data.datasets.base import register_dataset\nfrom trarctl.registry import DATASETS\n"
        f"register_dataset(replace(DATASETS['vqa'], name='birds', recipe=Path({str(path)!r})))\n"
    )
    assert recipe_of(dataset_names()[-1]).path == path
    assert resolve("birds").settings.data.dataset == "birds"
    DATASETS._items.pop("birds")


def test_a_plugin_may_be_what_imports_the_settings(birds: Callable[[str], Path]) -> None:
    path = birds('losses = ["bce"]\nsplits = ["train"]\n')
    code = "from trarctl.registry import load_plugins; load_plugins(); from trarctl.config.resolve import resolve; "
    for start in (code, "from trarctl.config.resolve import resolve; "):
        done = subprocess.run(
            [sys.executable, "-c", start + "print(resolve('birds').settings.data.dataset)"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(path.parent), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("birds\n", "")


def test_an_unknown_data_set_lists_the_known_ones(birds: Callable[[str], Path]) -> None:
    with pytest.raises(SettingsError, match="data.dataset must be 'vqa', 'clevr', 'easy-vqa'.* or 'birds'"):
        resolve(sets=["data.dataset=bird"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses = [", "cannot read the recipe PATH: "),
        ("[train]\nepochs = 3\n", "PATH: must begin with the lists losses and splits"),
        ('losses = "ce"\nsplits = ["train"]\n', "PATH: must begin with the lists losses and splits"),
        ('losses = ["bce"]\nsplits = ["train"]\n[trian]\nepochs = 3\n', "PATH: unknown table trian"),
        ('losses = ["bce"]\nsplits = ["train"]\n[train]\nepoch = 3\n', "PATH: unknown setting train.epoch"),
        (
            'losses = ["bce"]\nsplits = ["train"]\n[train]\nepochs = 0\n',
            "PATH: train.epochs must be greater than 0, got 0",
        ),
        ('losses = ["ce"]\nsplits = ["train"]\n', "PATH: loss 'bce' does not fit birds: use ce"),
    ],
)
def test_a_bad_recipe_is_named_when_it_is_used(birds: Callable[[str], Path], text: str, message: str) -> None:
    path = birds(text)
    assert resolve("vqa").settings.data.dataset == "vqa"
    with pytest.raises(SettingsError) as caught:
        resolve("birds")
    assert caught.value.what.startswith(message.replace("PATH", str(path)))


def test_a_recipe_that_is_not_there(birds: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"cannot read the recipe {tmp_path}/birds.toml: No such file"):
        resolve("birds")


def test_recipes_are_part_of_the_package() -> None:
    patterns = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    folder = Path(config.__file__).parent
    packed = {file for pattern in patterns["package-data"]["trarctl.config"] for file in folder.glob(pattern)}
    assert packed == set((folder / "recipes").iterdir())
