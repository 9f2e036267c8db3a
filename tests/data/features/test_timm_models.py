"""Models of timm as extractors, against timm's own forward, with random weights; by ``make test-features``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from tests.data.features.tours import from_pictures_to_a_report
from trarctl.data.features.base import Extractor, ExtractorOptions, make_extractor, read_extractor
from trarctl.data.features.timm_models import TimmExtractor
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError
from trarctl.files import write_json

Run = Callable[..., tuple[int, str, str]]


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DataError, match="timm cannot be loaded: .*timm") as error:
        make_extractor("timm:resnet18", ExtractorOptions(8))
    assert error.value.hint is not None
    assert error.value.hint.startswith('pip install "trarctl[timm]"; torchvision')


def test_a_model_belongs_to_the_name() -> None:
    with pytest.raises(SettingsError, match="no extractor is called timm") as error:
        make_extractor("timm", ExtractorOptions(8))
    assert error.value.hint == "--extractor timm:MODEL"


@pytest.fixture
def timm() -> Any:
    """The package, where it is installed and its torchvision fits torch."""
    try:
        return pytest.importorskip("timm", exc_type=ImportError)
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")


Make = Callable[..., tuple[TimmExtractor, dict[str, torch.Tensor]]]


@pytest.fixture
def make(timm: Any, tmp_path: Path) -> Make:
    """Make an extractor with random weights out of a file, ready to extract; also give the weights."""

    def made(model: str, grid_size: int, **options: Any) -> tuple[TimmExtractor, dict[str, torch.Tensor]]:
        torch.manual_seed(5)
        network = timm.create_model(model, **options)
        for name, value in network.named_parameters():
            if value.ndim == 1 or "token" in name or "pos_embed" in name:  # many begin as 0 or 1, and would say little
                torch.nn.init.normal_(value, std=0.3, mean=float("norm" in name and "weight" in name))
        state = network.state_dict()
        save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
        extractor = make_extractor(f"timm:{model}", ExtractorOptions(grid_size, tmp_path / "model.safetensors"))
        assert isinstance(extractor, TimmExtractor)
        extractor.fetch()
        extractor.load()
        return extractor, state

    return made


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)) for size in sizes]


def inputs(images: list[Image.Image], side: int, mean: float, deviation: float) -> torch.Tensor:
    """Resize (bicubic) and standardize with one mean and deviation for all colors."""
    pixels = [np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in images]
    return torch.from_numpy((np.stack(pixels).transpose(0, 3, 1, 2) / 255 - mean) / deviation).float()


def forward_features(timm: Any, model: str, state: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """What timm's own forward gives before the head."""
    network = timm.create_model(model)
    network.load_state_dict(state)
    with torch.inference_mode():
        features: torch.Tensor = network.eval().forward_features(pixels)
    return features


@pytest.mark.parametrize(("model", "num_others"), [("test_vit", 1), ("test_vit3", 1), ("test_vit_relpos", 0)])
def test_patch_tokens_in_their_order(timm: Any, make: Make, model: str, num_others: int) -> None:
    """A class token, a register alone, and none; at the size of the weights."""
    extractor, state = make(model, 10)
    images = pictures((200, 100), (50, 60))
    tokens = forward_features(timm, model, state, inputs(images, 160, 0.5, 0.5))
    assert tokens.shape[1] == 100 + num_others
    expected = tokens[:, num_others:].numpy()
    np.testing.assert_allclose(extractor.extract(images), expected, atol=1e-4)


DINO = ("vit_small_patch14_reg4_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2})  # a class token, 4 registers


@pytest.mark.parametrize(
    ("model", "options", "patch", "native", "num_others"),
    [("test_vit", {}, 16, 10, 1), ("test_vit3", {}, 16, 10, 1), (*DINO, 14, 37, 5)],
)
def test_positions_are_resized(
    timm: Any,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    options: dict[str, Any],
    patch: int,
    native: int,
    num_others: int,
) -> None:
    reshape(monkeypatch, timm, options)
    extractor, state = make(model, 8)
    positions = state["pos_embed"]
    others = positions.shape[1] - native**2
    grid = positions[:, others:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True, align_corners=False)
    own = torch.cat([positions[:, :others], resized.permute(0, 2, 3, 1).reshape(1, 64, -1)], dim=1)
    network = timm.create_model(model, img_size=8 * patch).eval()
    network.load_state_dict(state | {"pos_embed": own})
    (image,) = pictures((64, 64))
    pixels = extractor.pixels(image.resize((8 * patch, 8 * patch), Image.Resampling.BICUBIC))
    with torch.inference_mode():
        expected = network.forward_features(torch.from_numpy(pixels[None]))[0, num_others:]
    np.testing.assert_allclose(extractor.extract([image])[0], expected.numpy(), atol=1e-4)


def test_maps_of_a_convolutional_network(timm: Any, make: Make) -> None:
    extractor, state = make("resnet10t", 4)
    assert (extractor.width, extractor.identity()["interpolation"]) == (512, "bicubic")
    images = [one.resize((128, 128), Image.Resampling.BICUBIC) for one in pictures((40, 30), (99, 200))]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in images]).transpose(0, 3, 1, 2) / 255)
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = forward_features(timm, "resnet10t", state, ((pixels - mean) / deviation).float())
    assert maps.shape == (2, 512, 4, 4)
    expected = np.stack([[maps[image, :, cell // 4, cell % 4].numpy() for cell in range(16)] for image in range(2)])
    np.testing.assert_allclose(extractor.extract(images), expected, atol=1e-4 * float(maps.std()))


def test_maps_whose_channels_come_last(timm: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reshape(monkeypatch, timm, {"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 6)})
    extractor, state = make("swin_tiny_patch4_window7_224", 7)
    images = pictures((80, 70))
    pixels = torch.from_numpy(extractor.pixels(images[0].resize((224, 224), Image.Resampling.BICUBIC))[None])
    maps = forward_features(timm, "swin_tiny_patch4_window7_224", state, pixels)
    assert maps.shape == (1, 7, 7, 192)
    np.testing.assert_allclose(extractor.extract(images)[0], maps[0].reshape(49, 192), atol=1e-4)
    assert_bright_cells(extractor)
    assert_bright_cells(make("swin_tiny_patch4_window7_224", 8)[0])


def reshape(monkeypatch: pytest.MonkeyPatch, timm: Any, options: dict[str, Any]) -> None:
    """Have timm make models of another shape, so that they are small."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **(options | more)))


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_vit", "test_vit3"])
@pytest.mark.parametrize("grid_size", [4, 7])
def test_a_bright_cell_is_found_where_it_is(make: Make, model: str, grid_size: int) -> None:
    assert_bright_cells(make(model, grid_size)[0])


def assert_bright_cells(extractor: Extractor) -> None:
    """See that of a dark picture with one bright cell the features of that cell differ most from a dark picture's."""
    size = extractor.grid_size
    side = 40 * size
    dark = Image.new("RGB", (side, side))
    without = extractor.extract([dark])[0]
    for row, column in ((0, size - 1), (size - 1, 1), (1, 2), (size // 2, 0)):
        bright = dark.copy()
        bright.paste("white", (40 * column, 40 * row, 40 * column + 40, 40 * row + 40))
        change = np.square(extractor.extract([bright])[0] - without).sum(axis=1)
        assert divmod(int(change.argmax()), size) == (row, column)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit3"])
def test_neighbors_in_a_batch_do_not_matter(make: Make, model: str) -> None:
    extractor, _ = make(model, 4)
    images = pictures((30, 40), (128, 128), (64, 9))
    together = extractor.extract(images)
    for image, cells in zip(images, together, strict=True):
        np.testing.assert_allclose(extractor.extract([extractor.shrink(image)])[0], cells, atol=1e-5)


def test_a_file_and_the_hub_are_the_same_weights(
    timm: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, state = make("test_resnet", 4)
    identity = extractor.identity()
    assert (identity["model"], identity["mean"]) == ("test_resnet.r160_in1k", [0.5, 0.5, 0.5])
    assert extractor.about() == ("timm:test_resnet is test_resnet.r160_in1k; license of its weights: apache-2.0",)
    create = timm.create_model

    def downloaded(model: str, **options: Any) -> torch.nn.Module:
        if "pretrained_cfg_overlay" in options:
            return create(model, **options)
        network = create(model)
        network.load_state_dict(state)
        return network

    monkeypatch.setattr(timm, "create_model", downloaded)
    hub = make_extractor("timm:test_resnet.r160_in1k", ExtractorOptions(4))
    hub.fetch()
    assert hub.identity() == extractor.identity()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "other.pth")
    other = make_extractor("timm:test_resnet", ExtractorOptions(4, tmp_path / "other.pth"))
    other.fetch()
    assert other.identity() == extractor.identity()

    write_json(tmp_path / "backbone.json", extractor.describe())
    read_extractor(tmp_path / "backbone.json", ExtractorOptions(4, tmp_path / "other.pth")).load()
    next(iter(state.values())).add_(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DataError, match="made by timm:test_resnet with weights other than"):
        read_extractor(tmp_path / "backbone.json", ExtractorOptions(4, tmp_path / "other.pth"))


def test_what_was_written_down_counts_more_than_what_timm_says_now(make: Make, tmp_path: Path) -> None:
    extractor, _ = make("test_vit", 4)
    write_json(
        tmp_path / "backbone.json", extractor.describe() | {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    )
    again = read_extractor(tmp_path / "backbone.json", ExtractorOptions(4, tmp_path / "model.safetensors"))
    assert isinstance(again, TimmExtractor)
    (image,) = pictures((90, 90))
    small = again.shrink(image)
    assert small.tobytes() == image.resize((64, 64), Image.Resampling.BILINEAR).tobytes()
    expected = (np.asarray(small)[..., 1] / 255 - 0.2) / 0.5
    np.testing.assert_allclose(again.pixels(small)[1], expected, atol=1e-5)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_heads_of_other_classes_or_none(make: Make, num_classes: int) -> None:
    extractor, _ = make("test_vit", 4, num_classes=num_classes)
    assert extractor.extract(pictures((30, 30))).shape == (1, 16, 64)


def test_names_that_do_not_exist(timm: Any) -> None:
    for model, alike in (("resnet81", "timm:resnet18"), ("test_vit.nope", "timm:test_vit.r160_in1k")):
        with pytest.raises(SettingsError, match=f"timm has no model called '{model}'") as error:
            make_extractor(f"timm:{model}", ExtractorOptions(8))
        assert error.value.hint is not None
        assert alike in error.value.hint


def test_a_grid_that_does_not_fit(make: Make) -> None:
    with pytest.raises(
        DataError, match=r"timm:mixer_s32_224 gives no grid of 4 x 4 cells: at 128 x 128 pixels, 32"
    ) as e:
        make("mixer_s32_224", 4)
    assert e.value.hint == "--grid 7: it was trained at 224 x 224 pixels"


def test_a_model_without_a_map(timm: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.ByobNet, "forward_intermediates")
    with pytest.raises(
        DataError, match="timm:test_byobnet gives no map of features: timm offers the output of its last"
    ):
        make("test_byobnet", 4)


def test_unfit_weights(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(path: Path | None) -> None:
        make_extractor("timm:test_vit", ExtractorOptions(4, path)).fetch()

    state = timm.create_model("test_vit").state_dict()
    torch.save({name: value for name, value in state.items() if name != "blocks.3.mlp.fc1.bias"}, tmp_path / "a.pth")
    with pytest.raises(
        DataError, match=r'a.pth does not hold the weights of test_vit.r160_in1k: .*"blocks.3.mlp.fc1.bias"'
    ):
        fetched(tmp_path / "a.pth")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "b.pth")
    with pytest.raises(DataError, match="b.pth does not hold the weights of test_vit"):
        fetched(tmp_path / "b.pth")
    torch.save(state | {"norm.weight": torch.full([64], torch.nan)}, tmp_path / "c.pth")
    with pytest.raises(DataError, match=r"c\.pth holds values that are not finite in 1 of \d+ tensors: norm\.weight"):
        fetched(tmp_path / "c.pth")

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(timm, "create_model", refused)
    with pytest.raises(DataError, match="timm cannot download the weights of test_vit.r160_in1k: no network") as error:
        fetched(None)
    assert (
        error.value.hint
        == "--weights FILE, as timm publishes it for this model, such as model.safetensors, needs no network"
    )


@pytest.mark.parametrize(
    ("model", "grid", "num_built"),
    [("test_resnet", 4, 1), ("test_vit", 4, 1), ("test_vit", 10, 1), ("test_vit_relpos", 4, 2)],
)
def test_a_model_is_built_once_where_it_takes_any_size(
    timm: Any, make: Make, model: str, grid: int, num_built: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative positions are interpolated in a second one, since the digest is that of the weights as they are."""
    create, built = timm.create_model, list[object]()

    def counting(*given: Any, **options: Any) -> torch.nn.Module:
        network = create(*given, **options)
        built.append(network)
        return network

    monkeypatch.setattr(timm, "create_model", counting)
    extractor, _ = make(model, grid)
    extractor.load()
    assert len(built) == 1 + num_built  # one by the test itself
    assert extractor.extract(pictures((30, 40))).shape == (1, grid**2, extractor.width)


def test_from_a_table_to_a_report(make: Make, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make("test_vit", 4)
    monkeypatch.chdir(tmp_path)
    said = from_pictures_to_a_report(tmp_path, trarctl, "timm:test_vit", ("--weights", "model.safetensors"))
    assert said.count("timm:test_vit is test_vit.r160_in1k; license of its weights: apache-2.0") == 1
    assert open_prepared(tmp_path / "prepared").features.width == 64
