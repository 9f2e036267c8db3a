"""Events of the engine, and the callbacks that write them down.

A callback is any callable that takes an event; it is called in the process of rank 0 only. The journal keeps
``metrics.jsonl`` and ``log.txt``; TensorBoard and Weights & Biases are optional installs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trarctl.config import Cache, EvaluatorName, Precision
from trarctl.errors import DataError, SettingsError, TrarError, first_line

if TYPE_CHECKING:
    from trarctl.config.settings import Settings
    from trarctl.engine.run import RunFolder


@dataclass(frozen=True)
class RunStarted:
    """The model stands and the data is open."""

    name: str
    folder: Path
    device: str
    num_processes: int
    num_parameters: int
    num_samples: int
    steps_per_epoch: int
    epochs: int
    start_epoch: int
    start_step: int
    num_threads: int  # of each process
    spans: tuple[int | str, ...]  # of the model
    grid_size: int  # cells along one side of its grid
    is_hard: bool  # whether the temperature matters
    precision: Precision = "fp32"  # of matrix products in training
    is_recorded: bool = False  # whether the device replays the recorded step
    is_compiled: bool = False  # whether torch.compile compiles the model
    cache: Cache = "none"  # where the features are kept

    @property
    def steps_run(self) -> str:
        """How steps are computed, in words; empty for float32 without further ado."""
        ways = {
            f"computed in {self.precision}": self.precision != "fp32",
            "compiled": self.is_compiled,
            "replayed as CUDA graphs": self.is_recorded,
        }
        return ", ".join(text for text, holds in ways.items() if holds)


@dataclass(frozen=True)
class StepDone:
    """One optimizer step, counted from 1 like its epoch; what can be None is there only on logged steps."""

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    step: int
    learning_rate: float
    temperature: float
    samples_per_second: float  # over the epoch so far
    loss: float | None = None  # mean per sample since the last logged step
    routes: list[list[float]] | None = None  # mean span weights of the batch's last part, one list of K per layer
    memory_bytes: int | None = None  # peak of the device in this process
    gradient_norm: float | None = None  # of the whole batch's gradient, before it was clipped


@dataclass(frozen=True)
class Progressed:
    """A long task (validation, scoring) has come some way; ``total`` is None while nobody knows it."""

    task: str
    done: int
    total: int | None


@dataclass(frozen=True)
class EpochDone:
    """An epoch of training is over; ``epoch`` counts from 1, ``loss`` is the mean per sample."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    learning_rate: float
    temperature: float
    seconds: float
    samples_per_second: float


@dataclass(frozen=True)
class Validated:
    """Accuracy on the validation split after an epoch, in percent."""

    epoch: int
    step: int
    overall: float
    per_type: dict[str, float]
    is_best: bool
    seconds: float
    routes: list[list[float]] = field(default_factory=list)
    evaluator: EvaluatorName = "official"


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on the disk, after ``epoch`` finished epochs and ``step`` steps of the next."""

    path: Path
    epoch: int
    step: int
    seconds: float


@dataclass(frozen=True)
class Note:
    """Something that the user should know but need not act on."""

    text: str


@dataclass(frozen=True)
class RunFinished:
    """The last epoch is done."""

    name: str
    folder: Path
    seconds: float
    best_epoch: int | None
    best_overall: float | None


Event = RunStarted | StepDone | EpochDone | Progressed | Validated | CheckpointSaved | Note | RunFinished
Callback = Callable[[Event], None]


def no_callback(event: Event) -> None:
    """The callback that does nothing."""


# The lines of ``metrics.jsonl``: epochs count from 1, steps from the start of the run; losses are means per sample,
# accuracies percent.
_STEP_NUMBERS = "epoch step loss gradient_norm learning_rate temperature routes samples_per_second memory_bytes"
_RECORDED: dict[type[Event], tuple[str, str]] = {
    StepDone: ("step", _STEP_NUMBERS),
    EpochDone: ("epoch", "epoch step loss learning_rate temperature seconds samples_per_second"),
    Validated: ("validation", "epoch step overall per_type evaluator routes seconds"),
}
_DECIMALS = {"seconds": 3, "samples_per_second": 1}


def journal(run: RunFolder) -> Callback:
    """A callback that keeps ``metrics.jsonl`` for programs and ``log.txt`` for people."""

    def callback(event: Event) -> None:
        kind, names = _RECORDED.get(type(event), ("", ""))
        if kind and not (isinstance(event, StepDone) and event.loss is None):
            entry: dict[str, Any] = {"event": kind}
            for name in names.split():
                value = getattr(event, name)
                entry[name] = round(value, _DECIMALS[name]) if name in _DECIMALS else value
            run.record(entry)
        line = _line(event)
        if line is not None:
            # It only shows: what must survive stands in metrics.jsonl, which has to be written.
            with suppress(DataError):
                run.log(line)

    return callback


class Shielded:
    """A callback that only shows: its failure is kept, to be told once, and ends nothing."""

    def __init__(self, callback: Callback, name: str) -> None:
        self.name = name
        self._callback = callback
        self._failure: Exception | None = None
        self._is_told = False

    def __call__(self, event: Event) -> None:
        """Show an event, if that works."""
        try:
            self._callback(event)
        except TrarError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
            self._failure = self._failure or error

    def untold(self) -> Exception | None:
        """The failure, the first time that it is asked for."""
        if self._is_told or self._failure is None:
            return None
        self._is_told = True
        return self._failure


def _line(event: Event) -> str | None:
    if isinstance(event, RunStarted):
        return (
            f"training on {event.device}, {event.num_processes} process(es) of {event.num_threads} thread(s): "
            f"{event.num_parameters:,} parameters, {event.num_samples:,} samples, "
            f"{event.steps_per_epoch:,} steps an epoch{event.steps_run and f', {event.steps_run}'}"
        )
    if isinstance(event, EpochDone):
        return (
            f"epoch {event.epoch}: loss {event.loss:.4f}, rate {event.learning_rate:.3g}, temperature "
            f"{event.temperature:.4g}, {event.seconds:.0f} s, {event.seconds / event.steps_per_epoch:.3f} s a step"
        )
    if isinstance(event, Validated):
        types = ", ".join(f"{name} {value:.2f}" for name, value in event.per_type.items())
        return f"epoch {event.epoch}: val {event.overall:.2f} ({types}), {event.seconds:.0f} s"
    if isinstance(event, RunFinished):
        best = "" if event.best_epoch is None else f", best epoch {event.best_epoch} with {event.best_overall:.2f}"
        return f"finished in {event.seconds:.0f} s{best}"
    return event.text if isinstance(event, Note) else None


Numbers = Mapping[str, float]
Write = Callable[[Numbers, int], None]  # numbers by name, and the step that they belong to


def check_loggers(settings: Settings) -> None:
    """Refuse loggers that are not installed; the SettingsError names the command that installs the first one."""
    for name in settings.run.loggers:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"run.loggers: {name} is not installed", f"pip install 'trarctl[{name}]'")


@contextmanager
def recorded(run: RunFolder, settings: Settings, callback: Callback, *, first_step: int) -> Iterator[Callback]:
    """A callback that keeps the journal, calls ``callback``, and feeds the loggers that ``run.loggers`` names.

    Curves of the loggers go on after ``first_step``; the loggers are closed at the end. One that cannot begin, as for
    want of a key, is a SettingsError before anything is written.
    """
    shows: list[Callback] = [journal(run), callback]

    def call_all(event: Event) -> None:
        for show in shows:
            show(event)
            if isinstance(show, Shielded) and (failure := show.untold()):
                call_all(Note(f"{show.name} failed, the run goes on: {type(failure).__name__}: {failure}"))

    with ExitStack() as stack:
        for name in settings.run.loggers:
            logger = _LOGGERS[name](run, settings, first_step)
            try:
                write = logger.__enter__()
            except Exception as error:  # whatever another program raises
                what = f"run.loggers: {name} cannot begin: {first_line(error)}"
                raise SettingsError(what, _LOGGER_HINTS[name]) from error
            stack.callback(_close, logger, name, run)
            shows.append(Shielded(functools.partial(_feed, write), name))
        yield call_all


def _close(logger: AbstractContextManager[Write], name: str, run: RunFolder) -> None:
    try:
        logger.__exit__(None, None, None)
    except Exception as error:  # noqa: BLE001 - the run is over and whole
        with suppress(DataError):
            run.log(f"{name} failed at its end: {type(error).__name__}: {error}")


def _feed(write: Write, event: Event) -> None:
    if measured := numbers_of(event):
        write(*measured)


def numbers_of(event: Event) -> tuple[Numbers, int] | None:
    """What of an event is worth a curve, and its step; None for events without numbers."""
    if isinstance(event, StepDone) and event.loss is not None:
        numbers = {f"train/{name}": getattr(event, name) for name in ("loss", "learning_rate", "temperature")}
        if event.gradient_norm is not None:
            numbers["train/gradient_norm"] = event.gradient_norm
        for layer, weights in enumerate(event.routes or []):
            numbers |= {f"routes/layer_{layer}/span_{span}": weight for span, weight in enumerate(weights)}
        return numbers | {"speed/samples_per_second": event.samples_per_second}, event.step
    if isinstance(event, EpochDone):
        return {"epoch/loss": event.loss, "epoch/seconds": event.seconds}, event.step
    if isinstance(event, Validated):
        types = {f"validation/{name}": value for name, value in event.per_type.items()}
        return {"validation/overall": event.overall} | types, event.step
    return None


@contextmanager
def _tensorboard(run: RunFolder, _settings: Settings, first_step: int) -> Iterator[Write]:
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step + 1)

    def write(numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _wandb(run: RunFolder, settings: Settings, _first_step: int) -> Iterator[Write]:
    import wandb

    # One name, one run there: who resumes a run continues its curves.
    config: dict[str, Any] = settings.model_dump(mode="json")
    names = {"project": "trarctl", "id": run.name, "name": run.name, "dir": str(run.path)}
    session = wandb.init(**names, config=config, resume="allow")
    try:
        yield lambda numbers, step: session.log(dict(numbers), step=step)
    finally:
        session.finish()


_LOGGER_HINTS = {
    "tensorboard": "see that it can write the run's folder, or leave it out: --set run.loggers=",
    "wandb": "wandb login keeps your key, WANDB_MODE=offline needs none; or leave it out: --set run.loggers=",
}
_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}
