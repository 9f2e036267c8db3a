"""A data set from outside trarctl, all of it in this file: painted signs, whose ids are the names of their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trarctl.data import Progress
from trarctl.data.datasets.base import DatasetSpec, FileNaming, ImageSetFiles, SplitFiles, register_dataset
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.data.records import Ids, RawData, RawSplit, RecordReader, StringTable, single_answers
from trarctl.data.submission import AnswerFile

RECIPE = Path(__file__).with_suffix(".toml")


def read_signs(raw: Path, files: SplitFiles, data: RawData, progress: Progress) -> RawSplit:
    """Read one split: a list of {"id", "sign", "asks", "says", "about"}."""
    reader, kinds = RecordReader(raw / files.questions, "questions", progress), StringTable()

    def take(records: list[Any]) -> list[Any]:
        columns = [
            reader.ids(records, "id", str),
            reader.ids(records, "sign", str),
            reader.texts(records, "asks"),
        ]
        if files.has_answers:
            columns += [reader.codes(records, "says", data.answers), reader.codes(records, "about", kinds)]
        return columns

    ids, signs, texts, *answers = reader.collect(take)
    data.num_records[files.questions] = len(ids)
    return RawSplit(files.name, ids, signs, texts, single_answers(*answers, kinds) if answers else None)


class TabbedAnswers(AnswerFile):
    """A question id, a tab and the answer on each line."""

    suffix, encoding, form = ".tsv", "UTF-8", "a line is QUESTION<tab>ANSWER"

    def encode(self, question_ids: Ids, answers: Sequence[str]) -> bytes:
        return "".join(f"{one}\t{answer}\n" for one, answer in zip(question_ids, answers, strict=True)).encode()

    def faults(self, content: bytes, data: PreparedData, split: PreparedSplit) -> list[str]:  # noqa: ARG002
        return self.decode(content, split)[1]

    def decode(self, content: bytes, split: PreparedSplit) -> tuple[list[str], list[str]]:
        answer_of = dict(line.split("\t") for line in content.decode().splitlines())
        ids = split.question_id.tolist()
        return [answer_of.get(one, "") for one in ids], [f"no answer to {one}" for one in ids if one not in answer_of]


SIGNS = register_dataset(
    DatasetSpec(
        name="toy-signs",
        title="toy signs: one color each",
        splits=(
            SplitFiles("train", "signs", "train.json"),
            SplitFiles("val", "signs", "val.json"),
            SplitFiles("test", "signs", "test.json", has_answers=False),
        ),
        image_sets=(ImageSetFiles("signs", None, True, FileNaming("", None, ""), FileNaming("", None, ".npy")),),
        read_split=read_signs,
        grid_size=4,
        download_hint="paint some signs",
        extractor="patches",
        answer_file=TabbedAnswers(),
        recipe=RECIPE,
    )
)
