"""Answers for other programs, as JSON, and for a page to ask, as a piece of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trarctl.engine.predictor import Prediction, Predictor, notes_on
from trarctl.errors import TrarError
from trarctl.report.page import load_template
from trarctl.report.pictures import HEAT_COLORS, ShownSpans, Thumbnail, overlay, span_color, worth_showing

# A page may take these for its own templates, wherever they come from.
_NO_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})


def answers_document(
    asked: Sequence[Prediction], names: Sequence[object], predictor: Predictor, checkpoint: object
) -> dict[str, object]:
    """Describe answers for other programs; ``names`` are those of the pictures, None for one that is not at hand."""
    return {
        "trained_on": predictor.trained_on(),
        "extractor": predictor.extractor_name,
        "grid_size": predictor.settings.grid_size,
        "spans": list(predictor.settings.spans),
        "predictions": [
            {
                "image": name and str(name),
                "image_size": one.image_size,
                "grid_on_image": _grid_on_image(one),
                "question": one.question,
                "answers": [{"answer": answer, "probability": share} for answer, share in one.answers],
                "routes": one.routes,
                "answer_attention": one.answer_attention,
                "layer_attention": one.layer_attention,
                "unknown_words": list(one.unknown_words),
            }
            for name, one in zip(names, asked, strict=True)
        ],
        "checkpoint": str(checkpoint),
    }


def _grid_on_image(asked: Prediction) -> dict[str, object] | None:
    """Where the grid lies on the upright picture, for those who draw attention over it; None if that is unknown."""
    if asked.geometry is None or asked.image_size is None:
        return None
    box = [share * side for share, side in zip(asked.geometry.box, asked.image_size * 2, strict=True)]
    return {"box": box, "is_transposed": asked.geometry.is_transposed}


def answers_html(asked: Mapping[str, tuple[Predictor, Prediction]], picture: Thumbnail) -> str:
    """Show what each checkpoint, by its name, answers to one question about one picture."""
    models = []
    for name, (predictor, one) in asked.items():
        spans = ShownSpans(predictor.settings.spans, predictor.settings.grid_size)
        notes = notes_on([one])
        if predictor.why_no_geometry:
            notes.append(f"{predictor.why_no_geometry}; attention is drawn over all of the picture")
        if predictor.settings.binarize:
            notes.append("only the heaviest span of each layer is used")
        models.append(
            {
                "name": name,
                "answers": worth_showing(one.answers),
                "routes": spans.merged(one.routes).tolist(),
                "spans": [{"name": span, "color": span_color(index)} for index, span in enumerate(spans.names)],
                "overlays": [overlay(each, one.geometry) for each in (one.answer_attention, *one.layer_attention)],
                "notes": notes,
            }
        )
    question = next(one.question for _, one in asked.values())
    content = {"question": question, "picture": picture.uri, "models": models, "heat_colors": HEAT_COLORS}
    return load_template("answers.html").render(content).translate(_NO_TEMPLATE)


def head_html(predictors: Mapping[str, Predictor]) -> str:
    """Say on top of the page who answers, and what each can know."""
    trained: dict[str, list[str]] = {}
    for name, predictor in predictors.items():
        trained.setdefault(predictor.trained_on(), []).append(name)
    return load_template("answers.html").render({"trained": trained}).translate(_NO_TEMPLATE)


def error_html(error: TrarError) -> str:
    """Show what is wrong with a question or a picture."""
    return load_template("answers.html").render({"error": error}).translate(_NO_TEMPLATE)
