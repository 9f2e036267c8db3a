"""``trarctl predict``: ask a trained model about any image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from trarctl.commands.console import add_row, make_table, note, say, show_table, tell_opened, write_json
from trarctl.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    CkptOption,
    ConfigOption,
    DeviceOption,
    ExtractorOption,
    JsonOption,
    OptionalDataOption,
    SetOption,
    WeightsOption,
    check_targets,
    option,
    refuse_ignored,
)

_SHOWN = 5

if TYPE_CHECKING:
    from trarctl.data.question_files import Asking
    from trarctl.engine.predictor import Prediction, Predictor

EPILOG = (
    "Example: trarctl predict --image photo.jpg --question 'is it red?' --save a.png"
    "\n\nMany at once: trarctl predict --batch questions.csv --json -. The file has the columns image and question;"
    " paths are relative to it. A .jsonl file has the two as keys."
    "\n\nIf the features of the data were made elsewhere, say what made them, or give the features of the picture:"
    " trarctl predict --image photo.jpg --question TEXT --extractor x152 --weights X-152.pth"
)


def predict(
    image: Annotated[Path | None, option("--image", DATA_PANEL, "The image.", metavar="FILE")] = None,
    question: Annotated[str | None, option("--question", DATA_PANEL, "What to ask about it.", metavar="TEXT")] = None,
    batch: Annotated[
        Path | None,
        option("--batch", DATA_PANEL, "A .csv or .jsonl file of images and questions instead.", metavar="FILE"),
    ] = None,
    features: Annotated[
        Path | None,
        option(
            "--features",
            DATA_PANEL,
            "Ready features of the image, [cells, width] or [S, S, width]; --image is then for --save.",
            metavar="FILE.npy",
        ),
    ] = None,
    ckpt: CkptOption = None,
    data: OptionalDataOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    extractor: ExtractorOption = None,
    weights: WeightsOption = None,
    images: Annotated[
        Path | None,
        option("--images", DATA_PANEL, "Folder of the data's images, to compare --extractor with.", metavar="DIR"),
    ] = None,
    gpus: DeviceOption = None,
    top: Annotated[
        int | None, option("--top", OUTPUT_PANEL, "Answers to show; by default 5.", metavar="N", min=1)
    ] = None,
    save: Annotated[
        Path | None,
        option("--save", OUTPUT_PANEL, "Draw the attention of each layer over the image.", metavar="FILE.png"),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Answer a question about an image, and show how the answer was routed through the model."""
    from trarctl.commands.progress import show_progress
    from trarctl.data.features.origin import Stated
    from trarctl.data.features.reading import read_image
    from trarctl.engine.evaluator import Request
    from trarctl.engine.predictor import notes_on, open_predictor
    from trarctl.errors import SettingsError
    from trarctl.report.pictures import picture_format

    given = {"--batch": batch, "--weights": weights, "--images": images}
    if features is not None:
        refuse_ignored("predict --features", given, given)
    elif extractor is None:
        refuse_ignored("predict without --extractor", given, ["--images"])
    asking = _asking(image, question, batch, save, features)
    paths, questions = [one.image for one in asking], [one.question for one in asking]
    if batch is not None and top is not None and json is None:
        raise SettingsError("--top with --batch is for --json: the table shows one answer", "--json FILE, or no --top")
    check_targets({"--save": save, "--json": json}, [*dict.fromkeys(paths), batch, features, ckpt, config, weights])
    if save is not None:
        picture_format(save)
    request = Request(ckpt, data, "", config, tuple(sets or ()), gpus)
    predictor, chosen = open_predictor(request, Stated(extractor, weights, images))
    tell_opened(predictor, chosen)
    with show_progress() as progress:
        if features is not None:
            sizes = None if image is None else [read_image(image).size]
            asked = predictor.ask_features([features], questions, top=top or _SHOWN, sizes=sizes)
        else:
            places = [one.place for one in asking if one.place]
            asked = predictor.ask_files(paths, questions, top=top or _SHOWN, places=places, progress=progress)
    note(*predictor.notes, *notes_on(asked))
    if save is not None:
        _save(asked[0], paths[0], predictor, save)
        note(f"picture written to {save}")
    if json is not None:
        from trarctl.report.answers import answers_document

        named = [None] if features is not None and image is None else paths
        write_json(answers_document(asked, named, predictor, chosen.checkpoint), json)
    if json == "-":
        return
    if batch is None:
        say(asked[0].question)
        _show_one(asked[0], predictor)
    else:
        _show_all(asked, paths)


def _asking(
    image: Path | None, question: str | None, batch: Path | None, save: Path | None, features: Path | None
) -> list[Asking]:
    from trarctl.data.question_files import Asking, read_question_file, refuse_missing_image
    from trarctl.errors import SettingsError

    if batch is not None:
        if image is not None or question is not None:
            raise SettingsError("--batch brings its own images and questions", "leave out --image and --question")
        if save is not None:
            raise SettingsError("--save draws one picture", "give --image and --question instead of --batch")
        return read_question_file(batch)
    if features is not None and question is not None and image is None and save is None:
        return [Asking("", features, question)]
    if image is None or question is None:
        missing = "--image" if image is None and (features is None or save is not None) else "--question"
        raise SettingsError(f"{missing} is missing", "trarctl predict --image FILE --question TEXT, or --batch FILE")
    refuse_missing_image(image)
    return [Asking("", image, question)]


def _save(asked: Prediction, path: Path, predictor: Predictor, target: Path) -> None:
    from trarctl.data.features.reading import read_image
    from trarctl.report.pictures import ShownSpans, picture_of, save_picture

    note(*[predictor.why_no_geometry] if predictor.why_no_geometry else [])
    spans = ShownSpans(predictor.settings.spans, predictor.settings.grid_size)
    save_picture(picture_of(asked, read_image(path), spans=spans), target)


def _show_one(asked: Prediction, predictor: Predictor) -> None:
    from trarctl.report.pictures import ShownSpans, worth_showing

    answers = make_table("answer", "probability, %", numbers=["probability, %"])
    for rank, (answer, share) in enumerate(worth_showing(asked.answers)):
        add_row(answers, answer or "(blank)", f"{100 * share:.1f}", style="bold" if rank == 0 else None)
    show_table(answers)
    say("")
    spans = ShownSpans(predictor.settings.spans, predictor.settings.grid_size)
    routes = make_table("route, %", *spans.names, numbers=spans.names)
    for number, weights in enumerate(spans.merged(asked.routes), start=1):
        add_row(routes, f"layer {number}", *(f"{100 * weight:.1f}" for weight in weights))
    show_table(routes)
    if predictor.settings.binarize:
        note("only the heaviest span of each layer is used (model.binarize)")


def _show_all(asked: list[Prediction], paths: list[Path]) -> None:
    table = make_table("image", "question", "answer", "probability, %", numbers=["probability, %"])
    for path, one in zip(paths, asked, strict=True):
        answer, share = one.answers[0]
        add_row(table, path, one.question, answer or "(blank)", f"{100 * share:.1f}")
    show_table(table)
