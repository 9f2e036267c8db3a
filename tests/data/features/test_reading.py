"""What a file of each kind becomes, against values that stand here or are computed by numpy."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.small_runs import make_raw
from trarctl.config import MOST_PIXELS_VARIABLE
from trarctl.data.features.base import ExtractorOptions
from trarctl.data.features.reading import MOST_BYTES_A_PIXEL, read_image, read_images, to_rgb
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import open_prepared
from trarctl.errors import DataError, SettingsError
from trarctl.registry import EXTRACTORS

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error")


def drawing() -> Image.Image:
    """12 x 8 pixels, no two of whose turns look alike."""
    image = Image.new("RGB", (12, 8), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    pen.rectangle((1, 1, 5, 3), fill=(220, 30, 30))
    pen.rectangle((8, 5, 11, 7), fill=(30, 30, 220))
    return image


def seen(path: Path) -> Pixels:
    return np.asarray(read_image(path))


def gray() -> Pixels:
    return np.asarray(drawing().convert("L"))


def as_rgb(values: NDArray[np.generic]) -> Pixels:
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=-1)


# How a viewer turns what is stored, by the definition of the tag (EXIF 2.3, 4.6.4): stored rows and columns are ...
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
    0: lambda stored: stored,
    9: lambda stored: stored,
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation(orientation: int, ending: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawing().save(tmp_path / f"a.{ending}", exif=exif, **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(seen(tmp_path / f"a.{ending}"), TURNS[orientation](np.asarray(drawing())))
    with Image.open(tmp_path / f"a.{ending}") as opened:
        assert np.array_equal(to_rgb(opened), seen(tmp_path / f"a.{ending}"))
    assert np.array_equal(to_rgb(read_image(tmp_path / f"a.{ending}")), seen(tmp_path / f"a.{ending}"))


def test_a_photograph_on_its_side_has_the_features_of_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing().save(tmp_path / "upright.png")
    drawing().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    patches = EXTRACTORS["patches"](ExtractorOptions(2))
    one, other = (patches.extract([read_image(tmp_path / name)]) for name in ("upright.png", "phone.png"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense" * 9],
)
def test_damaged_exif_is_ignored(block: bytes, tmp_path: Path) -> None:
    drawing().save(tmp_path / "plain.jpg")
    drawing().save(tmp_path / "exif.jpg", exif=block)
    assert np.array_equal(seen(tmp_path / "exif.jpg"), seen(tmp_path / "plain.jpg"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", gray().astype("<u2") * 257),
        ("a.tif", gray().astype("<u2") * 257),
        ("a.tif", gray().astype(">u2") * 257),
        ("a.pgm", gray().astype("<u2") * 257),
        ("a.tif", gray().astype("<i4") * 257),  # 32 bits that hold 16
        ("a.tif", gray().astype("<i4")),  # 32 bits that hold 8
        ("a.tif", (gray() * ((2**31 - 1) / 255)).astype("<i4")),
        ("a.tif", gray().astype("<f4")),
        ("a.tif", gray().astype("<f4") / 255),
        ("a.pfm", gray().astype("<f4") / 255),
    ],
)
def test_gray_of_more_bits_is_scaled(name: str, values: NDArray[np.generic], tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(seen(tmp_path / name), as_rgb(gray()))


def test_dark_16_bits_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 514, 65535]], dtype="<u2")).save(tmp_path / "a.png")
    assert np.array_equal(seen(tmp_path / "a.png"), as_rgb(np.array([[0, 0, 1, 2, 255]])))


def test_a_tiff_file_says_how_many_bits_it_has_and_which_end_is_white(tmp_path: Path) -> None:
    twelve = np.array([[0, 16, 2048, 4095]], dtype=np.uint16)
    fields = [(256, 4, 4), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 0), (273, 4, 200), (277, 3, 1), (279, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)
    (tmp_path / "white_is_zero.tif").write_bytes(head.ljust(200, b"\0") + (twelve * 16).tobytes())
    assert np.array_equal(seen(tmp_path / "white_is_zero.tif"), as_rgb(np.array([[255, 254, 127, 0]])))


def test_a_clear_value_of_16_bit_gray_is_white(tmp_path: Path) -> None:
    values = np.array([[1000, 1001, 65535]], dtype="<u2")
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    assert np.array_equal(seen(tmp_path / "a.png"), as_rgb(np.array([[255, 4, 255]])))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0, 300.0]], "holds floating-point values from 0 to 300, expected 0 to 1 or 0 to 255"),
        ([[-0.5, 0.5]], "holds floating-point values from -0.5 to 0.5"),
        ([[np.nan, 0.5]], "holds floating-point values from nan to nan"),
        ([[0.5, np.inf]], "holds floating-point values from 0.5 to inf"),
    ],
)
def test_floating_point_without_a_known_range_is_refused(
    values: list[list[float]], message: str, tmp_path: Path
) -> None:
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "a.tif")
    assert caught.value.what.startswith(f"{tmp_path / 'a.tif'} {message}")


def test_negative_gray_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1, 7]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="holds values from -1 to 7, expected none below 0"):
        read_image(tmp_path / "a.tif")


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    colors = np.array([[[220, 30, 30, 255], [220, 30, 30, 0], [0, 0, 0, 0], [100, 100, 100, 127]]], dtype=np.uint8)
    white = [[[220, 30, 30], [255, 255, 255], [255, 255, 255], [178, 178, 178]]]
    Image.fromarray(colors, "RGBA").save(tmp_path / "rgba.png")
    assert np.abs(seen(tmp_path / "rgba.png").astype(int) - white).max() <= 1
    Image.fromarray(colors[..., ::3].copy(), "LA").save(tmp_path / "la.png")
    assert seen(tmp_path / "la.png")[0, 1].tolist() == [255, 255, 255]
    palette = drawing().quantize(4)
    Image.Image.save(palette, tmp_path / "opaque.png")
    assert np.array_equal(seen(tmp_path / "opaque.png"), np.asarray(drawing()))
    red = np.asarray(palette)[2, 2].item()
    for name in ("clear.png", "clear.gif"):
        palette.save(tmp_path / name, transparency=red)
        expected = np.asarray(drawing()).copy()
        expected[1:4, 1:6] = 255
        assert np.array_equal(seen(tmp_path / name), expected), name
    palette.save(tmp_path / "half.png", transparency=bytes([255 if index != red else 0 for index in range(4)]))
    assert np.array_equal(seen(tmp_path / "half.png"), expected)
    drawing().save(tmp_path / "key.png", transparency=(220, 30, 30))
    assert np.array_equal(seen(tmp_path / "key.png"), expected)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_pictures_in_memory_of_every_mode_with_alpha(mode: str) -> None:
    values = np.array([[[90, 90, 90, 255], [90, 90, 90, 0], [0, 0, 0, 0], [200, 200, 200, 102]]], dtype=np.uint8)
    image = Image.fromarray(values, "RGBA")
    if mode == "PA":
        whole, image = image, image.convert("L").convert("PA")
        image.putalpha(whole.getchannel("A"))
    else:
        image = image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)
    white = [[[90] * 3, [255] * 3, [255] * 3, [255 - round(55 * 102 / 255)] * 3]]
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - white).max() <= 1


def test_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    """CLEVR's own pictures are of this kind."""
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    values[..., 3] = 255
    Image.fromarray(values, "RGBA").save(tmp_path / "a.png")
    assert np.array_equal(seen(tmp_path / "a.png"), values[..., :3])


def test_of_several_frames_the_first_counts(tmp_path: Path) -> None:
    black = Image.new("RGB", (12, 8))
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        drawing().save(
            tmp_path / name, save_all=True, append_images=[black], **({"lossless": True} if name == "a.webp" else {})
        )
        assert np.array_equal(seen(tmp_path / name), np.asarray(drawing())), name


@pytest.mark.parametrize("ending", ["bmp", "ppm", "tga", "pcx", "sgi", "qoi", "jpg.png", "no_ending"])
def test_other_formats_and_endings_that_lie(ending: str, tmp_path: Path) -> None:
    kind = {"jpg.png": "BMP", "no_ending": "PNG"}.get(ending, "")
    drawing().save(tmp_path / f"ä ö.{ending}", **({"format": kind} if kind else {}))
    assert np.array_equal(seen(tmp_path / f"ä ö.{ending}"), np.asarray(drawing()))


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    drawing().convert("1").save(tmp_path / "a.png")
    assert set(np.unique(seen(tmp_path / "a.png")).tolist()) == {0, 255}
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(seen(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "is empty"),
        ("a.png", b"no picture", "is not an image, or is damaged"),
        ("a.png", bytes(500), "is truncated or damaged: it begins with zeros"),
        ("a.jpg", b"%PDF-1.4\n", "is a PDF document, which cannot be read"),
        ("a.png", b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "is an SVG drawing, which cannot be read"),
        ("a.svg", b"<svg xmlns=''>", "is an SVG drawing, which cannot be read"),
        ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1", "is a HEIC picture, which cannot be read"),
        ("a.jpg", b"<!DOCTYPE html><html>404", "is a web page, which cannot be read"),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is a file of the format EPS"),
    ],
)
def test_what_is_no_picture_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / name)
    assert caught.value.what.startswith(f"{tmp_path / name} {message}")
    assert caught.value.hint


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name, message in [
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("missing.png", "is missing"),
        ("dangling", "is missing"),
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("a\0b", "null byte"),
    ]:
        with pytest.raises(DataError, match=message):
            read_image(tmp_path / name)


def damaged(folder: Path) -> list[Path]:
    """Files that were whole, each damaged so that it can be told."""
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = []

    def add(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        found.append(folder / name)

    for ending in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "tga", "dds", "avif", "jp2", "qoi", "sgi"):
        whole = folder / f"whole.{ending}"
        try:
            noise.save(whole)
        except (KeyError, OSError, ValueError):  # this Pillow was built without it
            continue
        content = whole.read_bytes()
        for number, part in enumerate((0.15, 0.6, 0.97)):
            add(f"cut{number}.{ending}", content[: int(part * len(content))])
        if ending in ("png", "jpg", "gif", "jp2"):
            add(f"zeros.{ending}", content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        if ending == "png":
            add("bit.png", content[:2000] + bytes([content[2000] ^ 4]) + content[2001:])
        if ending == "dds":
            add("bad.dds", content[:80] + bytes([128, 0, 0, 0]) + content[84:])
        if ending == "avif":
            add("bad.avif", content[:-30] + bytes(30))
    return found


def test_damage_is_one_message_that_names_the_file(tmp_path: Path) -> None:
    paths = damaged(tmp_path)
    assert len(paths) > 25
    found, problems = read_images(paths)
    assert sorted(path.name for path in found) == []
    assert all(error.what.startswith(f"{path} is ") for path, error in problems.items())
    assert not any("\n" in error.what or len(error.what) > 500 for error in problems.values())


def png_of(width: int, height: int) -> bytes:
    """A black picture of one bit a pixel, compressed."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_large_picture_is_not_called_damaged_and_the_hint_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 9_000))
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "huge.png")
    assert caught.value.what == (
        f"{tmp_path / 'huge.png'} has 20,000 x 9,000 pixels, more than 178,956,970 in all"
        " (TRARCTL_MAX_PIXELS=180000000 allows it)"
    )
    (tmp_path / "small.png").write_bytes(png_of(40, 30))
    monkeypatch.setenv(MOST_PIXELS_VARIABLE, "1199")
    with pytest.raises(
        DataError, match=r"40 x 30 pixels, more than 1,199 in all \(TRARCTL_MAX_PIXELS=1200 allows it\)"
    ):
        read_image(tmp_path / "small.png")
    monkeypatch.setenv(MOST_PIXELS_VARIABLE, "1200")
    assert read_image(tmp_path / "small.png").size == (40, 30)
    monkeypatch.setenv(MOST_PIXELS_VARIABLE, "many")
    with pytest.raises(SettingsError, match="TRARCTL_MAX_PIXELS is 'many', expected a number of pixels"):
        read_image(tmp_path / "small.png")


READ_EACH = """
import os
import sys
from pathlib import Path
import PIL.Image
from trarctl.data.features.reading import MOST_BYTES_A_PIXEL, read_image

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

PIL.Image.init()
read_image(Path(sys.argv[1]))  # what is loaded once
for name in sys.argv[2:]:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    before = peak()
    read_image(Path(name))
    print(peak() - before, flush=True)
    os._exit(0)
"""


def test_memory_stays_below_the_stated_bound(tmp_path: Path) -> None:
    """Of the kinds that take the most, turned and transparent; files are read whole, so that theirs are small."""
    width, height = 3200, 1250
    clear = Image.new("RGBA", (width, height), (200, 30, 60, 100))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    clear.save(tmp_path / "a.png", exif=exif, compress_level=1)
    clear.save(tmp_path / "a.webp", exif=exif, lossless=True, method=0)
    Image.fromarray(np.full((height, width), 0.5, dtype=np.float32)).save(tmp_path / "a.tif", exif=exif)
    clear.crop((0, 0, width // 2, height)).save(tmp_path / "a.jp2")
    drawing().save(tmp_path / "small.webp")
    bounds = {"a.jpg": 12, "a.png": 14, "a.webp": 20, "a.tif": 14, "a.jp2": 25}
    command = [sys.executable, "-c", READ_EACH, "small.webp", *bounds]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    block = 16 << 20  # of Pillow's memory
    for (name, most), taken in zip(bounds.items(), ran.stdout.split(), strict=True):
        pixels = width * height // (2 if name == "a.jp2" else 1)
        assert 8 * pixels <= int(taken) <= most * pixels + block, (name, int(taken) / pixels)
    assert max(bounds.values()) == MOST_BYTES_A_PIXEL


def test_a_picture_that_memory_cannot_hold_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing().save(tmp_path / "a.png")

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(DataError, match="a.png takes more memory than there is; .* up to 25 bytes a pixel"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="the picture takes more memory than there is"):
        to_rgb(drawing())


def test_pillow_is_left_as_it_was(tmp_path: Path) -> None:
    before, filters = PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    paths = damaged(tmp_path)
    drawing().save(tmp_path / "good.png")
    threads = [threading.Thread(target=read_images, args=([*paths, tmp_path / "good.png"],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == PIL.Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def test_each_picture_is_decoded_once_and_shrunk_before_the_next(tmp_path: Path) -> None:
    drawing().save(tmp_path / "a.png")
    drawing().save(tmp_path / "b.png")
    sizes = []

    def shrink(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return image.resize((2, 2))

    paths = [tmp_path / name for name in ("a.png", "b.png", "a.png", "no.png", "b.png")]
    found, problems = read_images(paths, shrink)
    assert [path.name for path in found] == ["a.png", "b.png"]
    assert [path.name for path in problems] == ["no.png"]
    assert sizes == [(12, 8)] * 2
    assert {image.size for image in found.values()} == {(2, 2)}


@pytest.mark.parametrize("name", ["patches"])
def test_features_of_shrunk_pictures_are_those_of_whole_ones(name: str) -> None:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (90, 131, 3), dtype=np.uint8)) for _ in range(3)]
    extractor = EXTRACTORS[name](ExtractorOptions(2))
    assert np.array_equal(extractor.extract(images), extractor.extract([extractor.shrink(one) for one in images]))


def prepared_features(raw: Path, out: Path) -> NDArray[np.float32]:
    prepare(PrepareRequest("easy-vqa", out, raw, vectors="none"))
    features = open_prepared(out).features
    return features.read(np.arange(features.num_images)).astype(np.float32)


def test_prepare_sees_what_a_viewer_shows(tmp_path: Path) -> None:
    """The same gray pictures as 8 bits, as 16 bits, and stored on their sides with a tag: the same features."""
    make_raw(tmp_path / "raw", num_train=6, num_test=3)
    exif = Image.Exif()
    exif[0x0112] = 8
    for path in (tmp_path / "raw").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    for kind in ("deep", "turned"):
        shutil.copytree(tmp_path / "raw", tmp_path / kind)
        for path in (tmp_path / kind).rglob("*.png"):
            with Image.open(path) as image:
                if kind == "deep":
                    changed, options = Image.fromarray(np.asarray(image).astype(np.uint16) * 257), {}
                else:
                    changed, options = image.transpose(Image.Transpose.ROTATE_270), {"exif": exif}
            changed.save(path, **options)
    plain, deep, turned = (
        prepared_features(tmp_path / kind, tmp_path / f"p-{kind}") for kind in ("raw", "deep", "turned")
    )
    assert plain.std() > 0.5
    assert np.array_equal(plain, deep)
    assert np.array_equal(plain, turned)


def test_prepare_looks_at_every_picture_and_names_ten(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", num_train=20, num_test=3)
    bad = [tmp_path / "raw" / "train" / "images" / f"{number}.png" for number in range(1, 13)]
    for path in bad:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        prepare(PrepareRequest("easy-vqa", tmp_path / "out", tmp_path / "raw", vectors="none"))
    assert caught.value.what.startswith("12 image files are unusable: ")
    assert caught.value.what.endswith(" and 2 more)")
    assert f"{bad[0]} is truncated or damaged: " in caught.value.what
    assert sum(path.name in caught.value.what for path in bad) == 10
    assert not (tmp_path / "out" / "manifest.json").exists()


GOLDEN = Path(__file__).parents[2] / "golden" / "features"
# Where the original program sees something else than a viewer shows: it drops what says that pixels are transparent,
# so that colors without a meaning show, and cuts 16 bits off at 255, so that nearly all becomes white.
BETTER = {"clear_colour.png", "grey16.png", "grey_alpha.png", "palette_clear.png", "rgba.png"}


@pytest.mark.parametrize("path", sorted((GOLDEN / "reading").iterdir()), ids=lambda path: path.name)
def test_kinds_of_files_that_the_original_read(path: Path) -> None:
    theirs = np.load(GOLDEN / "reading.npz")[path.name][..., ::-1]  # blue first
    if path.name not in BETTER:
        assert np.array_equal(seen(path), theirs)
        return
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGBA") if image.mode == "P" else image).astype(np.float64)
        clear = image.info.get("transparency")
    if path.name == "grey16.png":
        assert np.array_equal(theirs[..., 0], np.minimum(stored, 255))
        assert np.array_equal(seen(path), as_rgb(np.rint(stored / 257)))
        return
    opaque = (stored != clear).any(axis=2) if isinstance(clear, tuple) else stored[..., -1] / 255
    blended = theirs * opaque[..., None] + 255 * (1 - opaque[..., None])
    assert np.abs(seen(path) - blended).max() <= 1
    assert np.abs(seen(path) - theirs.astype(np.float64)).max() > 100
