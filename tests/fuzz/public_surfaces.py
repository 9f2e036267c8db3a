"""Question files of public data sets that are bare lists, prepared and compared with a plain reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from tests.data.datasets import test_aokvqa, test_vizwiz, test_vqa_cp
from tests.fuzz.text_surfaces import TextFiles, exactly, parsed


def _filled(text: Any) -> str:
    if not exactly(text, str):
        raise ValueError("an empty id")
    return text


def _annotators(answers: Any) -> list[Any]:
    if not 0 < len(exactly(answers, list)) <= 10:
        raise ValueError(f"{len(answers)} answers")
    return answers


class ListFiles(TextFiles):
    """One list of records a split."""

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


class AokvqaQuestions(ListFiles):
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


class VizWizQuestions(ListFiles):
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


class VqaCpFiles(ListFiles):
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
        found: dict[str, Any] = {"ids": [], "texts": [], "images": [], "answers": [], "types": []}
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


SURFACES = (AokvqaQuestions, VizWizQuestions, VqaCpFiles)
