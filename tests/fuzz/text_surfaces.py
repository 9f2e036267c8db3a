"""Questions and annotations of the three built-in forms, prepared and compared with a plain reading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from tests.fuzz.bases import write_small_clevr, write_small_vqa
from tests.fuzz.harness import Effect, Mutation, Ran, Surface, call
from tests.fuzz.mutators import (
    Mutator,
    damage_bytes,
    edit_json,
    marked_text,
    mutate_document,
    odd_json,
    replace_file,
    rewrite_json,
)
from tests.small_runs import make_raw
from trarctl.data.prepared import open_prepared

UNREADABLE = "a plain reader cannot read this"


class TextFiles(Surface):
    """The raw files of a data set, prepared without features."""

    dataset: ClassVar[str]
    files: ClassVar[tuple[str, ...]]  # that are mutated
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    has_ids: ClassVar[bool] = True  # records are known by an id, not by their position

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to files, values and records, and harmless rewriting."""
        anywhere = (damage_bytes, replace_file, odd_json, rewrite_json, rewrite_json)
        return (
            *(lambda random, folder, way=way: way(random, self._file(random, folder)) for way in anywhere),
            *[lambda random, folder: self._edit(random, folder, mutate_document)] * 6,
            *(lambda random, folder, way=way: self._edit(random, folder, way) for way in self.record_mutators()),
            self._other_split,
        )

    def record_mutators(self) -> Sequence[Callable[[Random, Any], Mutation | None]]:
        """Changes of the list of records that have a meaning."""
        return (self._twice, self._rare_fields, self._without_records)

    def _file(self, random: Random, folder: Path) -> Path:
        path = folder / random.choice(self.files)
        return path if path.is_file() else folder / self.files[0]

    def _edit(self, random: Random, folder: Path, way: Callable[[Random, Any], Mutation | None]) -> Mutation:
        path = self._file(random, folder)
        mutation = edit_json(path, lambda document: way(random, document))
        return Mutation(f"{path.name} {mutation.what}", mutation.effect)

    def _twice(self, random: Random, document: Any) -> Mutation:
        records = records_of(document)
        records.insert(random.randrange(len(records) + 1), json.loads(json.dumps(random.choice(records))))
        return Mutation("record twice", Effect.DAMAGE if self.has_ids else Effect.ANY)

    def _rare_fields(self, random: Random, document: Any) -> Mutation:
        for record in records_of(document):
            record["comment"] = random.choice(("x", None, [1]))
        return Mutation("unknown field in each record", Effect.NONE)

    def _without_records(self, random: Random, document: Any) -> Mutation:
        records = records_of(document)
        del records[: len(records) - random.choice((0, 1, 2))]
        return Mutation("nearly no records")

    def _other_split(self, random: Random, folder: Path) -> Mutation:
        """Take a split's file for another's, as a slip of the hand does."""
        if len(self.files) < 2:
            return Mutation("nothing")
        one, other = (folder / name for name in random.sample(self.files, 2))
        if one.is_file() and other.is_file():
            remove_and_copy(one, other)
            return Mutation(f"{one.name} as {other.name}", Effect.DAMAGE)
        return Mutation("nothing")

    def run(self, work: Path, random: Random) -> Ran:
        """Prepare; some of the time see first that ``--check`` comes to the same."""
        arguments = ["prepare", self.dataset, "--raw", work / "in", "--out", work / "out/p", "--vectors", "none"]
        arguments += self.options()
        checked = call(*arguments, "--check") if random.random() < 0.25 else None
        ran = call(*arguments)
        if checked is not None and ran.raised is None and (checked.raised or checked.code != ran.code):
            what = f"--check ends with {checked.code}, prepare with {ran.code}"
            return Ran(99, "", f"{what}: {checked.err} {ran.err}", checked.raised)
        return ran

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return ["--without-features", "--min-answer-count", "0"]

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that a refused preparation leaves no manifest."""
        return "refused, but a manifest was written" if ran.code and (work / "out/p/manifest.json").exists() else ""

    def value(self, work: Path, ran: Ran) -> object:
        """Read what was prepared: questions, images and answers by split."""
        data = open_prepared(work / "out/p")
        found: dict[str, Any] = {}
        for name in data.split_names:
            split = data.split(name)
            found[name] = {
                "ids": split.question_id.tolist(),
                "texts": [split.question_text(row) for row in range(len(split))],
                "images": split.image_id.tolist(),
            }
            if split.is_annotated:
                truth = split.truth()
                found[name]["answers"] = [[truth.strings[code] for code in row if code >= 0] for row in truth.codes]
                types = [truth.question_types[code] if code >= 0 else None for code in truth.question_type]
                found[name]["types"] = types
        return found

    def expected(self, work: Path) -> object:
        """Read the files in the plainest way."""
        try:
            return {name: read for name in self.splits if (read := self.read(work / "in", name))}
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return UNREADABLE

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """Read one split, None where it has no files; may raise whatever a damaged file makes it raise."""
        raise NotImplementedError


def records_of(document: Any) -> list[Any]:
    """Give the list of records of a document."""
    if isinstance(document, list):
        return document
    found: list[Any] = document["questions"] if "questions" in document else document["annotations"]
    return found


def remove_and_copy(source: Path, target: Path) -> None:
    """Replace a file by a copy of another."""
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)


def exactly(value: Any, kind: type) -> Any:
    """Give a value of this very type, or raise."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind}")
    if kind is int and not 0 <= value < 2**63:
        raise ValueError(f"{value} is no id")
    return value


def parsed(path: Path) -> Any:
    """Parse strict JSON in UTF-8, or in what a byte order mark says."""

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    return json.loads(marked_text(path), parse_constant=refuse)


class VqaFiles(TextFiles):
    """VQA's pairs of files."""

    dataset = "vqa"
    splits = ("train", "val", "vg", "test")
    years: ClassVar[dict[str, str]] = {"train": "train2014", "val": "val2014", "test": "test2015"}

    def build(self) -> None:
        """See ``write_small_vqa``."""
        write_small_vqa(self.base / "in")

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        year = self.years.get(split)
        names = (f"v2_OpenEnded_mscoco_{year}_questions.json", f"v2_mscoco_{year}_annotations.json")
        question_file, annotation_file = names if year else ("VG_questions.json", "VG_annotations.json")
        if split == "vg" and not (raw / question_file).exists() and not (raw / annotation_file).exists():
            return None
        if split == "test" and not (raw / question_file).exists():
            return None
        questions = parsed(raw / question_file)["questions"]
        ids = [exactly(record["question_id"], int) for record in questions]
        images = [exactly(record["image_id"], int) for record in questions]
        found = {"ids": ids, "texts": [exactly(record["question"], str) for record in questions], "images": images}
        if len(set(ids)) < len(ids) or not ids:
            raise ValueError("ids that repeat")
        if split == "test":
            return found
        annotations = parsed(raw / annotation_file)["annotations"]
        answers: list[list[str]] = [[] for _ in ids]
        types: list[str | None] = [None] * len(ids)
        annotated: set[int] = set()
        for record in annotations:
            number = exactly(record["question_id"], int)
            row = ids.index(number)
            if number in annotated:
                raise ValueError("annotated twice")
            annotated.add(number)
            images[row] = exactly(record["image_id"], int)
            answers[row] = [exactly(one["answer"], str) for one in exactly(record["answers"], list)]
            types[row] = exactly(record.get("question_type", ""), str)
            exactly(record.get("answer_type", ""), str)
            exactly(record.get("multiple_choice_answer", ""), str)
        return found | {"answers": answers, "types": types}


class VqaQuestions(VqaFiles):
    """Question files of VQA."""

    name = "vqa-questions"
    files = (
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_OpenEnded_mscoco_test2015_questions.json",
        "VG_questions.json",
    )


class VqaAnnotations(VqaFiles):
    """Annotation files of VQA."""

    name = "vqa-annotations"
    files = ("v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json", "VG_annotations.json")

    def record_mutators(self) -> Sequence[Callable[[Random, Any], Mutation | None]]:
        """Add what only annotations have."""
        return (*super().record_mutators(), self._without_field, self._annotators, self._foreign)

    def _without_field(self, random: Random, document: Any) -> Mutation:
        field = random.choice(("answers", "multiple_choice_answer", "answer_type", "question_type"))
        for record in records_of(document):
            record.pop(field, None)
        return Mutation(f"without {field}", Effect.DAMAGE)

    def _annotators(self, random: Random, document: Any) -> Mutation:
        record = random.choice(records_of(document))
        count = random.choice((0, 1, 3, 9, 11, 40))
        record["answers"] = (record["answers"] * 4)[:count]
        return Mutation(f"{count} answers", Effect.DAMAGE)

    def _foreign(self, random: Random, document: Any) -> Mutation:
        random.choice(records_of(document))["question_id"] = 2**40
        return Mutation("of an unknown question", Effect.DAMAGE)


class ClevrQuestions(TextFiles):
    """Question files of CLEVR."""

    name = "clevr-questions"
    dataset = "clevr"
    files = tuple(f"questions/CLEVR_{split}_questions.json" for split in ("train", "val", "test"))
    required: ClassVar[tuple[str, ...]] = ("train", "val")

    def build(self) -> None:
        """See ``write_small_clevr``."""
        write_small_clevr(self.base / "in")

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return ["--without-features"]

    def record_mutators(self) -> Sequence[Callable[[Random, Any], Mutation | None]]:
        """Add what only CLEVR has."""
        return (*super().record_mutators(), self._function, self._no_program)

    def _function(self, random: Random, document: Any) -> Mutation:
        record = random.choice(records_of(document))
        step = record["program"][-1]
        step["function"] = random.choice(("query_weight", "", "Count", "count ", "equal_", "scene"))
        return Mutation(f"function {step['function']}", Effect.DAMAGE)

    def _no_program(self, random: Random, document: Any) -> Mutation:
        random.choice(records_of(document))["program"] = random.choice(([], None, "count", [None], [{}]))
        return Mutation("without a program", Effect.DAMAGE)

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        path = raw / f"questions/CLEVR_{split}_questions.json"
        if split not in self.required and not path.exists():
            return None
        records = parsed(path)["questions"]
        ids = [exactly(record["question_index"], int) for record in records]
        if len(set(ids)) < len(ids) or not ids:
            raise ValueError("indices that repeat")
        found: dict[str, Any] = {
            "ids": ids,
            "texts": [exactly(record["question"], str) for record in records],
            "images": [exactly(record["image_index"], int) for record in records],
        }
        if split.startswith("test"):
            return found
        steps = [exactly(record["program"], list)[-1] for record in records]
        return found | {
            "answers": [[exactly(record["answer"], str)] for record in records],
            "types": [exactly(step["function"] if "function" in step else step["type"], str) for step in steps],
        }


class EasyVqaQuestions(TextFiles):
    """Question files of easy-VQA, with its pictures."""

    name = "easy-vqa-questions"
    dataset = "easy-vqa"
    files = ("train/questions.json", "test/questions.json")
    splits = ("train", "val")
    has_ids = False

    def build(self) -> None:
        """Draw a few pictures."""
        make_raw(self.base / "in", num_train=3, num_test=2)

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return []

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        records = parsed(raw / ("train" if split == "train" else "test") / "questions.json")
        if not records:
            raise ValueError("no questions")
        for record in records:
            question, answer, image = exactly(record, list)
            exactly(question, str), exactly(answer, str), exactly(image, int)
        kinds = {"yes": "yes/no", "no": "yes/no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}
        kinds |= dict.fromkeys(("black", "gray", "red", "green", "blue", "yellow", "brown", "teal"), "color")
        return {
            "ids": list(range(len(records))),
            "texts": [question for question, *_ in records],
            "images": [image for *_, image in records],
            "answers": [[answer] for _, answer, _ in records],
            "types": [kinds.get(answer, "other") for _, answer, _ in records],
        }


SURFACES = (VqaQuestions, VqaAnnotations, ClevrQuestions, EasyVqaQuestions)
