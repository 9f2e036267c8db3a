"""Is this machine's GPU right, and how fast is it: one table, one JSON and an exit code.

    python -m benchmarks.gpu_check [--device cpu|cuda:0] [--quick] [--minutes N] [--json FILE]

Right: the original's scores, gradients against float64, the original's training runs, a run that is stopped and
resumed. Fast: a training step at each published size, eager, replayed as CUDA graphs, and compiled too, with the share
of the device's peak and of the time in which it computes at all; batches from packed features. What the minutes do not
suffice for is said to be left out. Without a GPU the same runs at small sizes on the CPU, so that the check itself is
known to work.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.engine.programs import program, resume_command, train_command, wait_for_step
from tests.engine.running import GOLDEN, golden_run, original_sets, weights
from tests.model import reference
from trarctl.config import Compile, WantedCache
from trarctl.config.resolve import resolve
from trarctl.config.settings import Settings
from trarctl.data.loader import Batch, load_batches, scoring_samples, training_plan, training_samples
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.callbacks import Callback, Event, Note, StepDone, no_callback
from trarctl.engine.checkpoint import TrainState, load_upstream
from trarctl.engine.distributed import Precision, World, peak_memory_bytes, precision_of, tf32_allowed
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.feeding import copies_to, keep_features, on_device
from trarctl.engine.graph import NUM_UNRECORDED
from trarctl.engine.loading import build_model, model_sizes
from trarctl.engine.run import RunFolder
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import Trainer
from trarctl.errors import first_line, shortened
from trarctl.model import kernels
from trarctl.model.kernels import attend, triton
from trarctl.model.spans import Spans
from trarctl.model.trar import TRAR

GRIDS = {"vqa": 4, "clevr": 5}
# Largest difference of a score from the original's, by precision; scores are of the size of 1.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
# Largest relative difference of the gradient of all weights from float64's.
GRADIENT_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}
# The same of an attention and its gradients.
KERNEL_TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2}
RESUME_TOLERANCE = 1e-4  # relative, of all weights; a CPU's are the same to the byte
WAYS: dict[Compile, str] = {"off": "eager", "auto": "graph", "on": "compiled graph"}  # as the rows call them
TEMPERATURE = 0.1  # at which the original's scores were taken
# Matrix products, 10**12 operations a second without sparsity, by what a device's name contains (NVIDIA's data sheets).
PEAKS: dict[str, dict[Precision, float]] = {
    "H100": {"fp32": 67, "tf32": 495, "bf16": 989},
    "H200": {"fp32": 67, "tf32": 495, "bf16": 989},
    "A100": {"fp32": 19.5, "tf32": 156, "bf16": 312},
}


@dataclass(frozen=True)
class Row:
    """One line of the table; ``result`` is ``ok``, ``left out`` or what is wrong, ``figures`` are for a program."""

    what: str
    precision: str
    how: str
    text: str
    result: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """A step to time: cells along one side, spans, samples of a batch."""

    grid: int
    spans: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Case:
    """A case of the original: its settings and weights, the batch, and the scores that it gave."""

    name: str
    settings: Settings
    data: PreparedData
    batch: Batch
    state: dict[str, Tensor]
    scores: Tensor

    def model(self) -> TRAR:
        """The model with the case's weights, on the CPU."""
        model = TRAR(self.settings.model, model_sizes(self.data.card))
        model.load_state_dict(self.state)
        return model


def golden_data(folder: Path) -> dict[str, PreparedData]:
    """Both golden sets, prepared."""
    for dataset, grid in GRIDS.items():
        raw = GOLDEN / f"mini_{dataset}"
        prepare(
            PrepareRequest(
                dataset, out=folder / dataset, raw=raw / "raw", features=raw / "feats", grid=grid, vectors="none"
            )
        )
    return {dataset: open_prepared(folder / dataset) for dataset in GRIDS}


def read_cases(data: dict[str, PreparedData]) -> list[Case]:
    """All golden cases."""
    cases = []
    for file in sorted((GOLDEN / "cases").glob("*.json")):
        case = json.loads(file.read_text())
        prepared = data[case["dataset"]]
        settings = resolve(dataset=case["dataset"], sets=original_sets(case), environ={}).settings
        samples = scoring_samples(prepared, case["split"])
        with np.load(file.with_suffix(".npz")) as expected:
            scores = torch.from_numpy(expected["scores"])
        batch = samples.batch(np.arange(len(samples)))
        cases.append(Case(file.stem, settings, prepared, batch, load_upstream(file.with_suffix(".pkl"))[0], scores))
    return cases


def parity(device: torch.device, cases: list[Case], *, is_compiled: bool = False) -> Iterator[Row]:
    """The original's scores for golden cases."""
    how = "compiled" if is_compiled else "eager"
    for precision in precisions(device):
        worst = 0.0
        for case in cases:
            model = case.model().to(device).eval()
            if is_compiled:
                model.compile()
            batch = case.batch.to(device)
            with torch.inference_mode(), precision_of(device, precision):
                scores, _ = model(batch.question_tokens, batch.cells(), temperature=TEMPERATURE)
            worst = max(worst, float((scores.float().cpu() - case.scores).abs().max()))
        result = "ok" if worst < TOLERANCES[precision] else f"more than {TOLERANCES[precision]:g}"
        text = f"largest difference from the original's scores {worst:.1e}"
        yield Row(f"scores of {len(cases)} cases", precision, how, text, result, {"difference": worst})


def gradients(device: torch.device, cases: list[Case]) -> Iterator[Row]:
    """The gradient of all weights against float64 on the CPU; of soft routing, since hard routing draws noise."""
    soft = [case for case in cases if case.settings.model.routing == "soft"]
    expected = [_gradient(case, torch.device("cpu"), "fp32", torch.float64) for case in soft]
    for precision in precisions(device):
        worst = 0.0
        for case, right in zip(soft, expected, strict=True):
            ours = _gradient(case, device, precision, torch.float32)
            worst = max(worst, float((ours - right).norm() / right.norm()))
        result = "ok" if worst < GRADIENT_TOLERANCES[precision] else f"more than {GRADIENT_TOLERANCES[precision]:g}"
        text = f"largest relative difference from float64 {worst:.1e}"
        yield Row(f"gradients of {len(soft)} cases", precision, "eager", text, result, {"difference": worst})


def _gradient(case: Case, device: torch.device, precision: Precision, dtype: torch.dtype) -> Tensor:
    model = case.model().to(device, dtype).eval()  # without dropout, which the routing has whatever the settings say
    model.reader.train()  # cuDNN has a backward pass of the LSTM in training only
    batch = case.batch.to(device)
    with precision_of(device, precision):
        scores, _ = model(batch.question_tokens, batch.cells().to(dtype), temperature=TEMPERATURE)
    with tf32_allowed(device, precision):
        # Another direction for each score, the same everywhere.
        (scores * torch.linspace(-1, 1, scores.numel(), device=device).reshape(scores.shape)).sum().backward()
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([gradient.reshape(-1).double().cpu() for gradient in found])


def triton_kernels(device: torch.device, *, num_repeats: int = 20) -> Iterator[Row]:
    """The Triton kernels against the reference in float64, and their time against that of the reference."""
    sizes: list[tuple[int, int, tuple[int, ...]]] = [
        *((grid**2, grid**2, (0, 1, 2, 3)) for grid in (8, 14, 16, 32)),
        *((num_queries, 14, ()) for num_queries in (14, 64, 256)),
    ]
    if not attends_by_triton(device):
        yield Row("triton", "", "", "no GPU, or no triton", "left out")
        return
    for num_queries, num_keys, spans in sizes:
        for precision in precisions(device):
            with tf32_allowed(device, precision):
                yield _triton_row(device, num_queries, num_keys, spans, precision, num_repeats)
    probability, num_cells = 0.1, 64
    heads = [torch.zeros(16, 8, num_cells, 64, device=device) for _ in range(2)]
    identity = torch.eye(num_cells, device=device).expand_as(heads[0])
    kept = attend(*heads, identity, is_padding=None, dropout=probability, kernel="triton") != 0
    difference = abs(float(kept.double().mean()) - (1 - probability))
    error = (probability * (1 - probability) / kept.numel()) ** 0.5
    result = "ok" if difference < 4 * error else "more than 4 standard errors"
    yield Row("triton dropout", "fp32", "", f"{difference / error:.1f} standard errors from its rate", result)


def attends_by_triton(device: torch.device) -> bool:
    """Whether attention goes through the Triton kernels."""
    state = torch.empty(1, 1, 16, 64, device=device)
    return device.type == "cuda" and triton.supports(state, state, state)


def _triton_row(
    device: torch.device,
    num_queries: int,
    num_keys: int,
    spans: tuple[int, ...],
    precision: Precision,
    num_repeats: int,
) -> Row:
    batch, dtype = 4, torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    lengths = (num_queries, num_keys, num_keys, num_queries)
    *heads, signs = (torch.randn(batch, length, 8, 64).transpose(1, 2).to(device, dtype) for length in lengths)
    weights = torch.rand(batch, len(spans), device=device).softmax(dim=-1) if spans else None
    windows = Spans(spans, int(num_queries**0.5)).to(device) if spans else None
    is_padding = torch.rand(batch, num_keys, device=device) < 0.2
    is_padding[0] = True

    def both(kernel: str, dtype: torch.dtype | None = None, dropout: float = 0.0) -> list[Tensor]:
        given = [*heads] if weights is None else [*heads, weights]
        leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in given]
        torch.manual_seed(1)
        result = attend(
            *leaves[:3],
            span_weights=leaves[3] if spans else None,
            spans=windows,
            is_padding=is_padding,
            dropout=dropout,
            kernel=kernel,
        )
        return [result.detach(), *torch.autograd.grad(result, leaves, signs.to(result.dtype))]

    pairs = zip(both("triton"), both("reference", torch.float64), strict=True)
    worst = max(float((ours - right).norm() / right.norm()) for ours, right in pairs)
    is_repeatable = all(map(torch.equal, both("triton", dropout=0.1), both("triton", dropout=0.1)))
    times = {
        kernel: _milliseconds(device, lambda kernel=kernel: both(kernel, dropout=0.1), num_repeats)
        for kernel in ("triton", "reference")
    }
    result = "ok" if worst < KERNEL_TOLERANCES[precision] else f"more than {KERNEL_TOLERANCES[precision]:g}"
    if not is_repeatable:
        result = "not repeatable"
    text = f"difference {worst:.1e}, {times['triton']:.2f} ms, reference {times['reference']:.2f} ms"
    figures = {"difference": worst} | {f"{kernel}_milliseconds": time for kernel, time in times.items()}
    return Row(f"triton {num_queries}x{num_keys}, {len(spans)} spans", precision, "", text, result, figures)


def _milliseconds(device: torch.device, work: Callable[[], object], num_repeats: int) -> float:
    """The median time of some work on a device."""
    taken = []
    for _ in range(num_repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize(device)
            taken.append(begin.elapsed_time(end))
        else:
            started = time.perf_counter()
            work()
            taken.append((time.perf_counter() - started) * 1e3)
    return float(np.median(taken))


def layer_kernels(device: torch.device, *, is_small: bool) -> Iterator[Row]:
    """Norm, and ReLU with dropout, in the sizes of 8x8: both passes against float64, and the time of plain torch."""
    num_rows, num_repeats = (64, 3) if is_small else (4096, 20)
    for dtype in (torch.float32, torch.bfloat16):  # of what autocast makes narrow
        for width in (512, 1000, 1024):
            yield _norm_row(device, num_rows, width, dtype, num_repeats)
        yield _relu_dropout_row(device, num_rows, dtype, num_repeats)


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Layers without kernels of ours."""
    with (
        mock.patch.object(kernels, "runs_on_cpu", return_value=False),
        mock.patch.object(triton, "runs_on", return_value=False),
    ):
        yield


def _norm_row(device: torch.device, num_rows: int, width: int, dtype: torch.dtype, num_repeats: int) -> Row:
    torch.manual_seed(0)
    states, signs, gain, bias = (torch.randn(size, device=device) for size in ((num_rows, width),) * 2 + (width,) * 2)
    inputs = [states, torch.randn_like(states).to(dtype), gain, bias]

    def both(dropout: float) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        torch.manual_seed(1)
        result = kernels.residual_norm(*leaves, 1e-6, dropout)
        return [result.detach(), *torch.autograd.grad(result, leaves, signs)]

    exact = [tensor.double().requires_grad_() for tensor in inputs]
    right = reference.sample_norm(exact[0] + exact[1], *exact[2:])
    pairs = zip(both(0.0), (right, *torch.autograd.grad(right, exact, signs.double())), strict=True)
    worst = max(float((ours - wanted.detach()).norm() / wanted.detach().norm()) for ours, wanted in pairs)
    most = KERNEL_TOLERANCES["fp32" if dtype == torch.float32 else "bf16"]
    result = "ok" if worst < most else f"more than {most:g}"
    if not all(map(torch.equal, both(0.1), both(0.1))):
        result = "not repeatable"
    return _layer_row(device, f"norm {num_rows}x{width}", dtype, worst, result, lambda: both(0.1), num_repeats)


def _relu_dropout_row(device: torch.device, num_rows: int, dtype: torch.dtype, num_repeats: int) -> Row:
    probability = 0.1
    torch.manual_seed(0)
    states = torch.randn(num_rows, 2_048, device=device).to(dtype).requires_grad_()
    signs = torch.randn_like(states)

    def both() -> list[Tensor]:
        torch.manual_seed(1)
        result = kernels.relu_dropout(states, probability)
        return [result.detach(), *torch.autograd.grad(result, states, signs)]

    found, of_states = both()
    is_positive = states.detach() > 0
    is_kept = found[is_positive] != 0
    factor = torch.where(found != 0, 1 / (1 - probability), 0.0).double()
    pairs = ((found, states.detach()), (of_states, signs))
    worst = max(float((ours - factor * given).norm() / (factor * given).norm()) for ours, given in pairs)
    errors = abs(float(is_kept.double().mean()) - (1 - probability)) * (is_kept.numel() / 0.09) ** 0.5
    most = {torch.float32: 1e-4, torch.bfloat16: 1e-2}[dtype]  # the CPU rounds the probability
    result = (
        "ok" if worst < most and errors < 4 else f"more than {most:g}, or {errors:.1f} standard errors off its rate"
    )
    return _layer_row(device, f"relu, dropout {num_rows}x2048", dtype, worst, result, both, num_repeats)


def _layer_row(
    device: torch.device,
    what: str,
    dtype: torch.dtype,
    difference: float,
    result: str,
    work: Callable[[], object],
    num_repeats: int,
) -> Row:
    ours = _milliseconds(device, work, num_repeats)
    with _plain_torch():
        plain = _milliseconds(device, work, num_repeats)
    figures = {"difference": difference, "milliseconds": ours, "plain_milliseconds": plain}
    text = f"difference {difference:.1e}, {ours:.2f} ms, plain torch {plain:.2f} ms"
    return Row(what, _name(dtype), "", text, result, figures)


def training(gpus: str, data: dict[str, PreparedData], folder: Path, ways: Iterable[Compile]) -> Iterator[Row]:
    """The original's training runs, loss by loss."""
    for name in ("vqa_soft_avg", "vqa_soft_attention_accu2"):
        for way in ways:
            there = folder / f"{name}-{way}"
            run, *trained = golden_run(name, data["vqa"].path, there, gpus=gpus, run__compile=way)
            row = _trained(name, WAYS[way], *trained)
            yield replace(row, result=_failed_recording(run) or row.result)


def _failed_recording(run: RunFolder) -> str:
    """What a run's log says of a step that could not be recorded; empty if it could, or was not to be."""
    lines = run.log_file.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if "cannot be recorded" in line), "")


def _trained(name: str, how: str, steps: list[StepDone], golden: dict[str, Any]) -> Row:
    sums = [step.loss * golden["batch_size"] for step in steps if step.loss is not None]
    right = [step["loss_sum"] for step in golden["steps"]]
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(sums, right, strict=True))
    text = f"{len(sums)} steps, largest relative difference of a loss {worst:.1e}"
    result = "ok" if worst < 1e-4 else "more than 1e-4"
    return Row(f"training {name}", "fp32", how, text, result, {"difference": worst})


def not_recorded(gpus: str, data: dict[str, PreparedData], folder: Path) -> Row:
    """The original's training run where a step cannot be recorded, since a debugger reads each gradient."""
    with torch.autograd.set_detect_anomaly(True):
        run, *trained = golden_run("vqa_soft_avg", data["vqa"].path, folder / "debugged", gpus=gpus)
    row = _trained("vqa_soft_avg", "debugged", *trained)
    return row if _failed_recording(run) else replace(row, result="recorded what waits for the device")


def stopped_and_resumed(gpus: str, data: dict[str, PreparedData], folder: Path) -> Iterator[Row]:
    """A run of the program that is stopped within an epoch and resumed, against one that nobody disturbed."""
    how = "eager" if gpus == "cpu" else "graph"
    changes = {"run__gpus": gpus, "run__save_every": 1, "run__log_every": 1, "train__epochs": 4}
    changes["run__precision"] = "fp32"
    command = train_command(data["vqa"].path, "vqa", **changes)
    runs = {}
    for name in ("whole", "stopped"):
        there = folder / name
        there.mkdir()
        runs[name] = RunFolder(there / "runs" / "tiny")
        with program(command, there) as started:
            if name == "stopped":
                wait_for_step(started, runs[name], 5)
                started.process.terminate()
            code = started.wait()
            problem = "" if code in (0, 143) else f"exit code {code}: {started.errors()[-300:]}"
    if not problem:
        with program(resume_command("tiny"), folder / "stopped") as started:
            code = started.wait()
            problem = "" if code == 0 else f"exit code {code}: {started.errors()[-300:]}"
    if problem:
        yield Row("stopped and resumed", "fp32", how, problem, "failed")
        return
    whole, resumed = (weights(run) for run in runs.values())
    ours, right = (
        np.concatenate([np.frombuffer(found[name], np.float32) for name in sorted(found)]).astype(np.float64)
        for found in (resumed, whole)
    )
    worst = float(np.linalg.norm(ours - right) / np.linalg.norm(right))
    text = "the same to the byte" if whole == resumed else f"relative difference of weights and averages {worst:.1e}"
    result = "ok" if worst < RESUME_TOLERANCE else f"more than {RESUME_TOLERANCE:g}"
    result = next(filter(None, map(_failed_recording, runs.values())), result)
    yield Row("stopped and resumed", "fp32", how, text, result, {"difference": worst})


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that differ on a device: tf32 is a matter of NVIDIA GPUs."""
    return ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs."""
    return device.type == "cuda" or any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def published(size: Size, precision: Precision, way: Compile, attention: str = "auto") -> tuple[Settings, PreparedData]:
    """The settings of a published size, and as much of prepared data as a step needs, at the size of VQA-v2."""
    spans = ",".join(map(str, size.spans))
    sets = [f"model.grid_size={size.grid}", f"model.spans={spans}", f"train.batch_size={size.batch}"]
    sets += [f"run.precision={precision}", f"run.compile={way}", f"run.attention={attention}"]
    card = SimpleNamespace(vocabulary=range(20_573), answers=range(3_129), feature_width=2_048)
    data = SimpleNamespace(card=card, vectors=None)
    return resolve(dataset="vqa", environ={}, sets=sets).settings, cast(PreparedData, data)


def random_batch(size: Size, device: torch.device) -> Batch:
    """A batch of random numbers on the device, its questions as long as the longest."""
    return Batch(
        np.arange(size.batch),
        torch.randint(3, 20_573, (size.batch, 14)),
        torch.randn(size.batch, size.grid**2, 2_048),
        None,
        torch.rand(size.batch, 3_129).round(),
    ).to(device)


def step_time(
    device: torch.device,
    size: Size,
    precision: Precision,
    way: Compile,
    attention: str = "auto",
    *,
    num_steps: int,
) -> Row:
    """Time of a training step on a published size, what limits it, and the most memory that it takes."""
    settings, data = published(size, precision, way, attention)
    what, how = f"step {size.grid}x{size.grid}{'' if attention == 'auto' else f' {attention}'}", WAYS[way]
    notes: list[str] = []
    _free_memory(device)
    try:
        trainer = Trainer(
            settings,
            data,
            RunFolder(Path()),
            World(0, 1, device),
            callback=_keep_notes(notes),
            stop=StopRequest(),
            tensors={},
            state=TrainState(),
            schedule=(1e-4, 1.0),
        )
        batch = random_batch(size, device)
        trainer.network.train()
        with tf32_allowed(device, precision):
            row = _timed(trainer, batch, device, what, how, num_steps)
        return replace(row, result=notes[0]) if notes else row
    except torch.OutOfMemoryError as error:
        return Row(what, precision, how, f"a step of {size.batch}: {str(error)[:80]}", "left out")


def scoring_time(device: torch.device, size: Size, precision: Precision, way: Compile, *, num_batches: int) -> Row:
    """Time of scoring a batch, as validation does after each epoch."""
    settings, data = published(size, precision, way)
    notes: list[str] = []
    _free_memory(device)
    world, batch = World(0, 1, device), random_batch(size, device)
    model = build_model(settings, data).to(device).eval()
    evaluator = Evaluator(model, settings, 1.0, world, _keep_notes(notes))
    for _ in range(NUM_UNRECORDED + 2):
        evaluator.replay(batch.question_tokens, batch.cells())
    _wait(device)
    started = time.perf_counter()
    for _ in range(num_batches):
        scores, _ = evaluator.replay(batch.question_tokens, batch.cells())
    _wait(device)
    seconds = (time.perf_counter() - started) / num_batches
    rate = size.batch / seconds
    text = f"{seconds * 1e3:7.1f} ms a batch of {size.batch}, {rate:6.0f} samples/s"
    result = notes[0] if notes else "ok" if bool(scores.isfinite().all()) else "not finite"
    figures = {"milliseconds": seconds * 1e3, "samples_per_second": rate}
    return Row(f"scoring {size.grid}x{size.grid}", precision, WAYS[way], text, result, figures)


def _keep_notes(notes: list[str]) -> Callback:
    def callback(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return callback


def _free_memory(device: torch.device) -> None:
    """Give back what the row before took, whose trainer has cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _timed(trainer: Trainer, batch: Batch, device: torch.device, what: str, how: str, num_steps: int) -> Row:
    precision, size = trainer.precision, len(batch)

    def step() -> None:
        nonlocal result
        result = trainer.train_step([batch], learning_rate=1e-4)

    result = trainer.train_step([batch], learning_rate=1e-4)  # compiles
    counter = FlopCounterMode(display=False)
    with counter if how == "eager" else nullcontext():
        step()
    for _ in range(0 if how == "eager" else NUM_UNRECORDED):
        step()  # the last one is recorded, and replayed from then on
    _wait(device)
    times = []
    for _ in range(num_steps):
        started = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - started)
    # All at once, as training calls it: the host may run ahead of the device.
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    _wait(device)
    seconds = (time.perf_counter() - started) / num_steps
    figures: dict[str, Any] = {
        "milliseconds": seconds * 1e3,
        "milliseconds_alone": float(np.median(times)) * 1e3,
        "samples_per_second": size / seconds,
        "gibibytes": peak_memory_bytes(device) / 2**30,
    }
    text = f"{seconds * 1e3:7.1f} ms a step of {size}, {size / seconds:6.0f} samples/s, {figures['gibibytes']:5.1f} GiB"
    if how == "eager":
        figures["teraflops"] = counter.get_total_flops() / 1e12
    if device.type == "cuda":
        figures |= _kernels(step, device)
        busy = figures["kernel_milliseconds"] / (seconds * 1e3)
        text += f", {figures['kernels']} kernels, busy {busy:.0%}"
    peak = next((peaks[precision] for name, peaks in PEAKS.items() if name in title_of(device)), None)
    if peak is not None and "teraflops" in figures:
        figures["share_of_peak"] = figures["teraflops"] / seconds / peak
        text += f", {figures['share_of_peak']:.1%} of peak"
    is_fine = bool(result.loss.isfinite()) and bool(result.gradient_norm.isfinite())
    return Row(what, precision, how, text, "ok" if is_fine else "not finite", figures)


def _kernels(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """What a step runs on the device: how many kernels, for how long, and which take longest."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        _wait(device)
    times: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events() or ():
        if event.device_type == DeviceType.CUDA:
            times[event.name].append(event.device_time / 1e3)
    longest = sorted(times, key=lambda name: -sum(times[name]))[:25]
    return {
        "kernels": sum(map(len, times.values())),
        "kernel_milliseconds": sum(map(sum, times.values())),
        "longest": [[name[:120], len(times[name]), round(sum(times[name]), 3)] for name in longest],
    }


def loader_speed(device: torch.device, size: Size, folder: Path, *, num_batches: int) -> Iterator[Row]:
    """Batches a second to the device, from feature files, from memory, and from its own."""
    num_images, width = 400, 2_048
    data = _generated(folder / f"loader-{size.grid}", size.grid, num_images, width)
    samples = training_samples(data, "train", "bce")
    plan = training_plan(len(samples), batch_size=size.batch, seed=0, epoch=0, shuffle=True)
    plan = [plan[index % len(plan)] for index in range(num_batches)]
    caches: tuple[WantedCache, ...] = ("none", "ram", "device")
    for cache in caches:
        kept = keep_features(data, lambda: samples.images, cache, World(0, 1, device), no_callback)
        loaded = load_batches(samples, plan, num_workers=4, pin=device.type == "cuda", kept=kept)
        batches = on_device(loaded, device, copies_to(device))
        next(batches).cells()
        _wait(device)
        started = time.perf_counter()
        count = sum(len(batch.cells()) for batch in islice(batches, num_batches - 1))
        _wait(device)
        rate = count / (time.perf_counter() - started)
        speed = rate * size.grid**2 * width * data.features.dtype.itemsize / 2**30
        text = f"{rate:8.0f} samples/s to the device, {speed:.2f} GiB/s"
        yield Row(f"loader {size.grid}x{size.grid}", "", f"cache {cache}", text, "ok", {"samples_per_second": rate})


def _generated(folder: Path, grid: int, num_images: int, width: int) -> PreparedData:
    """The golden questions with features of the size asked for."""
    raw = GOLDEN / "mini_vqa"
    chance = np.random.default_rng(0)
    for image_set in (raw / "feats").iterdir():
        there = folder / "feats" / image_set.name
        there.mkdir(parents=True)
        for file in list(image_set.iterdir())[:num_images]:
            np.save(there / file.name, chance.standard_normal((grid * grid, width), dtype=np.float32))
    prepare(
        PrepareRequest(
            "vqa", out=folder / "data", raw=raw / "raw", features=folder / "feats", grid=grid, vectors="none"
        )
    )
    return open_prepared(folder / "data")


def title_of(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Section = Callable[[], Iterable[Row]]


def check(device: torch.device, folder: Path, *, is_small: bool) -> Iterator[Section]:
    """All that is checked on a device, the most telling first, in parts that may fail one by one."""
    gpus = "cpu" if device.type == "cpu" else str(device.index or 0)
    data = golden_data(folder)
    cases = read_cases(data)
    is_cuda = device.type == "cuda"
    ways: tuple[Compile, ...] = ("off", "auto") if is_cuda else ("off",)
    batch = 2 if is_small else 64
    sizes = [Size(8, (0, 1, 2, 3), batch), Size(14, (0, 1, 3), batch), Size(16, (0, 1, 2, 3), batch)]
    sizes += [Size(32, (0, 1, 2, 3), 8)] if is_cuda else []
    num_steps = 2 if is_small else 20

    def timed(*arguments: Any) -> Section:
        return lambda: [step_time(device, *arguments, num_steps=num_steps)]

    yield lambda: parity(device, cases)
    yield lambda: gradients(device, cases)
    for size in sizes:
        yield timed(size, "bf16", ways[-1])
    if is_cuda:
        yield timed(sizes[0], "bf16", "auto", "reference")
    yield lambda: training(gpus, data, folder, ways)
    yield lambda: stopped_and_resumed(gpus, data, folder)
    yield lambda: triton_kernels(device)
    yield lambda: layer_kernels(device, is_small=is_small)
    for precision in ("fp32", "tf32") if is_cuda else ("fp32",):
        for size in sizes:
            yield timed(size, precision, ways[-1])
    if is_cuda:
        yield timed(sizes[0], "bf16", "on")
        yield lambda: not_recorded(gpus, data, folder)
        for size in sizes:
            yield timed(size, "bf16", "off")
    for way in ways:
        yield lambda way=way: [scoring_time(device, sizes[0], "fp32", way, num_batches=num_steps)]
    for size in sizes[:3]:
        yield lambda size=size: loader_speed(device, size, folder, num_batches=10 if is_small else 100)
    if not can_compile(device):
        yield lambda: [Row("compiled", "", "compiled", "no C++ compiler", "left out")]
        return
    # Compiling takes long, on the CPU a minute a case.
    few = ("vqa_soft_avg", "clevr_hard_fc_binarize") if is_cuda else ("vqa_soft_avg",)
    yield lambda: parity(device, [case for case in cases if case.name in few], is_compiled=True)
    if is_cuda:
        for size in sizes[1:3]:
            yield timed(size, "bf16", "on")


def _rows(section: Section, *, is_late: bool) -> Iterator[Row]:
    """The rows of a part of the check; one of its own says what ended it early."""
    if is_late:
        yield Row("", "", "", "no time left", "left out")
        return
    try:
        yield from section()
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest is to be checked as well
        traceback.print_exc()
        yield Row("", "", "", shortened(first_line(error), most=90), "failed")


def main() -> None:
    """Check every GPU, or the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="one device; by default every GPU, or the CPU")
    parser.add_argument("--quick", action="store_true", help="small batches and few steps, as on the CPU")
    parser.add_argument("--minutes", type=float, default=8, help="after which no part is begun")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [options.device] if options.device else [f"cuda:{index}" for index in range(num_gpus)] or ["cpu"]
    give_up = time.monotonic() + 60 * options.minutes
    is_right, results = True, []
    for name in names:
        device = torch.device(name)
        title = title_of(device)
        print(f"{name}: {title}, torch {torch.__version__}, Python {platform.python_version()}")
        rows: list[Row] = []
        with tempfile.TemporaryDirectory(prefix="trarctl-gpu-check-") as folder:
            for section in check(device, Path(folder), is_small=options.quick or device.type == "cpu"):
                for row in _rows(section, is_late=time.monotonic() > give_up):
                    print(f"  {row.what:<28} {row.precision:<5} {row.how:<14} {row.text:<92} {row.result}", flush=True)
                    rows.append(row)
                    is_right &= row.result in ("ok", "left out")
                    if options.json is not None:
                        about = {"device": title, "torch": str(torch.__version__), "python": platform.python_version()}
                        found = [*results, about | {"rows": [asdict(row) for row in rows]}]
                        options.json.write_text(json.dumps(found, indent=1) + "\n")
        results.append({"device": title, "rows": [asdict(row) for row in rows]})
    print("all as it should be" if is_right else "something is wrong, see above")
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
