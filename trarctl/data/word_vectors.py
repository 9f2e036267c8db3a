"""Word vectors for the first values of the word embedding: from spaCy, from GloVe text, or none."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trarctl.data.glove import read_glove
from trarctl.data.progress import Progress, no_progress
from trarctl.data.raw_splits import listed
from trarctl.errors import DataError

NONE, AUTO = "none", "auto"

# Looked for in this order; the first is what the published checkpoints were trained with.
_PREFERRED_PACKAGES = ("en_vectors_web_lg", "en_core_web_lg", "en_core_web_md")
_GET_SOME = "python -m spacy download en_core_web_lg, or --vectors none"
_DOWNLOAD_AGAIN = "download it again, or --vectors none"

_WORDS_BETWEEN_REPORTS = 1 << 10

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WordVectors:
    """A vector for each word of a vocabulary.

    Attributes:
        matrix: row i belongs to word i, zero where there is none, [V, E] float32.
        source: where they come from, for a person to read.
        digest: SHA-256 of the file's bytes; of a spaCy source, of its name, version, keys and table. Hexadecimal.
        found: words that have a vector.
        missing: words that have none, in the vocabulary's order.
    """

    matrix: Matrix
    source: str
    digest: str
    found: int
    missing: tuple[str, ...]


def load_vectors(source: str, words: Sequence[str], progress: Progress = no_progress) -> WordVectors | None:
    """Look up the vectors of a vocabulary's words.

    The words that stand for padding, unknown words and a sentence are looked up like any other, as the published
    checkpoints have it.

    Args:
        source: ``none``; ``auto`` for what ``installed_vectors`` names; an installed spaCy package; a folder written by
            ``nlp.to_disk`` or ``nlp.vocab.to_disk``; a GloVe text file or a zip of it, with ``/MEMBER`` behind the
            zip's name if it holds several.
        words: V of them, in index order.
        progress: told the bytes read, or the words looked up.

    Returns:
        Vectors as wide as the source has them, or None without a source.

    Raises:
        DataError: there is no such source, it cannot be read, rows that are needed are damaged, or no word is found.
    """
    if source == AUTO:
        source = installed_vectors()
    if source == NONE:
        return None
    vectors = _load(source, words, progress)
    if not vectors.found:
        raise DataError(f"{vectors.source} knows none of the {len(words):,} words", "name another source: --vectors")
    wrong = [words[row] for row in np.flatnonzero(~np.isfinite(vectors.matrix).all(axis=1)).tolist()]
    if wrong:
        raise DataError(
            f"{vectors.source} has numbers that are not finite for {listed(wrong, len(wrong))}", _DOWNLOAD_AGAIN
        )
    return vectors


def installed_vectors() -> str:
    """Name the spaCy package that ``auto`` stands for, or ``none`` where no package with vectors is installed."""
    packages = _installed_packages()
    return next((name for name in (*_PREFERRED_PACKAGES, *packages) if name in packages), NONE)


def _load(source: str, words: Sequence[str], progress: Progress) -> WordVectors:
    path = Path(source)
    try:
        if path.is_dir():
            return _load_spacy(path.name, _data_folder(path), words, progress)
        if path.is_file():
            return _load_file(path, None, words, progress)
        archive = next((parent for parent in path.parents if parent.is_file()), None)
        if archive is not None:
            return _load_file(archive, path.relative_to(archive).as_posix(), words, progress)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the word vectors {source}: {error}", _DOWNLOAD_AGAIN) from error
    packages = _installed_packages()
    if source in packages:
        return _load_spacy(source, packages[source], words, progress)
    installed = f" (installed: {', '.join(packages)})" if packages else ""
    raise DataError(
        f"no word vectors {source!r}: neither a file, nor a folder, nor an installed spaCy package{installed}",
        _GET_SOME,
    )


def _load_file(path: Path, member: str | None, words: Sequence[str], progress: Progress) -> WordVectors:
    glove = read_glove(path, member, {form for word in words for form in _forms(word)}, progress)
    matrix = np.zeros((len(words), glove.width), dtype=np.float32)
    missing = []
    for row, word in enumerate(words):
        vector = next((glove.vectors[form] for form in _forms(word) if form in glove.vectors), None)
        if vector is None:
            missing.append(word)
        else:
            matrix[row] = vector
    return WordVectors(matrix, glove.name, glove.digest, found=len(words) - len(missing), missing=tuple(missing))


def _forms(word: str) -> tuple[bytes, bytes]:
    """Spell a word as it is written, and in lower case for files that have nothing else."""
    return word.encode("utf-8", "surrogatepass"), word.lower().encode("utf-8", "surrogatepass")


def _installed_packages() -> dict[str, Path]:
    """Find the installed spaCy packages with vectors, and their data, without importing spaCy.

    A package goes by the name of its module and by that of its pipeline, where they differ.
    """
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
            matrix = np.zeros((len(words), nlp.vocab.vectors.shape[1]), dtype=np.float32)
            missing = []
            for row, word in enumerate(words):
                # The average of the word's tokens: "cannot" is two of them.
                document = nlp.make_doc(word)
                if document.has_vector:
                    matrix[row] = document.vector
                else:
                    missing.append(word)
                if row % _WORDS_BETWEEN_REPORTS == 0:
                    progress(f"looking up words in {name}", row, len(words))
            digest = _digest_table(nlp)
        except ImportError as error:
            raise DataError(f"spaCy cannot be imported: {error}", "pip install spacy, or --vectors none") from error
        except DataError:
            raise
        except Exception as error:
            # A damaged folder makes spaCy fail in any way whatever.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(f"cannot read the spaCy folder {folder}: {reason}", _DOWNLOAD_AGAIN) from error
    progress(f"looking up words in {name}", len(words), len(words))
    source = f"{name} (spaCy {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']})"
    return WordVectors(matrix, source, digest, found=len(words) - len(missing), missing=tuple(missing))


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
