"""Evaluations that a run keeps: how its checkpoints did on a split, question by question.

Two files each, under ``RUN/evaluations``: a small JSON file for people and tables, and beside it an ``.npz`` with the
accuracy and the answer of every question, which paired comparisons need. They hold for the checkpoint, the data and the
version of trarctl that they were made with, and are passed over for any other.

Axes: Q questions.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from trarctl import __version__
from trarctl.config import EvaluatorName
from trarctl.data.manifest import key_of
from trarctl.data.metrics import Accuracy
from trarctl.data.records import StringTable
from trarctl.engine.run import RunFolder
from trarctl.files import open_regular, read_regular, write_bytes, write_json

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData, PreparedSplit

FOLDER = "evaluations"
_FIGURES = ("overall", "per_type", "per_question_type", "counts", "questions", "evaluator", "note")
_EPOCH = re.compile(r"^epoch-(\d+).*\.safetensors$")
_MOST_HEADER_BYTES = 1 << 28


@dataclass(frozen=True)
class Answered:
    """A checkpoint's answers to a split, and how right they are."""

    accuracy: Accuracy
    answers: Sequence[str]  # of each question, [Q]
    made: str | None = None  # when, for one that was kept; None for one made now


@dataclass(frozen=True)
class Evaluation:
    """The figures of one kept evaluation, in percent."""

    epoch: int
    split: str
    evaluator: str
    overall: float
    per_type: dict[str, float]
    questions: int
    dataset: str
    made: str  # date and time
    checkpoint: str  # file name
    data_digest: str  # equal for the same questions, truth and features


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint's file belongs to, by where it is; None for any other file."""
    run = RunFolder(checkpoint.absolute().parent.parent)
    is_inside = checkpoint.absolute().parent == run.checkpoints and _EPOCH.match(checkpoint.name)
    return run if is_inside and run.exists() else None


def digest_of_header(checkpoint: Path) -> str | None:
    """What identifies a checkpoint's content without reading it: its header has the checksum of it; None if torn."""
    try:
        with open_regular(checkpoint) as file:
            length = int.from_bytes(file.read(8), "little")
            return hashlib.sha256(file.read(length)).hexdigest() if length <= _MOST_HEADER_BYTES else None
    except OSError:
        return None


def digest_of_data(data: PreparedData, split: PreparedSplit) -> str:
    """What identifies all that a score on a split depends on but the model: questions, truth, features, words."""
    files = data.manifest.checksums.items()
    parts = {name: checksum for name, checksum in files if name.startswith((f"{split.name}/", "images/"))}
    held = {"dataset": data.name, "split": split.name, "questions": split.digest, "files": parts, **data.digests}
    return key_of(held)


def keep(checkpoint: Path, answered: Answered, data: PreparedData, split: PreparedSplit) -> str | None:
    """Keep an evaluation of a run's checkpoint in the run, in place of an older one; a note if it cannot be written."""
    run, accuracy = run_of(checkpoint), answered.accuracy
    if run is None:
        return None
    path = _path(run, checkpoint, split.name, accuracy.evaluator)
    table = StringTable()
    arrays: dict[str, NDArray[Any]] = {
        "right": accuracy.right,
        "type_of": accuracy.type_of.astype(np.int32),
        "answer": table.codes(answered.answers).astype(np.int32),
        "answers": np.array([*table], dtype=np.str_),
        "types": np.array(accuracy.types, dtype=np.str_),
    }
    if accuracy.is_counted is not None:
        arrays["is_counted"] = accuracy.is_counted
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    figures = {name: getattr(accuracy, name) for name in _FIGURES}
    document = {
        **figures,
        "split": split.name,
        "dataset": data.name,
        "checkpoint": checkpoint.name,
        "epoch": int(_EPOCH.findall(checkpoint.name)[0]),
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}",
        "trarctl": __version__,
        "checkpoint_digest": digest_of_header(checkpoint),
        "data_digest": digest_of_data(data, split),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    document["digest"] = key_of(document)
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path.with_suffix(".npz"), content)
        write_json(path, document)
    except OSError as error:
        return f"the evaluation is not kept: cannot write {path.parent}: {error.strerror or error}"
    return None


def find(checkpoint: Path, data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName) -> Answered | None:
    """The kept evaluation of exactly this checkpoint on exactly this data; None without one that is whole."""
    run = run_of(checkpoint)
    if run is None:
        return None
    path = _path(run, checkpoint, split.name, evaluator)
    document = _read(path)
    expected = {"trarctl": __version__, "checkpoint_digest": digest_of_header(checkpoint), "evaluator": evaluator}
    expected["data_digest"] = digest_of_data(data, split)
    if document is None or any(document.get(key) != value for key, value in expected.items()):
        return None
    answered = _load(path, document)
    return answered if answered is not None and len(answered.answers) == len(split) else None


def load(run: RunFolder, evaluation: Evaluation) -> Answered | None:
    """The questions of one of ``kept_in``; None if they are not whole."""
    path = _path(run, run.checkpoints / evaluation.checkpoint, evaluation.split, evaluation.evaluator)
    document = _read(path)
    return None if document is None else _load(path, document)


def _load(path: Path, document: dict[str, Any]) -> Answered | None:
    try:
        content = read_regular(path.with_suffix(".npz"))
        if hashlib.sha256(content).hexdigest() != document["sha256"]:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        names = held["answers"].tolist()
        accuracy = Accuracy(
            **{name: document[name] for name in _FIGURES if name != "counts"},
            counts={name: (right, number) for name, (right, number) in document["counts"].items()},
            right=held["right"],
            type_of=held["type_of"].astype(np.int64),
            types=tuple(held["types"].tolist()),
            is_counted=held.get("is_counted"),
        )
        return Answered(accuracy, [names[code] for code in held["answer"].tolist()], document["made"])
    except (OSError, LookupError, ValueError, TypeError, AttributeError):
        return None


def kept_in(run: RunFolder) -> tuple[list[Evaluation], int]:
    """The kept evaluations of checkpoints that the run still has, by split, evaluator and epoch.

    The number beside them is of files that are damaged, and left out.
    """
    found, num_damaged = [], 0
    for path in sorted((run.path / FOLDER).glob("*.json")):
        document = _read(path)
        if document is None:
            num_damaged += 1
        elif document["checkpoint_digest"] == digest_of_header(run.checkpoints / document["checkpoint"]):
            found.append(Evaluation(**{name: document[name] for name in Evaluation.__dataclass_fields__}))
    return sorted(found, key=lambda one: (one.split, one.evaluator, one.epoch)), num_damaged


def _path(run: RunFolder, checkpoint: Path, split: str, evaluator: str) -> Path:
    return run.path / FOLDER / f"{checkpoint.stem}-{split}-{evaluator}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """The figures as they were written; None if they are damaged."""
    try:
        document = orjson.loads(read_regular(path))
        return document if document.pop("digest") == key_of(document) else None
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return None
