"""CLEVR-CoGenT v1.0: cubes and cylinders whose colors are swapped between condition A, trained on, and condition B.

Accuracy is that of one condition: ``eval --split valA`` and ``eval --split valB``. The answers of both test splits are
withheld; the site took a text file with one answer a line.
"""

from __future__ import annotations

from functools import partial

from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.datasets.clevr import clevr_accuracy, read_clevr_split
from trarctl.data.download import Download
from trarctl.data.submission import LineAnswers

_NAMES = ("trainA", "valA", "valB", "testA", "testB")
_REQUIRED = ("trainA", "valA")


def _split(name: str, num_questions: int | None = None) -> SplitFiles:
    return SplitFiles(
        name,
        name,
        f"questions/CLEVR_{name}_questions.json",
        is_required=name in _REQUIRED,
        num_questions=num_questions,
        has_answers=not name.startswith("test"),
    )


def _images(name: str, num_images: int | None = None) -> ImageSetFiles:
    # Each set counts its images from 0: an index means another picture in each.
    pictures = FileNaming(f"CLEVR_{name}_", 6, ".png")
    return ImageSetFiles(name, num_images, name in _REQUIRED, pictures, FileNaming("", 1, ".npz"))


_SITE = "https://dl.fbaipublicfiles.com/clevr"
# Figures of the CLEVR site, which gives none of single evaluation splits that another source confirms.
_SPLITS = (_split("trainA", 699_960), *(_split(name) for name in _NAMES[1:]))
CLEVR_COGENT = register_dataset(
    DatasetSpec(
        name="clevr-cogent",
        title="CLEVR-CoGenT: CLEVR with other colors of shapes in tests",
        splits=_SPLITS,
        image_sets=(_images("trainA", 70_000), *(_images(name) for name in _NAMES[1:])),
        read_split=partial(read_clevr_split, names=_NAMES),
        grid_size=14,
        download_hint="unpack CLEVR_CoGenT_v1.0.zip (https://cs.stanford.edu/people/jcjohns/clevr/) and pass its folder"
        " as --raw",
        downloads=(
            Download(f"{_SITE}/CLEVR_CoGenT_v1.0_no_images.zip", holds=tuple(split.questions for split in _SPLITS)),
            Download(
                f"{_SITE}/CLEVR_CoGenT_v1.0.zip",
                about_bytes=24_000_000_000,
                md5="9e4a361ab939a4899e6d2ac14a5ee434",
                has_images=True,
                unpack_to="images",
                unpack_prefix="CLEVR_CoGenT_v1.0/images/",
            ),
        ),
        answer_splits=("trainA",),
        aliases={"train": "trainA", "val": "valA", "test": "testA"},
        split_notes={name: f"condition {name[-1]}" for name in _NAMES},
        metric=clevr_accuracy,
        answer_file=LineAnswers("CLEVR"),
    )
)
