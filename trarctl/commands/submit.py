"""``trarctl submit``: the file that a test server takes, checked before it is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from trarctl.commands.console import note, say
from trarctl.commands.options import (
    OUTPUT_PANEL,
    CkptsOption,
    ConfigOption,
    DataOption,
    GpusOption,
    QuietOption,
    SaveScoresOption,
    SetOption,
    SplitOption,
    option,
)

if TYPE_CHECKING:
    from trarctl.engine.evaluator import Request, Scores
    from trarctl.engine.launch import Watch

EPILOG = (
    "Example: trarctl submit --ckpt RUN_A --ckpt RUN_B --out answers.json"
    "\n\nSeveral checkpoints, or files of --save-scores, are averaged. trarctl submit --validate FILE --data DIR"
    " checks a file that another program wrote."
)


def submit(
    ckpt: CkptsOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    gpus: GpusOption = None,
    out: Annotated[
        Path | None,
        option("--out", OUTPUT_PANEL, "File to write; by default RUN-SPLIT.json, .txt for CLEVR.", metavar="FILE"),
    ] = None,
    save_scores: SaveScoresOption = None,
    validate: Annotated[
        Path | None,
        option("--validate", OUTPUT_PANEL, "Only list what the server would reject in this file.", metavar="FILE"),
    ] = None,
    is_quiet: QuietOption = False,
) -> None:
    """Answer every question of the test split, in the format that the data set's server takes."""
    from trarctl.commands.progress import watch
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import Request, combine, nonblank_answers
    from trarctl.errors import SettingsError

    wanted = split or "test"
    if split is None:
        note("no split given: using test")
    if validate is not None:
        if data is None:
            raise SettingsError("--validate needs the data that the file answers", "--data data/vqa/prepared")
        _validate(validate, data, wanted)
        return
    named: Sequence[str | None] = ckpt or [None]
    if save_scores is not None and len(named) > 1:
        raise SettingsError("--save-scores keeps the scores of one checkpoint", "give one --ckpt")
    requests = [Request(one, data, wanted, config, tuple(sets or ()), gpus) for one in named]
    parts, folder, name = _score(requests, functools.partial(watch, is_quiet=is_quiet))
    opened = open_prepared(folder)
    if save_scores is not None:
        parts[0].save(save_scores)
        note(f"scores written to {save_scores}")
    answer_file = opened.spec.answer_file
    target = out or Path(f"{name}-{wanted}{answer_file.suffix}")
    scores, vocabulary = (parts[0].scores, parts[0].answers) if len(parts) == 1 else combine(parts)
    answers = nonblank_answers(scores, vocabulary)
    size = answer_file.write(target, parts[0].question_id, answers, opened, opened.split(wanted))
    say(f"{len(answers):,} answers to {opened.dataset} {wanted}, checked, {size:,} bytes: {target}")


def _score(requests: Sequence[Request], watch: Watch) -> tuple[list[Scores], Path, str]:
    """Scores of each checkpoint, then of each saved file; the data they answer; and a name for the result."""
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import load_scores, score_split
    from trarctl.errors import SettingsError

    parts, names, saved = [], [], []
    data = requests[0].data
    for request in requests:
        if request.ckpt is not None and request.ckpt.endswith(".npz"):
            saved.append(Path(request.ckpt))
            continue
        scores, chosen = score_split(dataclasses.replace(request, data=data), watch)
        note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
        data = data or chosen.data
        parts.append(scores)
        names.append(chosen.settings.run.name or chosen.checkpoint.stem)
    if data is None:
        raise SettingsError("saved scores need the data that they belong to", "--data data/vqa/prepared")
    is_exclusive = open_prepared(data).spec.has_one_answer
    parts += [load_scores(file, is_exclusive=is_exclusive) for file in saved]
    return parts, data, "+".join(names) or "ensemble"


def _validate(file: Path, folder: Path, split: str) -> None:
    from trarctl.data.prepared import open_prepared
    from trarctl.errors import DataError

    data = open_prepared(folder)
    part = data.split(split)
    if problems := data.spec.answer_file.problems(file, data, part):
        listed = "\n".join(problems)
        raise DataError(f"{file} would be rejected:\n{listed}", "trarctl submit writes a file that is accepted")
    say(f"{file}: {len(part):,} answers to {data.dataset} {split}, no problems found")
