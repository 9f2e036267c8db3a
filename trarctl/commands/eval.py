"""``trarctl eval``: the accuracy of one checkpoint, or of several side by side, on a split that has answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trarctl.commands.console import add_row, make_table, note, show_table, warn, write_json
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
    option,
    refuse_ignored,
)

if TYPE_CHECKING:
    from trarctl.config import EvaluatorName
    from trarctl.data.datasets.base import Published
    from trarctl.data.metrics import Accuracy
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.engine.evaluator import Chosen, Request, Scores
    from trarctl.engine.launch import Watch
    from trarctl.report.page import ReportRequest

    Row = tuple[str, Accuracy, Published | None]

EPILOG = (
    "Example: trarctl eval --ckpt RUN@13 --evaluator upstream --json scores.json"
    "\n\nA checkpoint of the original: trarctl eval --ckpt epoch13.pkl --config trar.yml --data data/vqa/prepared"
)

# What each way of using the command makes no use of.
_IGNORED = {
    "--ckpt": (),
    "--answers": ("--ckpt", "--config", "--save-scores", "--report", "--images", "--extractor"),
    "--compare": ("--ckpt", "--answers", "--save-scores", "--report", "--images", "--extractor"),
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
        option("--report", OUTPUT_PANEL, "Write DIR/index.html: curves, routes and examples.", metavar="DIR"),
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
        option("--compare", DATA_PANEL, "Compare several checkpoints, also with published results.", metavar="RUN..."),
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
    names: list[str | None] = [*compare, *(more or [])] if compare else [ckpt]
    requests = [Request(name, data, wanted, config, tuple(sets or ()), gpus) for name in names]
    watched = functools.partial(watch, is_quiet=is_quiet)
    if compare:
        _compare(requests, evaluator, json, watched)
        return
    if answers is not None:
        if data is None:
            raise SettingsError("--answers needs the data that the file answers", "--data data/vqa/prepared")
        _evaluate_answers(answers, data, wanted, evaluator, json)
        return
    chosen, opened, part = _choose(requests[0], evaluator)
    if report is not None:
        from trarctl.data.features.origin import known_extractor
        from trarctl.report.page import ReportRequest, prepare_folder

        prepare_folder(report)
        known_extractor(opened, extractor)  # what does not fit is said before the work
    scores = score_chosen(chosen, watched)
    note(f"checkpoint {chosen.checkpoint} ({chosen.how})")
    if save_scores is not None:
        scores.save(save_scores)
        note(f"scores written to {save_scores}")
    measured = _measure(scores, chosen, opened, part, evaluator)
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


def _choose(request: Request, evaluator: EvaluatorName) -> tuple[Chosen, PreparedData, PreparedSplit]:
    """What a request means, refused before the work if its split cannot be measured."""
    from trarctl.data.metrics import refuse_unmeasurable
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import choose

    chosen = choose(request)
    opened = open_prepared(chosen.data)
    part = opened.split(request.split)
    refuse_unmeasurable(opened, part, evaluator)
    return chosen, opened, part


def _measure(
    scores: Scores, chosen: Chosen, data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName
) -> Accuracy:
    """Measure; warn if a checkpoint that names no words and answers does no better than one answer to all questions."""
    from trarctl.data.metrics import commonest_answer, measure
    from trarctl.engine.checkpoint import is_ours

    measured = measure(scores.predictions(), data, split, evaluator)
    if not is_ours(chosen.checkpoint):
        guess = measure(commonest_answer(data, split), data, split, evaluator).overall
        if measured.overall <= guess:
            warn(
                f"{measured.overall:.2f} % is no better than the commonest answer to every question, {guess:.2f} %: "
                f"words, answers or features of {data.path} may be others than {chosen.checkpoint} was trained on"
            )
    return measured


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


def _compare(requests: Sequence[Request], evaluator: EvaluatorName, json: str | None, watch: Watch) -> None:
    """Measure several checkpoints and show them side by side.

    Beside each stands the published result that has the same kind of routing, or else the first.
    """
    import dataclasses

    from trarctl.engine.checkpoint import is_ours
    from trarctl.engine.evaluator import score_chosen
    from trarctl.errors import SettingsError

    # --config belongs to checkpoints of the original program alone; the others hold their settings.
    named = [Path(request.ckpt or "") for request in requests]
    configs = [
        request.config if file.is_file() and not is_ours(file) else None
        for request, file in zip(requests, named, strict=True)
    ]
    if requests[0].config is not None and not any(configs):
        raise SettingsError("--config is for checkpoints of the original program, and none is compared", "leave it out")
    requests = [dataclasses.replace(request, config=config) for request, config in zip(requests, configs, strict=True)]
    rows: list[Row] = []
    # All are looked at before the first is scored.
    for chosen, opened, part in [_choose(request, evaluator) for request in requests]:
        name = chosen.request.ckpt or ""
        measured = _measure(score_chosen(chosen, watch), chosen, opened, part, evaluator)
        candidates = opened.spec.published_on(part.name, len(part))
        if not candidates and opened.spec.published_on(part.name):
            whole = next(one.num_questions for one in opened.spec.splits if one.name == part.name)
            note(f"{name}: published results are of {whole:,} questions, not of these {len(part):,}")
        same = [row for row in candidates if row.name.startswith(chosen.settings.model.routing)]
        rows.append((name, measured, next(iter(same or candidates), None)))
    note(*dict.fromkeys(measured.note for _, measured, _ in rows if measured.note))
    if json is not None:
        write_json({"split": requests[0].split, "checkpoints": [_row_document(*row) for row in rows]}, json)
    if json != "-":
        _show_rows(rows, requests[0].split, evaluator)


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
