"""``trarctl eval``: a checkpoint's accuracy on a split that has answers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trarctl.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    CkptOption,
    ConfigOption,
    DataOption,
    EvaluatorOption,
    GpusOption,
    JsonOption,
    QuietOption,
    SaveScoresOption,
    SetOption,
    SplitOption,
)

if TYPE_CHECKING:
    from trarctl.data.metrics import Accuracy, EvaluatorName
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.report.page import ReportRequest

EPILOG = (
    "Example: trarctl eval --ckpt RUN@13 --evaluator upstream --json scores.json"
    "\n\nThe original's: trarctl eval --ckpt epoch13.pkl --config trar.yml --data data/vqa/prepared"
)

AnswersOption = Annotated[
    Path | None,
    typer.Option(
        "--answers",
        metavar="FILE",
        help="Score a result file that any program made instead of a checkpoint: JSON for VQA, text for CLEVR;"
        " needs --data.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="DIR",
        help="Write DIR/index.html: accuracy, curves, routes, calibration, confusions and examples on one page.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder of the pictures for the report's examples; easy-VQA brings its own.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
CompareOption = Annotated[
    list[str] | None,
    typer.Option(
        "--compare",
        metavar="RUN...",
        help="Put several checkpoints side by side, with the difference to the published results.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
MoreArgument = Annotated[
    list[str] | None, typer.Argument(metavar="RUN", help="Further checkpoints for --compare.", hidden=True)
]


def evaluate(
    ckpt: CkptOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    answers: AnswersOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    gpus: GpusOption = None,
    evaluator: EvaluatorOption = "official",
    json: JsonOption = None,
    save_scores: SaveScoresOption = None,
    report: ReportOption = None,
    images: ImagesOption = None,
    compare: CompareOption = None,
    more: MoreArgument = None,
    is_quiet: QuietOption = False,
) -> None:
    """Measure a checkpoint's accuracy: overall and by type, in percent."""
    from trarctl.commands.comparing import compare_checkpoints
    from trarctl.commands.console import note, write_json
    from trarctl.commands.watching import watch_run
    from trarctl.data.metrics import measure
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import Request, score_split
    from trarctl.errors import SettingsError
    from trarctl.report.page import ReportRequest, prepare_folder

    wanted = split or "val"
    if split is None:
        note("no split named: taking val")
    if more and not compare:
        raise SettingsError(f"eval takes its checkpoint by option, got {more[0]}", f"trarctl eval --ckpt {more[0]}")
    watch = functools.partial(watch_run, is_quiet=is_quiet)
    if compare:
        side_by_side = [*compare, *(more or [])]
        rows = compare_checkpoints(
            side_by_side,
            data=data,
            split=wanted,
            config=config,
            sets=sets or [],
            gpus=gpus,
            evaluator=evaluator,
            watch=watch,
            is_silent=json == "-",
        )
        if json is not None:
            write_json({"split": wanted, "checkpoints": rows}, json)
        return
    if answers is not None:
        if report is not None:
            raise SettingsError("--report shows how a checkpoint answers, --answers has none", "leave one of them out")
        opened = open_prepared(_needed(data))
        part = opened.split(wanted)
        predictions, source = opened.spec.answer_file.read(answers, opened, part), str(answers)
    else:
        if report is not None:
            prepare_folder(report)
        request = Request(ckpt, data, wanted, config, tuple(sets or ()), gpus)
        scores, chosen = score_split(request, watch)
        note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
        if save_scores is not None:
            scores.save(save_scores)
            note(f"scores written to {save_scores}")
        opened = open_prepared(chosen.data)
        part = opened.split(wanted)
        predictions, source = scores.predictions(), str(chosen.checkpoint)
    measured = measure(predictions, opened, part, evaluator)
    if json is not None:
        write_json(_document(measured, source, wanted, opened), json)
    if json != "-":
        _show(measured, opened, part, evaluator)
    if report is not None and answers is None:
        _report(report, ReportRequest(scores, measured, opened, part, chosen, images), is_quiet=is_quiet)


def _report(folder: Path, request: ReportRequest, *, is_quiet: bool) -> None:
    from trarctl.commands.console import note
    from trarctl.commands.progress import progress
    from trarctl.report.page import write_report

    with progress(is_quiet=is_quiet) as show:
        path, notes = write_report(request, folder, show)
    for text in notes:
        note(text)
    note(f"report written to {path}, {path.stat().st_size / 1e6:.1f} MB")


def _needed(data: Path | None) -> Path:
    from trarctl.errors import SettingsError

    if data is None:
        raise SettingsError("--answers needs the data that it answers", "--data data/vqa/prepared")
    return data


def _document(measured: Accuracy, checkpoint: str, split: str, data: PreparedData) -> dict[str, object]:
    document: dict[str, object] = {"overall": measured.overall}
    if measured.counts:
        document["correct"], document["total"] = measured.counts["overall"]
        document["per_question_type"] = {
            name: {"accuracy": accuracy, "correct": measured.counts[name][0], "total": measured.counts[name][1]}
            for name, accuracy in measured.per_type.items()
        }
    else:
        document["per_answer_type"] = measured.per_type
        document["per_question_type"] = measured.per_question_type
    return document | {
        "evaluator": measured.evaluator,
        "checkpoint": checkpoint,
        "questions": measured.questions,
        "dataset": data.dataset,
        "split": split,
    }


def _show(measured: Accuracy, data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName) -> None:
    from trarctl.commands.console import add_row, make_table, show_table
    from trarctl.data.baselines import commonest_answer, question_prior
    from trarctl.data.metrics import measure

    columns = ["accuracy, %"]
    values = [measured]
    if data.spec.shows_baselines:
        columns += ["question alone, %", "commonest answer, %"]
        for guess in (question_prior, commonest_answer):
            values.append(measure(guess(data, split), data, split, evaluator))
    title = f"{measured.questions:,} questions of {data.spec.split_title(split.name)}"
    table = make_table(data.spec.type_label, *columns, title=title, numbers=columns)
    for name in sorted(measured.per_type):
        add_row(table, name, *(f"{value.per_type[name]:.2f}" for value in values))
    add_row(table, "overall", *(f"{value.overall:.2f}" for value in values), style="bold")
    show_table(table)
