"""Word vectors for the first values of the word embedding: from spaCy, from GloVe text, or none."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress, no_progress
from trarctl.errors import DataError, listed

NONE, AUTO = "none", "auto"

# Looked for in this order; the first is what the published checkpoints were trained with.
_PREFERRED_PACKAGES = ("en_vectors_web_lg", "en_core_web_lg", "en_core_web_md")
_GET_SOME = "python -m spacy download en_core_web_lg, or --vectors none"
_DOWNLOAD_AGAIN = "download it again, or --vectors none"
_OTHER = "name another source: --vectors SOURCE, or --vectors none"
# Below this share of words with a vector, the source is probably for another language or another spelling.
_FEW = 0.5

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WordVectors:
    """A vector for each word of a vocabulary."""

    matrix: npt.NDArray[np.float32]  # row i belongs to word i, zero where there is none, [V, E]
    source: str  # where they come from, for a person to read
    digest: str  # SHA-256 of the file's bytes; of a spaCy source, of its name, version, keys and table
    missing: tuple[str, ...]  # words that have none, in the vocabulary's order
    warnings: tuple[str, ...] = ()  # what is odd about the source

    @property
    def found(self) -> int:
        """Count the words that have a vector."""
        return len(self.matrix) - len(self.missing)


def load_vectors(source: str, words: Sequence[str], progress: Progress = no_progress) -> WordVectors | None:
    """Look up the vectors of a vocabulary's words, V in index order; None without a source.

    The words that stand for padding, unknown words and a sentence are looked up like any other, as the published
    checkpoints have it. A DataError says why a source cannot be used.

    Args:
        source: ``none``; ``auto`` for what ``installed_vectors`` names; an installed spaCy package; a folder written by
            ``nlp.to_disk`` or ``nlp.vocab.to_disk``; a GloVe text file or a zip of it, or ``ZIP/MEMBER``.
        words: of the vocabulary.
        progress: told the bytes read, or the words looked up.
    """
    if source == AUTO:
        source = installed_vectors()
    if source == NONE:
        return None
    if not source.strip():
        raise DataError("the source of word vectors is empty", _OTHER)
    vectors = _load(source, words, progress)
    wrong = [words[row] for row in np.flatnonzero(~np.isfinite(vectors.matrix).all(axis=1)).tolist()]
    filled = vectors.matrix[vectors.matrix.any(axis=1)]
    num_zero = vectors.found - len(filled)
    is_constant = len(filled) > 1 and (filled == filled[:1]).all()
    for is_fault, what in (
        (not vectors.found, f"knows none of the {len(words):,} words"),
        (wrong, f"has numbers that are not finite for {listed(wrong, len(wrong))}"),
        (not len(filled), f"has nothing but zeros: 0 of the {vectors.found:,} words found have numbers"),
        (is_constant, f"has the same numbers for all of the {len(filled):,} words found"),
    ):
        if is_fault:
            raise DataError(f"{vectors.source} {what}", _OTHER)
    warnings = list(vectors.warnings)
    if num_zero:
        warnings.append(f"{vectors.source}: words that it knows, but with nothing but zeros: {num_zero:,}")
    if vectors.found < _FEW * len(words):
        known = f"{vectors.found:,} of the {len(words):,} words ({100 * vectors.found / len(words):.1f} %)"
        warnings.append(f"{vectors.source} knows {known}, the others start from zeros")
    return replace(vectors, warnings=tuple(warnings))


def installed_vectors() -> str:
    """Name the spaCy package that ``auto`` stands for, or ``none`` where no package with vectors is installed."""
    packages = _installed_packages()
    return next((name for name in (*_PREFERRED_PACKAGES, *packages) if name in packages), NONE)


def vectors_fingerprint(source: str) -> str:
    """Identify vectors: what ``auto`` finds, or size and time of change of a file or folder; empty for a package."""
    path = Path(source)
    if source == AUTO:
        return installed_vectors()
    if source == NONE or not path.exists():
        return ""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in (file.stat() for file in files))


def _load(source: str, words: Sequence[str], progress: Progress) -> WordVectors:
    path = Path(source)
    try:
        if path.is_dir():
            return _load_spacy(path.name, _data_folder(path), words, progress)
        if path.is_file():
            return _load_glove(path, None, words, progress)
        archive = next((parent for parent in path.parents if parent.is_file()), None)
        if archive is not None:
            return _load_glove(archive, path.relative_to(archive).as_posix(), words, progress)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the word vectors {source}: {error}", _DOWNLOAD_AGAIN) from error
    packages = _installed_packages()
    if source in packages:
        return _load_spacy(source, packages[source], words, progress)
    installed = f" (installed: {', '.join(packages)})" if packages else ""
    what = f"no word vectors {source!r}: neither a file, nor a folder, nor an installed spaCy package{installed}"
    raise DataError(what, _GET_SOME)


def _look_up(
    words: Sequence[str], width: int, vector_of: Callable[[str], Vector | None]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Give the vectors of words, [V, E], and the words that have none."""
    matrix, found = np.zeros((len(words), width), dtype=np.float32), list(map(vector_of, words))
    for row, vector in enumerate(found):
        if vector is not None:
            matrix[row] = vector
    return matrix, tuple(word for word, vector in zip(words, found, strict=True) if vector is None)


def _installed_packages() -> dict[str, Path]:
    """Find the data of installed spaCy packages with vectors, by module and by pipeline, without importing spaCy."""
    packages: dict[str, Path] = {}
    for folder in dict.fromkeys(sys.path):
        for meta_file in sorted(Path(folder or ".").glob("*/meta.json")):
            meta = _meta(meta_file.parent)
            vectors = meta.get("vectors")
            has_vectors = isinstance(vectors, dict) and vectors.get("width") and vectors.get("vectors")
            if has_vectors and "spacy_version" in meta and (meta_file.parent / "__init__.py").is_file():
                data = _data_folder(meta_file.parent)
                packages.setdefault(meta_file.parent.name, data)
                packages.setdefault(f"{meta.get('lang')}_{meta.get('name')}", data)
    return packages


def _meta(folder: Path) -> dict[str, Any]:
    """Read a pipeline's description; empty where there is none."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _data_folder(folder: Path) -> Path:
    """Find the pipeline's own folder: a package has it one level down, named after the version."""
    meta = _meta(folder)
    inner = folder / f"{meta.get('lang')}_{meta.get('name')}-{meta.get('version')}"
    return inner if inner.is_dir() else folder


def _load_spacy(name: str, folder: Path, words: Sequence[str], progress: Progress) -> WordVectors:
    with warnings.catch_warnings():
        # What spaCy warns of here is about components that another version trained; only the table is used.
        warnings.simplefilter("ignore")
        try:
            nlp = _open_spacy(folder)
            if not nlp.vocab.vectors.size:
                raise DataError(f"the spaCy pipeline {name} has no word vectors", _GET_SOME)
            progress(f"looking up words in {name}", 0, len(words))

            def vector_of(word: str) -> Vector | None:
                # The average of the word's tokens: "cannot" is two of them.
                document = nlp.make_doc(word)
                return document.vector if document.has_vector else None

            matrix, missing = _look_up(words, nlp.vocab.vectors.shape[1], vector_of)
            digest = _digest_table(nlp)
        except ImportError as error:
            raise DataError(f"spaCy cannot be imported: {error}", "pip install spacy, or --vectors none") from error
        except DataError:
            raise
        except Exception as error:  # a damaged folder makes spaCy fail in any way whatever
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"cannot read the spaCy folder {folder}: {reason}", _DOWNLOAD_AGAIN) from error
    progress(f"looking up words in {name}", len(words), len(words))
    source = f"{name} (spaCy {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']})"
    return WordVectors(matrix, source, digest, missing)


def _open_spacy(folder: Path) -> Any:
    """Open the tokenizer and the vectors of a folder, without the components that it may have beside them."""
    import spacy

    if (folder / "config.cfg").is_file():
        components = spacy.util.load_config(folder / "config.cfg")["nlp"]["pipeline"]
        return spacy.load(folder, exclude=components)
    # A bare vocabulary, or a pipeline of an earlier spaCy, whose table can still be read.
    meta = _meta(folder)
    vocabulary = folder / "vocab" if (folder / "vocab").is_dir() else folder
    if not (vocabulary / "vectors").is_file():
        raise FileNotFoundError("it has neither a config.cfg nor a table of vectors")
    nlp = spacy.blank(str(meta.get("lang", "en")), meta={"name": "vocab"} | meta)
    nlp.vocab.from_disk(vocabulary)
    return nlp


def _digest_table(nlp: Any) -> str:
    digest = hashlib.sha256(f"{nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}\n".encode())
    rows = nlp.vocab.vectors.key2row or {}
    keys = np.fromiter(sorted(rows), dtype=np.uint64, count=len(rows))
    digest.update(keys.tobytes())
    digest.update(np.fromiter((rows[key] for key in keys.tolist()), dtype=np.int64, count=len(rows)).tobytes())
    digest.update(np.ascontiguousarray(nlp.vocab.vectors.data).data.cast("B"))
    return digest.hexdigest()


_GET_GLOVE = "download glove.840B.300d.zip, or --vectors none"

# Lines that decide how wide the vectors are; a damaged one among them is outvoted.
_NUM_SAMPLED = 100
# A line of 300 numbers has about 3 kB; a binary file may have no line end at all.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_LINE = 1 << 20
# Wider than any published table; a first line that says so is no header.
_WIDEST = 10_000
_ZIP_START, _GZIP_START = b"PK\x03\x04", b"\x1f\x8b"
_LINES_BETWEEN_REPORTS = 1 << 14
_UNREADABLE = (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


def _load_glove(path: Path, member: str | None, words: Sequence[str], progress: Progress) -> WordVectors:
    """Read the vectors of words from a text file, plain, zipped or by gzip; of a word's rows the first counts."""
    table = _Table({form for word in words for form in _forms(word)}, progress)
    name, size = path.name, path.stat().st_size
    progress(f"hashing {name}", 0, size)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        start = file.read(len(_ZIP_START))
        file.seek(0)
        try:
            if start == _ZIP_START:
                with zipfile.ZipFile(file) as archive:
                    info = _text_member(archive, path, member)
                    name = f"{name}/{info.filename}"
                    with io.BufferedReader(archive.open(info), _LONGEST_LINE) as stream:  # type: ignore[type-var]
                        table.read(stream, name, info.file_size)
            elif member is not None:
                raise DataError(f"{path} is not a zip file that could hold {member}", _GET_GLOVE)
            elif start.startswith(_GZIP_START):
                with gzip.open(file) as unpacked:
                    table.read(io.BufferedReader(unpacked, _LONGEST_LINE), name, None)
            else:
                table.read(file, name, size)
        except _UNREADABLE as error:
            raise DataError(f"cannot unpack {path}: {error}", _DOWNLOAD_AGAIN) from error

    def vector_of(word: str) -> Vector | None:
        return next((table.vectors[form] for form in _forms(word) if form in table.vectors), None)

    matrix, missing = _look_up(words, table.width, vector_of)
    odd = tuple(f"{name}: {what}: {count:,}" for what, count in table.odd.items())
    return WordVectors(matrix, name, digest, missing, odd)


def _forms(word: str) -> tuple[bytes, bytes]:
    """Spell a word as it is written, and in lower case for files that have nothing else."""
    return word.encode("utf-8", "surrogatepass"), word.lower().encode("utf-8", "surrogatepass")


def _text_member(archive: zipfile.ZipFile, path: Path, member: str | None) -> zipfile.ZipInfo:
    """Choose the text file inside a zip."""
    texts = list(filter(_is_text, archive.infolist()))
    chosen = [info for info in texts if member is None or info.filename == member]
    if len(chosen) == 1:
        return chosen[0]
    names = listed((info.filename for info in texts), len(texts)) or "no .txt file"
    if not texts or member is not None:
        raise DataError(f"{path} holds {names}" + (f", not {member}" if member else ""), _DOWNLOAD_AGAIN)
    raise DataError(f"{path} holds several files: {names}", f"name one: --vectors {path}/{texts[-1].filename}")


def _is_text(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a text file of its own: macOS leaves ``__MACOSX/._NAME`` beside each."""
    path = PurePosixPath(info.filename)
    return path.suffix in (".txt", ".vec") and path.parts[0] != "__MACOSX" and not path.name.startswith("._")


class _Table:
    """The rows of a text file that are wanted; ``vectors`` [E] by word, E is ``width``, ``odd`` counts what is odd."""

    def __init__(self, wanted: Collection[bytes], progress: Progress) -> None:
        self.width = 0
        self.vectors: dict[bytes, Vector] = {}
        self.odd: Counter[str] = Counter()
        self._wanted = wanted
        self._progress = progress

    def read(self, stream: IO[bytes], name: str, size: int | None) -> None:
        """Read the whole file; a DataError names rows that are wanted and damaged."""
        lines = _lines(stream, name)
        sample = list(islice(lines, _NUM_SAMPLED))
        declared, self.width = _shape(sample, name)
        faults: list[str] = []
        num_bytes, num_rows, line = 0, 0, b""
        for number, line in enumerate(chain(sample, lines), start=1):
            num_bytes += len(line)
            if number % _LINES_BETWEEN_REPORTS == 0:
                self._progress(f"reading {name}", num_bytes, size)
            word, *rest = line.split(None, 1) or [b""]
            if not word or (number == 1 and declared is not None):
                continue
            num_rows += 1
            if line.count(b" ") != self.width and len(rest[0].split() if rest else rest) < self.width:
                self.odd[f"rows with fewer than {self.width} numbers"] += 1
            if word in self._wanted:
                try:
                    vector = _vector(line, self.width)
                except ValueError as error:
                    if word not in self.vectors:
                        faults.append(f"line {number:,} ({word.decode('utf-8', 'replace')}) {error}")
                    continue
                if vector is not None and word in self.vectors:
                    self.odd["words that it has more than once, of which the first counts"] += 1
                elif vector is not None:
                    self.vectors[word] = vector
        if not line.endswith(b"\n") and len(line.split()) <= self.width:
            faults.append(f"its last line ({number:,}) is cut off")
        if declared is not None and declared != num_rows:
            faults.append(f"it has {num_rows:,} rows where its first line says {declared:,}")
        if faults:
            is_cut = "cut off" in faults[-1] or (declared or 0) > num_rows
            hint = _DOWNLOAD_AGAIN if is_cut else "correct these lines, or --vectors none"
            raise DataError(f"{name} is damaged: {listed(faults, len(faults))}", hint)
        self._progress(f"reading {name}", num_bytes, num_bytes)


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE), b"")):
        if number == 0 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{name} is UTF-16 text", f"iconv -f utf-16 -t utf-8 {name} > NEW, and --vectors NEW")
        if len(line) == _LONGEST_LINE:
            raise DataError(f"{name} is not a text file of word vectors: a line is longer than 1 MB", _GET_GLOVE)
        while line.startswith(_BYTE_ORDER_MARK):  # several, and further on too, where files were put together
            line = line.removeprefix(_BYTE_ORDER_MARK)
        yield line


def _shape(sample: list[bytes], name: str) -> tuple[int | None, int]:
    """Tell the number of rows, if the first line states it as word2vec's does, and the width of the vectors."""
    if not sample:
        raise DataError(f"{name} is empty", _DOWNLOAD_AGAIN)
    header = sample[0].split()
    begin = sample[0][:40].decode("ascii", "backslashreplace").strip()
    no_table = DataError(f"{name} is not a text file of word vectors: it begins with {begin!r}", _GET_GLOVE)
    if any(b"\0" in line for line in sample) or sum(map(_is_binary, sample)) > len(sample) // 2:
        kind = "word2vec's binary form" if len(header) == 2 and all(map(bytes.isdigit, header)) else "a binary file"
        hint = "write it as text with gensim's KeyedVectors.save_word2vec_format(NEW), and --vectors NEW"
        raise DataError(f"{name} is {kind}, which is not read", hint)
    if len(header) == 2 and all(field.isdigit() and len(field) < 20 for field in header):
        if 1 < int(header[1]) <= _WIDEST:
            return int(header[0]), int(header[1])
        raise no_table
    width = Counter(len(line.split()) - 1 for line in sample).most_common(1)[0][0]
    for line in sample if 1 < width <= _WIDEST else ():
        with suppress(ValueError):
            if _vector(line, width) is not None:
                return None, width
    raise no_table


def _is_binary(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def _vector(line: bytes, width: int) -> Vector | None:
    """Read a row's numbers; None if what stands before them is several words; a ValueError says what is wrong."""
    # Some files have spaces inside their words, so the numbers are counted from the end.
    word, *numbers = line.rstrip().rsplit(None, width)
    if len(numbers) < width:
        raise ValueError(f"has {len(numbers)} of {width} numbers")
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(number) for number in numbers], dtype=np.float32)
    except ValueError:
        raise ValueError("has something else among its numbers") from None
    if not np.isfinite(vector).all():
        raise ValueError("has a number that is not finite")
    inner = word.split()[1:]
    if not inner:
        return vector
    try:
        [float(part) for part in inner]
    except ValueError:
        return None
    raise ValueError(f"has {len(inner) + width} of {width} numbers")
