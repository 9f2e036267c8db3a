"""ResNet extractors: what they see of a picture, files of weights in all their forms, and features of old versions."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.data.features.made_networks import (
    GOLDEN,
    MAP_TOLERANCE,
    NETWORKS,
    made_weights,
    network_with,
    photo_extractor,
    small_input,
)
from tests.data.serving import Served, serving
from trarctl.data.download import Download
from trarctl.data.features.base import ExtractorOptions, make_extractor, read_extractor
from trarctl.data.features.reading import read_image
from trarctl.data.features.resnet import R50, ResNet101
from trarctl.data.features.sizes import Geometry
from trarctl.data.features.weights import CACHE_VARIABLE
from trarctl.errors import DataError, SettingsError
from trarctl.weights import Weights

PICTURES = json.loads((GOLDEN / "pictures.json").read_text())
STATISTICS = ("running_mean", "running_var")


@pytest.mark.parametrize("picture", PICTURES)
def test_golden_inputs_of_pictures(picture: str) -> None:
    image = read_image(GOLDEN / "pictures" / picture)
    for name in ("r50", "x101"):
        extractor = photo_extractor(name)
        shrunk = extractor.shrink(image)
        seen = hashlib.sha256(np.asarray(shrunk)[..., ::-1].tobytes()).hexdigest()
        # Pillow 13 resamples some pictures in another order than all versions before.
        assert seen in (PICTURES[picture]["resized_bgr_sha256"], PICTURES[picture]["resized_bgr_sha256_pillow12"])
        golden = np.load(GOLDEN / "maps" / NETWORKS[name] / f"{picture.partition('.')[0]}.npz")
        pixels = extractor.pixels(shrunk)
        assert pixels.dtype == np.float32
        assert pixels.shape == (3, *golden["size"])
        np.testing.assert_allclose(pixels.reshape(-1)[golden["input_index"]], golden["input_value"], atol=2e-5)
        np.testing.assert_allclose(pixels.mean(axis=(1, 2), dtype=np.float64), golden["input_mean"], atol=1e-4)
        np.testing.assert_allclose(pixels.std(axis=(1, 2), dtype=np.float64), golden["input_std"], rtol=1e-5)
        geometry = extractor.geometry(*image.size)
        assert (geometry.rows, geometry.columns) == tuple(golden["shape"][1:])
        assert geometry.is_transposed == golden["transposed"]


def _noted(tensors: dict[str, Tensor], version: int | None, prefix: str = "") -> OrderedDict[str, Tensor]:
    """Give tensors the notes that torch makes of versions; those of norms are detectron2's."""
    found = OrderedDict((prefix + name, value) for name, value in tensors.items())
    names = {name.rpartition(".")[0] for name in found}
    notes = {name: {"version": version if name.endswith("norm") else 1} for name in names}
    found._metadata = notes  # type: ignore[attr-defined]
    return found


def _save(form: str, tensors: dict[str, Tensor], path: Path) -> None:
    beside = {"proposal_generator.rpn_head.conv.weight": torch.ones(4, 4), "roi_heads.box_head.fc1.bias": torch.ones(4)}
    if form == "as published":
        around = {"model": _noted(tensors | beside, 3), "optimizer": {"state": {0: {"m": torch.ones(4)}}}}
        torch.save(around | {"scheduler": {"milestones": (60000, 80000)}, "iteration": 89999}, path)
    else:
        grown = {name: value + 1e-5 if name.endswith("var") else value for name, value in tensors.items()}
        torch.save(_noted(grown, 2, "module."), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("form", ["as published", "old, bare, of several GPUs"])
def test_a_golden_map_from_any_form_of_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = np.load(GOLDEN / "small" / "R-50.npz")
    path = tmp_path / "R-50.pth"
    _save(form, made_weights(photo_extractor("r50")), path)
    extractor = photo_extractor("r50", 32, path)
    assert extractor.identity() == {"weights": hashlib.sha256(path.read_bytes()).hexdigest()}
    monkeypatch.setattr(extractor, "shrink", lambda one: one)
    monkeypatch.setattr(extractor, "pixels", lambda _: small_input(golden)[0].numpy())
    monkeypatch.setattr(extractor, "geometry", lambda width, height: Geometry(32, 3, 4, height, width))
    extractor.fetch()
    extractor.load()
    cells = extractor.extract([Image.new("RGB", (101, 70))]).reshape(32, 32, 2048)
    made = cells[14:17, 14:18].transpose(2, 0, 1)
    assert np.abs(made - golden["map"]).max() <= MAP_TOLERANCE * golden["map"].std()


@pytest.mark.parametrize(
    ("version", "has_statistics", "mean", "variance"),
    [
        (None, True, 0.5, 2.0),
        (3, True, 0.5, 2.0),
        (2, True, 0.5, 2.0 - 1e-5),
        (1, True, 0.5, 2.0 - 1e-5),
        (None, False, 0.0, 1.0),
        (1, False, 0.0, 1.0 - 1e-5),
        (2, False, None, None),  # from this version on, they have to be there
        (3, False, None, None),
    ],
)
def test_versions_of_the_frozen_norm(
    version: int | None, has_statistics: bool, mean: float | None, variance: float | None
) -> None:
    norm = "backbone.res2.0.conv1.norm"
    tensors = {f"{norm}.weight": torch.ones(64), f"{norm}.bias": torch.zeros(64)}
    if has_statistics:
        tensors |= {f"{norm}.running_mean": torch.full((64,), 0.5), f"{norm}.running_var": torch.full((64,), 2.0)}
    found = photo_extractor("r50").renamed(Weights(tensors, {} if version is None else {norm: version}))
    for statistic, expected in zip(STATISTICS, (mean, variance), strict=True):
        name = f"res2.0.conv1.norm.{statistic}"
        assert (name in found) == (expected is not None)
        if expected is not None:
            np.testing.assert_array_equal(found[name], np.float32(expected))


@pytest.mark.parametrize(
    ("own", "other", "first"), [("x101", "x152", "res3.4.conv1"), ("x152", "x152pp", "res4.0.conv2_offset")]
)
def test_weights_of_a_network_that_has_more_are_refused(own: str, other: str, first: str) -> None:
    with torch.device("meta"):
        tensors = {f"backbone.{name}": value for name, value in photo_extractor(other).build().state_dict().items()}
    with pytest.raises(DataError, match=f"holds the weights of another network than {own}: {first}"):
        photo_extractor(own).renamed(Weights(tensors, {}))


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("text")
    for name in ("r50", "resnet101"):
        for file, message in (
            ("other.pth", f"other.pth does not hold the weights of {name}: without stem.conv1.weight"),
            ("text.pth", "text.pth is a text file, no weights file"),
        ):
            with pytest.raises(DataError, match=message):
                make_extractor(name, ExtractorOptions(8, tmp_path / file)).load()
        with pytest.raises(DataError, match=r"no weights file at .*none\.pth"):
            make_extractor(name, ExtractorOptions(8, tmp_path / "none.pth"))


def test_what_the_photo_rule_cannot_do() -> None:
    with pytest.raises(SettingsError, match="x152 gives no grid of 14 x 14 cells"):
        photo_extractor("x152", 14)
    with pytest.raises(DataError, match="its 3 x 9,000 pixels are too narrow"):
        photo_extractor("r50").shrink(Image.new("RGB", (3, 9000)))


def test_features_of_pictures_of_several_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with one block a stage, on two devices, against the same steps one by one."""
    monkeypatch.setattr(R50, "network", {"blocks": (1, 1, 1, 1)})
    weights = made_weights(photo_extractor("r50"))
    save_file(weights, tmp_path / "a.safetensors")
    extractor = R50(ExtractorOptions(8, tmp_path / "a.safetensors", ("cpu", "cpu")))
    extractor.load()
    images = [read_image(GOLDEN / "pictures" / name) for name in ("exif6.jpg", "panorama.jpg")]
    features = extractor.extract(images)
    assert features.shape == (2, 64, 2048)
    network = network_with(extractor, weights)
    for image, cells in zip(images, features, strict=True):
        maps = network(torch.from_numpy(extractor.pixels(extractor.shrink(image)))[None])[0].numpy()
        expected = maps if maps.shape[1] <= maps.shape[2] else maps.swapaxes(1, 2)
        padded = np.zeros((2048, 32, 32))
        top, left = (32 - expected.shape[1]) // 2, (32 - expected.shape[2]) // 2
        padded[:, top : top + expected.shape[1], left : left + expected.shape[2]] = expected
        pooled = padded.reshape(2048, 8, 4, 8, 4).max(axis=(2, 4)).reshape(2048, 64).T
        np.testing.assert_allclose(cells, pooled, atol=MAP_TOLERANCE * maps.std())
    np.testing.assert_array_equal(extractor.extract([extractor.shrink(images[1])])[0], features[1])


# CLEVR's ResNet-101, here with fewer blocks: all else is the same.
BLOCKS = (1, 2, 1)
DEVIATION, OLD_DEVIATION = (0.229, 0.224, 0.224), (0.229, 0.224, 0.225)


def _named_as_in_torchvision() -> dict[str, Tensor]:
    """Random weights of a ResNet with these blocks, and of what follows its third stage."""
    torch.manual_seed(0)
    found: dict[str, Tensor] = {}

    def add(conv: str, norm: str, outputs: int, inputs: int, size: int) -> None:
        found[f"{conv}.weight"] = torch.randn(outputs, inputs, size, size) / (inputs * size**2) ** 0.5
        found[f"{norm}.weight"], found[f"{norm}.bias"] = torch.rand(outputs) + 0.5, torch.randn(outputs) / 9
        found[f"{norm}.running_mean"], found[f"{norm}.running_var"] = (
            torch.randn(outputs) / 9,
            torch.rand(outputs) + 0.5,
        )
        found[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, num_blocks in enumerate(BLOCKS, start=1):
        inner = 32 << stage
        for number in range(num_blocks):
            block = f"layer{stage}.{number}"
            for place, (outputs, size) in enumerate(((inner, 1), (inner, 3), (4 * inner, 1)), start=1):
                add(f"{block}.conv{place}", f"{block}.bn{place}", outputs, inputs if place == 1 else inner, size)
            if number == 0:
                add(f"{block}.downsample.0", f"{block}.downsample.1", 4 * inner, inputs, 1)
            inputs = 4 * inner
    return found | {"layer4.0.conv1.weight": torch.ones(512, 1024, 1, 1), "fc.bias": torch.ones(1000)}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of them, which is also published, on this machine."""
    monkeypatch.setattr(ResNet101, "network", {"blocks": BLOCKS})
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "named.pth"
    torch.save(_named_as_in_torchvision(), path)
    served = Served(path.read_bytes())
    with serving({"/resnet101.pth": served}) as address:
        monkeypatch.setattr(ResNet101, "published", Download(f"{address}/resnet101.pth", sha256=served.sha256))
        yield path


def _pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(0, 256, (320, 480, 3), dtype=np.uint8))
    return [color, color.convert("L"), color.resize((50, 70))]


def _standardized(picture: Image.Image, side: int, deviation: tuple[float, float, float]) -> NDArray[np.float64]:
    resized = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    channels = zip((0.485, 0.456, 0.406), deviation, strict=True)
    return np.stack([(resized[..., one] / 255 - mean) / by for one, (mean, by) in enumerate(channels)])


@pytest.mark.parametrize("grid", [14, 8, 16])
def test_inputs_of_resnet101(grid: int) -> None:
    extractor = ResNet101(ExtractorOptions(grid))
    for picture in _pictures():
        expected = _standardized(picture, 16 * grid, DEVIATION)
        np.testing.assert_allclose(extractor.pixels(extractor.shrink(picture)), expected, atol=2e-6)
    assert extractor.geometry(480, 320) == Geometry.whole(grid)


def _conv(maps: Tensor, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> Tensor:
    weight = state[f"{conv}.weight"]
    maps = torch.nn.functional.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)
    own = [state[f"{norm}.{name}"] for name in (*STATISTICS, "weight", "bias")]
    return torch.nn.functional.batch_norm(maps, own[0], own[1], own[2], own[3])


def _third_stage(pixels: NDArray[np.float64]) -> NDArray[np.float32]:
    """The network step by step, with torchvision's names: [3, side, side] -> cells [N, 1024]."""
    state = _named_as_in_torchvision()
    maps = _conv(torch.from_numpy(pixels).float()[None], state, "conv1", "bn1", 2).relu()
    maps = torch.nn.functional.max_pool2d(maps, 3, 2, 1)
    for stage, num_blocks in enumerate(BLOCKS, start=1):
        for number in range(num_blocks):
            block, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            inner = _conv(maps, state, f"{block}.conv1", f"{block}.bn1").relu()
            inner = _conv(inner, state, f"{block}.conv2", f"{block}.bn2", stride).relu()
            inner = _conv(inner, state, f"{block}.conv3", f"{block}.bn3")
            if number == 0:
                maps = _conv(maps, state, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            maps = (maps + inner).relu()
    return maps[0].flatten(1).T.numpy()


def test_resnet101_downloads_its_weights_and_describes_itself(weights: Path, tmp_path: Path) -> None:
    extractor = ResNet101(ExtractorOptions(3, devices=("cpu", "cpu")))
    extractor.fetch()
    assert (tmp_path / "cache" / "resnet101.pth").read_bytes() == weights.read_bytes()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    described = {"name": "resnet101", "grid_size": 3, "weights": digest, "deviation": [0.229, 0.224, 0.224]}
    assert extractor.describe() == described
    extractor.load()
    features = extractor.extract(_pictures())
    assert features.shape == (3, 9, 1024)
    for picture, cells in zip(_pictures(), features, strict=True):
        np.testing.assert_allclose(cells, _third_stage(_standardized(picture, 48, DEVIATION)), atol=1e-4)
    (tmp_path / "backbone.json").write_text(json.dumps(described))
    again = read_extractor(tmp_path / "backbone.json", ExtractorOptions(3, weights))
    again.load()
    np.testing.assert_array_equal(again.extract(_pictures()), features)


def test_weights_that_cannot_be_had_may_be_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ResNet101.published.url.replace("resnet101", "moved")
    monkeypatch.setattr(ResNet101, "published", Download(address))
    with pytest.raises(DataError, match=r"moved\.pth answers 404") as error:
        ResNet101(ExtractorOptions(3)).fetch()
    assert str(error.value.hint).startswith("--weights FILE, as it is published, needs no network")


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("says_hash", [False, True])
def test_features_of_earlier_versions_are_made_as_they_were(
    is_named: bool, says_hash: bool, weights: Path, tmp_path: Path
) -> None:
    said = hashlib.sha256(weights.read_bytes()).hexdigest() if says_hash else "IMAGENET1K_V1"
    described = {"name": "resnet101", "grid_size": 2, "weights": said}
    (tmp_path / "backbone.json").write_text(json.dumps(described))
    extractor = read_extractor(tmp_path / "backbone.json", ExtractorOptions(2, weights if is_named else None))
    assert extractor.describe() == described
    extractor.load()
    (cells,) = extractor.extract(_pictures()[:1])
    expected = {one: _third_stage(_standardized(_pictures()[0], 32, one)) for one in (DEVIATION, OLD_DEVIATION)}
    np.testing.assert_allclose(cells, expected[OLD_DEVIATION], atol=1e-4)
    assert np.abs(expected[DEVIATION] - expected[OLD_DEVIATION]).max() > 1e-3


def test_other_weights_than_those_of_a_description_are_named(weights: Path, tmp_path: Path) -> None:
    torch.save({name: value + 1 for name, value in _named_as_in_torchvision().items()}, tmp_path / "other.pth")
    for described in (
        {"weights": "IMAGENET1K_V1"},
        {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "deviation": list(DEVIATION)},
    ):
        (tmp_path / "backbone.json").write_text(json.dumps({"name": "resnet101", "grid_size": 2, **described}))
        with pytest.raises(DataError, match=r"were made by resnet101 with weights other than .*other\.pth"):
            read_extractor(tmp_path / "backbone.json", ExtractorOptions(2, tmp_path / "other.pth"))


def test_weights_of_a_larger_resnet_are_refused() -> None:
    tensors = {f"layer2.{block}.conv1.weight": torch.ones(1) for block in range(8)}
    with pytest.raises(DataError, match="holds the weights of another network than resnet101: res3.4.conv1.weight"):
        ResNet101(ExtractorOptions(14)).renamed(Weights(tensors, {}))


@pytest.fixture
def torchvision() -> Any:
    """The package, where it is installed and fits torch."""
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")


def test_the_third_stage_of_torchvision(torchvision: Any, tmp_path: Path) -> None:
    network = torchvision.models.resnet101(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    pictures = _pictures()
    extractor = ResNet101(ExtractorOptions(14, tmp_path / "weights.pth"))
    extractor.load()
    maps: list[Tensor] = []
    network.layer3.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.inference_mode():
        network(torch.from_numpy(np.stack([_standardized(one, 224, DEVIATION) for one in pictures])).float())
    expected = maps[0].flatten(2).transpose(1, 2).numpy()
    np.testing.assert_allclose(extractor.extract(pictures), expected, atol=1e-4 * expected.std())


def test_the_weights_that_torchvision_publishes(torchvision: Any) -> None:
    assert torchvision.models.ResNet101_Weights.IMAGENET1K_V1.url == ResNet101.published.url
