"""Tiny runs: their settings, starting them, going on with them, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trarctl.config.original_yaml import translate
from trarctl.config.resolve import amend, resolve
from trarctl.config.settings import Settings, to_text
from trarctl.engine.callbacks import Callback, Event, StepDone, no_callback
from trarctl.engine.checkpoint import load_checkpoint
from trarctl.engine.jobs import TrainJob, plan_resume, plan_start
from trarctl.engine.launch import run_job
from trarctl.engine.run import RunFolder, read_settings

GOLDEN = Path(__file__).parents[1] / "golden"  # not from tests.conftest, which hides GPUs; the GPU check is here, too
TINY = {
    "model.num_layers": 1,
    "model.hidden_size": 16,
    "model.num_heads": 2,
    "model.feed_forward_size": 32,
    "model.word_embedding_size": 8,
    "model.flat_mlp_size": 16,
    "model.flat_out_size": 24,
    "model.spans": "0,1",
    "train.batch_size": 20,
    "train.learning_rate": 1e-3,
    "train.warmup_epochs": 1,
    "train.decay_epochs": "3",
    "run.gpus": "cpu",
    "run.name": "tiny",
    "run.log_every": 2,
    "run.keep": 0,
}


class Killed(BaseException):
    """What a test ends a run with, so that nobody mistakes it for an error."""


def sets(**changes: object) -> list[str]:
    """``KEY=VALUE`` settings of a tiny run; ``model__hidden_size`` stands for ``model.hidden_size``."""
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def tiny_settings(data: Path, folder: Path, dataset: str = "vqa", **changes: object) -> Settings:
    """Settings of a tiny run on prepared data; runs live in ``folder``."""
    return resolve(
        dataset=dataset, environ={}, sets=sets(data__path=data, run__folder=folder / "runs", **changes)
    ).settings


OnEvent = Callable[[Event], None]


def train(settings: Settings, *, on_event: OnEvent = no_callback, init: Path | None = None) -> RunFolder:
    """Train from the beginning."""
    job, _ = plan_start(settings, {}, init=None if init is None else str(init))
    return _run(job, on_event)


def original_sets(case: dict[str, Any]) -> list[str]:
    """``KEY=VALUE`` settings of a golden case, out of the original's own, where PyYAML may be absent."""
    values, _ = translate(case["config"], "")
    return [f"{key}={to_text(value)}" for key, (value, _) in values.items()]


def golden_run(
    name: str, data: Path, folder: Path, *, gpus: str, **changes: object
) -> tuple[RunFolder, list[StepDone], dict[str, Any]]:
    """Train as the original did: the run, its steps, and the original's figures."""
    golden = json.loads((GOLDEN / "training" / f"{name}.json").read_text())
    steps: list[StepDone] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    case = json.loads((GOLDEN / "cases" / f"{name.removesuffix('_accu2')}.json").read_text())
    settings = resolve(
        dataset="vqa",
        environ={},
        sets=[
            *original_sets(case),
            f"train.adam_betas={golden['betas'][0]},{golden['betas'][1]}",
            f"train.adam_epsilon={golden['eps']}",
            "train.caps_warmup=false",
            f"data.path={data}",
            f"run.folder={folder}",
            f"run.gpus={gpus}",
            "run.log_every=1",
            "run.precision=fp32",
            "model.dropout=0",
            "train.shuffle=false",
            f"train.epochs={golden['steps'][-1]['epoch'] + 1}",
            f"train.batch_size={golden['batch_size']}",
            f"train.accumulation={golden['accumulation']}",
            f"train.learning_rate={golden['lr_base']}",
            f"train.warmup_epochs={golden['warmup_epoch']}",
            f"train.decay_epochs={','.join(map(str, golden['decay_epochs']))}",
            f"train.decay_factor={golden['decay_rate']}",
            *(f"{key.replace('__', '.')}={value}" for key, value in changes.items()),
        ],
    ).settings
    return train(settings, on_event=on_event, init=GOLDEN / "training" / f"{name}_initial.pkl"), steps, golden


def resume(
    run: RunFolder,
    *,
    epochs: int | None = None,
    epoch: int | None = None,
    file: Path | None = None,
    on_event: OnEvent = no_callback,
    **changes: object,
) -> RunFolder:
    """Go on with a run, up to another number of epochs if that is given, or from one of its checkpoints' files."""
    if epochs is not None:
        changes["train__epochs"] = epochs
    values = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    settings = amend(read_settings(run), "run", sets=values).settings
    job, _ = plan_resume(run, settings, named=None if file is None else str(file), epoch=epoch)
    return _run(job, on_event)


def kill_after(is_time: Callable[[Event], bool]) -> OnEvent:
    """An ``on_event`` that ends the run the first time ``is_time`` says so."""

    def on_event(event: Event) -> None:
        if is_time(event):
            raise Killed

    return on_event


def weights(run: RunFolder, file: Path | None = None) -> dict[str, bytes]:
    """The bytes of all tensors of a run's latest checkpoint, Adam's included."""
    tensors, _ = load_checkpoint(file or run.saved()[-1][2])
    return {name: np.ascontiguousarray(tensor.numpy()).tobytes() for name, tensor in tensors.items()}


def _run(job: TrainJob, on_event: OnEvent) -> RunFolder:
    run_job(job, watching(on_event))
    return job.run


@dataclass(frozen=True)
class watching:  # noqa: N801 - used as a function
    """What makes that callback, as ``run_job`` wants it; it can be sent to another process."""

    on_event: OnEvent

    def __call__(self) -> AbstractContextManager[Callback]:
        return nullcontext(self.on_event)
