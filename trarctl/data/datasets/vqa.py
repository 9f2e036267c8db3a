"""VQA v2, with the questions of Visual Genome that the published recipes train on as well."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trarctl.data import Progress
from trarctl.data.archives import find_packed
from trarctl.data.datasets import visual_genome
from trarctl.data.datasets.base import (
    DatasetSpec,
    FileNaming,
    ImageSetFiles,
    Published,
    SplitFiles,
    check_declared,
    register_dataset,
)
from trarctl.data.download import Download
from trarctl.data.metrics import vqa_accuracy
from trarctl.data.records import (
    NUM_ANNOTATORS,
    Ids,
    RawAnnotations,
    RawData,
    RawSplit,
    RecordReader,
    StringTable,
    annotators_codes,
    as_text,
    other_numbers,
    refuse_duplicates,
    rows_of,
    shown,
)
from trarctl.data.text import build_answers, normalize_answer
from trarctl.errors import DataError, listed

_DOWNLOAD_BOTH = "take both files of the same version, whole or cut to the same questions"
_QUESTIONS = '{"questions": [{"question_id": 1, "image_id": 2, "question": "is it?"}]}'
_ANNOTATIONS = (
    '{"annotations": [{"question_id": 1, "image_id": 2, "multiple_choice_answer": "yes", '
    '"answers": [{"answer": "yes"}]}]}'
)


def read_vqa_split(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split of VQA v2; errors as in ``read_pair``."""
    return read_pair(raw, files, data, progress, splits=VQA.splits)


def read_pair(
    raw: Path,
    files: SplitFiles,
    data: RawData,
    progress: Progress,
    *,
    splits: Sequence[SplitFiles] = (),
    image_sets: Sequence[str] = (),
    may_be_bare: bool = False,
    lists_all_answers: bool = False,
) -> RawSplit:
    """Read a split in VQA v2's layout; DataError if a file is damaged, or the two do not belong together.

    Args:
        raw: the raw folder.
        files: the questions, and the annotations unless the split has no answers.
        data: takes answers, counts and warnings.
        progress: told the bytes read.
        splits: those whose names or image sets may stand beside the lists; none: what stands there says nothing.
        image_sets: what ``coco_split`` of a question may be, in their order; none: there is no such field.
        may_be_bare: a file may be its list alone.
        lists_all_answers: the answer list is drawn from the answers of all annotators, not from the commonest.
    """
    path = raw / files.questions
    layout = _layout(_QUESTIONS, files)
    reader = RecordReader(path, "questions", progress, warnings=data.warnings, layout=layout, may_be_bare=may_be_bare)

    def take(records: list[Any]) -> list[Any]:
        ids = [reader.ids(records, name) for name in ("question_id", "image_id")]
        return [*ids, reader.texts(records, "question"), _set_places(reader, records, image_sets)]

    question_id, image_id, texts, place = reader.collect(take)
    # Where not every record says it, an image is of the set that has its file.
    image_set = place if (place >= 0).all() else None
    if splits:
        _check_head(reader, files, splits, data.warnings)
    refuse_duplicates(path, question_id, "question_id")
    data.num_records[files.questions] = len(question_id)
    if files.annotations is None:
        return RawSplit(files.name, question_id, image_id, texts, None, image_set)
    path = raw / files.annotations
    layout = _layout(_ANNOTATIONS, files)
    reader = RecordReader(path, "annotations", progress, warnings=data.warnings, layout=layout, may_be_bare=may_be_bare)
    annotated_id, annotated_image, annotations = _read_annotations(
        reader, files, data, lists_all_answers=lists_all_answers
    )
    if splits:
        _check_head(reader, files, splits, data.warnings)
    data.num_records[files.annotations] = len(annotated_id)
    refuse_duplicates(path, annotated_id, "question_id")
    rows = rows_of(annotated_id, question_id)
    if len(unknown := annotated_id[rows < 0]):
        what = f"{path} annotates questions that {files.questions} does not hold: {listed(unknown, len(unknown))}"
        raise DataError(what, _DOWNLOAD_BOTH)
    is_missing = np.ones(len(question_id), dtype=bool)
    is_missing[rows] = False
    if len(missing := question_id[is_missing]):
        what = f"{path} has no annotations of the questions {listed(missing, len(missing))}"
        if files.name != "train" and not files.borrows_images:
            raise DataError(what, _DOWNLOAD_BOTH)
        data.warnings.append(f"{what}: they are not trained on")
    # Where the files name different images the annotation's counts, as in the original program.
    differs = image_id[rows] != annotated_image
    if differs.any():
        questions = listed(question_id[rows[differs]], int(differs.sum()))
        data.warnings.append(f"{path} names other images than {files.questions} for {questions}, and its own are used")
        image_id[rows] = annotated_image
    annotations = replace(annotations, rows=rows.astype(np.int32))
    return RawSplit(files.name, question_id, image_id, texts, annotations, image_set)


def _layout(layout: str, files: SplitFiles) -> str:
    return f"{layout}; {files.download_hint}" if files.download_hint else layout


def _set_places(reader: RecordReader, records: list[Any], image_sets: Sequence[str]) -> npt.NDArray[np.int8] | None:
    """Give the place of each record's image set, [records], -1 where it is not said; None: some are unusable."""
    if not image_sets:
        return np.full(len(records), -1, dtype=np.int8)
    places = {name: place for place, name in enumerate(image_sets)} | {"": -1}
    expected = " or ".join(f'"{name}"' for name in image_sets)
    names = reader.column(records, "coco_split", str, default="", is_valid=places.__contains__, expected=expected)
    return None if names is None else np.array([places[name] for name in names], dtype=np.int8)


def _check_head(reader: RecordReader, files: SplitFiles, splits: Sequence[SplitFiles], warnings: list[str]) -> None:
    """Compare what stands beside the list with the split, and with the one kind of questions that is read."""
    known = {value: split.name for split in reversed(splits) for value in (split.name, split.image_set)}
    known |= {files.image_set: files.name}
    heads = {"data_subtype": known, "data_type": {"mscoco": files.name}, "task_type": {"Open-Ended": files.name}}
    for field, right in heads.items():
        if isinstance(value := reader.frame.get(field), str):
            check_declared(reader.path, {(field, value): 1}, files, right, warnings)


def _read_annotations(
    reader: RecordReader, files: SplitFiles, data: RawData, *, lists_all_answers: bool
) -> tuple[Ids, Ids, RawAnnotations]:
    """Read question ids [A], image ids [A] and annotations whose ``rows`` are still to be filled in."""
    answer_types, question_types = StringTable(), StringTable()

    def take(records: list[Any]) -> list[Any]:
        columns = [reader.ids(records, "question_id"), reader.ids(records, "image_id")]
        given = answer_codes(reader, records, data.answers)
        if given is None:
            return [None]
        for name in () if files.borrows_images else ("answer_type", "question_type"):
            num_lacking = sum(name not in record for record in records)
            reader.count(f'records without "{name}", by which accuracy is reported', num_lacking)
        return [
            *columns,
            given,
            given if lists_all_answers else _chosen_codes(reader, records, given, data.answers),
            reader.codes(records, "answer_type", answer_types, default=""),
            reader.codes(records, "question_type", question_types, default=""),
        ]

    question_id, image_id, given, chosen, answer_type, question_type = reader.collect(take)
    data.warnings += other_numbers(reader.path, given)
    kinds = answer_type.astype(np.int16), tuple(answer_types), question_type.astype(np.int16), tuple(question_types)
    return question_id, image_id, RawAnnotations(np.empty(0, dtype=np.int32), given, chosen, *kinds)


def answer_codes(reader: RecordReader, records: list[Any], table: StringTable) -> npt.NDArray[np.int32] | None:
    """Number the annotators' ``answers``, [records, 10], -1 where there are fewer than ten; None: some are unusable."""
    groups = reader.column(records, "answers", list)
    if groups is None:
        return None
    lengths = np.fromiter(map(len, groups), dtype=np.int64, count=len(groups))
    reader.refuse_repeated(records, "answers", "answer", int(lengths.sum()))
    try:
        texts = [answer["answer"] for group in groups for answer in group]
    except (KeyError, TypeError, IndexError):
        texts = [None]
    if not set(map(type, texts)) <= {str}:
        texts = [_answer_text(answer) for group in groups for answer in group]
        if None not in texts:
            number = sum(not all(isinstance(one, dict) and type(one["answer"]) is str for one in g) for g in groups)
            reader.count('records whose "answers" are not all {"answer": TEXT}, read as text', number)
    if set(map(type, texts)) <= {str} and lengths.min() > 0 and lengths.max() <= NUM_ANNOTATORS:
        if blank := {text for text in set(texts) if not text.strip()}:
            reader.count("answers of annotators that are empty", sum(text in blank for text in texts))
        return annotators_codes(texts, lengths, table)
    for number, group in enumerate(groups):
        if not 0 < len(group) <= NUM_ANNOTATORS:
            reader.report(number, f"has {len(group)} answers, expected 1 to {NUM_ANNOTATORS}")
            continue
        wrong = [one for one in group if _answer_text(one) is None]
        if wrong:
            reader.report(number, f'has {shown(wrong[0])} among its "answers", expected {{"answer": TEXT}}')
    return None


def _answer_text(answer: object) -> str | None:
    """Read an annotator's answer: an object that has it, or the answer alone, as text or number."""
    return as_text(answer.get("answer") if isinstance(answer, dict) else answer)


def _chosen_codes(
    reader: RecordReader, records: list[Any], given: npt.NDArray[np.int32], table: StringTable
) -> npt.NDArray[np.int32] | None:
    """Number the answers that count for the answer list, [records]; else the commonest of those given."""
    name = "multiple_choice_answer"
    texts = [record.get(name) for record in records]
    if set(map(type, texts)) <= {str} and all(map(str.strip, set(texts))):
        return table.codes(texts)
    strings = list(table)
    for number, text in enumerate(texts):
        if text is None or (isinstance(text, str) and not text.strip()):
            others = [strings[code] for code in given[number] if code >= 0 and strings[code].strip()]
            if not others:
                reader.report(number, "has only empty answers")
            texts[number] = Counter(others).most_common(1)[0][0] if others else "?"
            reader.count(f'records without a "{name}", for which the commonest of their answers stands in')
    return reader.codes([{name: text} for text in texts], name, table)


def _split(name: str, image_set: str, num_questions: int, *, has_answers: bool = True) -> SplitFiles:
    questions = f"v2_OpenEnded_mscoco_{image_set}_questions.json"
    annotations = f"v2_mscoco_{image_set}_annotations.json" if has_answers else None
    return SplitFiles(name, image_set, questions, annotations, has_answers, num_questions, has_answers)


def coco_images(name: str, num_images: int, *, is_required: bool = True) -> ImageSetFiles:
    """Describe one of COCO's image sets of 2014 and 2015, and its grid features."""
    prefix = f"COCO_{name}_"
    pictures, features = (FileNaming(prefix, 12, suffix) for suffix in (".jpg", ".jpg.npy"))
    return ImageSetFiles(name, num_images, is_required, pictures, features)


def _packed(part: str, member: str, num_bytes: int | None, sha256: str) -> Download:
    """Describe one of the archives of questions or annotations, which hold one file each."""
    url = f"https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_{part}_mscoco.zip"
    return Download(url, num_bytes, sha256=sha256, holds=(f"v2_{member}.json",))


def _pictures(name: str, num_bytes: int, num_files: int, sha256: str) -> Download:
    """Describe the archive of one image set of COCO."""
    url = f"http://images.cocodataset.org/zips/{name}.zip"
    return Download(
        url,
        num_bytes,
        sha256=sha256,
        has_images=True,
        unpack_to=f"images/{name}",
        unpack_prefix=f"{name}/",
        num_files=num_files,
    )


# Further data sets ask about these pictures.
COCO_PICTURES = (
    _pictures("train2014", 13_510_573_713, 82_783, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    _pictures("val2014", 6_645_013_297, 40_504, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    _pictures("test2015", 13_270_587_935, 81_434, "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca"),
)


def _rebuild_visual_genome(raw: Path, progress: Progress) -> str:
    """Make questions of Visual Genome about the pictures of train and val, with answers of their answer list."""
    splits = [split for split in VQA.splits if split.name in VQA.answer_splits]
    names = [str(split.annotations) for split in splits]
    packed = find_packed(raw, [name for name in names if not (raw / name).is_file()])
    if missing := [name for name in names if name not in packed and not (raw / name).is_file()]:
        what = f"the answers of Visual Genome are chosen by those of VQA-v2: no {listed(missing)} in {raw}"
        raise DataError(what, f"trarctl download vqa --raw {shlex.quote(str(raw))}, and then this again")
    data, given, pictures = RawData(), list[npt.NDArray[np.int32]](), list[Ids]()
    for split, name in zip(splits, names, strict=True):
        layout = _layout(_ANNOTATIONS, split)
        path = raw / packed.get(name, name)
        reader = RecordReader(path, "annotations", progress, warnings=data.warnings, layout=layout)
        _, images, annotations = _read_annotations(reader, split, data, lists_all_answers=False)
        given.append(annotations.chosen)
        pictures.append(images)
    strings = list(data.answers)
    chosen = (strings[code] for code in np.concatenate(given).tolist())
    answers = build_answers(chosen, min_count=VQA.min_answer_count or 0)
    return visual_genome.rebuild(raw, np.unique(np.concatenate(pictures)), frozenset(answers), progress)


VQA = register_dataset(
    DatasetSpec(
        name="vqa",
        title="VQA-v2: photographs from COCO",
        splits=(
            _split("train", "train2014", 443_757),
            _split("val", "val2014", 214_354),
            _split("test", "test2015", 447_793, has_answers=False),
            SplitFiles(
                "vg",
                "train2014",
                visual_genome.QUESTIONS,
                visual_genome.ANNOTATIONS,
                is_required=False,
                borrows_images=True,
                download_hint="VG_questions.json and VG_annotations.json are openvqa's, in VQA-v2's layout with COCO's"
                " image ids; `trarctl download vg` makes similar ones of Visual Genome's own, but no published"
                " checkpoint fits them. Without both files, vg is left out",
            ),
        ),
        image_sets=(
            coco_images("train2014", 82_783),
            coco_images("val2014", 40_504),
            coco_images("test2015", 81_434, is_required=False),
        ),
        read_split=read_vqa_split,
        grid_size=8,
        max_words=14,
        download_hint="put the questions and annotations of https://visualqa.org/download.html, packed or not, into"
        " the --raw folder",
        # Sizes and hashes: as several independent copies have them.
        downloads=(
            _packed(
                "Questions_Train",
                "OpenEnded_mscoco_train2014_questions",
                7_239_401,
                "05a64b6e2582d06d7585f5429674a9a33851878be1bff9f8668cdcf792df611e",
            ),
            _packed(
                "Questions_Val",
                "OpenEnded_mscoco_val2014_questions",
                3_494_929,
                "e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a",
            ),
            _packed(
                "Questions_Test",
                "OpenEnded_mscoco_test2015_questions",
                None,
                "982e2e687a86514b78ea83af356d151976c5e3fb4168a29ca543610574082ad7",
            ),
            _packed(
                "Annotations_Train",
                "mscoco_train2014_annotations",
                21_708_861,
                "fb101bcefe91422c543c2bb6d70af11eb3119d0ff745ae283d09acdf66250853",
            ),
            _packed(
                "Annotations_Val",
                "mscoco_val2014_annotations",
                10_518_930,
                "0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e",
            ),
            *COCO_PICTURES,
            visual_genome.IMAGE_DATA,
            replace(visual_genome.QUESTION_ANSWERS, finish=_rebuild_visual_genome),
        ),
        shares_image_ids=True,
        normalize_answer=normalize_answer,
        min_answer_count=8,
        has_one_answer=False,
        metric=vqa_accuracy,
        type_label="answer type",
        # Model card of TRAR-VQA (2021): trained on train, by the original's evaluator.
        published={
            "val": (
                Published("soft, avg", 67.62, {"yes/no": 85.36, "number": 49.89, "other": 58.83}),
                Published("hard, attention, binarize", 67.62, {"yes/no": 85.19, "number": 49.75, "other": 58.98}),
            )
        },
    )
)
