"""``trarctl submit``: the file that a test server takes, checked before it is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
)

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData
    from trarctl.engine.evaluator import Request, Scores
    from trarctl.engine.launch import Watch

EPILOG = (
    "Example: trarctl submit --ckpt RUN_A --ckpt RUN_B --out answers.json"
    "\n\nSeveral checkpoints, or files of --save-scores, are averaged. trarctl submit --validate FILE --data DIR"
    " checks a file that another program made."
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
        typer.Option(
            "--out",
            metavar="FILE",
            help="File to write; by default RUN-SPLIT.json (.txt for CLEVR) in this folder.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    save_scores: SaveScoresOption = None,
    validate: Annotated[
        Path | None,
        typer.Option(
            "--validate",
            metavar="FILE",
            help="Write nothing; list what the site would reject in this file.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    is_quiet: QuietOption = False,
) -> None:
    """Answer every question of the test split, in the format that the data set's server takes."""
    from trarctl.commands.console import note, say
    from trarctl.commands.watching import watch_run
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import Request
    from trarctl.errors import SettingsError

    wanted = split or "test"
    if split is None:
        note("no split named: taking test")
    if validate is not None:
        if data is None:
            raise SettingsError("--validate needs the data that the file answers", "--data data/vqa/prepared")
        _validate(validate, open_prepared(data), wanted)
        return
    named: Sequence[str | None] = ckpt or [None]
    requests = [Request(one, data, wanted, config, tuple(sets or ()), gpus) for one in named]
    parts, folder, name = _score(requests, functools.partial(watch_run, is_quiet=is_quiet))
    opened = open_prepared(folder)
    if save_scores is not None:
        if len(parts) > 1:
            raise SettingsError("--save-scores keeps the scores of one checkpoint", "give one --ckpt")
        parts[0].save(save_scores)
        note(f"scores written to {save_scores}")
    target = out or Path(f"{name}-{wanted}{opened.spec.answer_file.suffix}")
    size = _write(target, parts, opened, wanted)
    say(f"{len(parts[0].question_id):,} answers to {opened.dataset} {wanted}, checked, {size:,} bytes: {target}")


def _score(requests: Sequence[Request], watch: Watch) -> tuple[list[Scores], Path, str]:
    """Scores of each checkpoint or saved file, the data they answer, and a name for the result."""
    from trarctl.commands.console import note
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import load_scores, score_split
    from trarctl.errors import SettingsError

    parts = []
    names = []
    data = requests[0].data
    saved = [Path(one.ckpt) for one in requests if one.ckpt is not None and one.ckpt.endswith(".npz")]
    for request in requests:
        if request.ckpt is not None and Path(request.ckpt) in saved:
            continue
        scores, chosen = score_split(dataclasses.replace(request, data=data), watch)
        note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
        data = data or chosen.data
        parts.append(scores)
        names.append(chosen.settings.run.name or chosen.checkpoint.stem)
    if data is None:
        raise SettingsError("saved scores need the data that they answer", "--data data/vqa/prepared")
    is_exclusive = open_prepared(data).spec.has_one_answer
    parts += [load_scores(file, is_exclusive=is_exclusive) for file in saved]
    return parts, data, "+".join(names) or "ensemble"


def _write(target: Path, parts: list[Scores], data: PreparedData, split: str) -> int:
    from trarctl.engine.evaluator import combine, sayable_answers

    part = data.split(split)
    if len(parts) == 1:
        answers = sayable_answers(parts[0].scores, parts[0].answers)
    else:
        answers = sayable_answers(*combine(parts))
    return data.spec.answer_file.write(target, parts[0].question_id, answers, data, part)


def _validate(file: Path, data: PreparedData, split: str) -> None:
    from trarctl.commands.console import say
    from trarctl.errors import DataError

    part = data.split(split)
    problems = data.spec.answer_file.problems(file, data, part)
    if problems:
        listed = "\n".join(problems)
        raise DataError(f"{file} would be rejected:\n{listed}", "trarctl submit writes one that is not")
    say(f"{file}: {len(part):,} answers to {data.dataset} {split}, nothing to object to")
