"""Question files of public data sets, prepared and compared with a plain reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from tests.data.datasets import (
    test_aokvqa,
    test_clevr_cogent,
    test_gqa,
    test_okvqa,
    test_slake,
    test_vizwiz,
    test_vqa_cp,
    test_vqa_rad,
)
from tests.fuzz.harness import Effect, Mutation
from tests.fuzz.mutators import Mutator
from tests.fuzz.text_surfaces import ClevrQuestions, TextFiles, exactly, parsed


def _filled(text: Any) -> str:
    if not exactly(text, str):
        raise ValueError("an empty id")
    return text


def _annotators(answers: Any) -> list[Any]:
    if not 0 < len(exactly(answers, list)) <= 10:
        raise ValueError(f"{len(answers)} answers")
    return answers


def _empty() -> dict[str, Any]:
    return {name: [] for name in ("ids", "texts", "images", "answers", "types")}


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    if not found["ids"] or len(set(found["ids"])) < len(found["ids"]):
        raise ValueError("no questions, or ids that repeat")
    return found


def _kind(record: Any) -> str:
    kind = exactly(record["answer_type"], str).strip().upper()
    if kind not in ("CLOSED", "OPEN"):
        raise ValueError(kind)
    return kind


class PublicFiles(TextFiles):
    """The files of a data set as its tests write them."""

    in_minute = 12
    content: ClassVar[dict[str, Any]]  # by file, without .json

    def build(self) -> None:
        """Write the tiny set of the tests."""
        (self.base / "in").mkdir()
        for name, records in self.content.items():
            (self.base / "in" / f"{name}.json").write_text(json.dumps(records))

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return ["--without-features"]


class AokvqaQuestions(PublicFiles):
    """Question files of A-OKVQA."""

    name = "aokvqa-questions"
    dataset = "aokvqa"
    content: ClassVar = {f"aokvqa_v1p0_{split}": test_aokvqa._records(split) for split in test_aokvqa.IMAGES}
    files = tuple(f"{name}.json" for name in content)

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        path = raw / f"aokvqa_v1p0_{split}.json"
        if split == "test" and not path.exists():
            return None
        records = exactly(parsed(path), list)
        ids = [_filled(record["question_id"]) for record in records]
        if len(set(ids)) < len(ids) or not ids:
            raise ValueError("ids that repeat")
        found: dict[str, Any] = {
            "ids": ids,
            "texts": [exactly(record["question"], str) for record in records],
            "images": [exactly(record["image_id"], int) for record in records],
        }
        if split == "test":
            return found
        kinds = {False: "direct answer", True: "difficult, not counted"}
        answers = [_annotators(record["direct_answers"]) for record in records]
        return found | {
            "answers": [[exactly(one, str) for one in row] for row in answers],
            "types": [kinds[exactly(record["difficult_direct_answer"], bool)] for record in records],
        }


class VizWizQuestions(PublicFiles):
    """Question files of VizWiz."""

    name = "vizwiz-questions"
    dataset = "vizwiz"
    content: ClassVar = {split: test_vizwiz._records(split) for split in test_vizwiz.SIZES}
    files = tuple(f"{name}.json" for name in content)

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        path = raw / f"{split}.json"
        if split == "test" and not path.exists():
            return None
        records = exactly(parsed(path), list)
        ids = [_filled(record["image"]) for record in records]
        if len(set(ids)) < len(ids) or not ids:
            raise ValueError("images that repeat")
        found: dict[str, Any] = {
            "ids": ids,
            "texts": [exactly(record["question"], str) for record in records],
            "images": [int(name[name.rindex("_") + 1 : name.rindex(".jpg")]) for name in ids],
        }
        if split == "test":
            return found
        answers = [_annotators(record["answers"]) for record in records]
        return found | {
            "answers": [[exactly(one["answer"], str) for one in row] for row in answers],
            "types": [exactly(record["answer_type"], str) for record in records],
        }


class VqaCpFiles(PublicFiles):
    """Questions and annotations of VQA-CP, of which ``val`` is cut."""

    name = "vqa-cp-files"
    dataset = "vqa-cp"
    content: ClassVar = test_vqa_cp._files()
    files = tuple(f"{name}.json" for name in content)

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return ["--without-features", "--min-answer-count", "0"]

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        half = "test" if split == "test" else "train"
        annotations = {}
        for record in exactly(parsed(raw / f"vqacp_v2_{half}_annotations.json"), list):
            number = exactly(record["question_id"], int)
            if number in annotations:
                raise ValueError("annotated twice")
            annotations[number] = record
        found = _empty()
        for record in exactly(parsed(raw / f"vqacp_v2_{half}_questions.json"), list):
            if record.get("coco_split", "train2014") not in ("train2014", "val2014"):
                raise ValueError("an unknown image set")
            number = exactly(record["question_id"], int)
            annotation = annotations.pop(number)
            image = exactly(annotation["image_id"], int)
            if split != "test" and (image % 10 == 0) != (split == "val"):
                continue
            found["ids"].append(number)
            found["texts"].append(exactly(record["question"], str))
            found["images"].append(image)
            found["answers"].append([exactly(one["answer"], str) for one in _annotators(annotation["answers"])])
            found["types"].append(exactly(annotation["question_type"], str))
        if annotations or not found["ids"] or len(set(found["ids"])) < len(found["ids"]):
            raise ValueError("questions and annotations that do not fit")
        return found


class OkvqaFiles(PublicFiles):
    """Questions and annotations of OK-VQA."""

    name = "okvqa-files"
    dataset = "okvqa"
    content: ClassVar = test_okvqa._files()
    files = tuple(f"{name}.json" for name in content)
    splits = ("train", "val")

    def options(self) -> list[str]:
        """Give further arguments of prepare."""
        return ["--without-features", "--min-answer-count", "0"]

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        topics = {"one": "vehicles and transportation", "ten": "weather and climate"}
        annotations = {}
        for record in parsed(raw / f"mscoco_{split}2014_annotations.json")["annotations"]:
            number = exactly(record["question_id"], int)
            if number in annotations:
                raise ValueError("annotated twice")
            exactly(record.get("answer_type", ""), str)
            annotations[number] = record
        found = _empty()
        for record in parsed(raw / f"OpenEnded_mscoco_{split}2014_questions.json")["questions"]:
            number = exactly(record["question_id"], int)
            annotation = annotations.pop(number)
            exactly(record["image_id"], int)
            found["ids"].append(number)
            found["texts"].append(exactly(record["question"], str))
            found["images"].append(exactly(annotation["image_id"], int))
            found["answers"].append([exactly(one["answer"], str) for one in _annotators(annotation["answers"])])
            kind = exactly(annotation.get("question_type", ""), str)
            found["types"].append(topics.get(kind, kind))
        if annotations:
            raise ValueError("annotations of no question")
        return _checked(found)


class GqaQuestions(PublicFiles):
    """Question files of GQA, keyed by id."""

    name = "gqa-questions"
    dataset = "gqa"
    content: ClassVar = {
        f"{split}_balanced_questions": test_gqa._records(split, has_unbalanced=split == "val")
        for split in test_gqa.SPLITS
    }
    files = tuple(f"{name}.json" for name in content)
    splits = ("train", "val", "testdev", "test")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Change what stands by its id, so that a further key is a record, and an order is that of the questions."""

        def of_this_form(way: Mutator) -> Mutator:
            def mutate(random: Random, folder: Path) -> Mutation:
                mutation = way(random, folder)
                is_other = mutation.what.endswith((" unknown key", " other order of keys"))
                return replace(mutation, effect=Effect.ANY) if is_other else mutation

            return mutate

        return [of_this_form(way) for way in super().mutators]

    def record_mutators(self) -> Sequence[Callable[[Random, Any], Mutation | None]]:
        """Change records that stand by their ids."""
        return (self._further_field, self._not_balanced)

    def _further_field(self, random: Random, document: Any) -> Mutation:
        for record in document.values():
            record["comment"] = random.choice(("x", None, [1]))
        return Mutation("unknown field in each record", Effect.NONE)

    def _not_balanced(self, random: Random, document: Any) -> Mutation:
        record = random.choice(list(document.values()))
        record["isBalanced"] = random.choice((False, None, 0, "false"))
        return Mutation(f"isBalanced {record['isBalanced']!r}")

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        path, found = raw / f"{split}_balanced_questions.json", _empty()
        if split.startswith("test") and not path.exists():
            return None
        for key, record in exactly(parsed(path), dict).items():
            row = [_filled(key), exactly(record["question"], str), _filled(record["imageId"])]
            if split != "test":
                kind = exactly(exactly(record["types"], dict)["structural"], str)
                _filled(exactly(record["answer"], str).strip())
                row += [[record["answer"]], "open" if kind == "query" else "binary"]
            if exactly(record.get("isBalanced", True), bool):
                for name, value in zip(found, row, strict=False):
                    found[name].append(value)
        return {name: column for name, column in _checked(found).items() if column}


class CogentQuestions(ClevrQuestions):
    """Question files of CLEVR-CoGenT."""

    name = "clevr-cogent-questions"
    in_minute = 12
    dataset = "clevr-cogent"
    splits = tuple(test_clevr_cogent.SPLITS)
    files = tuple(f"questions/CLEVR_{split}_questions.json" for split in splits)
    required = ("trainA", "valA")

    def build(self) -> None:
        """Write the tiny set of the tests."""
        (self.base / "in/questions").mkdir(parents=True)
        for split, file in zip(self.splits, self.files, strict=True):
            content = {"info": {"split": split}, "questions": test_clevr_cogent._questions(split)}
            (self.base / "in" / file).write_text(json.dumps(content))


class VqaRadQuestions(PublicFiles):
    """The one file of VQA-RAD, of which each part is cut."""

    name = "vqa-rad-questions"
    dataset = "vqa-rad"
    content: ClassVar = {"VQA_RAD Dataset Public": test_vqa_rad._records()}
    files = tuple(f"{name}.json" for name in content)

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        found, ids = _empty(), set[int]()
        for record in exactly(parsed(raw / self.files[0]), list):
            ids.add(number := exactly(record["qid"], int))
            picture = exactly(record["image_name"], str)
            if not picture.removesuffix(".jpg") or {"/", "\\", "\0"} & set(picture) or not picture.endswith(".jpg"):
                raise ValueError(picture)
            is_test = exactly(record["phrase_type"], str).strip().lower().startswith("test")
            is_val = int(hashlib.sha256(picture.encode()).hexdigest()[:16], 16) % 10 == 0
            texts = [exactly(record[name], str) for name in ("question", "answer")]
            if {text.strip() for text in texts} & {"", "NULL"}:
                raise ValueError("no question or no answer")
            exactly(record.get("question_frame", "NULL"), str)
            row = [number, texts[0], picture.removesuffix(".jpg"), [texts[1]], _kind(record)]
            if split == ("test" if is_test else "val" if is_val else "train"):
                for name, value in zip(found, row, strict=True):
                    found[name].append(value)
        if len(ids) < len(parsed(raw / self.files[0])):
            raise ValueError("ids that repeat")
        return _checked(found)


class SlakeQuestions(PublicFiles):
    """Question files of SLAKE, of which the English questions are read."""

    name = "slake-questions"
    dataset = "slake"
    content: ClassVar = {part: test_slake._records(part) for part in test_slake.PICTURES}
    files = tuple(f"{name}.json" for name in content)

    def read(self, raw: Path, split: str) -> dict[str, Any] | None:
        """See ``TextFiles``."""
        found = _empty()
        for record in exactly(parsed(raw / f"{'validate' if split == 'val' else split}.json"), list):
            folder, _, rest = exactly(record["img_name"], str).partition("/")
            number = folder.removeprefix("xmlab")
            if rest != "source.jpg" or folder != f"xmlab{int(number)}":
                raise ValueError(folder)
            row = [exactly(record["qid"], int), exactly(record["question"], str), int(number)]
            row += [[exactly(record["answer"], str)], _kind(record)]
            if exactly(record["q_lang"], str) != "en":
                continue
            if not record["answer"].strip():
                if split == "train":
                    continue
                raise ValueError("an empty answer")
            for name, value in zip(found, row, strict=True):
                found[name].append(value)
        return _checked(found)


SURFACES = (
    AokvqaQuestions,
    VizWizQuestions,
    VqaCpFiles,
    OkvqaFiles,
    GqaQuestions,
    CogentQuestions,
    VqaRadQuestions,
    SlakeQuestions,
)
