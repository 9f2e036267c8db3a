"""CLIP's ResNets against numbers of the original programs, whose weights were made up by a rule."""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.data.features import plain_networks
from tests.data.features.made_networks import GOLDEN, MAP_TOLERANCE, fingerprint, normal, small_input
from trarctl.data.features.base import ExtractorOptions, make_extractor
from trarctl.data.features.bottlenecks import ClipResNet
from trarctl.data.features.clip import ClipExtractor, ClipRN50, openai_name
from trarctl.data.features.reading import read_image
from trarctl.errors import DataError, SettingsError

NETWORKS = {  # original name: ours, blocks, width of the stem
    "RN50": ("clip-rn50", (3, 4, 6, 3), 64),
    "RN101": ("clip-rn101", (3, 4, 23, 3), 64),
    "RN50x4": ("clip-rn50x4", (4, 6, 10, 6), 80),
}


@functools.lru_cache(maxsize=1)  # the largest has 348 MB
def made_up(original: str) -> dict[str, np.ndarray[Any, Any]]:
    """Make up the weights of a network under OpenAI's names, by the rule that the golden numbers were made by."""
    made: dict[str, np.ndarray[Any, Any]] = {}

    def block(convolution: str, norm: str, shape: tuple[int, ...], scale: float = 1.0) -> None:
        name, norm = f"visual.{convolution}.weight", f"visual.{norm}"
        made[name] = normal(name, shape) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        variance = np.float32(0.5) + np.abs(normal(f"{norm}.running_var", shape[:1]))
        variance[::8] *= np.float32(1e-4)
        weight = np.float32(scale) * (1 + np.float32(0.1) * normal(f"{norm}.weight", shape[:1]))
        made[f"{norm}.weight"] = weight * np.sqrt(variance)
        made[f"{norm}.bias"] = np.float32(0.1) * normal(f"{norm}.bias", shape[:1])
        made[f"{norm}.running_mean"] = np.float32(0.2) * normal(f"{norm}.running_mean", shape[:1])
        made[f"{norm}.running_var"] = variance

    _, counts, stem = NETWORKS[original]
    for number, (inputs, outputs) in enumerate(((3, stem // 2), (stem // 2, stem // 2), (stem // 2, stem)), start=1):
        block(f"conv{number}", f"bn{number}", (outputs, inputs, 3, 3))
    inputs = stem
    for stage, count in enumerate(counts, start=1):
        inner = stem * 2 ** (stage - 1)
        for number in range(count):
            here = f"layer{stage}.{number}"
            block(f"{here}.conv1", f"{here}.bn1", (inner, inputs, 1, 1))
            block(f"{here}.conv2", f"{here}.bn2", (inner, inner, 3, 3))
            block(f"{here}.conv3", f"{here}.bn3", (4 * inner, inner, 1, 1), scale=0.2)
            if number == 0:
                block(f"{here}.downsample.0", f"{here}.downsample.1", (4 * inner, inputs, 1, 1))
            inputs = 4 * inner
    normal.cache_clear()
    return made


def tensors_of(original: str) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in made_up(original).items()}


def loaded(name: str, weights: Path, grid_size: int = 8) -> tuple[ClipExtractor, nn.Module]:
    """Load an extractor; also give its network."""
    extractor = make_extractor(name, ExtractorOptions(grid_size, weights))
    assert isinstance(extractor, ClipExtractor)
    extractor.load()
    assert extractor._idle is not None
    device, network = extractor._idle.get()
    extractor._idle.put((device, network))
    return extractor, network


def assert_small_map(original: str, network: nn.Module) -> None:
    golden = np.load(GOLDEN / "small" / f"{original}.npz")
    with torch.inference_mode():
        made = network(small_input(golden))[0].numpy()
    np.testing.assert_allclose(made, golden["map"], rtol=0, atol=MAP_TOLERANCE * golden["map"].std())


@pytest.fixture(scope="module")
def rn50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare state dict with OpenAI's names, half of it not the network's."""
    path = tmp_path_factory.mktemp("clip") / "RN50.pt"
    others = {"text_projection": torch.zeros(4, 4), "visual.attnpool.positional_embedding": torch.zeros(4)}
    torch.save(tensors_of("RN50") | others | {"visual.bn1.num_batches_tracked": torch.tensor(0)}, path)
    return path


@pytest.mark.parametrize("original", NETWORKS)
def test_names_and_shapes_of_all_weights(original: str) -> None:
    name, _, _ = NETWORKS[original]
    made = tensors_of(original)
    assert fingerprint(made) == json.loads((GOLDEN / "weights.json").read_text())[original]
    with torch.device("meta"):
        ours = make_extractor(name, ExtractorOptions(8)).build().state_dict()
    shapes = {one: tuple(value.shape) for one, value in ours.items() if not one.endswith("num_batches_tracked")}
    assert shapes == {one.removeprefix("visual."): tuple(value.shape) for one, value in made.items()}


def test_small_map_of_rn50(rn50: Path) -> None:
    assert_small_map("RN50", loaded("clip-rn50", rn50)[1])


def test_small_map_of_rn50x4() -> None:
    network = ClipResNet((4, 6, 10, 6), 80).eval()
    network.load_state_dict(
        {openai_name(name): value for name, value in tensors_of("RN50x4").items()}
        | {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    )
    assert_small_map("RN50x4", network)


def test_small_map_of_rn101_by_plain_functions(tmp_path: Path) -> None:
    """The original was not run on it: the same network, written as functions of the file's tensors."""
    tensors = plain_networks.made_up("clip-rn101")
    torch.save(tensors, tmp_path / "RN101.pth")
    pixels = torch.randn(2, 3, 70, 101, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        made = loaded("clip-rn101", tmp_path / "RN101.pth")[1](pixels).numpy()
        expected = plain_networks.plain_map("clip-rn101", tensors, pixels).numpy()
    assert made.shape == (2, 2048, 2, 3)
    np.testing.assert_allclose(made, expected, rtol=0, atol=MAP_TOLERANCE * expected.std())


def timm_name(name: str) -> str:
    """Give timm's name of a tensor with OpenAI's, by the table of its names."""
    parts = name.removeprefix("visual.").split(".")
    kind = parts[-1]
    if not parts[0].startswith("layer"):
        return f"stem.conv{parts[0][-1]}.{'bn' if parts[0].startswith('bn') else 'conv'}.{kind}"
    here = f"stages.{int(parts[0].removeprefix('layer')) - 1}.{parts[1]}"
    if parts[2] == "downsample":
        return f"{here}.shortcut.conv.{('conv', 'bn')[int(parts[3])]}.{kind}"
    inside = ("conv1_1x1", "conv2_kxk", "conv3_1x1")[int(parts[2][-1]) - 1]
    return f"{here}.{inside}.{'bn' if parts[2].startswith('bn') else 'conv'}.{kind}"


def test_the_names_of_timm(rn50: Path, tmp_path: Path) -> None:
    theirs = {timm_name(name): value for name, value in tensors_of("RN50").items()}
    assert "stages.3.0.shortcut.conv.bn.running_var" in theirs
    save_file(theirs | {"head.pos_embed": torch.zeros(3)}, tmp_path / "model.safetensors")
    ours, their = (loaded("clip-rn50", path)[1].state_dict() for path in (rn50, tmp_path / "model.safetensors"))
    assert all(torch.equal(ours[name], their[name]) for name in ours)


@pytest.mark.parametrize("name", ["clip-rn50", "clip-rn101", "clip-rn50x4"])
def test_the_networks_of_timm(name: str, tmp_path: Path) -> None:
    """Where both sides are multiples of 32, timm's rounding up changes nothing."""
    try:
        timm: Any = pytest.importorskip("timm", exc_type=ImportError)
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")
    torch.manual_seed(2)
    theirs = timm.create_model(f"resnet{name.removeprefix('clip-rn')}_clip").eval()
    for one, value in theirs.named_parameters():
        if ".bn." in one:  # the last of a block begins as 0
            nn.init.normal_(value, mean=float(one.endswith("weight")) / 2, std=0.1)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, made = (
            run(pixels) for run in (theirs.forward_features, loaded(name, tmp_path / "model.safetensors")[1])
        )
    assert expected.std() > 1e-3
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * float(expected.std()))


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in tensors_of("RN50").items()}, tmp_path / "model.safetensors")
    weights = loaded("clip-rn50", tmp_path / "model.safetensors")[1].state_dict()
    assert weights["conv1.weight"].dtype == torch.float32
    np.testing.assert_array_equal(weights["conv1.weight"], tensors_of("RN50")["visual.conv1.weight"].half().float())


@pytest.mark.parametrize("picture", ["landscape", "portrait"])
def test_two_resizes_and_the_input(picture: str) -> None:
    extractor = ClipRN50(ExtractorOptions(8))
    image = extractor.shrink(read_image(GOLDEN / "pictures" / f"{picture}.jpg"))
    golden, kind = golden_of("RN50", picture, image)
    assert tuple(golden["size"]) == (image.height, image.width) == (600, 1000), kind
    pixels = extractor.pixels(image)
    np.testing.assert_allclose(pixels.reshape(-1)[golden["input_index"]], golden["input_value"], atol=1e-6)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), golden["input_mean"], atol=1e-4)
    assert extractor.shrink(image).tobytes() == image.tobytes()
    geometry = extractor.geometry(image.width, image.height)
    assert (geometry.rows, geometry.columns, geometry.is_transposed) == (18, 31, False)
    full = geometry.to_grid(np.ones((18, 31, 1), dtype=np.float32))[:, 0]
    np.testing.assert_array_equal(full > 0, golden["trar8_full"].reshape(-1))


def golden_of(original: str, picture: str, image: Image.Image) -> tuple[Any, str]:
    """Give the golden numbers that belong to a resized picture: Pillow 13 resizes in another order than before."""
    facts = json.loads((GOLDEN / "pictures.json").read_text())[f"{picture}.jpg"]
    found = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
    kinds = [kind for kind in ("", "_pillow12") if facts[f"clip_resized_rgb_sha256{kind}"] == found]
    assert kinds, f"{picture}.jpg is resized as by no version of Pillow that is known"
    return np.load(GOLDEN / "maps" / original / f"{picture}{kinds[0].replace('_', '.')}.npz"), kinds[0]


@pytest.fixture
def averages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClipExtractor:
    """An extractor whose network gives the mean color of what a cell sees."""
    monkeypatch.setattr(ClipRN50, "build", lambda _self: nn.AvgPool2d(32))
    monkeypatch.setattr(ClipRN50, "width", 3)
    torch.save({"any": torch.zeros(1)}, tmp_path / "any.pth")
    return loaded("clip-rn50", tmp_path / "any.pth", grid_size=16)[0]


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (90, 260)])
def test_a_bright_square_lies_where_it_is_on_the_picture(averages: ClipExtractor, size: tuple[int, int]) -> None:
    width, height = size
    picture = Image.new("RGB", size)
    left, top = width * 7 // 10, height // 5
    picture.paste("white", (left, top, left + width // 8, top + height // 8))
    (cells,) = averages.extract([picture])
    shown = averages.geometry(*size).on_picture(cells[:, 0])
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert abs((row + 16) / shown.shape[0] - (top + height / 16) / height) < 0.1
    assert abs((column + 16) / shown.shape[1] - (left + width / 16) / width) < 0.1


def test_neighbors_in_a_batch_do_not_matter(averages: ClipExtractor) -> None:
    random = np.random.default_rng(1)
    pictures = [
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 50), (70, 30), (9, 9))
    ]
    together = averages.extract(pictures)
    for picture, cells in zip(pictures, together, strict=True):
        np.testing.assert_allclose(averages.extract([averages.shrink(picture)])[0], cells, atol=1e-6)


def test_the_program_that_openai_publishes_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:  # laid out as torch.jit.save does
        for name in ("data.pkl", "constants.pkl", "code/__torch__/clip.py"):
            archive.writestr(f"RN50/{name}", b"")
    with pytest.raises(DataError, match=r"RN50.pt is a program in TorchScript; it is not run") as error:
        loaded("clip-rn50", path)
    assert error.value.hint == (
        "--weights FILE: model.safetensors of https://huggingface.co/timm/resnet50_clip.openai,"
        " or a state dict of OpenCLIP's"
    )


def test_weights_of_another_network(rn50: Path) -> None:
    with pytest.raises(DataError, match=r"does not hold the weights of clip-rn101: without layer3.6.conv1.weight"):
        loaded("clip-rn101", rn50)
    with pytest.raises(DataError, match=r"clip-rn50x4: .*conv1.weight has the shape|clip-rn50x4: without"):
        loaded("clip-rn50x4", rn50)


def test_a_grid_that_the_rule_cannot_give() -> None:
    with pytest.raises(SettingsError, match="clip-rn50x4 gives no grid of 14 x 14 cells"):
        make_extractor("clip-rn50x4", ExtractorOptions(14))


def test_where_the_published_weights_lie() -> None:
    for name, model in (("clip-rn50", "resnet50"), ("clip-rn101", "resnet101"), ("clip-rn50x4", "resnet50x4")):
        extractor = make_extractor(name, ExtractorOptions(8))
        assert isinstance(extractor, ClipExtractor)
        assert extractor.published is not None
        assert (
            extractor.published.url == f"https://huggingface.co/timm/{model}_clip.openai/resolve/main/model.safetensors"
        )
        assert extractor.published.file_name == f"{model}_clip.openai.safetensors"
