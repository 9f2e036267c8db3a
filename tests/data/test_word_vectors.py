"""Word vectors from every kind of source, and what is said about sources that are no good."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import spacy
from spacy.language import Language

from trarctl.data import word_vectors
from trarctl.data.word_vectors import installed_vectors, load_vectors
from trarctl.errors import DataError

WORDS = ("PAD", "UNK", "CLS", "red", "cube", "zebra")
TEXT = "red 1 2 3\nRED 9 9 9\nunk 4 5 6\ncube 0.5 -1e-2 7\nPAD -1 -1 -1\nred 8 8 8\n"
EXPECTED = [[-1, -1, -1], [4, 5, 6], [0, 0, 0], [1, 2, 3], [0.5, -0.01, 7], [0, 0, 0]]


def _text_file(folder: Path, content: str | bytes, name: str = "glove.3d.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def pipeline() -> Language:
    nlp = spacy.blank("en")
    for word, vector in (("red", [1, 2, 3]), ("can", [2, 0, 0]), ("not", [0, 4, 0]), ("PAD", [7, 7, 7])):
        nlp.vocab.set_vector(word, np.array(vector, dtype=np.float32))
    nlp.add_pipe("sentencizer")
    return nlp


@pytest.fixture
def package(pipeline: Language, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pipeline laid out as an installed package: its data one level down, its module under another name."""
    pipeline.meta["name"], pipeline.meta["version"] = "tiny_md", "1.2.3"
    module = tmp_path / "site" / "tiny_pipeline"
    module.mkdir(parents=True)
    pipeline.to_disk(module / "en_tiny_md-1.2.3")
    _text_file(module, "", "__init__.py")
    _text_file(module, (module / "en_tiny_md-1.2.3" / "meta.json").read_bytes(), "meta.json")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), str(tmp_path / "nowhere")])
    return "tiny_pipeline"


def test_text_file(tmp_path: Path) -> None:
    path = _text_file(tmp_path, TEXT)
    vectors = load_vectors(str(path), WORDS)
    assert vectors is not None
    assert vectors.matrix.dtype == np.float32
    assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))
    assert vectors.source == "glove.3d.txt"
    assert vectors.digest == hashlib.sha256(TEXT.encode()).hexdigest()
    assert vectors.found == 4
    assert vectors.missing == ("CLS", "zebra")


@pytest.mark.parametrize(
    "content",
    [
        "6 3\n" + TEXT,
        TEXT.replace("\n", " \r\n"),
        TEXT.removesuffix("\n"),
        TEXT.replace(" ", "\t"),
        TEXT.replace("red ", "red\t").replace("cube ", "cube   ").replace("unk 4 5 6", " unk 4  5\t6  "),
        "6 3\n" + TEXT + "\n \n",
        "\ufeff" + TEXT,
        "\ufeff\ufeff" + TEXT.replace("\ncube ", "\n\ufeffcube "),
        ". . . 1 1 1\nred herring 5 5 5\n" + TEXT + "\x85 2 2 2\ncube 3 3\n" + "x 1\n",
    ],
    ids=[
        "word2vec header",
        "carriage returns",
        "no last line end",
        "tabs",
        "blanks of all kinds",
        "empty lines",
        "byte order mark",
        "byte order marks of files put together",
        "spaces in words",
    ],
)
def test_quirks_of_text_files(tmp_path: Path, content: str) -> None:
    vectors = load_vectors(str(_text_file(tmp_path, content)), WORDS)
    assert vectors is not None
    assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))


def _warnings(tmp_path: Path, content: str, words: tuple[str, ...] = WORDS) -> tuple[str, ...]:
    vectors = load_vectors(str(_text_file(tmp_path, content)), words)
    assert vectors is not None
    return vectors.warnings


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    assert _warnings(tmp_path, TEXT.removesuffix("red 8 8 8\n")) == ()
    assert _warnings(tmp_path, TEXT) == (
        "glove.3d.txt: words that it has more than once, of which the first counts: 1",
    )
    assert _warnings(tmp_path, "x 1 2\ny\n" + TEXT.removesuffix("red 8 8 8\n")) == (
        "glove.3d.txt: rows with fewer than 3 numbers: 2",
    )
    # Rows of several words are no second "red".
    assert _warnings(tmp_path, "red herring 1 2 3\nred red 1 2 3\nunk 1 2 4\nred 1 2 3\ncube 1 2 3\n") == ()
    assert _warnings(tmp_path, "red 1 2 3\nunk 0 0 0\ncube 1 2 4\n") == (
        "glove.3d.txt: words that it knows, but with nothing but zeros: 1",
    )
    assert _warnings(tmp_path, "red 1 2 3\nunk 1 2 4\n") == (
        "glove.3d.txt knows 2 of the 6 words (33.3 %), the others start from zeros",
    )


def test_gzip(tmp_path: Path) -> None:
    path = _text_file(tmp_path, gzip.compress(TEXT.encode()), "glove.txt.gz")
    vectors = load_vectors(str(path), WORDS)
    assert vectors is not None
    assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot unpack"):
        load_vectors(str(path), WORDS)


def test_what_a_mac_leaves_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "mac.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("glove/._glove.txt", b"\0")
        archive.writestr("__MACOSX/glove/._glove.txt", b"\0")
        archive.writestr("glove/glove.txt", TEXT)
    vectors = load_vectors(str(path), WORDS)
    assert vectors is not None
    assert vectors.source == "mac.zip/glove/glove.txt"
    assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))


def test_zip_file_with_one_text(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "not vectors")
        archive.writestr("glove.3d.txt", TEXT)
    vectors = load_vectors(str(path), WORDS)
    assert vectors is not None
    assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))
    assert vectors.source == "glove.zip/glove.3d.txt"
    assert vectors.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_zip_file_with_several_texts(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small/glove.2d.txt", "red 1 2\n")
        archive.writestr("glove.3d.txt", TEXT)
    with pytest.raises(DataError, match=r"holds several files: small/glove\.2d\.txt, glove\.3d\.txt") as caught:
        load_vectors(str(path), WORDS)
    assert caught.value.hint == f"name one: --vectors {path}/glove.3d.txt"
    vectors = load_vectors(f"{path}/small/glove.2d.txt", WORDS)
    assert vectors is not None
    assert vectors.matrix[3].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"glove\.3d\.txt, not other\.txt"):
        load_vectors(f"{path}/other.txt", WORDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("red 1 2 3\ncube 1 2\nx 1 2 3\n", r"damaged: line 2 \(cube\) has 2 of 3 numbers"),
        ("red 1 2 3\ncube 1 2 3 4\nx 1 2 3\n", r"damaged: line 2 \(cube\) has 4 of 3 numbers"),
        ("red 1 2 3\ncube\nx 1 2 3\n", r"damaged: line 2 \(cube\) has 0 of 3 numbers"),
        ("red 1 2 3\ncube 1 nan 3\n", r"damaged: line 2 \(cube\) has a number that is not finite"),
        ("red 1 2 3\ncube 1 2e99 3\n", r"damaged: line 2 \(cube\) has a number that is not finite"),
        ("red 1 2 3\ncube 1 x 3\n", r"damaged: line 2 \(cube\) has something else among its numbers"),
        ("red 1 x 3\ncube 1 x 3\nx 1 2 3\n", r"damaged: line 1 \(red\) has .*, line 2 \(cube\) has "),
        ("red 1 2 3\nx 1 2 3\ny 1", r"damaged: its last line \(3\) is cut off"),
        ("4 3\nred 1 2 3\nx 1 2 3\n", "damaged: it has 2 rows where its first line says 4"),
        ("4 99999999\nred 1 2 3\n", "is not a text file of word vectors"),
        ('{"red": [1, 2, 3]}', "is not a text file of word vectors"),
        ("red,1,2,3\n", "is not a text file of word vectors: it begins with 'red,1,2,3'"),
        ("red 0,1 0,2\n", "is not a text file of word vectors: it begins with 'red 0,1 0,2'"),
        (b"2 3\n" + b"red " + bytes(8) + b"\0\0\x80\x3f\n", "is word2vec's binary form, which is not read"),
        (b"\xba\x16\x4f\x2f" + bytes(90), "is a binary file, which is not read"),
        (TEXT.encode("utf-16"), "is UTF-16 text"),
        ("red 1 2 3\ncube 1 2 3\n", "has the same numbers for all of the 2 words found"),
        ("red 0 0 0\ncube 0 0 -0.0\n", "has nothing but zeros: 0 of the 2 words found have numbers"),
        (b"\x80\x04\x95" * 1000, "is a binary file, which is not read"),
        ("blue 1 2 3\n", "glove.3d.txt knows none of the 6 words"),
    ],
)
def test_text_files_that_are_no_good(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_vectors(str(_text_file(tmp_path, content)), WORDS)
    assert caught.value.hint is not None
    assert "--vectors" in caught.value.hint


def test_a_file_without_line_ends_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_vectors, "_LONGEST_LINE", 1000)
    with pytest.raises(DataError, match="a line is longer than"):
        load_vectors(str(_text_file(tmp_path, b"\1" * 5000)), WORDS)


def test_damaged_zip_files(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("glove.3d.txt", TEXT * 200)
    whole = path.read_bytes()
    for number in range(60):
        damaged = bytearray(whole)
        damaged[len(whole) * number // 60] ^= 0x55
        path.write_bytes(damaged)
        # A flipped bit may hit what nobody reads; it must not go further than one message.
        try:
            vectors = load_vectors(str(path), WORDS)
        except DataError:
            continue
        assert vectors is not None
        assert np.array_equal(vectors.matrix, np.array(EXPECTED, dtype=np.float32))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot unpack"):
        load_vectors(str(path), WORDS)


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = _text_file(tmp_path, TEXT)
    load_vectors(str(path), WORDS, lambda task, done, total: told.append((task, done, total)))
    assert told[-1] == ("reading glove.3d.txt", len(TEXT), len(TEXT))


def test_words_of_a_spacy_folder(pipeline: Language, tmp_path: Path) -> None:
    pipeline.to_disk(tmp_path / "saved")
    words = (*WORDS, "cannot")
    vectors = load_vectors(str(tmp_path / "saved"), words)
    assert vectors is not None
    assert vectors.matrix.tolist() == [pipeline(word).vector.tolist() for word in words]
    assert vectors.matrix[-1].tolist() == [1, 2, 0]
    assert vectors.source == "saved (spaCy en_pipeline 0.0.0)"
    assert vectors.found == 3
    assert vectors.missing == ("UNK", "CLS", "cube", "zebra")


def test_words_of_a_bare_vocabulary_and_of_an_old_pipeline(pipeline: Language, tmp_path: Path) -> None:
    pipeline.to_disk(tmp_path / "whole")
    pipeline.vocab.to_disk(tmp_path / "bare")
    (tmp_path / "old").mkdir()
    pipeline.vocab.to_disk(tmp_path / "old" / "vocab")
    _text_file(tmp_path / "old", json.dumps({"lang": "en", "name": "web_lg", "version": "2.1.0"}), "meta.json")
    expected = load_vectors(str(tmp_path / "whole"), WORDS)
    bare, old = load_vectors(str(tmp_path / "bare"), WORDS), load_vectors(str(tmp_path / "old"), WORDS)
    assert expected is not None
    assert bare is not None
    assert old is not None
    assert bare.matrix.tolist() == old.matrix.tolist() == expected.matrix.tolist()
    assert old.source == "old (spaCy en_web_lg 2.1.0)"


def test_spacy_digest_knows_the_table_and_not_the_place(pipeline: Language, tmp_path: Path) -> None:
    def digest(name: str) -> str:
        pipeline.to_disk(tmp_path / name)
        vectors = load_vectors(str(tmp_path / name), WORDS)
        assert vectors is not None
        return vectors.digest

    first = digest("first")
    assert digest("second") == first
    pipeline.vocab.set_vector("red", np.array([1, 2, 4], dtype=np.float32))
    assert digest("third") != first


def test_words_of_a_package(package: str) -> None:
    vectors = load_vectors(package, WORDS)
    by_pipeline = load_vectors("en_tiny_md", WORDS)
    assert vectors is not None
    assert by_pipeline is not None
    assert vectors.source == "tiny_pipeline (spaCy en_tiny_md 1.2.3)"
    assert vectors.matrix[3].tolist() == [1, 2, 3]
    assert by_pipeline.digest == vectors.digest


def test_auto_takes_what_is_installed(package: str, pipeline: Language, tmp_path: Path) -> None:
    assert installed_vectors() == package
    vectors = load_vectors("auto", WORDS)
    assert vectors is not None
    assert vectors.source == "tiny_pipeline (spaCy en_tiny_md 1.2.3)"
    pipeline.meta["name"] = "core_web_lg"
    module = tmp_path / "site" / "zz_core_web_lg"
    pipeline.to_disk(module)
    _text_file(module, "", "__init__.py")
    assert installed_vectors() == "en_core_web_lg"


def test_auto_where_nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spacy.blank("en").to_disk(tmp_path / "without_vectors")
    _text_file(tmp_path / "without_vectors", "", "__init__.py")
    _text_file(tmp_path, "{", "meta.json")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert installed_vectors() == "none"
    assert load_vectors("auto", WORDS) is None
    assert load_vectors("none", WORDS) is None


def test_a_pipeline_without_vectors(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "plain")
    with pytest.raises(DataError, match="pipeline plain has no word vectors") as caught:
        load_vectors(str(tmp_path / "plain"), WORDS)
    assert caught.value.hint is not None
    assert "spacy download" in caught.value.hint


def test_numbers_of_spacy_that_are_not_finite(pipeline: Language, tmp_path: Path) -> None:
    pipeline.vocab.set_vector("red", np.array([1, np.nan, 3], dtype=np.float32))
    pipeline.to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="numbers that are not finite for red"):
        load_vectors(str(tmp_path / "saved"), WORDS)


@pytest.mark.parametrize("name", ["vocab/vectors", "vocab/key2row", "vocab/strings.json", "config.cfg", "tokenizer"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"[1, 2"])
def test_damaged_spacy_folders(pipeline: Language, tmp_path: Path, name: str, content: bytes) -> None:
    pipeline.to_disk(tmp_path / "saved")
    (tmp_path / "saved" / name).write_bytes(content)
    with pytest.raises(DataError, match="saved") as caught:
        load_vectors(str(tmp_path / "saved"), WORDS)
    assert "\n" not in caught.value.what


def test_folders_that_are_none_of_spacys(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a config\.cfg nor a table of vectors"):
        load_vectors(str(tmp_path), WORDS)


@pytest.mark.parametrize("source", ["en_core_web_xx", "glove.txt", "a\0b", "x" * 5000])
def test_sources_that_do_not_exist(package: str, source: str) -> None:
    with pytest.raises(DataError, match="no word vectors|cannot read") as caught:
        load_vectors(source, WORDS)
    assert caught.value.hint is not None
    assert "--vectors none" in caught.value.hint
    if source == "glove.txt":
        assert f"installed: {package}, en_tiny_md" in caught.value.what
