"""What CONTRIBUTING shows under "To add" works as it stands there, and is at most five lines each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from trarctl import registry
from trarctl.config import settings
from trarctl.data.datasets import base as datasets
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.model.attention import blended_map
from trarctl.model.routing import AveragePool
from trarctl.model.trar import TRAR, ModelSizes

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"
REGISTRIES = ("DATASETS", "EXTRACTORS", "POOLINGS", "SPAN_SHAPES", "KERNELS")


def snippets() -> list[str]:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [part.strip() for part in block.split("\n\n\n")]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run them, as a plugin in a folder with a recipe would."""
    for name in REGISTRIES:
        one = getattr(registry, name)
        for built_in in one.built_in:
            one[built_in]  # imported now: what is imported later would be forgotten with the snippets
        monkeypatch.setattr(one, "_items", dict(one._items))
    monkeypatch.setattr(settings, "_RECIPES", dict(settings._RECIPES))
    from tests.extending.toy_signs import read_signs  # here, since the module registers its data set

    (tmp_path / "birds.toml").write_text('losses = ["ce"]\nsplits = ["train"]\n[train]\nloss = "ce"\n')
    names = vars(datasets) | vars(registry) | {"np": np, "nn": nn, "functional": functional, "blended_map": blended_map}
    names |= {"Extractor": Extractor, "AveragePool": AveragePool, "read_split": read_signs}
    names["__file__"] = str(tmp_path / "birds.py")
    for snippet in snippets():
        exec(snippet, names)  # noqa: S102


def test_each_is_at_most_five_lines() -> None:
    assert len(snippets()) == len(REGISTRIES)
    assert [one for one in snippets() if sum(bool(line.strip()) for line in one.splitlines()) > 5] == []


def test_the_data_set_is_known(added: None, trarctl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = trarctl("train", "birds", "--dry-run")
    assert (code, 'dataset = "birds"' in out, 'loss = "ce"' in out) == (0, True, True), err
    code, out, err = trarctl("prepare", "birds", "--raw", tmp_path, "--check")
    assert (code, "see birds.org" in out + err) == (4, True)


def test_the_extractor_gives_each_cell_its_color(added: None) -> None:
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    image.putpixel((1, 0), (40, 50, 60))
    features = registry.EXTRACTORS["color"](ExtractorOptions(grid_size=2)).extract([image, image])
    expected = [[10, 20, 30], [40, 50, 60], [10, 20, 30], [10, 20, 30]]
    np.testing.assert_array_equal(features, np.array([expected, expected], dtype=np.float32))
    assert features.dtype == np.float32


def test_pooling_span_and_kernel_make_a_model(added: None) -> None:
    tokens, features = torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.randn(2, 9, 7)
    features[0, 6:] = 0.0  # padding
    scores = []
    for attention in ("mine", "reference"):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_heads": 2, "feed_forward_size": 24, "word_embedding_size": 6}
        chosen = settings.ModelSettings(num_layers=2, grid_size=3, spans=(0, "cross:2"), pooling="max", **sizes)
        model = TRAR(chosen, ModelSizes(vocabulary=11, answers=5, feature_width=7), attention=attention)
        assert not isinstance(model.visual_layers[0].route.router.pool, nn.Linear)
        scores.append(model.eval()(tokens, features)[0])
    torch.testing.assert_close(*scores)
