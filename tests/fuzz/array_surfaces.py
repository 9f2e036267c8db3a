"""Features, what a prepared folder holds, its manifest, and word vectors."""

from __future__ import annotations

import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np

from tests.data.preparing import GOLDEN
from tests.fuzz.bases import small_run, write_small_clevr, write_small_vqa
from tests.fuzz.harness import UNKNOWN, Effect, Mutation, Ran, Surface, call
from tests.fuzz.mutators import (
    Mutator,
    damage_bytes,
    edit_json,
    mutate_array,
    mutate_document,
    odd_json,
    remove,
    replace_file,
    rewrite_json,
    rewrite_npy,
)
from trarctl.data.prepared import open_prepared

NO_FEATURES = "no features can be read from this"
# What an array of features cannot be without somebody having made a mistake.
DAMAGED_FEATURES = {
    *("not finite", "zeros", "constant", "transposed", "longer", "flat", "deeper", "empty", "text", "structured"),
    *("scalar", "as ?", "as <c16"),
}


class Features(Surface):
    """One file of features an image."""

    dataset: ClassVar[str] = "vqa"
    grid: ClassVar[int] = 4
    pack: ClassVar[str | None] = None

    def build(self) -> None:
        """Take the golden features of a few questions' images."""
        feats = self.base / "in/feats"
        images = write_small_vqa(self.base / "in/raw")
        for path in (GOLDEN / "mini_vqa/feats").rglob("*.npy"):
            if int(path.name[-20:-8]) in images:
                (feats / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, feats / path.parent.name / path.name)

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to files, arrays and whole folders."""
        return (
            lambda random, folder: damage_bytes(random, self._file(random, folder)),
            lambda random, folder: replace_file(random, self._file(random, folder)),
            *(self._array, self._array, self._array, self._array, self._rewritten, self._pickled, self._archive),
            *(self._all, self._all, self._name, self._folders),
        )

    def _file(self, random: Random, folder: Path) -> Path:
        return random.choice([path for path in sorted((folder / "feats").rglob("*.np[yz]")) if path.is_file()])

    def _array(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder)
        try:
            array = load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return Mutation("as damaged before")
        changed, kind = mutate_array(random, array)
        save(path, changed)
        is_damage = kind in DAMAGED_FEATURES and (changed.shape, changed.dtype) != (array.shape, array.dtype)
        is_damage |= kind in ("not finite", "zeros", "constant")
        return Mutation(f"one array {kind}", Effect.DAMAGE if is_damage else Effect.ANY)

    def _rewritten(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder)
        if path.suffix == ".npz":
            np.savez_compressed(path, x=load(path), comment=np.array("an image"))
            return Mutation("compressed, with another member", Effect.NONE)
        return Mutation(f"written as {rewrite_npy(random, path)[1]}", Effect.NONE)

    def _pickled(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder)
        array = np.array([[{"a": 1}, "x"]], dtype=object)
        np.savez(path, x=array) if path.suffix == ".npz" else np.save(path, array)
        return Mutation("pickled objects", Effect.DAMAGE)

    def _archive(self, random: Random, folder: Path) -> Mutation:
        """Change the zip around an array, or the header of one."""
        path = self._file(random, folder)
        if path.suffix == ".npy":
            content = path.read_bytes()
            old = content[10:128]
            new = random.choice((
                old.replace(b"(", b"(9", 1), old.replace(b"<f4", b"<f8"), old.replace(b"False", b"True "),
                old.replace(b"descr", b"Descr"), old.replace(b"{", b"["), old.replace(b"<f4", b"|O "),
                old.replace(b"(", b"(10**9,", 1)[: len(old)], b"{" * len(old), old.replace(b"(", b"(-", 1)[: len(old)],
            ))  # fmt: skip
            path.write_bytes(content[:10] + new[: len(old)].ljust(len(old)) + content[128:])
            return Mutation("header changed")
        kind = random.choice(("other name", "twice", "no members", "no array"))
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            inner = io.BytesIO()
            np.save(inner, load(path))
            if kind == "other name":
                archive.writestr("features.npy", inner.getvalue())
            elif kind == "twice":
                archive.writestr("x.npy", inner.getvalue())
                archive.writestr("X.npy", inner.getvalue())
            elif kind == "no array":
                archive.writestr("x.npy", b"text")
        path.write_bytes(stream.getvalue())
        return Mutation(f"archive with {kind}", Effect.NONE if kind in ("twice", "other name") else Effect.DAMAGE)

    def _all(self, random: Random, folder: Path) -> Mutation:
        """Do the same to every file, as a wrong extraction does."""
        ways: dict[str, Callable[[Any], Any]] = {
            "zeros": np.zeros_like,
            "transposed": lambda array: np.ascontiguousarray(array.T),
            "channel first": lambda array: array.T.reshape(array.shape[1], -1, 1),
            "of a finer grid": lambda array: np.concatenate([array] * 4),
            "constant rows": lambda array: np.repeat(array[:1], len(array), axis=0),
            "the same": lambda array: np.ones_like(array) * np.arange(1, len(array) + 1)[:, None],
            "not finite": lambda array: array * np.nan,
        }
        kind = random.choice(sorted(ways))
        for path in sorted((folder / "feats").rglob("*.np[yz]")):
            try:
                save(path, ways[kind](load(path)))
            except (OSError, ValueError, KeyError, EOFError, IndexError, TypeError, zipfile.BadZipFile):
                return Mutation("as damaged before")
        return Mutation(f"all arrays {kind}", Effect.DAMAGE)

    def _name(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder)
        kind = random.choice(("gone", "other suffix", "upper case", "extra file", "extra folder"))
        if kind == "gone":
            path.unlink()
        elif kind == "other suffix":
            path.rename(path.with_suffix(".bak"))
        elif kind == "upper case":
            path.rename(path.with_name(path.name.upper()))
        elif kind == "extra file":
            (path.parent / random.choice(("README.txt", "x\udcff.npy", "999999999999999999999.npz"))).write_text("x")
        else:
            (path.parent / "more").mkdir(exist_ok=True)
        return Mutation(f"file {kind}", Effect.ANY if kind.startswith("extra") else Effect.DAMAGE)

    def _folders(self, random: Random, folder: Path) -> Mutation:
        """Take one set's files for another's where the names allow it."""
        folders = sorted(path for path in (folder / "feats").iterdir() if path.is_dir())
        one, other = random.sample(folders, 2)
        for path in sorted(other.iterdir()):
            twin = one / path.name
            if twin.is_file():
                shutil.copyfile(twin, path)
        return Mutation("the features of another set", Effect.DAMAGE)

    def run(self, work: Path, random: Random) -> Ran:
        """Prepare."""
        pack = ["--pack", self.pack] if self.pack else []
        pack += ["--min-answer-count", 0]
        return call(
            *("prepare", self.dataset, "--raw", work / "in/raw", "--features", work / "in/feats"),
            *("--grid", self.grid, "--vectors", "none", "--out", work / "out/p", *pack),
        )

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that a refused preparation leaves no manifest."""
        return "refused, but a manifest was written" if ran.code and (work / "out/p/manifest.json").exists() else ""

    def value(self, work: Path, ran: Ran) -> object:
        """Read the features of each image."""
        features = open_prepared(work / "out/p").features
        rows = np.arange(features.num_images)
        images = [(features.image_set(row), features.image_id(row)) for row in rows.tolist()]
        arrays = features.read(rows).astype(np.float32)
        return {image: array.tobytes() for image, array in zip(images, arrays, strict=True)}

    def expected(self, work: Path) -> object:
        """Read each file the plain way, with zeros after its last row."""
        found = {}
        features = open_prepared(work / "out/p").features
        for row in range(features.num_images):
            image_set, number = features.image_set(row), features.image_id(row)
            folder = work / "in/feats" / image_set
            path = folder / (f"{number}.npz" if self.dataset == "clevr" else f"COCO_{image_set}_{number:012d}.jpg.npy")
            try:
                array = load(path)
                cells = np.zeros((self.grid**2, features.width), dtype=features.dtype)
                cells[: len(array)] = array[: len(cells)]
            except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, zipfile.BadZipFile):
                return NO_FEATURES
            found[image_set, number] = cells.astype(np.float32).tobytes()
        return found


class PackedFeatures(Features):
    """The same, packed."""

    name = "features-packed"
    pack = "float16"


class PlainFeatures(Features):
    """Read where they are."""

    name = "features-npy"


class NpzFeatures(Features):
    """CLEVR's, packed as they are."""

    name = "features-npz"
    dataset = "clevr"
    grid = 5
    pack = "as-found"

    def build(self) -> None:
        """Take the golden features of a few questions' images."""
        write_small_clevr(self.base / "in/raw")
        for path in (GOLDEN / "mini_clevr/feats").rglob("*.npz"):
            target = self.base / "in/feats" / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def load(path: Path) -> np.ndarray[Any, Any]:
    """Load the features of a file, without pickles."""
    loaded = np.load(path, allow_pickle=False)
    names = [] if path.suffix == ".npy" else list(loaded)
    # As documented: the array x, or the only one.
    array = loaded if path.suffix == ".npy" else loaded["x" if "x" in names or len(names) != 1 else names[0]]
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{array.dtype} are no features")
    return array


def save(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Save features by the file's ending."""
    np.savez(path, x=array) if path.suffix == ".npz" else np.save(path, array)


class Prepared(Surface):
    """Every file of a prepared folder, read by ``eval``."""

    name = "prepared"

    def build(self) -> None:
        """Copy the prepared folder of the small run."""
        shutil.copytree(small_run().prepared, self.base / "in/prepared")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to arrays and lists."""
        return (
            lambda random, folder: damage_bytes(random, self._file(random, folder)),
            lambda random, folder: replace_file(random, self._file(random, folder)),
            *(self._array, self._array, self._array, self._json, self._gone, self._extra),
        )

    def _file(self, random: Random, folder: Path, pattern: str = "*.*") -> Path:
        files = [path for path in sorted((folder / "prepared").rglob(pattern)) if path.is_file()]
        return random.choice([path for path in files if path.name != "manifest.json"])

    def _array(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder, "*.npy")
        try:
            array = np.load(path)
        except (OSError, ValueError, EOFError):
            return Mutation("as damaged before")
        changed, kind = mutate_array(random, array)
        np.save(path, changed)
        is_same_form = changed.shape == array.shape and changed.dtype == array.dtype
        is_index = path.stem.endswith((".rows", "tokens", "target_answer", "codes", "order", "offsets", "type"))
        is_damage = not is_same_form or (is_index and kind in ("huge", "negative"))
        is_damage |= path.parent.name == "features" and kind in ("zeros", "constant", "not finite")
        where = f"{path.parent.name}/{path.name.partition('.')[0]}"
        return Mutation(f"{where} {kind}", Effect.DAMAGE if is_damage else Effect.ANY)

    def _json(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder, "*.json")
        mutation = edit_json(path, lambda document: mutate_document(random, document))
        return Mutation(f"{path.name} {mutation.what}", Effect.DAMAGE if path.name != "backbone.json" else Effect.ANY)

    def _gone(self, random: Random, folder: Path) -> Mutation:
        path = self._file(random, folder)
        target = random.choice((path, path.parent))
        remove(target)
        return Mutation(f"{target.name} gone", Effect.DAMAGE)

    def _extra(self, random: Random, folder: Path) -> Mutation:
        (folder / "prepared" / random.choice(("val/note.txt", "features/old.npy", "x\udcff", ".DS_Store"))).write_text(
            "x"
        )
        return Mutation("another file", Effect.NONE)

    def run(self, work: Path, random: Random) -> Ran:
        """Score the validation split."""
        ckpt = small_run().runs / "tiny/checkpoints/epoch-002.safetensors"
        scores = ["--save-scores", work / "out/scores.npz"]
        return call(
            "eval", "--ckpt", ckpt, "--data", work / "in/prepared", "--json", work / "out/e.json", *scores, "-q"
        )

    def value(self, work: Path, ran: Ran) -> object:
        """Give accuracies and scores."""
        return evaluated(work / "out")

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is there or whole."""
        return half_json(work / "out/e.json", ran)


class ManifestFile(Prepared):
    """The manifest."""

    name = "manifest"

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Change values; whatever is accepted must not change the scores."""

        def change(random: Random, folder: Path) -> Mutation:
            path = folder / "prepared/manifest.json"
            mutation = edit_json(path, lambda document: mutate_document(random, document))
            is_name = "_types" in mutation.what or "aliases" in mutation.what
            return Mutation(mutation.what, Effect.ANY if is_name else Effect.DAMAGE)

        ways = (damage_bytes, odd_json, partial(rewrite_json, may_add=False), replace_file)
        plain = [lambda random, folder, way=way: way(random, folder / "prepared/manifest.json") for way in ways]
        return (*plain, *[change] * 12)


def evaluated(out: Path) -> object:
    """Read what ``eval --json --save-scores`` wrote, without paths."""
    document = json.loads((out / "e.json").read_text())
    document.pop("checkpoint")
    with np.load(out / "scores.npz") as scores:
        return document | {"scores": np.round(scores["scores"].astype(np.float64), 4).tolist()}


def half_json(path: Path, ran: Ran) -> str:
    """Say whether a JSON file is half-written, or was written though the command refused."""
    if not path.exists():
        return "" if ran.code else f"no {path.name}"
    try:
        json.loads(path.read_text())
    except ValueError:
        return f"{path.name} is half-written"
    return ""


class Repaired(Surface):
    """A prepared folder that was damaged, prepared again: what is right is always the same."""

    name = "prepare-again"

    def build(self) -> None:
        """Prepare a small packed set."""
        write_small_clevr(self.base / "in/raw")
        shutil.copytree(GOLDEN / "mini_clevr/feats", self.base / "in/feats")
        assert self._prepare(self.base / "in").code == 0

    @staticmethod
    def _prepare(folder: Path, *more: str) -> Ran:
        return call(
            *("prepare", "clevr", "--raw", folder / "raw", "--features", folder / "feats", "--grid", 5),
            *("--vectors", "none", "--pack", "float16", "--out", folder / "p", *more),
        )

    def copy_base(self, work: Path) -> None:
        """Keep the times of files, by which a preparation knows that nothing changed."""
        shutil.copytree(self.base / "in", work / "in")
        (work / "out").mkdir()

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage what was prepared."""

        def file(random: Random, folder: Path) -> Path:
            files = [path for path in sorted((folder / "p").rglob("*.*")) if path.is_file()]
            return random.choice([path for path in files if not path.name.startswith(".")])

        def packed(random: Random, folder: Path) -> Path:
            return random.choice([path for path in sorted((folder / "p/features").iterdir()) if path.is_file()])

        def zeroed(random: Random, folder: Path) -> Mutation:
            path = packed(random, folder)
            path.write_bytes(path.read_bytes()[:128] + bytes(max(path.stat().st_size - 128, 0)))
            return Mutation("packed file zeroed", Effect.NONE)

        def damaged(random: Random, folder: Path) -> Mutation:
            path = random.choice((file, packed))(random, folder)
            size = path.stat().st_size
            mutation = damage_bytes(random, path)
            # A change of the size is seen at once; for another it takes --rebuild.
            is_seen = path.stat().st_size != size
            return Mutation(f"{path.parent.name}/{mutation.what}", Effect.NONE if is_seen else Effect.ANY)

        def gone(random: Random, folder: Path) -> Mutation:
            path = file(random, folder)
            path.unlink()
            return Mutation(f"{path.parent.name}/{path.name} gone", Effect.NONE)

        return (zeroed, damaged, damaged, damaged, gone)

    def run(self, work: Path, random: Random) -> Ran:
        """Prepare again, from scratch where that is asked for."""
        zeroed = any(
            not path.read_bytes()[128:].strip(b"\0")
            for path in (work / "in/p/features").glob("*.npy")
            if path.is_file()
        )
        return self._prepare(work / "in", *(["--rebuild"] if zeroed or random.random() < 0.5 else []))

    def may_write(self, ran: Ran) -> bool:
        """It may replace what it prepared."""
        return True

    def value(self, work: Path, ran: Ran) -> object:
        """Read all that was prepared."""
        data = open_prepared(work / "in/p")
        found: dict[str, Any] = {"words": data.vocabulary.words, "answers": data.answers}
        for name in data.split_names:
            split = data.split(name)
            found[name] = [
                *(split.question_id.tolist(), split.question_tokens.tolist()),
                data.features.read(np.asarray(split.image)).tobytes(),
            ]
        return found


class WordVectors(Surface):
    """Text files of word vectors, plain or in a zip."""

    name = "vectors"
    width = 4

    def build(self) -> None:
        """Write vectors for some words of the questions."""
        write_small_clevr(self.base / "in/raw")
        words = ["how", "many", "metal", "cube", "red", "large", "sphere", "the", "unused", "of", "brown", "gray"]
        random = np.random.default_rng(0)
        rows = [[word, *(f"{number:.4f}" for number in random.normal(size=self.width))] for word in words]
        (self.base / "in/v.txt").write_text("".join(" ".join(row) + "\n" for row in rows))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, rows and numbers."""
        return (
            lambda random, folder: damage_bytes(random, folder / "v.txt"),
            lambda random, folder: replace_file(random, folder / "v.txt"),
            *(self._form, self._form, self._row, self._row, self._row, self._all, self._zip),
        )

    @staticmethod
    def _edit(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
        path = folder / "v.txt"
        if not path.is_file() or zipfile.is_zipfile(path):
            return
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        path.write_bytes("".join(change(text.splitlines(keepends=True))).encode("utf-8", "surrogateescape"))

    def _form(self, random: Random, folder: Path) -> Mutation:
        """Write the same table another way."""
        ways: dict[str, Callable[[list[str]], list[str]]] = {
            "CR LF": lambda lines: [line.rstrip("\n") + "\r\n" for line in lines],
            "blanks at the end of lines": lambda lines: [line.rstrip("\n") + " \n" for line in lines],
            "a first line": lambda lines: [
                *["\ufeff"][: lines[0].startswith("\ufeff")],  # which has no other place
                f"{len(lines)} {self.width}\n",
                *(line.removeprefix("\ufeff") for line in lines),
            ],
            "a byte order mark": lambda lines: ["\ufeff", *lines],
            "no last line end": lambda lines: [*lines[:-1], lines[-1].rstrip("\n")],
            "exponents": lambda lines: [line.replace(".", ".0e0 ", 0) for line in lines],
            "two blanks": lambda lines: [line.replace(" ", "  ", 1) for line in lines],
            "a tab": lambda lines: [line.replace(" ", "\t", 1) for line in lines],
            "tabs": lambda lines: [line.replace(" ", "\t") for line in lines],
            "rows of other words": lambda lines: [*lines, *(f"w{number} 1 2 3 4\n" for number in range(300))],
            "a blank line at the end": lambda lines: [*lines, "\n"],
        }
        kind = random.choice(sorted(ways))
        self._edit(folder, lambda lines: ways[kind](lines) if lines else lines)
        return Mutation(f"table with {kind}", Effect.NONE)

    def _row(self, random: Random, folder: Path) -> Mutation:
        """Change one row."""
        kinds = (
            "nan",
            "inf",
            "word",
            "short",
            "long",
            "twice",
            "zeros",
            "huge",
            "comma",
            "blank",
            "tab",
            "gone",
            "hex",
        )
        kind = random.choice(kinds)

        def change(lines: list[str]) -> list[str]:
            if not lines:
                return lines
            at = random.randrange(len(lines))
            parts = lines[at].split()
            if kind in ("nan", "inf", "huge", "word", "comma", "hex") and len(parts) > 1:
                parts[-1] = {"huge": "1e39", "word": "x", "comma": "0,5", "hex": "0x1p3"}.get(kind, kind)
            elif kind == "short":
                parts = parts[:-1]
            elif kind == "long":
                parts.append("0.5")
            elif kind == "zeros":
                parts[1:] = ["0"] * self.width
            row = " ".join(parts) + "\n"
            if kind == "tab":
                row = row.replace(" ", "\t", 1)
            elif kind == "blank":
                row = row.replace(" ", "  ", 1)
            replaced = {"twice": [row, row.replace("0.", "1.")], "gone": []}.get(kind, [row])
            return lines[:at] + replaced + lines[at + 1 :]

        self._edit(folder, change)
        sound = Effect.NONE if kind in ("blank", "tab") else Effect.ANY
        return Mutation(f"one row {kind}", Effect.DAMAGE if kind in ("nan", "inf", "short", "long", "word") else sound)

    def _all(self, random: Random, folder: Path) -> Mutation:
        kind = random.choice(("zeros", "the same", "upper case", "other words"))

        def change(lines: list[str]) -> list[str]:
            rows = [line.split() for line in lines]
            if kind == "zeros":
                return [" ".join([row[0], *["0.0"] * self.width]) + "\n" for row in rows if row]
            if kind == "the same":
                return [" ".join([row[0], *["0.5"] * self.width]) + "\n" for row in rows if row]
            if kind == "upper case":
                return [line.upper() for line in lines]
            return ["w" + line for line in lines]

        self._edit(folder, change)
        return Mutation(f"all rows {kind}", Effect.DAMAGE)

    def _zip(self, random: Random, folder: Path) -> Mutation:
        path = folder / "v.txt"
        if not path.is_file():
            return Mutation("nothing")
        content = path.read_bytes()
        kind = random.choice(("one", "two", "none", "damaged", "encrypted"))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in {"one": ["v.txt"], "two": ["a.txt", "b.txt"], "none": ["v.bin"]}.get(kind, ["v.txt"]):
                archive.writestr(name, content)
        if kind == "damaged":
            changed = bytearray(path.read_bytes())
            changed[random.randrange(30, len(changed))] ^= 0xFF
            path.write_bytes(bytes(changed))
        elif kind == "encrypted":
            changed = bytearray(path.read_bytes())
            for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
                changed[changed.index(mark) + at] |= 1
            path.write_bytes(bytes(changed))
        return Mutation(f"in a zip of {kind}", {"one": Effect.NONE, "damaged": Effect.ANY}.get(kind, Effect.DAMAGE))

    def run(self, work: Path, random: Random) -> Ran:
        """Prepare; a file in a zip goes by both names, which is no other warning."""
        ran = call(
            *("prepare", "clevr", "--raw", work / "in/raw", "--without-features"),
            *("--vectors", work / "in/v.txt", "--out", work / "out/p"),
        )
        return replace(ran, err=ran.err.replace("v.txt/v.txt", "v.txt"))

    def value(self, work: Path, ran: Ran) -> object:
        """Give the vector of each word that has one."""
        data = open_prepared(work / "out/p")
        vectors = data.vectors
        assert vectors is not None
        rows = zip(data.vocabulary.words, vectors.tolist(), strict=True)
        return {word: [float(f"{number:.6g}") for number in row] for word, row in rows if any(row)}

    def expected(self, work: Path) -> object:
        """Read rows of one word and its numbers; what looks otherwise is left to the other rules."""
        try:
            text = (work / "in/v.txt").read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            return UNKNOWN
        words = set(open_prepared(work / "out/p").vocabulary.words)
        found: dict[str, list[float]] = {}
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines()):
            parts = line.split()
            try:
                with np.errstate(over="ignore"):
                    row = [float(np.float32(part)) for part in parts[1:]]
            except ValueError:
                return UNKNOWN
            if number == 0 and len(parts) == 2:
                continue
            if parts and (len(row) != self.width or not all(map(math.isfinite, row))):
                return UNKNOWN
            if parts:
                found.setdefault(parts[0], [float(f"{one:.6g}") for one in row])
        lower = {word: found.get(word, found.get(word.lower())) for word in words}
        return {word: row for word, row in lower.items() if row and any(row)}


SURFACES = (PlainFeatures, PackedFeatures, NpzFeatures, Prepared, ManifestFile, Repaired, WordVectors)
