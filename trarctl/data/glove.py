"""GloVe text files, plain or zipped: read line by line, since a large one has 5 GB."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from trarctl.data.progress import Progress, no_progress
from trarctl.data.raw_splits import listed
from trarctl.errors import DataError

_DOWNLOAD_AGAIN = "download it again, or --vectors none"
_GET_SOME = "download glove.840B.300d.zip, or --vectors none"

# Lines that decide how wide the vectors are; a damaged one among them is outvoted.
_NUM_SAMPLED = 100
# A line of 300 numbers has about 3 kB; a binary file may have no line end at all.
_LONGEST_LINE = 1 << 20
# Wider than any published table; a first line that says so is no header.
_WIDEST = 10_000
_ZIP_START = b"PK\x03\x04"
_LINES_BETWEEN_REPORTS = 1 << 14

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GloveRows:
    """The rows of a text file that were asked for.

    Attributes:
        name: the file's name, with the member's behind that of a zip.
        digest: SHA-256 of the file's bytes, as it lies on the disk; hexadecimal.
        width: numbers E of a row.
        vectors: [E] float32 by word, for the words that stand there.
    """

    name: str
    digest: str
    width: int
    vectors: dict[bytes, Vector]


def read_glove(
    path: Path, member: str | None, wanted: Collection[bytes], progress: Progress = no_progress
) -> GloveRows:
    """Read the vectors of the wanted words; of a word that stands there twice, the first counts.

    Args:
        path: a text file, each line a word and its numbers, with or without word2vec's first line; or a zip.
        member: which file of a zip, where it holds several.
        wanted: words in UTF-8.
        progress: told the bytes read.

    Raises:
        DataError: it is no such file, it is cut off, or a wanted row is damaged.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    progress(f"hashing {path.name}", 0, size)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        is_zip = file.read(len(_ZIP_START)) == _ZIP_START
        progress(f"hashing {path.name}", size, size)
        if not is_zip:
            if member is not None:
                raise DataError(f"{path} is no zip file that could hold {member}", _GET_SOME)
            file.seek(0)
            return _read_text(file, path.name, digest, size, wanted, progress)
        try:
            with zipfile.ZipFile(file) as archive:
                info = _text_member(archive, path, member)
                with io.BufferedReader(archive.open(info), _LONGEST_LINE) as stream:  # type: ignore[type-var]
                    name = f"{path.name}/{info.filename}"
                    return _read_text(stream, name, digest, info.file_size, wanted, progress)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"cannot unpack {path}: {error}", _DOWNLOAD_AGAIN) from error


def _text_member(archive: zipfile.ZipFile, path: Path, member: str | None) -> zipfile.ZipInfo:
    """Choose the text file inside a zip."""
    texts = [info for info in archive.infolist() if not info.is_dir() and info.filename.endswith((".txt", ".vec"))]
    chosen = [info for info in texts if member is None or info.filename == member]
    if len(chosen) == 1:
        return chosen[0]
    names = listed((info.filename for info in texts), len(texts)) or "no .txt file"
    if not texts or member is not None:
        raise DataError(f"{path} holds {names}" + (f", not {member}" if member else ""), _DOWNLOAD_AGAIN)
    raise DataError(f"{path} holds several files: {names}", f"name one: --vectors {path}/{texts[-1].filename}")


def _read_text(
    stream: IO[bytes], name: str, digest: str, size: int, wanted: Collection[bytes], progress: Progress
) -> GloveRows:
    lines = _lines(stream, name)
    sample = list(islice(lines, _NUM_SAMPLED))
    declared, width = _shape(sample, name)
    vectors: dict[bytes, Vector] = {}
    faults: list[str] = []
    num_bytes, number, line = 0, 0, b""
    for number, line in enumerate(chain(sample, lines), start=1):
        num_bytes += len(line)
        if number % _LINES_BETWEEN_REPORTS == 0:
            progress(f"reading {name}", num_bytes, size)
        word = line.partition(b" ")[0].rstrip()
        if word in wanted and word not in vectors and (declared is None or number > 1):
            try:
                vector = _vector(line, width)
            except ValueError as error:
                faults.append(f"line {number:,} ({word.decode('utf-8', 'replace')}) {error}")
                continue
            if vector is not None:
                vectors[word] = vector
    if not line.endswith(b"\n") and line.count(b" ") < width:
        faults.append(f"its last line ({number:,}) is cut off")
    if declared is not None and declared != number - 1:
        faults.append(f"it has {number - 1:,} rows where its first line says {declared:,}")
    if faults:
        raise DataError(f"{name} is damaged: {listed(faults, len(faults))}", _DOWNLOAD_AGAIN)
    progress(f"reading {name}", size, size)
    return GloveRows(name, digest, width, vectors)


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    is_first = True
    while line := stream.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise DataError(f"{name} is no text file of word vectors: a line is longer than 1 MB", _GET_SOME)
        yield line.removeprefix(b"\xef\xbb\xbf") if is_first else line
        is_first = False


def _shape(sample: list[bytes], name: str) -> tuple[int | None, int]:
    """Tell the number of rows, if the first line states it as word2vec's does, and the width of the vectors."""
    if not sample:
        raise DataError(f"{name} is empty", _DOWNLOAD_AGAIN)
    header = sample[0].split()
    if len(header) == 2 and all(field.isdigit() and len(field) < 20 for field in header):
        if 1 < int(header[1]) <= _WIDEST:
            return int(header[0]), int(header[1])
        raise DataError(f"{name} is no text file of word vectors", _GET_SOME)
    width = Counter(len(line.split()) - 1 for line in sample).most_common(1)[0][0]
    for line in sample:
        try:
            vector = _vector(line, width) if 1 < width <= _WIDEST else None
        except ValueError:
            continue
        if vector is not None:
            return None, width
    raise DataError(f"{name} is no text file of word vectors", _GET_SOME)


def _vector(line: bytes, width: int) -> Vector | None:
    """Read a row's numbers; None if what stands before them is several words.

    Raises:
        ValueError: there are too few or too many, or one is none.
    """
    # Some files have spaces inside their words, so the numbers are counted from the end.
    word, *numbers = line.rstrip().rsplit(b" ", width)
    if len(numbers) < width:
        raise ValueError(f"has {len(numbers)} of {width} numbers")
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(number) for number in numbers], dtype=np.float32)
    except ValueError:
        raise ValueError("has something else among its numbers") from None
    if not np.isfinite(vector).all():
        raise ValueError("has a number that is not finite")
    inner = word.split(b" ")[1:]
    if inner and all(_is_number(part) for part in inner):
        raise ValueError(f"has {len(inner) + width} of {width} numbers")
    return None if inner else vector


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
