"""The one reader of pictures: every command, and every extractor, sees what this module makes of a file.

A picture becomes 8-bit RGB by these rules:

- The orientation that EXIF names is applied; a damaged EXIF block is ignored.
- What is transparent shows a white ground.
- Integer gray of more than 8 bits is scaled so that the largest value of its type is white: 65535, or what a TIFF
  file says. 32-bit gray has no usual range: white is the least of 255, 65535 and 2 ** 31 - 1 that no value exceeds.
- Floating-point gray is taken as 0 to 1 where no value exceeds 1, else as 0 to 255; other values are refused.
- Of several frames or pages the first counts. Color profiles are ignored; CMYK is converted without one.
- More than ``most_pixels`` are refused before they are decoded. Decoding takes up to ``MOST_BYTES_A_PIXEL``: 8 of most
  pictures, 4 more to turn one, 14 of AVIF and gray of more than 8 bits, 20 of WebP, 25 of JPEG 2000.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trarctl.config import MOST_PIXELS_VARIABLE
from trarctl.errors import DataError, SettingsError

if TYPE_CHECKING:
    from PIL.Image import Image

READING_VERSION = 2  # raise it with every rule above that changes: features made by other rules are made again
MOST_BYTES_A_PIXEL = 25  # of memory, at the most, while a picture is decoded
_MOST_PIXELS = 178_956_970  # what Pillow itself decodes at most
_HINT = "give image files that open, such as .jpg or .png"
_NOT_DECODED = ("EPS", "MPEG")  # Pillow knows them, but decodes EPS by another program, and MPEG not at all
_NO_PICTURES = (*_NOT_DECODED, "BUFR", "GRIB", "HDF5")
_ALSO_PICTURES = (".avif", ".heic", ".heif", ".jxl", ".webp")  # whether Pillow reads them or not
_ORIENTATION = 0x0112  # tags of EXIF and TIFF
_UPRIGHT = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"  # from 2 to 8
_TURNS: dict[object, str] = dict(enumerate(_UPRIGHT.split(), start=2))
_BITS, _PHOTOMETRIC, _SUBFILE = 258, 262, 254
_WHITE_IS_ZERO, _IS_PREVIEW = 0, 1
# How files begin that people take for pictures, in lower case.
_OTHER_KINDS: dict[tuple[bytes, ...], str] = {
    (b"%pdf",): "a PDF document",
    (b"%!ps", b"\xc5\xd0\xd3\xc6"): "a PostScript drawing",
    (b"<svg",): "an SVG drawing",
    (b"<!doctype html", b"<html"): "a web page",
    (b"version https://git-lfs",): "a pointer of Git LFS, not the file itself (git lfs pull)",
    (b"\xff\x0a", b"\0\0\0\x0cjxl "): "a JPEG XL picture",
    (b"\x1f\x8b", b"pk\3\4"): "an archive",
}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def most_pixels() -> int:
    """Give the most pixels of a picture, ``TRARCTL_MAX_PIXELS``; SettingsError if that is no positive number."""
    text = os.environ.get(MOST_PIXELS_VARIABLE, "").strip() or str(_MOST_PIXELS)
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        what = f"{MOST_PIXELS_VARIABLE} is {text!r}, expected a number of pixels"
        raise SettingsError(what, f"{MOST_PIXELS_VARIABLE}={_MOST_PIXELS}, or unset it")
    return int(text)


def picture_endings() -> frozenset[str]:
    """List the endings of picture files, in lower case; also those of pictures that cannot be read."""
    import PIL.Image

    known = PIL.Image.registered_extensions().items()
    readable = (ending for ending, kind in known if kind in PIL.Image.OPEN and kind not in _NO_PICTURES)
    return frozenset([*readable, *_ALSO_PICTURES])


def read_image(path: Path) -> Image:
    """Decode a picture file to upright RGB; a DataError begins with its path and says why that cannot be done."""
    import PIL.Image
    import PIL.ImageFile

    most = most_pixels()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for its writer
            raise DataError(f"{path} is not a file", _HINT)
        if status.st_size == 0:
            raise DataError(f"{path} is empty", _HINT)
        with _pillow_rules(most), PIL.Image.open(path) as image:
            if image.width * image.height > most:
                raise _too_large(path, most)
            if image.format in _NOT_DECODED or isinstance(image, PIL.ImageFile.StubImageFile):
                raise _unsupported(path, f"a file of the format {image.format}")
            if image.format == "PNG":
                with PIL.Image.open(path) as unchecked:
                    unchecked.verify()  # checksums of the pixels, which decoding leaves aside
            if image.format == "JPEG" and _has_lost_its_end(path, status.st_size):
                raise DataError(f"{path} is truncated or damaged: it ends in zeros", _HINT)
            return _to_rgb(image, str(path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing", _HINT) from None
    except PIL.UnidentifiedImageError:
        raise _unidentified(path) from None
    except PIL.Image.DecompressionBombError:
        raise _too_large(path, most) from None
    except DataError:
        raise
    except MemoryError:
        raise _too_little_memory(str(path)) from None
    except Exception as error:  # what damage makes Pillow's plugins raise is not documented
        if isinstance(error, OSError) and error.errno is not None:
            what = f"cannot read {path}: {error.strerror}"
            raise DataError(what, "check the name, and that it can be read") from None
        raise _damaged(str(path), error) from error


def read_images(
    paths: Iterable[Path], shrink: Callable[[Image], Image] = lambda image: image
) -> tuple[dict[Path, Image], dict[Path, DataError]]:
    """Decode picture files, each once, and shrink each before the next; also give what is wrong with the others."""
    found: dict[Path, Image] = {}
    problems: dict[Path, DataError] = {}
    for path in dict.fromkeys(paths):
        try:
            found[path] = shrink(read_image(path))
        except DataError as error:
            problems[path] = error
    return found, problems


def to_rgb(image: Image) -> Image:
    """Make a picture that was opened elsewhere upright RGB; a DataError says why that cannot be done."""
    try:
        with _pillow_rules(most_pixels()):
            return _to_rgb(image, "the picture")
    except DataError:
        raise
    except MemoryError:
        raise _too_little_memory("the picture") from None
    except Exception as error:  # as in read_image
        raise _damaged("the picture", error) from error


def _to_rgb(image: Image, name: str) -> Image:
    import PIL.Image

    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    if tags.get(_SUBFILE, 0) == _IS_PREVIEW:
        raise DataError(f"{name} begins with a preview of another picture, as raw files of cameras do", _HINT)
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith(("I", "F")):
        image = _scaled_gray(image, name, tags)
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "RGBa"):
        colors = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = PIL.Image.new("RGB", image.size, "white")
        rgb.paste(colors, mask=colors.getchannel("A"))
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # or it would be turned again where it is read again
    turn = _TURNS.get(orientation)
    return rgb if turn is None else rgb.transpose(PIL.Image.Transpose[turn])


def _orientation(image: Image) -> object:
    """Give what EXIF says, where it can be read; a TIFF file was turned by Pillow, which took the tag away."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - as in read_image
        return None


def _scaled_gray(image: Image, name: str, tags: dict[int, Any]) -> Image:
    """Scale gray of more than 8 bits, or of floating point, to 8."""
    import PIL.Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # also where one is no number
            what = f"{name} holds floating-point values from {low:g} to {high:g}, expected 0 to 1 or 0 to 255"
            raise DataError(what, "scale its values, or save it as .png")
        white = 1 if high <= 1 else 255
    elif low < 0:
        raise DataError(f"{name} holds values from {low} to {high}, expected none below 0", "save it as .png")
    elif image.mode != "I":
        white = 2 ** min(int(tags.get(_BITS, (16,))[0]), 16) - 1
    elif image.format in ("PNG", "PPM"):
        white = 65535
    else:
        white = next(most for most in (255, 65535, 2**31 - 1) if high <= most)
    scaled = values.astype(np.float32)
    scaled *= np.float32(255 / white)
    gray = np.rint(scaled, out=scaled).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    if isinstance(clear := image.info.get("transparency"), int):
        gray[values == clear] = 255
    return PIL.Image.fromarray(gray)


def _has_lost_its_end(path: Path, size: int) -> bool:
    """Whether a JPEG file ends in zeros instead of its end mark, as a download that stopped does; Pillow accepts it."""
    with path.open("rb") as file:
        file.seek(max(size - 4096, 0))
        tail = file.read()
    rest = tail.rstrip(b"\0")
    return len(tail) - len(rest) >= 64 and not rest.endswith(b"\xff\xd9")


def _unidentified(path: Path) -> DataError:
    with path.open("rb") as file:
        head = file.read(1024)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    kind = next((kind for begin, kind in _OTHER_KINDS.items() if text.startswith(begin)), "")
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        kind = "a HEIC picture"
    elif text.startswith((b"<?xml", b"<!--")) and b"<svg" in text:
        kind = "an SVG drawing"
    if kind:
        return _unsupported(path, kind)
    if not head.strip(b"\0"):
        return DataError(f"{path} is truncated or damaged: it begins with zeros", _HINT)
    return DataError(f"{path} is not an image, or is damaged", _HINT)


def _unsupported(path: Path, kind: str) -> DataError:
    return DataError(f"{path} is {kind}, which cannot be read", "save it as .jpg or .png")


def _too_large(path: Path, most: int) -> DataError:
    import PIL.Image

    try:
        with _pillow_rules(None), PIL.Image.open(path) as image:
            width, height = image.size
    except Exception as error:  # noqa: BLE001 - as in read_image
        return _damaged(str(path), error)
    what = f"{path} has {width:,} x {height:,} pixels, more than {most:,} in all"
    return DataError(f"{what} ({MOST_PIXELS_VARIABLE}={width * height} allows it)", "shrink it, or set the variable")


def _too_little_memory(name: str) -> DataError:
    what = f"{name} takes more memory than there is; decoding takes up to {MOST_BYTES_A_PIXEL} bytes a pixel"
    return DataError(what, f"shrink it, or refuse large ones: {MOST_PIXELS_VARIABLE}=N")


def _damaged(name: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{name} is truncated or damaged: {reason[:200]}", _HINT)


class _PillowRules:
    """Our bound and no warnings in Pillow while anyone reads; both are global there, and threads overlap."""

    def __init__(self) -> None:
        self._lock, self._num_readers, self._undo = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self, most: int | None) -> Iterator[None]:
        import PIL.Image

        with self._lock:
            if self._num_readers == 0:
                self._undo.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._undo.callback(setattr, PIL.Image, "MAX_IMAGE_PIXELS", PIL.Image.MAX_IMAGE_PIXELS)
            self._num_readers += 1
            # Pillow warns from this number of pixels on, and refuses more than twice as many.
            PIL.Image.MAX_IMAGE_PIXELS = None if most is None else most / 2  # type: ignore[assignment]
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                if self._num_readers == 0:
                    self._undo.close()


_pillow_rules = _PillowRules()
