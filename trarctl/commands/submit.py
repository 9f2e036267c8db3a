"""``trarctl submit``: the file that a test server takes, checked before it is written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from trarctl.commands.console import note, say, warn
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
    check_targets,
    option,
    refuse_ignored,
)

if TYPE_CHECKING:
    from trarctl.data.prepared import PreparedData
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
        option(
            "--out",
            OUTPUT_PANEL,
            "File to write; by default RUN-SPLIT.json (.txt for CLEVR, .jsonl for a table, which may be .csv).",
            metavar="FILE",
        ),
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
    from trarctl.engine.evaluator import Request, answers_to_submit, is_saved_scores
    from trarctl.errors import SettingsError

    wanted = split or "test"
    named: Sequence[str | None] = ckpt or [None]
    saved = [Path(one) for one in named if one is not None and is_saved_scores(Path(one))]
    given = {"--ckpt": ckpt, "--config": config, "--set": sets, "--gpus": gpus, "--out": out}
    given |= {"--save-scores": save_scores}
    if validate is not None or len(saved) == len(named):
        mode = "submit of saved scores" if validate is None else "submit --validate"
        refused = ("--config", "--save-scores", *(("--ckpt", "--out") if validate else ()))
        refuse_ignored(mode, given, refused, unused=("--set", "--gpus"))
    if split is None:
        note("no split given: using test")
    if validate is not None:
        if data is None:
            raise SettingsError("--validate needs the data that the file answers", "--data data/vqa/prepared")
        _validate(validate, data, wanted)
        return
    if save_scores is not None and len(named) > 1:
        raise SettingsError("--save-scores keeps the scores of one checkpoint", "give one --ckpt")
    # The folder of --out is made where it is missing, so that only what is there can stand in the way.
    check_targets({"--out": out if out and out.parent.exists() else None, "--save-scores": save_scores}, named)
    asked = [one for one in named if one is None or Path(one) not in saved]
    requests = [Request(one, data, wanted, config, tuple(sets or ()), gpus) for one in asked]
    parts, opened, name = _score(requests, saved, data, wanted, functools.partial(watch, is_quiet=is_quiet))
    if save_scores is not None:
        parts[0].save(save_scores)
        note(f"scores written to {save_scores}")
    target = out or Path(f"{name}-{wanted}{opened.spec.answer_file.suffix}")
    answers, shares = answers_to_submit(parts)
    size = opened.spec.answer_file.for_file(target, shares).write(
        target, parts[0].question_id, answers, opened, opened.split(wanted)
    )
    say(f"{len(answers):,} answers to {opened.name} {wanted}, checked, {size:,} bytes: {target}")


def _score(
    requests: Sequence[Request], saved: Sequence[Path], folder: Path | None, split: str, watch: Watch
) -> tuple[list[Scores], PreparedData, str]:
    """Scores of each checkpoint, then of each saved file; the data they answer; and a name for the result."""
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import choose, load_scores, score_chosen
    from trarctl.errors import SettingsError

    chosen = []
    for request in requests:
        chosen.append(choose(dataclasses.replace(request, data=folder)))
        folder = folder or chosen[0].data
    if folder is None:
        raise SettingsError("saved scores need the data that they belong to", "--data data/vqa/prepared")
    data = open_prepared(folder)
    loaded = [load_scores(file, data, split) for file in saved]
    parts = []
    for one in chosen:
        parts.append(score_chosen(one, watch))
        note(f"checkpoint {one.checkpoint} ({one.how})")
    for scores, odd in loaded:
        warn(*odd)
        parts.append(scores)
    return parts, data, "+".join(one.settings.run.name or one.checkpoint.stem for one in chosen) or "ensemble"


def _validate(file: Path, folder: Path, split: str) -> None:
    from trarctl.data.prepared import open_prepared
    from trarctl.errors import DataError

    data = open_prepared(folder)
    part = data.split(split)
    if problems := data.spec.answer_file.for_file(file).problems(file, data, part):
        listed = "\n".join(problems)
        raise DataError(f"{file} would be rejected:\n{listed}", "trarctl submit writes a file that is accepted")
    say(f"{file}: {len(part):,} answers to {data.name} {split}, no problems found")
