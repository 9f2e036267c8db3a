"""``trarctl eval``: the accuracy of one checkpoint, or of several side by side, on a split that has answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trarctl.commands.console import add_row, make_table, note, show_table, write_json
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
    option,
)

if TYPE_CHECKING:
    from trarctl.config import EvaluatorName
    from trarctl.data.datasets.base import Published
    from trarctl.data.metrics import Accuracy
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.engine.evaluator import Request
    from trarctl.engine.launch import Watch
    from trarctl.report.page import ReportRequest

    Row = tuple[str, Accuracy, Published | None]

EPILOG = (
    "Example: trarctl eval --ckpt RUN@13 --evaluator upstream --json scores.json"
    "\n\nA checkpoint of the original: trarctl eval --ckpt epoch13.pkl --config trar.yml --data data/vqa/prepared"
)


def evaluate(
    ckpt: CkptOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    answers: Annotated[
        Path | None,
        option(
            "--answers",
            DATA_PANEL,
            "Score a result file of any program instead of a checkpoint: JSON for VQA, text for CLEVR; needs --data.",
            metavar="FILE",
        ),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    gpus: GpusOption = None,
    evaluator: EvaluatorOption = "official",
    json: JsonOption = None,
    save_scores: SaveScoresOption = None,
    report: Annotated[
        Path | None,
        option("--report", OUTPUT_PANEL, "Write DIR/index.html: curves, routes and examples.", metavar="DIR"),
    ] = None,
    images: Annotated[
        Path | None,
        option("--images", DATA_PANEL, "Folder of images for the report; easy-VQA brings its own.", metavar="DIR"),
    ] = None,
    compare: Annotated[
        list[str] | None,
        option("--compare", DATA_PANEL, "Compare several checkpoints, also with published results.", metavar="RUN..."),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Further checkpoints for --compare.", hidden=True)
    ] = None,
    is_quiet: QuietOption = False,
) -> None:
    """Measure a checkpoint's accuracy: overall and by type, in percent."""
    from trarctl.commands.progress import watch
    from trarctl.data.metrics import measure
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import Request, score_split
    from trarctl.errors import SettingsError

    wanted = split or "val"
    if split is None:
        note("no split given: using val")
    if more and not compare:
        raise SettingsError(f"eval takes its checkpoint as an option, got {more[0]}", f"trarctl eval --ckpt {more[0]}")
    watch_run = functools.partial(watch, is_quiet=is_quiet)
    names: list[str | None] = [*compare, *(more or [])] if compare else [ckpt]
    requests = [Request(name, data, wanted, config, tuple(sets or ()), gpus) for name in names]
    if compare:
        rows = _compare(requests, evaluator, watch_run)
        if json is not None:
            write_json({"split": wanted, "checkpoints": [_row_document(*row) for row in rows]}, json)
        if json != "-":
            _show_rows(rows, wanted, evaluator)
        return
    if answers is not None:
        if report is not None:
            raise SettingsError("--report needs a checkpoint, --answers has none", "leave one of them out")
        if data is None:
            raise SettingsError("--answers needs the data that the file answers", "--data data/vqa/prepared")
        opened = open_prepared(data)
        part = opened.split(wanted)
        predictions, source = opened.spec.answer_file.read(answers, opened, part), str(answers)
    else:
        if report is not None:
            from trarctl.report.page import prepare_folder

            prepare_folder(report)
        scores, chosen = score_split(requests[0], watch_run)
        note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
        if save_scores is not None:
            scores.save(save_scores)
            note(f"scores written to {save_scores}")
        opened = open_prepared(chosen.data)
        part = opened.split(wanted)
        predictions, source = scores.predictions(), str(chosen.checkpoint)
    measured = measure(predictions, opened, part, evaluator)
    if json is not None:
        write_json(_document(measured, source, wanted, opened.dataset), json)
    if json != "-":
        _show(measured, opened, part, evaluator)
    if report is not None:
        from trarctl.report.page import ReportRequest

        _report(report, ReportRequest(scores, measured, opened, part, chosen, images), is_quiet=is_quiet)


def _report(folder: Path, request: ReportRequest, *, is_quiet: bool) -> None:
    from trarctl.commands.progress import show_progress
    from trarctl.report.page import write_report

    with show_progress(is_quiet=is_quiet) as progress:
        path, notes = write_report(request, folder, progress)
    note(*notes)
    note(f"report written to {path}, {path.stat().st_size / 1e6:.1f} MB")


def _document(measured: Accuracy, checkpoint: str, split: str, dataset: str) -> dict[str, object]:
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
        "dataset": dataset,
        "split": split,
    }


def _show(measured: Accuracy, data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName) -> None:
    from trarctl.data.metrics import commonest_answer, measure, question_prior

    columns = ["accuracy, %"]
    values = [measured]
    if data.spec.shows_baselines:
        columns += ["question alone, %", "commonest answer, %"]
        guess, rule = question_prior(data, split)
        values += [measure(one, data, split, evaluator) for one in (guess, commonest_answer(data, split))]
    title = f"{measured.questions:,} questions of {data.spec.split_title(split.name)}"
    table = make_table(data.spec.type_label, *columns, title=title, numbers=columns)
    for name in sorted(measured.per_type):
        add_row(table, name, *(f"{value.per_type[name]:.2f}" for value in values))
    add_row(table, "overall", *(f"{value.overall:.2f}" for value in values), style="bold")
    show_table(table)
    if data.spec.shows_baselines:
        note(f"question alone: the commonest training answer by {rule}")


def _compare(requests: Sequence[Request], evaluator: EvaluatorName, watch: Watch) -> list[Row]:
    """Each checkpoint's accuracy, with the published result that has the same kind of routing, or else the first."""
    import dataclasses

    from trarctl.data.metrics import measure
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import score_split

    rows: list[Row] = []
    for request in requests:
        name = request.ckpt or ""
        # --config belongs to checkpoints of the original program alone; the others hold their settings.
        own = request if name.endswith(".pkl") else dataclasses.replace(request, config=None)
        scores, chosen = score_split(own, watch)
        opened = open_prepared(chosen.data)
        measured = measure(scores.predictions(), opened, opened.split(request.split), evaluator)
        candidates = opened.spec.published_on(request.split)
        same = [row for row in candidates if row.name.startswith(chosen.settings.model.routing)]
        rows.append((name, measured, next(iter(same or candidates), None)))
    return rows


def _row_document(name: str, measured: Accuracy, published: Published | None) -> dict[str, object]:
    document: dict[str, object] = {
        "checkpoint": name,
        "overall": measured.overall,
        "per_type": measured.per_type,
        "questions": measured.questions,
        "evaluator": measured.evaluator,
    }
    if published is not None:
        document["published"] = {"name": published.name, "overall": published.overall, "per_type": published.per_type}
        document["difference"] = round(measured.overall - published.overall, 2)
    return document


def _show_rows(rows: Sequence[Row], split: str, evaluator: EvaluatorName) -> None:
    types = sorted({name for _, measured, _ in rows for name in measured.per_type})
    table = make_table("checkpoint", "overall, %", *types, title=f"accuracy on {split}", numbers=["overall, %", *types])
    for name, measured, published in rows:
        values = [measured.per_type.get(kind) for kind in types]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        add_row(table, name, f"{measured.overall:.2f}", *cells)
        if published is not None:
            differences = [
                "-" if value is None or kind not in published.per_type else f"{value - published.per_type[kind]:+.2f}"
                for kind, value in zip(types, values, strict=True)
            ]
            label = f"  against published ({published.name})"
            add_row(table, label, f"{measured.overall - published.overall:+.2f}", *differences, style="dim")
    show_table(table)
    if evaluator != "upstream" and any(published is not None for _, _, published in rows):
        note("published results follow the older rules; compare with --evaluator upstream")
