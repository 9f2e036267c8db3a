"""A training step that a GPU replays: its kernels are recorded once, then launched together.

A step at 8x8 is thousands of short kernels; launching them one by one takes several times as long as computing them.
A CUDA graph is such a sequence, recorded with every argument, to be launched at once. A replay runs no Python and sees
only memory: so a recorded step reads its batch, learning rate and temperature from tensors that keep their place, and
what it returns is copied before the next replay overwrites it.

Random numbers: torch hands a recorded kernel the *place* of the generator's seed and offset, and each replay first
writes the present ones there, then moves the offset on as the recorded calls did. After ``torch.manual_seed`` a replay
therefore draws what the same step draws unrecorded, and recording itself draws nothing: a resumed run, whose first
steps are not recorded yet, stays the same run.

The first steps of a process run unrecorded: libraries are set up, Adam gets its averages, a compiler compiles. They are
steps of the run like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from trarctl.config import Compile
from trarctl.data.loader import Batch
from trarctl.errors import first_line

NUM_UNRECORDED = 3  # steps at the start of a process, or batches that are scored

Outputs = tuple[Tensor, ...]
Work = Callable[[], Outputs]


class Recorder(Protocol):
    """What can record work on a device."""

    def run(self, work: Work) -> Outputs:
        """Do work that is to be recorded later, in the surroundings of a recording."""
        ...

    def record(self, work: Work) -> tuple[Outputs, Callable[[], None]]:
        """Do the work and record it: its results, and what does it again, on the same memory, results included.

        Raises:
            RuntimeError: if this work cannot be recorded; it was not done.
        """
        ...


class CudaRecorder:
    """Record CUDA graphs, which share their memory: they are replayed in the order in which they were recorded."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._generator = torch.cuda.default_generators[self._stream.device.index]
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> Outputs:
        """See ``Recorder``. On the recording's stream, since autograd and cuBLAS keep things for each stream."""
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            outputs = work()
        before.wait_stream(self._stream)
        return outputs

    def record(self, work: Work) -> tuple[Outputs, Callable[[], None]]:
        """See ``Recorder``."""
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        random_state, on_host = self._generator.clone_state(), torch.get_rng_state()
        try:
            # Other threads go on assembling batches, which takes page-locked memory: only this one is restricted.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                outputs = work()
            if not torch.equal(torch.get_rng_state(), on_host):
                raise RuntimeError("it draws a random number on the host, which each replay would repeat")
        except RuntimeError:
            # A recording that breaks off may leave stream, random numbers and memory as if it still went on.
            torch.cuda.set_stream(before)
            self._generator.graphsafe_set_state(random_state)
            with suppress(RuntimeError):  # of versions that end it themselves; torch 2.11 does not
                torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
            raise
        graph.replay()
        return outputs, graph.replay


def recorder_for(device: torch.device, wanted: Compile) -> Recorder | None:
    """What records work on a device: on a GPU, unless ``run.compile`` is off; None where it runs as it is."""
    return CudaRecorder(device) if device.type == "cuda" and wanted != "off" else None


def is_recording() -> bool:
    """Whether kernels that are launched now are recorded instead of run."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Step(Protocol):
    """The two halves of a training step on a device; nothing in them may wait for it."""

    def forward_backward(self, part: Batch, *, is_first: bool, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add one part's gradient: its loss and the mean span weights."""
        ...

    def update(self) -> Tensor:
        """Change the weights: the norm of the gradient."""
        ...


class RecordedStep:
    """A step whose halves are recorded when they have run a few times, and replayed from then on.

    Args:
        step: what to record.
        recorder: what records it.
        warn: called once, with a sentence, if it cannot be recorded; the step then runs unrecorded.
    """

    def __init__(self, step: Step, recorder: Recorder, warn: Callable[[str], None]) -> None:
        self._step, self._recordings = step, _Recordings(recorder, "the training step", warn)
        self._inputs: Batch | None = None  # what the recorded kernels read
        self._num_parts = 0
        self._num_steps = 0

    def begin(self, parts: Sequence[Batch]) -> bool:
        """Get ready for a step with these parts; False if it is another shape than the first, and not for this."""
        if self._inputs is None:
            self._inputs, self._num_parts = _copy(parts[0]), len(parts)
        if [_shape(part) for part in parts] != [_shape(self._inputs)] * self._num_parts:
            return False
        self._num_steps += 1
        return True

    def forward_backward(self, part: Batch, *, is_first: bool, is_last: bool) -> tuple[Tensor, Tensor]:
        """Add one part's gradient, as the step does."""
        inputs = self._inputs
        if inputs is None:
            raise AssertionError("a step begins with begin")
        for place, new in zip(_tensors(inputs), _tensors(part), strict=True):
            place.copy_(new)
        # The first part makes the gradients, at their place in the recording's memory; later ones add to them, and with
        # the last they are made ready for an exchange.
        name = f"part, is first: {is_first}, is last: {is_last}"
        loss, routes = self._run(name, lambda: self._step.forward_backward(inputs, is_first=is_first, is_last=is_last))
        return loss, routes

    def update(self) -> Tensor:
        """Change the weights, as the step does."""
        return self._run("update", lambda: (self._step.update(),))[0]

    def _run(self, name: str, work: Work) -> Outputs:
        return self._recordings.run(name, work, is_ready=self._num_steps > NUM_UNRECORDED)


class RecordedForward:
    """A forward pass of a model in evaluation, recorded when it has run a few times, and replayed from then on.

    Args:
        forward: scores a batch: question tokens [B, T], cells [B, N, W], temperature [] to scores [B, A] and routes
            [B, L, K].
        recorder: what records it.
        warn: called once, with a sentence, if it cannot be recorded; it then runs unrecorded.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        recorder: Recorder,
        warn: Callable[[str], None],
    ) -> None:
        self._forward, self._recordings = forward, _Recordings(recorder, "the forward pass", warn)
        self._inputs: tuple[Tensor, Tensor, Tensor] | None = None
        self._num_batches = 0

    def __call__(self, question_tokens: Tensor, cells: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Score a batch; one of another shape than the first as it is."""
        given = question_tokens, cells, temperature
        if self._inputs is None:
            self._inputs = question_tokens.clone(), cells.clone(), temperature.clone()
        held = self._inputs
        if [tensor.shape for tensor in given] != [tensor.shape for tensor in held]:
            return self._forward(*given)
        for place, new in zip(held, given, strict=True):
            place.copy_(new)
        self._num_batches += 1
        scores, routes = self._recordings.run(
            "forward", lambda: self._forward(*held), is_ready=self._num_batches > NUM_UNRECORDED
        )
        return scores, routes


class _Recordings:
    """Pieces of work by name: run, then recorded, then replayed."""

    def __init__(self, recorder: Recorder, what: str, warn: Callable[[str], None]) -> None:
        self._recorder, self._what, self._warn = recorder, what, warn
        self._can_record = True
        self._recorded: dict[str, tuple[Outputs, Callable[[], None]]] = {}

    def run(self, name: str, work: Work, *, is_ready: bool) -> Outputs:
        """Do the work; what it returns stays as it is when it is done again. ``is_ready``: it may be recorded."""
        if not self._can_record or not is_ready:
            outputs = self._recorder.run(work)
        elif name in self._recorded:
            outputs, replay = self._recorded[name]
            replay()
        else:
            try:
                self._recorded[name] = self._recorder.record(work)
                outputs = self._recorded[name][0]
            except RuntimeError as error:
                # None of it is replayed then: the update reads gradients that only the recorded first part fills.
                self._can_record = False
                self._warn(f"{self._what} cannot be recorded, its kernels are launched one by one: {_said(error)}")
                outputs = self._recorder.run(work)
        return tuple(output.clone() for output in outputs)


def _said(error: RuntimeError) -> str:
    """What broke a recording off: the first error, not that of ending it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return first_line(error)


def _tensors(part: Batch) -> tuple[Tensor, ...]:
    """What a step reads of a part."""
    if part.target is None:
        raise AssertionError("training batches have targets")
    return part.question_tokens, part.cells(), part.target


def _shape(part: Batch) -> tuple[object, ...]:
    """Sizes and types of what a step reads of a part."""
    target = () if part.target is None else part.target.shape
    return part.question_tokens.shape, len(part), part.features.shape[1:], part.features.dtype, target


def _copy(part: Batch) -> Batch:
    """A part that keeps its place in memory, with the features of each question."""
    tokens, cells, target = (tensor.clone() for tensor in _tensors(part))
    return Batch(part.question_id, tokens, cells, None, target)
