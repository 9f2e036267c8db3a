"""The report of a checkpoint on a split: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trarctl import __version__
from trarctl.data import Progress, no_progress
from trarctl.data.metrics import Accuracy, baselines
from trarctl.data.prepared import PreparedData, PreparedSplit
from trarctl.engine.evaluator import Chosen, Scores
from trarctl.engine.run import RunFolder
from trarctl.errors import DataError
from trarctl.files import refusing, write_bytes
from trarctl.model.spans import describe_coinciding
from trarctl.report.charts import Line, calibration_chart, line_chart, share_chart
from trarctl.report.gallery import choose_rows, examples, truth_in_words
from trarctl.report.history import History, model_in_words, read_history
from trarctl.report.outcomes import Outcome, calibration, confusions, outcome_of, routes_by_type, type_rows
from trarctl.report.pictures import HEAT_COLORS, ShownSpans, span_color, type_name

FILE_NAME = "index.html"
_OTHER_FOLDER = "choose another --report DIR"
_SIGNATURE = b" by trarctl "  # in every page, see _facts
_TASK, _NUM_PARTS = "making the report", 4


@dataclass(frozen=True)
class ReportRequest:
    """What to report on."""

    scores: Scores  # of every question of the split
    measured: Accuracy  # their accuracy
    data: PreparedData
    split: PreparedSplit  # annotated
    chosen: Chosen
    images: Path | None = None  # folder of the pictures; None for the data set's own, if it brings any
    extractor: str | None = None  # what made the features, where the data does not say it

    @property
    def name(self) -> str:
        """Name of the run, or of the checkpoint where there is none."""
        return self.chosen.settings.run.name or self.chosen.checkpoint.stem


def prepare_folder(folder: Path, name: str = "report.html") -> None:
    """Make the folder, before any long work begins; DataError if a page by that template cannot be written there."""
    load_template(name)
    with refusing(f"cannot write the report to {folder}", _OTHER_FOLDER):
        page = folder / FILE_NAME
        if page.exists() and not (page.is_file() and _SIGNATURE in page.read_bytes()):
            what = f"{page} was not written by this program, and would be replaced"
            raise DataError(what, _OTHER_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{FILE_NAME}.{os.getpid()}"
        probe.touch()
        probe.unlink()


def write_report(request: ReportRequest, folder: Path, progress: Progress = no_progress) -> tuple[Path, list[str]]:
    """Write ``index.html`` into a folder, whole or not at all; give its path, and what the user should know."""
    content = _content(request, progress)
    path = write_page(folder, "report.html", content)
    progress(_TASK, _NUM_PARTS, _NUM_PARTS)
    return path, content["missing"]


def write_page(folder: Path, template: str, content: dict[str, Any]) -> Path:
    """Write ``index.html`` by a template, whole or not at all, and give its path."""
    path, page = folder / FILE_NAME, load_template(template).render(content)
    with refusing(f"cannot write the report to {folder}", _OTHER_FOLDER):
        write_bytes(path, page.encode())
    return path


def styled(content: dict[str, Any]) -> dict[str, Any]:
    """Add the style and the script of all pages to what a template shows."""
    templates = Path(__file__).with_name("templates")
    script = (templates / "report.js").read_text(encoding="utf-8")
    return content | {
        "style": (templates / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def load_template(name: str) -> Any:
    """Give a template of Jinja's that escapes what it is given; DataError if Jinja is not installed."""
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
    return environment.get_template(name)


def _content(request: ReportRequest, progress: Progress) -> dict[str, Any]:
    """Everything that the template shows."""
    data, split, chosen, scores = request.data, request.split, request.chosen, request.scores
    progress(_TASK, 0, _NUM_PARTS)
    outcome = outcome_of(scores, split, request.measured)
    progress(_TASK, 1, _NUM_PARTS)
    columns, rule = _columns(request)
    progress(_TASK, 2, _NUM_PARTS)
    bins, error = calibration(outcome)
    points = [(one.low, one.questions, one.accuracy) for one in bins]
    rows = choose_rows(outcome)
    shown, missing = examples(rows, scores, outcome, data, split, chosen, request.images, request.extractor)
    progress(_TASK, 3, _NUM_PARTS)
    counts = {name: int((outcome.type_of == index).sum()) for index, name in enumerate(outcome.types)}
    model = chosen.settings.model
    spans = ShownSpans(model.spans, model.grid_size)
    routes = spans.merged(scores.routes)
    run = RunFolder(chosen.checkpoint.parent.parent)
    is_of_run = run.metrics_file.is_file() and run.settings_file.is_file()
    history = read_history(run) if is_of_run else None
    content = {
        "title": f"{request.name} on {data.name} {split.name}",
        "run": request.name,
        "dataset": data.name,
        "split": split.name,
        "measured": request.measured,
        "facts": _facts(request),
        "columns": columns,
        "rule": rule,
        "counts": counts,
        "spans": [{"name": name, "color": span_color(index)} for index, name in enumerate(spans.names)],
        "coinciding": describe_coinciding(model.spans, model.grid_size),
        "heat_colors": HEAT_COLORS,
        "type_names": sorted(name for name, count in counts.items() if count),
        "routes_by_type": _routes(outcome, routes, counts),
        "type_rows": type_rows(outcome, routes),
        "calibration": calibration_chart("accuracy by probability", points),
        "calibration_error": 100 * error,
        "confusions": confusions(outcome, scores.answers),
        "curves": _curves(history, is_hard=model.routing == "hard") if history else [],
        "route_curves": _route_curves(history, spans) if history else [],
        "examples": shown,
        "missing": missing,
        "settings": _settings(chosen),
        "version": __version__,
    }
    return styled(content)


def _facts(request: ReportRequest) -> list[tuple[str, str]]:
    settings = request.chosen.settings
    now = datetime.now().astimezone()
    return [
        ("questions", f"{request.measured.questions:,}"),
        ("evaluator", request.measured.evaluator),
        ("model", model_in_words(settings)),
        ("trained on", f"{settings.data.name or settings.data.dataset} {settings.data.split}"),
        ("checkpoint", f"{request.chosen.checkpoint} ({request.chosen.how})"),
        ("made", f"{now:%Y-%m-%d %H:%M} by trarctl {__version__}"),
    ]


def _columns(request: ReportRequest) -> tuple[list[dict[str, Any]], str]:
    """Give accuracies of this model and what to compare it with, and by which rules the question alone was answered."""
    data, split, measured = request.data, request.split, request.measured
    guesses, rule = baselines(data, split, measured.evaluator)
    columns: list[tuple[str, Any]] = [("this model", measured), *guesses]
    columns += [(f"published: {row.name}", row) for row in data.spec.published_on(split.name, len(split))]
    return [{"name": name, "overall": one.overall, "per_type": one.per_type} for name, one in columns], rule


def _routes(
    outcome: Outcome, routes: NDArray[np.floating], counts: dict[str, int]
) -> list[tuple[str, list[list[float]]]]:
    shares = routes_by_type(outcome, routes)
    found = [(name, shares[index].tolist()) for index, name in enumerate(outcome.types) if counts[name]]
    return [*sorted(found), ("all", routes.mean(axis=0).tolist())]


def _curves(history: History, *, is_hard: bool) -> list[tuple[str, str, Sequence[Line]]]:
    """(heading, chart, its lines) of everything that was logged during training."""
    charts = [
        ("loss per sample", [Line("loss", history.epoch, history.loss)]),
        ("accuracy on val, %", _validation_lines(history)),
        ("learning rate", [Line("learning rate", history.epoch, history.rate)]),
        ("gradient norm", [Line("gradient norm", history.epoch, history.gradient_norm)]),
    ]
    if is_hard:
        charts.append(("temperature", [Line("temperature", history.epoch, history.temperature)]))
    drawn = [
        (name, line_chart(name, lines, x_label="epoch", y_from_zero="accuracy" not in name), lines)
        for name, lines in charts
    ]
    return [(name, chart, lines) for name, chart, lines in drawn if chart]


def _validation_lines(history: History) -> list[Line]:
    epochs = np.array([epoch for epoch, _, _ in history.validations], dtype=np.float64)
    overall = np.array([score for _, score, _ in history.validations], dtype=np.float64)
    lines = []
    for index, name in enumerate(sorted({name for _, _, per_type in history.validations for name in per_type})):
        values = np.array([per_type.get(name, np.nan) for _, _, per_type in history.validations])
        lines.append(Line(type_name(name), epochs, values, span_color(index + 1)))
    return [*lines, Line("overall", epochs, overall, has_dots=True)]


def _route_curves(history: History, spans: ShownSpans) -> list[tuple[str, str]]:
    if len(history.epoch) < 2:
        return []
    shares = spans.merged(history.routes)
    charts = []
    for layer in range(shares.shape[1]):
        title = f"share of each span in layer {layer + 1}"
        chart = share_chart(title, history.epoch, shares[:, layer], spans.names, x_label="epoch")
        charts.append((f"layer {layer + 1}", chart))
    return charts


def _settings(chosen: Chosen) -> Sequence[tuple[str, str]]:
    return [
        (f"{part}.{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value))
        for part, values in chosen.settings.model_dump(mode="json").items()
        for key, value in values.items()
    ]
