"""``trarctl eval``: the accuracy of one checkpoint, or of several side by side, on a split that has answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trarctl.commands.comparison import (
    choose_split,
    columns_of,
    gather,
    measured_and_kept,
    show_groups,
)
from trarctl.commands.console import add_row, make_table, note, say, show_table, warn, write_json
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
    check_targets,
    complete_run,
    option,
    refuse_ignored,
)

if TYPE_CHECKING:
    from trarctl.config import EvaluatorName
    from trarctl.data.datasets.base import Published
    from trarctl.data.metrics import Accuracy
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.engine.evaluator import Request
    from trarctl.engine.launch import Watch
    from trarctl.report.comparison import Row
    from trarctl.report.page import ReportRequest

EPILOG = (
    "Example: trarctl eval --ckpt RUN@13 --evaluator upstream --json scores.json"
    "\n\nA checkpoint of the original: trarctl eval --ckpt epoch13.pkl --config trar.yml --data data/vqa/prepared"
)

# What each way of using the command makes no use of.
_IGNORED = {
    "--ckpt": (),
    "--answers": ("--ckpt", "--config", "--save-scores", "--report", "--images", "--extractor"),
    "--compare": ("--ckpt", "--answers", "--save-scores", "--extractor"),
}


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
        option(
            "--report",
            OUTPUT_PANEL,
            "Write DIR/index.html: curves, routes and examples; with --compare one page for all.",
            metavar="DIR",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        option("--images", DATA_PANEL, "Folder of images for the report; easy-VQA brings its own.", metavar="DIR"),
    ] = None,
    extractor: Annotated[
        str | None,
        option(
            "--extractor",
            DATA_PANEL,
            "What made the features, if the data does not say so: the report draws attention as it sees images.",
            metavar="NAME",
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        option(
            "--compare",
            DATA_PANEL,
            "Compare checkpoints, sweeps or patterns in quotes ('rates-*'), also with published results.",
            metavar="RUN...",
            autocompletion=complete_run,
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Further checkpoints for --compare.", hidden=True)
    ] = None,
    is_quiet: QuietOption = False,
) -> None:
    """Measure a checkpoint's accuracy: overall and by type, in percent."""
    from trarctl.commands.progress import watch
    from trarctl.engine.evaluator import Request, score_chosen
    from trarctl.errors import SettingsError

    if more and not compare:
        raise SettingsError(f"eval takes its checkpoint as an option, got {more[0]}", f"trarctl eval --ckpt {more[0]}")
    given = {"--ckpt": ckpt, "--answers": answers, "--config": config, "--set": sets, "--gpus": gpus}
    given |= {"--save-scores": save_scores, "--report": report, "--images": images, "--extractor": extractor}
    mode = "--compare" if compare else "--answers" if answers is not None else "--ckpt"
    refuse_ignored(f"eval {mode}", given, _IGNORED[mode], unused=("--set", "--gpus") if mode == "--answers" else ())
    if report is None:
        refuse_ignored("eval without --report", given, ["--images", "--extractor"])
    check_targets({"--json": json, "--save-scores": save_scores}, [ckpt, answers, config, *(compare or [])])
    wanted = split or "val"
    if split is None:
        note("no split given: using val")
    names: list[str | None] = [ckpt]
    if compare:
        from trarctl.config.resolve import runs_folder
        from trarctl.engine.sweep import find_checkpoint_names

        names = [*find_checkpoint_names([*compare, *(more or [])], runs_folder(sets or []))]
    requests = [Request(name, data, wanted, config, tuple(sets or ()), gpus) for name in names]
    watched = functools.partial(watch, is_quiet=is_quiet)
    if compare:
        _compare(requests, evaluator, json, watched, report, images)
        return
    if answers is not None:
        if data is None:
            raise SettingsError("--answers needs the data that the file answers", "--data data/vqa/prepared")
        _evaluate_answers(answers, data, wanted, evaluator, json)
        return
    chosen, opened, part = choose_split(requests[0], evaluator)
    if report is not None:
        from trarctl.data.features.origin import known_extractor
        from trarctl.report.page import ReportRequest, prepare_folder

        prepare_folder(report)
        known_extractor(opened.card, extractor)  # what does not fit is said before the work
    scores = score_chosen(chosen, watched)
    note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
    if save_scores is not None:
        scores.save(save_scores)
        note(f"scores written to {save_scores}")
    measured = measured_and_kept(scores, chosen, opened, part, evaluator).accuracy
    _give(measured, opened, wanted, str(chosen.checkpoint), json)
    if report is not None:
        _report(report, ReportRequest(scores, measured, opened, part, chosen, images, extractor), is_quiet=is_quiet)


def _evaluate_answers(file: Path, data: Path, split: str, evaluator: EvaluatorName, json: str | None) -> None:
    """Measure the answers in a file of any program."""
    from trarctl.data.metrics import measure
    from trarctl.data.prepared import open_prepared

    opened = open_prepared(data)
    part = opened.split(split)
    answer_file = opened.spec.answer_file.for_file(file)
    measured = measure(answer_file.read(file, opened, part), opened, part, evaluator)
    for problem in answer_file.problems(file, opened, part):
        warn(f"{file}: {problem}")
    _give(measured, opened, split, str(file), json)


def _give(measured: Accuracy, data: PreparedData, split: str, source: str, json: str | None) -> None:
    """Write and show a result."""
    if measured.note:
        note(measured.note)
    if json is not None:
        write_json(_document(measured, source, split, data.name), json)
    if json != "-":
        _show(measured, data, data.split(split))


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
        document |= {"per_answer_type": measured.per_type, "per_question_type": measured.per_question_type}
    return document | {
        "evaluator": measured.evaluator,
        "checkpoint": checkpoint,
        "questions": measured.questions,
        "dataset": dataset,
        "split": split,
    }


def _show(measured: Accuracy, data: PreparedData, split: PreparedSplit) -> None:
    from trarctl.data.metrics import baselines

    guesses, rule = baselines(data, split, measured.evaluator)
    columns = ["accuracy, %", *(f"{name}, %" for name, _ in guesses)]
    values = [measured, *(one for _, one in guesses)]
    title = f"{measured.questions:,} questions of {data.spec.split_title(split.name)}"
    table = make_table(data.spec.type_label, *columns, title=title, numbers=columns)
    for name in sorted(measured.per_type):
        add_row(table, name, *(f"{value.per_type[name]:.2f}" for value in values))
    add_row(table, "overall", *(f"{value.overall:.2f}" for value in values), style="bold")
    show_table(table)
    if rule:
        note(f"question alone: the commonest training answer by {rule}")


def _compare(
    requests: Sequence[Request],
    evaluator: EvaluatorName,
    json: str | None,
    watch: Watch,
    report: Path | None,
    images: Path | None,
) -> None:
    """Measure several checkpoints and show them side by side, then in groups of seeds.

    Beside each stands the published result that has the same kind of routing, or else the first.
    """
    from trarctl.engine.checkpoint import is_ours
    from trarctl.errors import SettingsError
    from trarctl.report.comparison import compare, differing

    # --config belongs to checkpoints of the original program alone; the others hold their settings.
    named = [Path(request.ckpt or "") for request in requests]
    configs = [
        request.config if file.is_file() and not is_ours(file) else None
        for request, file in zip(requests, named, strict=True)
    ]
    if requests[0].config is not None and not any(configs):
        raise SettingsError("--config is for checkpoints of the original program, and none is compared", "leave it out")
    requests = [dataclasses.replace(request, config=config) for request, config in zip(requests, configs, strict=True)]
    if report is not None:
        from trarctl.report.page import prepare_folder

        prepare_folder(report, "compare.html")
    rows = gather(requests, evaluator, watch)
    published = [_published(row) for row in rows]
    accuracies = [row.answered.accuracy for row in rows]
    note(*dict.fromkeys(accuracy.note for accuracy in accuracies if accuracy.note))
    names, settings = [row.name for row in rows], [row.settings for row in rows]
    is_paired = len({(row.split.digest, row.data.dataset) for row in rows}) == 1
    answered = [row.answered for row in rows] if is_paired else None
    overall = [accuracy.overall for accuracy in accuracies]
    found = compare(names, settings, overall, answered, apart=[row.epoch for row in rows])
    if not is_paired:
        note("not the same questions: without paired differences")
    if json is not None:
        keys = differing(settings)
        documents = [
            _row_document(row, keys) | _published_document(row, one) for row, one in zip(rows, published, strict=True)
        ]
        write_json({"split": requests[0].split, "checkpoints": documents, **found.document()}, json)
    if json != "-":
        _show_rows(rows, published, requests[0].split, evaluator)
        if len(rows) > 1:
            say("")
            show_groups(found, f"compared on {requests[0].split}")
    if report is not None:
        from trarctl.report.comparison_page import write_comparison

        path, notes = write_comparison(report, rows, found, images)
        note(*notes)
        note(f"report written to {path}, {path.stat().st_size / 1e6:.1f} MB")


def _published(row: Row) -> Published | None:
    candidates = row.data.spec.published_on(row.split.name, len(row.split))
    if not candidates and row.data.spec.published_on(row.split.name):
        whole = next(one.num_questions for one in row.data.spec.splits if one.name == row.split.name)
        note(f"{row.name}: published results are of {whole:,} questions, not of these {len(row.split):,}")
    same = [one for one in candidates if one.name.startswith(row.chosen.settings.model.routing)]
    return next(iter(same or candidates), None)


def _row_document(row: Row, keys: Sequence[str]) -> dict[str, object]:
    from trarctl.report.comparison import value_of

    figures = {name: getattr(row.answered.accuracy, name) for name in ("overall", "per_type", "questions", "evaluator")}
    differs = {key: value_of(row.settings, key) for key in keys if row.settings is not None}
    return {"checkpoint": row.name, **figures, "differs": differs}


def _published_document(row: Row, published: Published | None) -> dict[str, object]:
    if published is None:
        return {}
    shown = {"name": published.name, "overall": published.overall, "per_type": published.per_type}
    return {"published": shown, "difference": round(row.answered.accuracy.overall - published.overall, 2)}


def _show_rows(
    rows: Sequence[Row], published: Sequence[Published | None], split: str, evaluator: EvaluatorName
) -> None:
    from trarctl.report.comparison import value_of

    types = sorted({name for row in rows for name in row.answered.accuracy.per_type})
    keys, headings = columns_of([row.settings for row in rows], few=2)
    differs = [headings[key] for key in keys]
    numbers = ["overall, %", *types]
    title = f"accuracy on {split}"
    table = make_table("checkpoint", *differs, *numbers, title=title, numbers=[*differs, *numbers])
    for row, one in zip(rows, published, strict=True):
        measured = row.answered.accuracy
        values = [measured.per_type.get(kind) for kind in types]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        add_row(table, row.name, *(value_of(row.settings, key) for key in keys), f"{measured.overall:.2f}", *cells)
        if one is not None:
            differences = [
                "-" if value is None or kind not in one.per_type else f"{value - one.per_type[kind]:+.2f}"
                for kind, value in zip(types, values, strict=True)
            ]
            label = f"  against published ({one.name})"
            cells = [*([""] * len(keys)), f"{measured.overall - one.overall:+.2f}", *differences]
            add_row(table, label, *cells, style="dim")
    show_table(table)
    if evaluator != "upstream" and any(one is not None for one in published):
        note("published results follow the older rules; compare with --evaluator upstream")
