"""A model to hand on: one folder with its weights alone, a description, a model card, and other programs' formats.

Whatever is written for other programs is run, and compared with the model, before the folder takes its name.

Axes: B questions, T words, N cells, W feature width, A answers, L layers, K spans.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor, nn

import trarctl
from trarctl.data.prepared import PreparedData, default_folder
from trarctl.engine.checkpoint import Description, TrainedOn, TrainState, save_exported
from trarctl.engine.distributed import joined, plan_placement
from trarctl.engine.evaluator import Chosen, Request, choose
from trarctl.engine.loading import Loaded, describe_data
from trarctl.engine.run import EXPORTED, EXPORTED_CONFIG, is_exported
from trarctl.errors import CheckpointError, DataError, TrarError, first_line
from trarctl.files import remove, writing
from trarctl.model.trar import TRAR

CARD, ONNX, PT2 = "README.md", "model.onnx", "model.pt2"
INPUTS, OUTPUTS = ("question_tokens", "features"), ("scores", "routes")
TOLERANCE = 1e-4  # of scores and routes, where the largest is 1 or less; of larger ones a share of the largest
TO_FILL_IN = "license: other  # fill in, such as cc-by-4.0"  # who has done so keeps the model card
_ONE_FILE_BYTES = 1 << 30  # of weights, up to which an ONNX file holds them itself; its format ends at 2 GB
_BATCH_SIZES = (1, 2, 5)  # that are compared; the first that is exported is another

ToCard = Callable[[Description, Sequence[str]], str]
"""Writes the model card of a description and the names of the files beside it."""


@dataclass(frozen=True)
class Exported:
    """What was written: ``names`` of files in the folder, ``notes`` on what a user should know."""

    folder: Path
    chosen: Chosen
    names: tuple[str, ...]
    notes: tuple[str, ...]


def export(request: Request, out: Path, to_card: ToCard, *, onnx: bool = False, pt2: bool = False) -> Exported:
    """Write a checkpoint of any kind as a folder for others, whole or not at all; an earlier export is replaced.

    Raises:
        DataError: if the folder holds something else or cannot be written, or a package is missing.
        CheckpointError: if what was exported does not compute what the model does.
    """
    _refuse_foreign(out)
    if onnx:
        _require_onnx()
    chosen = choose(request, needs_data=False)
    data = None if chosen.data is None else chosen.open_data()
    with joined(plan_placement("cpu", os.environ), timeout_seconds=60.0) as world:
        loaded = chosen.open_model(data, world)
    description, notes = describe(loaded, data), [*chosen.notes, *loaded.warnings]
    names = [EXPORTED, *([ONNX] if onnx else []), *([PT2] if pt2 else []), CARD]
    with _whole_folder(out) as building:
        save_exported(building, loaded.model.state_dict(), description)
        if onnx or pt2:
            asked, samples = Asked(loaded), [_sample(loaded, size) for size in _BATCH_SIZES]
            with _told_by_torch():
                program = _traced(asked, _sample(loaded, 3))
            for is_wanted, name, write in ((onnx, ONNX, write_onnx), (pt2, PT2, write_pt2)):
                if is_wanted:
                    with _told_by_torch():
                        run = write(building / name, program)
                    _compare(name, asked, run, samples)
        names += [path.name for path in building.glob(f"{ONNX}.data")]
        if _is_edited(out / CARD):
            notes.append(f"{out / CARD} was edited and stays as it is; without it, export writes a new one")
            names.remove(CARD)
        else:
            (building / CARD).write_text(to_card(description, names), encoding="utf-8")
        _move(building, out, names)
    return Exported(out, chosen, (*names, EXPORTED_CONFIG), tuple(notes))


def describe(loaded: Loaded, data: PreparedData | None) -> Description:
    """Describe a model for others: completed from its data where the checkpoint lacks something, without local paths.

    ``data`` may be None for a checkpoint that stands alone.
    """
    description, settings = loaded.description, loaded.settings
    if description is None or description.card(loaded.source) is None:
        if data is None:
            raise AssertionError("loaded without data")
        spec, known = data.spec, describe_data(data)
        trained_on = TrainedOn(name=data.name, title=spec.title, split=None, questions=None, type_label=spec.type_label)
        if description is not None:
            description = description.model_copy(update={**known, "trained_on": trained_on})
        else:
            description = Description(
                trarctl=trarctl.__version__,
                torch=str(torch.__version__),
                run=loaded.source.stem,
                settings={},
                progress=TrainState(epoch=loaded.epoch),
                temperature=loaded.temperature,
                learning_rate=settings.train.learning_rate,
                trained_on=trained_on,
                **known,
            )
    name = description.dataset if description.trained_on is None else description.trained_on.name
    vectors = description.vectors
    if vectors is not None:
        vectors = {**vectors, "source": Path(vectors["source"]).name}
    run = settings.run.model_copy(update={"folder": Path("runs"), "gpus": None})
    own = settings.model_copy(update={"run": run, "data": settings.data.model_copy(update={"path": None})})
    local = {"settings": own.model_dump(mode="json"), "data": str(default_folder(name)), "vectors": vectors}
    return description.model_copy(update=local)


class Asked(nn.Module):
    """A model as other programs run it: questions and features in, scores and routes out, in plain torch."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.model = TRAR(loaded.model.settings, loaded.model.sizes, attention="reference")
        self.model.load_state_dict(loaded.model.state_dict())
        self.temperature = loaded.temperature
        self.eval()

    def forward(self, question_tokens: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B, T] and [B, N, W] to answer logits [B, A] and span weights [B, L, K]."""
        return self.model(question_tokens, features, temperature=self.temperature)


Run = Callable[[Tensor, Tensor], Sequence[Tensor]]
Inputs = tuple[Tensor, Tensor]


def write_pt2(path: Path, program: Any) -> Run:
    """Write a traced model in torch's own format, and give what runs the file."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def write_onnx(path: Path, program: Any) -> Run:
    """Write a traced model as ONNX, and give what runs the file."""
    import onnxruntime

    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, verbose=False, external_data=False
        )
        if converted is None:
            raise AssertionError("torch gives a program where no file is named")
        converted.save(path, external_data=num_bytes > _ONE_FILE_BYTES)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(question_tokens: Tensor, features: Tensor) -> list[Tensor]:
        given = zip(INPUTS, (question_tokens.numpy(), features.numpy()), strict=True)
        return [torch.from_numpy(one) for one in session.run(list(OUTPUTS), dict(given))]

    return run


def _traced(asked: Asked, example: Inputs) -> Any:
    """Trace a model for any number of questions at once."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    with _quiet():
        shapes = {name: {0: batch} for name in INPUTS}
        return torch.export.export(asked, example, dynamic_shapes=shapes)


def _compare(name: str, asked: Asked, run: Run, samples: Sequence[Inputs]) -> None:
    """See that a file gives the model's own scores and routes; a CheckpointError says that it does not."""
    for sample in samples:
        with torch.inference_mode():
            pairs = zip(OUTPUTS, asked(*sample), run(*sample), strict=True)
        for output, ours, theirs in pairs:
            allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
            difference = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
            if not difference <= allowed:
                what = f"the {output} of {name} differ from the model's by {difference:.2g}, at most {allowed:.2g} may"
                raise CheckpointError(f"{what}, so it is not kept", f"export without {name}, or with another torch")


def _sample(loaded: Loaded, size: int) -> Inputs:
    """Make up questions [size, T] and features [size, N, W] of the usual magnitude, both with padding."""
    card, sizes = loaded.card, loaded.model.sizes
    statistics = (loaded.description and loaded.description.features) or {}
    random = torch.Generator().manual_seed(size)
    tokens = torch.randint(1, sizes.vocabulary, (size, card.max_words), generator=random)
    cells = torch.randn((size, card.grid_size**2, sizes.feature_width), generator=random)
    cells = cells * float(statistics.get("deviation", 1.0)) + float(statistics.get("mean", 0.0))
    tokens[0, card.max_words // 2 + 1 :] = 0
    cells[-1, len(cells[-1]) // 2 + 1 :] = 0
    return tokens, cells


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporters tell of themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _told_by_torch() -> Iterator[None]:
    """Tell what this version of torch cannot export as a CheckpointError."""
    try:
        yield
    except (TrarError, OSError, MemoryError):
        raise
    except Exception as error:  # its exporters raise whatever they stumble over
        what = f"torch {torch.__version__} cannot export this model: {first_line(error)}"
        raise CheckpointError(what, "take a newer torch, or leave out --onnx and --pt2") from error


def _require_onnx() -> None:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise DataError(f"--onnx needs {error.name}, which is not installed", 'pip install "trarctl[onnx]"') from None
    del onnx, onnxruntime, onnxscript


# The folder: built inside, then moved to its names, the description last.


def _refuse_foreign(out: Path) -> None:
    """See that a folder is missing, empty or an earlier export; a DataError says that it is something else."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is no folder", "pass one that is empty or new: --out DIR")
    visible = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if visible and not (is_exported(out) and _is_ours(out / EXPORTED_CONFIG)) and not _is_torn(out):
        what = f"{out} holds {', '.join(visible[:5])}, and is no earlier export"
        raise DataError(what, "pass a folder that is empty or new: --out DIR")


def _is_ours(config: Path) -> bool:
    with suppress(OSError, orjson.JSONDecodeError):
        content = orjson.loads(config.read_bytes())
        return isinstance(content, dict) and {"trarctl", "sha256", "vocabulary"} <= content.keys()
    return False


def _is_torn(out: Path) -> bool:
    """Whether an export was killed while it moved its files to their names."""
    return _is_ours(out / ".building" / EXPORTED_CONFIG)


def _is_edited(card: Path) -> bool:
    return card.is_file() and TO_FILL_IN not in card.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to build in, which is gone afterwards, and with it ``out`` if it is new and nothing came of it."""
    is_new = not out.exists()
    try:
        with writing(out) as building:
            try:
                for path in building.iterdir():
                    remove(path)
                yield building
            finally:
                shutil.rmtree(building, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):
                out.rmdir()


def _move(building: Path, out: Path, names: Sequence[str]) -> None:
    """Replace what an earlier export left; a folder with a description is whole."""
    (out / EXPORTED_CONFIG).unlink(missing_ok=True)
    for name in (ONNX, f"{ONNX}.data", PT2):
        remove(out / name)
    for name in (*names, EXPORTED_CONFIG):
        (building / name).replace(out / name)
