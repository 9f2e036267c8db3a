"""Loggers beside ``metrics.jsonl``: TensorBoard and Weights & Biases, each an observer, both optional installs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from trarctl.config.settings import Settings
from trarctl.engine.callbacks import Callback, EpochDone, Event, StepDone, Validated
from trarctl.engine.run import RunFolder
from trarctl.errors import SettingsError

Numbers = Mapping[str, float]
Write = Callable[[Numbers, int], None]  # numbers by name, and the step that they belong to


def check_loggers(settings: Settings) -> None:
    """See that the loggers that the settings ask for are installed.

    Raises:
        SettingsError: with the command that installs the first missing one.
    """
    for name in settings.run.loggers:
        if importlib.util.find_spec(name) is None:
            raise SettingsError(f"run.loggers: {name} is not installed", f"pip install 'trarctl[{name}]'")


@contextmanager
def open_loggers(run: RunFolder, settings: Settings, *, first_step: int) -> Iterator[Callback]:
    """An observer that passes what is measured on to the loggers of the settings, and closes them at the end.

    Args:
        run: whose folder and name they use.
        settings: ``run.loggers`` names them; the rest is kept by those that keep settings.
        first_step: the step that the run goes on behind.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(_LOGGERS[name](run, settings, first_step)) for name in settings.run.loggers]
        yield _observer(writers)


def numbers_of(event: Event) -> tuple[Numbers, int] | None:
    """What of an event is worth a curve, and its step; None for events without numbers."""
    if isinstance(event, StepDone) and event.loss is not None:
        numbers = {"train/loss": event.loss, "train/learning_rate": event.rate, "train/temperature": event.temperature}
        for layer, weights in enumerate(event.routes or []):
            numbers |= {f"routes/layer_{layer}/span_{span}": weight for span, weight in enumerate(weights)}
        return numbers | {"speed/samples_per_second": event.samples_per_second}, event.step
    if isinstance(event, EpochDone):
        return {"epoch/loss": event.loss, "epoch/seconds": event.seconds}, event.step
    if isinstance(event, Validated):
        types = {f"validation/{name}": value for name, value in event.per_type.items()}
        return {"validation/overall": event.overall} | types, event.step
    return None


def _observer(writers: Sequence[Write]) -> Callback:
    def callback(event: Event) -> None:
        if writers and (measured := numbers_of(event)):
            for write in writers:
                write(*measured)

    return callback


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

    # One name, one run there: who goes on with a run goes on with its curves.
    config: dict[str, Any] = settings.model_dump(mode="json")
    session = wandb.init(
        project="trarctl", id=run.name, name=run.name, dir=str(run.path), config=config, resume="allow"
    )
    try:
        yield lambda numbers, step: session.log(dict(numbers), step=step)
    finally:
        session.finish()


_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}
