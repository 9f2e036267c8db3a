"""Small raw data for the tests of preparation, and short ways to prepare it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.data.prepare import PrepareReport, PrepareRequest, prepare

GOLDEN = Path(__file__).parent.parent / "golden"
GRIDS = {"vqa": 4, "clevr": 5}


def prepare_golden(dataset: str, out: Path, **options: Any) -> PrepareReport:
    """Prepare one of the golden mini sets."""
    folder = GOLDEN / f"mini_{dataset}"
    request = {"raw": folder / "raw", "features": folder / "feats", "grid": GRIDS[dataset], "vectors": "none"}
    return prepare(PrepareRequest(dataset, out=out, **(request | options)))


def write_clevr(folder: Path, *, num_images: int = 3, features: Sequence[int] = (4, 6), **splits: int) -> Path:
    """Write a CLEVR-shaped set: two questions about each image, features [rows, width] of ones.

    Returns:
        The raw folder; the features are beside it.
    """
    for split in splits or {"train": 1, "val": 1, "test": 1}:
        questions = [
            clevr_question(number, split, image_index=number // 2, question=f"is {split} number {number % 3}?")
            for number in range(2 * num_images)
        ]
        path = folder / "raw" / "questions" / f"CLEVR_{split}_questions.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"info": {"split": split}, "questions": questions}))
        for image in range(num_images):
            write_features(folder / "feats" / split / f"{image}.npz", np.full(features, image + 1, dtype=np.float32))
    return folder / "raw"


def clevr_question(number: int, split: str, **fields: Any) -> dict[str, Any]:
    """Make one question; test questions have no answer."""
    record = {"question_index": number, "image_index": 0, "question": "is it?"} | fields
    if split == "test":
        return record
    return {"answer": ("yes", "no")[number % 2], "program": [{"function": "scene"}, {"function": "exist"}]} | record


def write_features(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write one image's features as ``.npy`` or ``.npz``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, x=array)
    else:
        np.save(path, array)


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file; ``change`` may return the new content or change the old."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))
