"""An observer that writes a run's events down: ``metrics.jsonl`` for programs, ``log.txt`` for people."""

from __future__ import annotations

from typing import Any

from trarctl.engine.callbacks import Callback, EpochDone, Event, Note, RunFinished, RunStarted, StepDone, Validated
from trarctl.engine.run import RunFolder


def journal(run: RunFolder) -> Callback:
    """Write down what happens in a run.

    ``metrics.jsonl`` gets a line of ``event`` ``step`` (each logged step), ``epoch`` and ``validation``; epochs count
    from 1, steps from the start of the run; losses are means per sample, accuracies percent, times seconds.
    """

    def callback(event: Event) -> None:
        entry = _entry(event)
        if entry is not None:
            run.record(entry)
        line = _line(event)
        if line is not None:
            run.log(line)

    return callback


def _entry(event: Event) -> dict[str, Any] | None:
    if isinstance(event, StepDone) and event.loss is not None:
        return {
            "event": "step",
            "epoch": event.epoch,
            "step": event.step,
            "loss": event.loss,
            "learning_rate": event.rate,
            "temperature": event.temperature,
            "routes": event.routes,
            "samples_per_second": round(event.samples_per_second, 1),
            "memory_bytes": event.memory_bytes,
        }
    if isinstance(event, EpochDone):
        return {
            "event": "epoch",
            "epoch": event.epoch,
            "step": event.step,
            "loss": event.loss,
            "learning_rate": event.rate,
            "temperature": event.temperature,
            "seconds": round(event.seconds, 3),
            "samples_per_second": round(event.samples_per_second, 1),
        }
    if isinstance(event, Validated):
        return {
            "event": "validation",
            "epoch": event.epoch,
            "step": event.step,
            "overall": event.overall,
            "per_type": event.per_type,
            "evaluator": event.evaluator,
            "routes": event.routes,
            "seconds": round(event.seconds, 3),
        }
    return None


def _line(event: Event) -> str | None:
    if isinstance(event, RunStarted):
        return (
            f"training on {event.device}, {event.num_processes} process(es): {event.num_parameters:,} parameters, "
            f"{event.num_samples:,} samples, {event.steps_per_epoch:,} steps an epoch"
        )
    if isinstance(event, EpochDone):
        return (
            f"epoch {event.epoch}: loss {event.loss:.4f}, rate {event.rate:.3g}, temperature {event.temperature:.4g}, "
            f"{event.seconds:.0f} s, {event.seconds / event.steps_per_epoch:.3f} s a step"
        )
    if isinstance(event, Validated):
        types = ", ".join(f"{name} {value:.2f}" for name, value in event.per_type.items())
        return f"epoch {event.epoch}: val {event.overall:.2f} ({types}), {event.seconds:.0f} s"
    if isinstance(event, RunFinished):
        best = "" if event.best_epoch is None else f", best epoch {event.best_epoch} with {event.best_overall:.2f}"
        return f"finished in {event.seconds:.0f} s{best}"
    return event.text if isinstance(event, Note) else None
