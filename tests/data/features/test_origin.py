"""What made features of prepared data: taken over from their folder, or stated and compared with a picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.preparing import write_clevr
from trarctl.data.features.base import Extractor, ExtractorOptions
from trarctl.data.features.origin import Stated, extractor_of, known_extractor
from trarctl.data.manifest import BACKBONE
from trarctl.data.prepare import PrepareRequest, check, prepare
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.errors import DataError, SettingsError
from trarctl.registry import EXTRACTORS


class Scaled(Extractor):
    """Gives every cell the mean color, times a factor that stands for its weights."""

    name, width = "scaled-of-a-test", 3

    def __init__(self, options: ExtractorOptions) -> None:
        super().__init__(options)
        self._path, self._factor = options.weights, 0.0

    def fetch(self, progress: Any = None) -> None:  # noqa: ARG002 - as in the interface
        self._factor = float(self._path.read_text()) if self._path else 1.0

    def identity(self) -> dict[str, Any]:
        assert self._factor, "fetch comes first"
        return {"weights": self._factor}

    def extract(self, images: Sequence[Image.Image]) -> np.ndarray:
        colors = np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])
        return np.repeat(self._factor * colors[:, None], self.grid_size**2, axis=1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS._items, Scaled.name, Scaled)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Questions in CLEVR's layout, pictures, and features that say nothing of what made them: ``Scaled`` by 1."""
    write_clevr(tmp_path)
    shutil.rmtree(tmp_path / "feats")
    for split in ("train", "val", "test"):
        for kind in ("feats", "images"):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(3):
            color = (10 * number + 90, 50, 7 * len(split))
            Image.new("RGB", (8, 6), color).save(tmp_path / f"images/{split}/CLEVR_{split}_{number:06d}.png")
            np.save(tmp_path / f"feats/{split}/{number}.npy", np.full((4, 3), color, dtype=np.float16))
    return tmp_path


def request(folder: Path, **options: Any) -> PrepareRequest:
    values: dict[str, Any] = {"raw": folder / "raw", "features": folder / "feats", "grid": 2, "vectors": "none"}
    return PrepareRequest("clevr", out=folder / "out", **(values | options))


def describe(path: Path, **changes: Any) -> dict[str, Any]:
    """Write what made features beside them; keys beyond the extractor's own are kept."""
    content = {"name": Scaled.name, "grid_size": 2, "weights": 1.0, "reading": 2, "host": "a machine"} | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    return content


def prepared(folder: Path, **options: Any) -> PreparedData:
    prepare(request(folder, **options))
    return open_prepared(folder / "out")


@pytest.mark.parametrize("pack", [None, "float32"])
def test_prepare_takes_over_what_made_features(folder: Path, pack: Any) -> None:
    data = prepared(folder, pack=pack)
    assert (data.manifest.images.backbone, (folder / "out" / BACKBONE).exists()) == (None, False)
    assert prepare(request(folder, pack=pack)).was_current
    content = describe(folder / "feats" / BACKBONE)
    data = prepared(folder, pack=pack)
    assert data.manifest.images.backbone == Scaled.name
    assert json.loads((folder / "out" / BACKBONE).read_text()) == content
    assert prepare(request(folder, pack=pack)).was_current
    extractor, notes = extractor_of(data.card)
    assert notes == ()
    np.testing.assert_array_equal(extractor.extract([Image.new("RGB", (9, 9), (1, 2, 3))])[0], [[1, 2, 3]] * 4)
    (folder / "feats" / BACKBONE).unlink()
    assert prepared(folder, pack=pack).manifest.images.backbone is None
    assert not (folder / "out" / BACKBONE).exists()


def test_each_image_set_may_say_what_made_its_features(folder: Path) -> None:
    for split in ("train", "val", "test"):
        describe(folder / "feats" / split / BACKBONE, host=None, extraction={"images": split})
    assert prepared(folder).manifest.images.backbone == Scaled.name
    describe(folder / "feats" / "val" / BACKBONE, weights=2.0)
    for attempt in (prepare, lambda one: _raise(check(one).faults)):
        with pytest.raises(DataError, match=r"train/backbone.json and .*val/backbone.json say that different extract"):
            attempt(request(folder))


def _raise(faults: Sequence[Exception]) -> None:
    (fault,) = faults
    raise fault


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ({"grid_size": 4}, "says that the features are 4 x 4 cells, not 2 x 2 cells", "--grid 4"),
        (
            {"grid_size": "2"},
            "the description of the extractor in .* is damaged: its grid",
            "extract the features again",
        ),
        (
            {"grid_size": None},
            "the description of the extractor in .* is damaged",
            "extract the features again; or, if ",
        ),
        ({"name": None}, "backbone.json is damaged", "remove .*backbone.json, so that nothing says what made them"),
        ({"name": 3}, "unknown extractor 3 in .*backbone.json", "extract the features again"),
        ("{", "backbone.json is damaged", "extract the features again"),
        ("[]", "backbone.json is damaged", "extract the features again"),
        ({"name": "wide-of-a-test"}, "wide-of-a-test made features of width 5, but the files have 3", "extract the f"),
    ],
)
def test_what_does_not_fit_is_one_error(
    content: Any, message: str, hint: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRACTORS._items, "wide-of-a-test", type("Wide", (Scaled,), {"width": 5}))
    if isinstance(content, str):
        (folder / "feats" / BACKBONE).write_text(content)
    else:
        describe(folder / "feats" / BACKBONE, **content)
    for attempt in (prepare, lambda one: _raise(check(one).faults)):
        with pytest.raises(DataError, match=message) as raised:
            attempt(request(folder))
        assert hint.split(".*")[0] in str(raised.value.hint)
    assert not (folder / "out/manifest.json").exists()


def test_an_extractor_that_is_not_here_is_taken_over_with_a_warning(folder: Path) -> None:
    describe(folder / "feats" / BACKBONE, name="of-a-plugin")
    (warning,) = [one for one in prepare(request(folder)).warnings if BACKBONE in one]
    assert "backbone.json names the extractor of-a-plugin, which cannot be made here" in warning
    data = open_prepared(folder / "out")
    assert data.manifest.images.backbone == "of-a-plugin"
    extractor, why = known_extractor(data.card)
    assert extractor is None
    assert "attention is drawn as if the grid covered the picture" in str(why)
    with pytest.raises(DataError, match="unknown extractor 'of-a-plugin'"):
        extractor_of(data.card)


def test_a_stated_extractor_is_compared_with_a_picture(folder: Path) -> None:
    data = prepared(folder)
    stated = Stated(Scaled.name, None, folder / "images")
    _, notes = extractor_of(data.card, stated)
    assert notes == (
        f"scaled-of-a-test gives the stored features of {folder}/images/train/CLEVR_train_000000.png but for"
        " 0 % of their deviation",
    )
    (folder / "weights").write_text("1.001")
    assert "but for 0.2" in extractor_of(data.card, replace(stated, weights=folder / "weights"))[1][0]
    (folder / "weights").write_text("2")
    with pytest.raises(DataError) as raised:
        extractor_of(data.card, replace(stated, weights=folder / "weights"))
    # The numbers of a cell, 90, 50 and 35, have the mean 58.3 and the deviation 23.2; root of their mean square: 62.8.
    assert raised.value.what == (
        f"scaled-of-a-test did not make the features in {folder}/out: those that it makes of"
        f" {folder}/images/train/CLEVR_train_000000.png differ by 270 % of their deviation"
        " (made: mean 117, deviation 46.4; stored: mean 58.3, deviation 23.2)"
    )


def test_pictures_that_are_not_at_hand_are_a_note(folder: Path) -> None:
    data = prepared(folder)
    _, (note,) = extractor_of(data.card, Stated(Scaled.name))
    what = f"that scaled-of-a-test made the features in {folder}/out could not be checked: "
    assert note == f"{what}no folder of the data's pictures is known (--images DIR)"
    _, (note,) = extractor_of(data.card, Stated(Scaled.name, images=folder / "raw"))
    assert note == f"{what}none of its pictures is in {folder}/raw (--images DIR)"


def test_what_is_stated_has_to_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS._items, "wide-of-a-test", type("Wide", (Scaled,), {"width": 5}))
    data = prepared(folder)
    for name, error, message in (
        ("wide-of-a-test", DataError, "gives 2 x 2 cells of 5 numbers, the features in .*/out are 2 x 2 cells of 3"),
        ("vgg", SettingsError, "unknown extractor 'vgg'"),
        ("patches", SettingsError, "patches was fitted to training pictures"),
        ("x152", SettingsError, "x152 gives no grid of 2 x 2 cells, which the features in .*/out have"),
    ):
        for attempt in (lambda one: extractor_of(data.card, Stated(one)), lambda one: known_extractor(data.card, one)):
            with pytest.raises(error, match=message):
                attempt(name)
    with pytest.raises(DataError, match="came from files made elsewhere"):
        extractor_of(data.card)
    describe(folder / "feats" / BACKBONE)
    data = prepared(folder)
    assert extractor_of(data.card, Stated(Scaled.name))[1] == ()
    with pytest.raises(SettingsError, match=r"were made by scaled-of-a-test, not by patches"):
        extractor_of(data.card, Stated("patches"))


def test_who_pooled_published_maps_can_be_said_to_have_had_them_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features by an extractor that takes no pictures: it knows where cells lie, another one makes the features."""
    monkeypatch.setitem(EXTRACTORS._items, "maps-of-a-test", type("Maps", (Scaled,), {"name": "maps-of-a-test"}))
    describe(folder / "feats" / BACKBONE, name="maps-of-a-test")
    data, stated = prepared(folder), Stated(Scaled.name, images=folder / "images")
    with pytest.raises(SettingsError, match="were made by maps-of-a-test, not by scaled"):
        extractor_of(data.card, stated)
    monkeypatch.setattr(EXTRACTORS["maps-of-a-test"], "takes_pictures", False)
    extractor, notes = extractor_of(data.card, stated)
    assert (extractor.name, len(notes)) == (Scaled.name, 1)
    assert [known_extractor(data.card, name)[0].name for name in (None, Scaled.name)] == ["maps-of-a-test", Scaled.name]
