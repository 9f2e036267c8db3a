"""What a prepared folder says about itself: ``manifest.json``, written last."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from trarctl.data.datasets.base import FileNaming
from trarctl.errors import DataError
from trarctl.files import write_json
from trarctl.registry import DATASETS, PLUGINS_VARIABLE

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
ANSWERS = "answers.json"
VECTORS = "vectors.npy"
BACKBONE = "backbone.json"  # what made features out of images: beside prepared data, and beside what extract writes
EXTRACTION = "extraction"  # its key for all that is not the extractor's own
IMAGES = "images"
FEATURES = "features"

StoredType = Literal["float16", "float32"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceFile(_Part):
    """A raw file as it was when it was read."""

    size: NonNegativeInt = Field(description="bytes")
    modified_ns: int = Field(description="time of its last change, nanoseconds since 1970")
    sha256: str
    records: NonNegativeInt = Field(description="questions or annotations in it")


class VectorsPart(_Part):
    """Where the word vectors come from."""

    source: str
    digest: str
    width: PositiveInt
    found: NonNegativeInt = Field(description="words of the vocabulary that have a vector")
    missing: tuple[str, ...] = Field((), description="some of the words that have none")


class SplitPart(_Part):
    """One split."""

    questions: PositiveInt
    annotated: NonNegativeInt = Field(description="annotations, 0 for a split without answers")
    images: PositiveInt = Field(description="distinct images that the questions name")
    answer_types: tuple[str, ...] = ()
    question_types: tuple[str, ...] = ()


class TextPart(_Part):
    """All that comes from questions, answers and word vectors."""

    max_words: PositiveInt
    requested_max_words: int | None
    options: dict[str, Any] = Field(
        {}, description="of a data set that is described by options, such as a table's name"
    )
    min_answer_count: NonNegativeInt
    vocabulary_digest: str
    answers_digest: str
    vectors: VectorsPart | None
    requested_vectors: str = Field(description="what --vectors said")
    vectors_fingerprint: str = Field("", description="changes when the source of the vectors does")
    sources: dict[str, SourceFile]
    splits: dict[str, SplitPart]
    ceilings: dict[str, float] = Field(
        default_factory=dict, description="by split, the accuracy in percent that the answer list can reach at most"
    )
    images_there: str = Field("", description="changes with the images that are there, where others are left out")
    warnings: tuple[str, ...] = ()


class NamingPart(_Part):
    """How feature files are named."""

    prefix: str = Field(pattern=r"^[A-Za-z0-9_]*$")
    num_digits: PositiveInt | None = Field(description="None: ids are text, and stand in the name as they are")
    suffix: str = Field(pattern=r"^[A-Za-z0-9_./]*$")
    is_nested: bool = False
    replaces_suffix: bool = False

    def naming(self) -> FileNaming:
        """Give the same as a naming."""
        return FileNaming(**dict(self))


class ImageSetPart(_Part):
    """The images of one set, which follow those of the sets before it in the image table."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    num_images: NonNegativeInt
    kind: Literal["none", "files", "packed"]
    folder: str | None = Field(None, description="folder of the feature files, relative to the prepared folder")
    naming: NamingPart | None = None
    file: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$", description="packed file in features/")
    stored_type: StoredType | None = None


class FeatureStatistics(_Part):
    """What the features are like, by a fixed sample of images: the same numbers have it whatever they are stored as."""

    mean: float
    deviation: float = Field(description="standard deviation")
    zero_cells: float = Field(description="share of the cells that are all zero")
    images: dict[str, dict[str, tuple[float, ...]]] = Field(
        description="by image set and id: mean, standard deviation, mean weighted along the cells and along the width"
    )

    def difference(self, other: FeatureStatistics) -> str | None:
        """Say how features differ from those of ``other``, beyond the rounding of float16; None: they do not."""
        pairs = [
            (f"{name}/{image_id}", moments, other.images[name][image_id])
            for name, images in self.images.items()
            for image_id, moments in images.items()
            if image_id in other.images.get(name, {})
        ]
        differing = [(image, ours, theirs) for image, ours, theirs in pairs if _differs(ours, theirs)]
        if differing:
            image, *both = differing[0]
            numbers = ((*part, 0.0, 0.0)[:2] for part in both)
            ours, theirs = (f"mean {mean:g}, deviation {deviation:g}" for mean, deviation in numbers)
            count = f"{len(differing)} of {len(pairs)} sampled images"
            return f"the features of {count} differ: image {image} has {ours}, expected {theirs}"
        # Of other images only the scale can be compared.
        ratio = (self.deviation + 1e-7) / (other.deviation + 1e-7)
        if pairs or (0.7 < ratio < 1.4 and abs(self.mean - other.mean) <= 0.5 * other.deviation + 1e-7):
            return None
        ours, theirs = (f"mean {one.mean:g}, deviation {one.deviation:g}" for one in (self, other))
        return f"the features have {ours}, expected {theirs}"


def _differs(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other) or len(other) < 2:
        return True
    allowed = 0.01 * other[1] + 1e-3 * abs(other[0]) + 1e-7
    return any(abs(ours - theirs) > allowed for ours, theirs in zip(one, other, strict=True))


class ImagesPart(_Part):
    """The image table, and where its features are."""

    key: str = Field(description="changes when anything does that the features depend on")
    grid_size: PositiveInt
    feature_width: NonNegativeInt = Field(description="width W, 0 while there are no features")
    pack: Literal["float16", "float32", "as-found"] | None
    backbone: str | None = Field(description="what made the features out of images")
    pictures: str | None = Field(None, description="folder of the pictures that features were made of, absolute")
    image_sets: tuple[ImageSetPart, ...]
    statistics: FeatureStatistics | None = None
    warnings: tuple[str, ...] = ()


class Manifest(_Part):
    """A prepared folder; whoever reads it can trust that everything listed was whole when it was written."""

    version: Literal[1]
    created_by: str
    dataset: str
    command: str | None = Field(None, description="the command that prepared it, without --out")
    text: TextPart
    images: ImagesPart
    aliases: dict[str, str] = {}
    files: dict[str, int] = Field(description="every file of the folder, relative, and its size in bytes")
    checksums: dict[str, str] = Field({}, description="SHA-256 of these files but for packed features")

    @property
    def name(self) -> str:
        """What commands call the data: the name of one's own, or that of the data set."""
        return str(self.text.options.get("name") or self.dataset)

    def command_to(self, out: Path) -> str:
        """Give the command that prepares this data again, whole, in a folder."""
        return f"{self.command or prepare_command(self.dataset)} --out {shlex.quote(str(out))}"


def digest_of(lines: Sequence[str]) -> str:
    """SHA-256 of strings in their order, hexadecimal."""
    return hashlib.sha256(json.dumps(list(lines)).encode()).hexdigest()


def key_of(values: Mapping[str, object]) -> str:
    """SHA-256 of anything that JSON can hold, hexadecimal: equal for equal content."""
    return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()


def prepare_command(dataset: str) -> str:
    """Give the command that prepares a data set."""
    return f"trarctl prepare {dataset}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a prepared folder, with a digest of all that it says."""
    content = manifest.model_dump(mode="json")
    write_json(folder / MANIFEST, content | {"digest": key_of(content)})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder; DataError if it is missing, damaged, or of another version."""
    path, again = folder / MANIFEST, f"prepare again: {prepare_command('DATASET')} --out {folder}"
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"cannot read {path}: it is no file", again)
        content = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        dataset = folder.parent.name if folder.parent.name in DATASETS else "DATASET"
        raise DataError(f"no prepared data in {folder}", f"{prepare_command(dataset)} --out {folder}") from None
    except (OSError, orjson.JSONDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", again) from None
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    version = content.get("version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        what = f"{folder} was prepared in format {version}, this program reads format {FORMAT_VERSION}"
        raise DataError(what, again)
    if digest is not None and digest != key_of(content):
        raise DataError(f"{path} is damaged: it is not what was written", again)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged: {where}: {first['msg']}", again) from None
    if manifest.dataset not in DATASETS:
        what = f"{folder} holds {manifest.dataset} data, a data set that is not known here"
        raise DataError(what, f"name the module that adds it: {PLUGINS_VARIABLE}=MODULE")
    return manifest
