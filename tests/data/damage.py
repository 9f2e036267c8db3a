"""Damage to raw data, drawn at random, and a plain reading of the same files to compare prepared data with."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.data.preparing import GOLDEN, GRIDS, prepare_golden, write_features
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.errors import TrarError

SECONDS_BEFORE_IT_HANGS = 60

Change = Callable[[Random, Path], str]


@dataclass(frozen=True)
class Outcome:
    """What became of one damaged set.

    Attributes:
        damage: what was done to it.
        result: the error's message, or what was warned of, or nothing.
        failure: what is wrong about that; empty if nothing.
    """

    damage: str
    result: str
    failure: str


def try_damage(seed: int, folder: Path) -> Outcome:
    """Damage a golden set, prepare it, and judge what comes of it."""
    random = Random(seed)  # noqa: S311 - the same damage for the same seed
    dataset = random.choice(sorted(GRIDS))
    source = folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN / f"mini_{dataset}", source)
    damage = ", then ".join(random.choice(DAMAGES)(random, source) for _ in range(random.choice((1, 1, 1, 2))))
    pack: Any = random.choice((None, None, "float16", "as-found"))
    out = folder / "out"
    try:
        with _time_limit():
            report = prepare_golden(
                dataset, out, raw=source / "raw", features=source / "feats", min_answer_count=0, pack=pack
            )
            failure = differences(dataset, source, open_prepared(out))
        return Outcome(damage, f"prepared; warnings: {'; '.join(report.warnings)}", failure)
    except TrarError as error:
        return Outcome(damage, error.what, _judge_error(error, out))
    except Exception as error:  # noqa: BLE001 - anything else is just what this looks for
        return Outcome(damage, "", f"{type(error).__name__}: {error}")


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS_BEFORE_IT_HANGS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS_BEFORE_IT_HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _judge_error(error: TrarError, out: Path) -> str:
    if "\n" in error.what or not error.what or len(error.what) > 4000:
        return "the message is not one readable line"
    if not error.hint:
        return "the error has no hint"
    return "a set that looks whole was left behind" if (out / "manifest.json").exists() else ""


def _json_file(random: Random, source: Path) -> Path:
    return random.choice(sorted(path for path in (source / "raw").rglob("*.json") if "test-dev" not in path.name))


def _feature(random: Random, source: Path) -> Path:
    return random.choice(sorted((source / "feats").rglob("*.np[yz]")))


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _cut(random: Random, source: Path) -> str:
    path = random.choice((_json_file, _feature))(random, source)
    size = random.randrange(path.stat().st_size + 1)
    os.truncate(path, size)
    return f"{_name(path)} cut at {size}"


def _flip_bits(random: Random, source: Path) -> str:
    path = random.choice((_json_file, _feature))(random, source)
    content = bytearray(path.read_bytes())
    places = [random.randrange(len(content)) for _ in range(random.choice((1, 1, 3, 20)))] if content else []
    for place in places:
        content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"{_name(path)} with flipped bits at {places[:3]}"


def _swap_blocks(random: Random, source: Path) -> str:
    path = random.choice((_json_file, _feature))(random, source)
    content = path.read_bytes()
    first, second = sorted(random.randrange(len(content) + 1) for _ in range(2))
    path.write_bytes(content[second:] + content[first:second] + content[:first])
    return f"{_name(path)} with blocks swapped at {first} and {second}"


def _replace_file(random: Random, source: Path) -> str:
    path = random.choice((_json_file, _feature))(random, source)
    path.unlink()
    kind = random.choice(("nothing", "empty", "folder", "loop", "pipe", "dangling", "zeros", "text"))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(source / "nowhere")
    elif kind == "zeros":
        path.write_bytes(bytes(5000))
    elif kind == "text":
        path.write_text("404: Not Found")
    return f"{_name(path)} replaced by {kind}"


VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, 1e300, float("nan"), float("inf")),
    *("", "x", "12", "../../../../etc/passwd", "\x00", "\U0001f600", "a " * 700, [], {}, [[]], {"a": 1}, ["x"] * 20),
)


def _record_list(content: Any) -> list[Any]:
    records: list[Any] = content["questions"] if "questions" in content else content["annotations"]
    return records


def _change_json(random: Random, source: Path, change: Callable[[Any], str]) -> str:
    path = _json_file(random, source)
    try:
        content = json.loads(path.read_text())
        done = change(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{_name(path)} as damaged before"
    path.write_text(json.dumps(content))
    return f"{_name(path)} {done}"


def _change_field(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        record = random.choice(_record_list(content))
        field = random.choice(sorted(record))
        record[field] = random.choice(VALUES)
        return f"with {record[field]!r:.50} as {field}"

    return _change_json(random, source, change)


def _change_inner_field(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        record = random.choice(_record_list(content))
        inner = random.choice(record.get("answers") or record.get("program") or [record])
        field = random.choice(sorted(inner))
        inner[field] = random.choice(VALUES)
        return f"with {inner[field]!r:.50} as inner {field}"

    return _change_json(random, source, change)


def _drop_field(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        record = random.choice(_record_list(content))
        field = random.choice(sorted(record))
        del record[field]
        return f"without a {field}"

    return _change_json(random, source, change)


def _drop_record(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        records = _record_list(content)
        count = random.choice((1, 2, len(records)))
        del records[:count]
        return f"without {count} records"

    return _change_json(random, source, change)


def _double_record(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        records = _record_list(content)
        records.append(random.choice(records))
        return "with a record twice"

    return _change_json(random, source, change)


def _odd_record(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        records = _record_list(content)
        place = random.randrange(len(records))
        records[place] = random.choice(VALUES)
        return f"with {records[place]!r:.50} as a record"

    return _change_json(random, source, change)


def _odd_frame(random: Random, source: Path) -> str:
    def change(content: Any) -> str:
        name = "questions" if "questions" in content else "annotations"
        content[random.choice((name, "info", "other"))] = random.choice(VALUES)
        return "with another frame"

    return _change_json(random, source, change)


def _odd_array(random: Random, source: Path) -> str:
    path = _feature(random, source)
    width = {"mini_vqa": 24}.get("mini_vqa" if path.suffix == ".npy" else "", 20)
    kind = random.choice(("nan", "inf", "width", "cube", "flat", "whole numbers", "none", "huge", "objects", "zeros"))
    array = np.ones((16, width), dtype=np.float32)
    if kind in ("nan", "inf", "huge"):
        array[random.randrange(16), random.randrange(width)] = {"nan": np.nan, "inf": np.inf, "huge": 1e30}[kind]
    changed: dict[str, Any] = {
        "width": np.ones((16, width + 1), dtype=np.float32),
        "cube": np.ones((4, 4, width), dtype=np.float32),
        "flat": np.ones(16 * width, dtype=np.float32),
        "whole numbers": np.ones((16, width), dtype=np.int32),
        "none": np.ones((0, width), dtype=np.float32),
        "objects": np.array([[{"a": 1}] * width], dtype=object),
        "zeros": np.zeros((16, width), dtype=np.float16),
    }
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_features(path, changed.get(kind, array))
    return f"{_name(path)} with {kind}"


DAMAGES: tuple[Change, ...] = (
    *(_cut, _flip_bits, _swap_blocks, _replace_file, _change_field, _change_field, _change_inner_field, _drop_field),
    *(_drop_record, _double_record, _odd_record, _odd_frame, _odd_array, _odd_array),
)


def differences(dataset: str, source: Path, data: PreparedData) -> str:
    """Read everything again in the plainest way, and name the first thing that was prepared differently."""
    for name in data.split_names:
        split = data.split(name)
        questions, annotations = _plain(dataset, source / "raw", name)
        id_field, image_field = ("question_id", "image_id") if dataset == "vqa" else ("question_index", "image_index")
        if split.question_id.tolist() != [record[id_field] for record in questions]:
            return f"{name}: other question ids"
        if [split.question_text(row) for row in range(len(split))] != [record["question"] for record in questions]:
            return f"{name}: other questions"
        images = {record[id_field]: record[image_field] for record in questions}
        images |= {record[id_field]: record[image_field] for record in annotations}
        wanted = [images[number] for number in split.question_id.tolist()]
        if [data.features.image_id(int(row)) for row in split.image] != wanted:
            return f"{name}: other images"
        failure = _different_answers(dataset, data, name, annotations) or _different_features(source, data, name)
        if failure:
            return failure
    return ""


def _plain(dataset: str, raw: Path, name: str) -> tuple[list[Any], list[Any]]:
    if dataset == "clevr":
        questions = json.loads((raw / f"questions/CLEVR_{name}_questions.json").read_text())["questions"]
        return questions, [] if name == "test" else questions
    year = {"train": "train2014", "val": "val2014", "test": "test2015"}.get(name)
    files = (f"v2_OpenEnded_mscoco_{year}_questions.json", f"v2_mscoco_{year}_annotations.json")
    question_file, annotation_file = files if year else ("VG_questions.json", "VG_annotations.json")
    questions = json.loads((raw / question_file).read_text())["questions"]
    return questions, [] if name == "test" else json.loads((raw / annotation_file).read_text())["annotations"]


def _different_answers(dataset: str, data: PreparedData, name: str, annotations: list[Any]) -> str:
    split = data.split(name)
    if split.is_annotated != bool(annotations):
        return f"{name}: annotated or not"
    if not annotations:
        return ""
    truth = split.truth()
    row_of = {number: row for row, number in enumerate(split.question_id.tolist())}
    order = []
    for record in annotations:
        row = row_of[record["question_id" if dataset == "vqa" else "question_index"]]
        order.append(row)
        given = [truth.strings[code] for code in truth.codes[row] if code >= 0]
        expected = [a["answer"] for a in record["answers"]] if dataset == "vqa" else [_as_text(record["answer"])]
        if given != expected:
            return f"{name}: other answers"
        function = record.get("question_type", "") if dataset == "vqa" else record["program"][-1]["function"]
        if truth.question_types[truth.question_type[row]] != function:
            return f"{name}: other question types"
    return "" if split.training_order.tolist() == order else f"{name}: other order of samples"


def _as_text(answer: Any) -> str:
    return {True: "yes", False: "no"}[answer] if isinstance(answer, bool) else str(answer)


def _different_features(source: Path, data: PreparedData, name: str) -> str:
    features = data.features
    for row in np.unique(data.split(name).image).tolist():
        number, image_set = features.image_id(row), features.image_set(row)
        if next(one for one in data.manifest.images.image_sets if one.name == image_set).kind == "none":
            continue
        path = source / "feats" / image_set
        path /= f"{number}.npz" if (path / f"{number}.npz").exists() else f"COCO_{image_set}_{number:012d}.jpg.npy"
        loaded = np.load(path)
        loaded = (loaded if path.suffix == ".npy" else loaded["x"])[: features.num_cells]
        expected = np.zeros((features.num_cells, features.width), dtype=features.dtype)
        expected[: len(loaded)] = loaded
        if not np.array_equal(features.read(np.array([row]))[0], expected):
            return f"{name}: other features of image {number}"
    return ""
