"""The report of a checkpoint on a split: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trarctl import __version__
from trarctl.data.baselines import commonest_answer, question_prior
from trarctl.data.metrics import Accuracy, measure
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.data.progress import Progress, no_progress
from trarctl.engine.evaluator import Chosen, Scores
from trarctl.engine.run import RunFolder
from trarctl.errors import DataError
from trarctl.report.charts import Line, calibration_chart, line_chart, share_chart
from trarctl.report.gallery import choose_rows, examples, truth_in_words
from trarctl.report.history import History, read_history
from trarctl.report.names import span_color, span_names, type_name
from trarctl.report.outcomes import Outcome, calibration, confusions, outcome_of, routes_by_type, type_rows
from trarctl.report.overview import model_in_words

FILE_NAME = "index.html"
_TASK, _NUM_PARTS = "making the report", 4


@dataclass(frozen=True)
class ReportRequest:
    """What to report on.

    Attributes:
        scores: of every question of the split.
        measured: their accuracy.
        data: the prepared data.
        split: annotated.
        chosen: the checkpoint.
        images: folder of the pictures, if they are elsewhere than in the installed package.
    """

    scores: Scores
    measured: Accuracy
    data: PreparedData
    split: PreparedSplit
    chosen: Chosen
    images: Path | None = None


@dataclass(frozen=True)
class AccuracyColumn:
    """One column of the table of accuracies; ``per_type`` may lack types."""

    name: str
    overall: float
    per_type: Mapping[str, float]


def prepare_folder(folder: Path) -> None:
    """See that a report can be written there, before anything long is begun.

    Args:
        folder: made if it is not there.

    Raises:
        DataError: if jinja2 is not installed, or the folder cannot be written.
    """
    _template()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _temporary(folder)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_report(request: ReportRequest, folder: Path, progress: Progress = no_progress) -> tuple[Path, list[str]]:
    """Write the report, whole or not at all.

    Args:
        request: what to report on.
        folder: where ``index.html`` goes.
        progress: told how far it is.

    Returns:
        The file, and what the user should know about it.

    Raises:
        DataError: if jinja2 is not installed, or the folder cannot be written.
    """
    template = _template()
    content, notes = _content(request, progress)
    page = template.render(content)
    progress(_TASK, _NUM_PARTS, _NUM_PARTS)
    path = folder / FILE_NAME
    try:
        _temporary(folder).write_text(page, encoding="utf-8")
        _temporary(folder).replace(path)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return path, notes


def _temporary(folder: Path) -> Path:
    return folder / f".{FILE_NAME}.{os.getpid()}.tmp"


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write the report to {folder}: {error.strerror or error}", "choose another --report DIR")


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise DataError("reports need jinja2, which is not installed", 'pip install "trarctl[report]"') from None
    environment = Environment(
        loader=PackageLoader("trarctl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"type_name": type_name, "truth": truth_in_words}
    return environment.get_template("report.html")


def _content(request: ReportRequest, progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """Everything that the template shows."""
    data, split, chosen, scores = request.data, request.split, request.chosen, request.scores
    progress(_TASK, 0, _NUM_PARTS)
    outcome = outcome_of(scores, split, request.measured)
    progress(_TASK, 1, _NUM_PARTS)
    columns = _columns(request)
    progress(_TASK, 2, _NUM_PARTS)
    spans = chosen.settings.model.spans
    bins, error = calibration(outcome)
    rows = choose_rows(outcome)
    shown, why = examples(rows, scores, outcome, data, split, chosen, request.images)
    progress(_TASK, 3, _NUM_PARTS)
    script = Path(__file__).with_name("templates").joinpath("report.js").read_text(encoding="utf-8")
    style = Path(__file__).with_name("templates").joinpath("report.css").read_text(encoding="utf-8")
    content = {
        "title": f"{_run_name(chosen)} on {data.dataset} {split.name}",
        "run": _run_name(chosen),
        "dataset": data.dataset,
        "split": split.name,
        "measured": request.measured,
        "facts": _facts(request),
        "columns": columns,
        "counts": _counts(outcome),
        "spans": [{"name": name, "color": span_color(index)} for index, name in enumerate(span_names(spans))],
        "type_names": sorted(name for name, count in _counts(outcome).items() if count),
        "routes_by_type": _routes(outcome, scores),
        "type_rows": type_rows(outcome, scores.routes),
        "calibration": calibration_chart(
            "accuracy by probability", [(one.low, one.questions, one.accuracy) for one in bins]
        ),
        "calibration_error": 100 * error,
        "confusions": confusions(outcome, scores.answers),
        "curves": _curves(chosen),
        "route_curves": _route_curves(chosen),
        "examples": shown,
        "why_no_pictures": why,
        "settings": _settings(chosen),
        "style": style,
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "version": __version__,
    }
    return content, [why] if why else []


def _run_name(chosen: Chosen) -> str:
    return chosen.settings.run.name or chosen.checkpoint.stem


def _facts(request: ReportRequest) -> list[tuple[str, str]]:
    settings = request.chosen.settings
    now = datetime.now().astimezone()
    return [
        ("questions", f"{request.measured.questions:,}"),
        ("evaluator", request.measured.evaluator),
        ("model", model_in_words(settings)),
        ("trained on", f"{settings.data.dataset} {settings.data.split}"),
        ("checkpoint", f"{request.chosen.checkpoint} ({request.chosen.how})"),
        ("made", f"{now:%Y-%m-%d %H:%M} by trarctl {__version__}"),
    ]


def _columns(request: ReportRequest) -> list[AccuracyColumn]:
    """This model, then what it has to be compared with."""
    data, split, measured = request.data, request.split, request.measured
    columns = [AccuracyColumn("this model", measured.overall, measured.per_type)]
    if data.split("train").is_annotated:
        for name, guess in (("question alone", question_prior), ("commonest answer", commonest_answer)):
            guessed = measure(guess(data, split), data, split, measured.evaluator)
            columns.append(AccuracyColumn(name, guessed.overall, guessed.per_type))
    for row in data.spec.published_on(split.name):
        columns.append(AccuracyColumn(f"published: {row.name}", row.overall, row.per_type))
    return columns


def _counts(outcome: Outcome) -> dict[str, int]:
    return {name: int((outcome.type_of == index).sum()) for index, name in enumerate(outcome.types)}


def _routes(outcome: Outcome, scores: Scores) -> list[tuple[str, list[list[float]]]]:
    shares = routes_by_type(outcome, scores.routes)
    counts = _counts(outcome)
    found = [(name, shares[index].tolist()) for index, name in enumerate(outcome.types) if counts[name]]
    return [*sorted(found), ("all", scores.routes.mean(axis=0).tolist())]


def _history(chosen: Chosen) -> History | None:
    """The metrics beside the checkpoint, if it is a run's."""
    run = RunFolder(chosen.checkpoint.parent.parent)
    return read_history(run) if run.metrics_file.is_file() and run.settings_file.is_file() else None


def _curves(chosen: Chosen) -> list[tuple[str, Any, Sequence[Line]]]:
    """(heading, chart, its lines) of everything that was logged while training."""
    history = _history(chosen)
    if history is None:
        return []
    charts = [
        ("loss per sample", [Line("loss", history.epoch, history.loss)]),
        ("accuracy on val, %", _validation_lines(history)),
        ("learning rate", [Line("learning rate", history.epoch, history.rate)]),
    ]
    if chosen.settings.model.routing == "hard":
        charts.append(("temperature", [Line("temperature", history.epoch, history.temperature)]))
    drawn = [
        (name, line_chart(name, lines, x_label="epoch", y_from_zero="accuracy" not in name), lines)
        for name, lines in charts
    ]
    return [(name, chart, lines) for name, chart, lines in drawn if chart]


def _validation_lines(history: History) -> list[Line]:
    import numpy as np

    epochs = np.array([epoch for epoch, _, _ in history.validations], dtype=np.float64)
    names = list(dict.fromkeys(name for _, _, per_type in history.validations for name in per_type))
    lines = [
        Line(
            type_name(name),
            epochs,
            np.array([types.get(name, np.nan) for _, _, types in history.validations]),
            span_color(index + 1),
        )
        for index, name in enumerate(sorted(names))
    ]
    overall = np.array([score for _, score, _ in history.validations], dtype=np.float64)
    return [*lines, Line("overall", epochs, overall, has_dots=True)]


def _route_curves(chosen: Chosen) -> list[tuple[str, Any]]:
    history = _history(chosen)
    if history is None or len(history.epoch) < 2:
        return []
    colors = [span_color(index) for index in range(history.routes.shape[2])]
    return [
        (
            f"layer {layer + 1}",
            share_chart(
                f"share of each span in layer {layer + 1}",
                history.epoch,
                history.routes[:, layer],
                colors,
                x_label="epoch",
            ),
        )
        for layer in range(history.routes.shape[1])
    ]


def _settings(chosen: Chosen) -> Sequence[tuple[str, str]]:
    return [
        (f"{part}.{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value))
        for part, values in chosen.settings.model_dump(mode="json").items()
        for key, value in values.items()
    ]
