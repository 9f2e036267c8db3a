from __future__ import annotations

import pytest

from trarctl.config.settings import FIELDS, Settings, dataset_names, nested, recipe_of


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
