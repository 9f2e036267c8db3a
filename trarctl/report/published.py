"""Results that the authors of TRAR published, to set beside one's own.

Source: MODEL card of TRAR-VQA (2021); percent, by the original's evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row: trained on train, scored on val.

    Attributes:
        name: the recipe in words.
        overall: accuracy over all questions.
        per_type: by answer type (VQA) or question type (CLEVR).
    """

    name: str
    overall: float
    per_type: Mapping[str, float]


_VAL: Mapping[str, tuple[Published, ...]] = {
    "vqa": (
        Published("soft, avg", 67.62, {"yes/no": 85.36, "number": 49.89, "other": 58.83}),
        Published("hard, attention, binarize", 67.62, {"yes/no": 85.19, "number": 49.75, "other": 58.98}),
    ),
    "clevr": (
        Published(
            "hard, fc, binarize",
            99.08,
            {
                "count": 97.61,
                "exist": 99.54,
                "compare_numbers": 99.42,
                "query_attribute": 99.62,
                "compare_attribute": 99.40,
            },
        ),
    ),
}


def published(dataset: str, split: str) -> tuple[Published, ...]:
    """The published rows for a split; none where nothing was published."""
    return _VAL.get(dataset, ()) if split == "val" else ()
