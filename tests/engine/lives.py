"""Lives of a run: data to live on, commands in processes that can really die, and what a run ought to be after each.

``Command`` runs one command in a forked process, notes every optimizer step from outside the code under test, and
kills, stops, interrupts or starves it at a chosen point. ``Reference`` is another, minimal training loop: what it
computes is right by definition. ``Step`` and ``Place`` are the histories that it computes for.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trarctl.config.settings import Settings
from trarctl.data.loader import training_samples
from trarctl.data.prepare import PrepareRequest, prepare
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.callbacks import Event
from trarctl.engine.distributed import seed_step
from trarctl.engine.launch import run_job
from trarctl.engine.loading import build_model
from trarctl.engine.trainer import StepResult, Trainer
from trarctl.errors import TrarError

# Data


WORDS = ("cube", "ball", "cone", "ring", "disk", "star")
ANSWERS = ("yes", "no", "red", "blue")
NUM_VAL = 8


@dataclass(frozen=True)
class Variant:
    """One prepared folder: how it differs from ``base``."""

    name: str
    num_train: int = 24
    grid: int = 2
    is_reversed: bool = False  # the same questions under other ids
    words: tuple[str, ...] = WORDS


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("base"),
        Variant("longer", num_train=30),
        Variant("reordered", is_reversed=True),
        Variant("other grid", grid=3),
        Variant("other words", words=("gear", *WORDS[1:])),
    )
}


@dataclass(frozen=True)
class Data:
    """A prepared folder, and the question ids that its files hold, in their order."""

    folder: Path
    ids: Mapping[str, list[int]]  # by split

    @cached_property
    def opened(self) -> PreparedData:
        return open_prepared(self.folder)

    def ids_of(self, split: str) -> list[int]:
        """Ids of splits joined by +."""
        return [number for name in split.split("+") for number in self.ids[name]]


def make_data(folder: Path) -> dict[str, Data]:
    """Write and prepare every variant, with the same features for the same pictures."""
    made = {}
    for variant in VARIANTS.values():
        there = folder / variant.name.replace(" ", "-")
        ids = _write_raw(there, variant)
        prepare(
            PrepareRequest(
                "clevr",
                raw=there / "raw",
                features=there / "feats",
                out=there / "out",
                grid=variant.grid,
                vectors="none",
            )
        )
        made[variant.name] = Data(there / "out", ids)
    return made


def _write_raw(folder: Path, variant: Variant) -> dict[str, list[int]]:
    pairs = [(one, two) for gap in range(1, len(WORDS)) for one, two in zip(WORDS, WORDS[gap:], strict=False)]
    pairs += [(two, one) for one, two in pairs]
    kept = {}
    for start, split, number in ((0, "train", variant.num_train), (100, "val", NUM_VAL), (200, "test", 4)):
        ids = [start + index for index in range(number)]
        kept[split] = ids[::-1] if variant.is_reversed and split == "train" else ids
        texts = pairs if split == "train" else pairs[::-1]
        questions = []
        for index, number_of in enumerate(kept[split]):
            one, two = (variant.words[WORDS.index(word)] for word in texts[index])
            question = {
                "question_index": number_of,
                "image_index": index // 2,
                "image_filename": f"CLEVR_{split}_{index // 2:06d}.png",
                "split": split,
                "question": f"is the {one} left of the {two}?" if index < 2 else f"the {one} of the {two} is left?",
            }
            if split != "test":
                question |= {
                    "answer": ANSWERS[index % 4],
                    "program": [{"function": "scene"}, {"function": ("exist", "count")[index % 2]}],
                }
            questions.append(question)
        path = folder / "raw" / "questions" / f"CLEVR_{split}_questions.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"info": {"split": split}, "questions": questions}))
        (folder / "feats" / split).mkdir(parents=True)
        for image in range((number + 1) // 2):
            chance = np.random.default_rng([start, image])
            features = chance.standard_normal((variant.grid**2, 6)).astype(np.float32)
            np.savez(folder / "feats" / split / f"{image}.npz", x=features)
    return kept


# Commands that can die


@dataclass(frozen=True)
class Fault:
    """What befalls a command at its ``at``-th event or change of a file; ``number`` is a signal or a size."""

    kind: str = "none"  # none, kill, signal, pause: at an event | kill in a write, no space: at a file | full disk
    at: int = 0
    number: int = 0


class Refusal(NamedTuple):
    """A TrarError, as it crossed from one process to the other."""

    kind: str
    exit_code: int
    what: str
    hint: str | None


@dataclass
class Outcome:
    """How a command ended, and every optimizer step that it did."""

    end: str = "killed"  # done, refused, bug, or killed
    error: Refusal | None = None
    traceback: str = ""
    output: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.end} after {len(self.steps)} steps {self.error or ''} {self.traceback}{self.output}"


class Command:
    """A command in a process of its own, which shares what this one has loaded."""

    def __init__(self, plan: Callable[[], Any], folder: Path, fault: Fault) -> None:
        sys.stdout.flush()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - the child's, until it ends
        read, write = os.pipe()
        self.outcome = Outcome()
        self.pid = os.fork()
        if not self.pid:
            os.close(read)
            _in_child(plan, folder, fault, write, self._output.fileno())
        os.close(write)
        self._pipe = os.fdopen(read, "rb")

    def wait(self) -> Outcome:
        """Read what it does until it ends."""
        while self.read():
            pass
        os.waitpid(self.pid, 0)
        self._output.seek(0)
        self.outcome.output = self._output.read().decode()
        self._output.close()
        self._pipe.close()
        return self.outcome

    def read(self) -> str:
        """One message; empty at the end."""
        head = self._pipe.read(4)
        if len(head) < 4:
            return ""
        size = struct.unpack("I", head)[0]
        body = self._pipe.read(size)
        if len(body) < size:
            return ""
        kind, value = pickle.loads(body)  # noqa: S301 - from our own child
        if kind == "step":
            self.outcome.steps.append(value)
        elif kind == "event":
            self.outcome.events.append(value)
        elif kind == "end":
            self.outcome.end, self.outcome.error, self.outcome.traceback = value
        return kind

    def is_paused(self) -> bool:
        """Read until it has paused, or ended without that."""
        while kind := self.read():
            if kind == "paused":
                os.waitpid(self.pid, os.WUNTRACED)
                return True
        return False

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _in_child(plan: Callable[[], Any], folder: Path, fault: Fault, pipe: int, output: int) -> None:
    """Never returns: whatever this process holds is left as it is, as when it is killed."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    end: tuple[str, Refusal | None, str] = ("done", None, "")

    def send(kind: str, value: object = None) -> None:
        body = pickle.dumps((kind, value))
        os.write(pipe, struct.pack("I", len(body)) + body)

    try:
        gc.disable()  # would copy what is shared
        os.fsync = lambda _descriptor: None  # durable or not, nobody pulls the plug here
        _note_steps(send)
        job = plan()
        seen = 0

        def on_event(event: Event) -> None:
            nonlocal seen
            seen += 1
            send("event", getattr(event, "text", type(event).__name__))
            if seen != fault.at:
                return
            if fault.kind == "pause":
                send("paused")
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault.kind in ("kill", "signal"):
                os.kill(os.getpid(), fault.number or signal.SIGKILL)

        if fault.kind == "full disk":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.number, fault.number))
        elif fault.kind in ("kill in a write", "no space"):
            _watch_files(folder, fault)
        run_job(job, lambda: nullcontext(on_event))
    except TrarError as error:
        end = "refused", Refusal(type(error).__name__, error.exit_code, error.what, error.hint), ""
    except BaseException:  # noqa: BLE001 - told to the test
        end = "bug", None, traceback.format_exc()
    send("end", end)
    sys.stdout.flush()
    os._exit(0)


def _note_steps(send: Callable[[str, object], None]) -> None:
    train_step = Trainer.train_step

    def noted(trainer: Trainer, parts: Any, *, learning_rate: float) -> StepResult:
        state, settings = trainer.state, trainer.settings
        ids = np.concatenate([part.question_id for part in parts]).tolist()
        result = train_step(trainer, parts, learning_rate=learning_rate)
        step = {"epoch": state.epoch, "step": state.step + 1, "ids": ids, "rate": learning_rate}
        send("step", step | {"settings": settings.model_dump(mode="json")})
        return result

    Trainer.train_step = noted  # type: ignore[method-assign]


def _watch_files(folder: Path, fault: Fault) -> None:
    """Die, or find no space, at the nth change of a file of the run."""
    changes = 0
    prefix = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            is_change = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)) if isinstance(arguments[2], int) else False
        else:
            is_change = event in ("os.rename", "os.remove", "os.mkdir")
        if not is_change or isinstance(arguments[0], int) or not os.fsdecode(arguments[0]).startswith(prefix):
            return
        changes += 1
        if changes < fault.at or (changes > fault.at and fault.kind == "kill in a write"):
            return
        if fault.kind == "kill in a write":
            os.kill(os.getpid(), signal.SIGKILL)
        if event != "os.remove":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


# What is right


class Step(NamedTuple):
    """An optimizer step, and what of the settings in force decides what is written of it."""

    epoch: int  # finished before it
    in_epoch: int  # counted from 1
    steps_per_epoch: int
    step: int  # counted from 1
    ids: tuple[int, ...]
    rate: float
    temperature: float
    seed: int
    data: str
    split: str
    log_every: int
    is_validated: bool  # the epoch, once it is over
    ema_decay: float | None


History = tuple[Step, ...]


class Place(NamedTuple):
    """Where a run has come to: what it has done, how it began, and how many epochs it has finished."""

    start: str
    steps: History
    epoch: int

    @property
    def in_epoch(self) -> int:
        return self.steps[-1].in_epoch if self.steps and self.steps[-1].epoch == self.epoch else 0


def rate_of(settings: Settings, epoch: int) -> float:
    """The rate in an epoch without warm-up."""
    rate = settings.train.learning_rate
    for decay in settings.train.decay_epochs:
        if epoch >= decay:
            rate *= settings.train.decay_factor
    return rate


def temperature_of(settings: Settings, epoch: int) -> float:
    """A straight line from the first epoch to the last."""
    train = settings.train
    drop = (train.temperature_max - train.temperature_min) * epoch / max(train.epochs - 1, 1)
    return max(train.temperature_max - drop, train.temperature_min)


def validates(settings: Settings, epoch: int) -> bool:
    """Whether an epoch is validated once it is over, by the settings in force then."""
    every = settings.run.validate_every
    is_due = bool(every) and ((epoch + 1) % every == 0 or epoch + 1 == settings.train.epochs)
    return is_due and "val" not in settings.data.split.split("+")


def planned(settings: Settings, data: Data, name: str, place: Place) -> Iterator[Step]:
    """The steps from a place to the end of the training, if nothing comes between."""
    train = settings.train
    epoch, done, step = place.epoch, place.in_epoch, len(place.steps)
    ids = data.ids_of(settings.data.split)
    steps_per_epoch = len(ids) // train.batch_size
    for now in range(epoch, train.epochs):
        order = np.arange(len(ids))
        if train.shuffle:
            order = np.random.Generator(np.random.PCG64([train.seed, now])).permutation(len(ids))
        for index in range(done, steps_per_epoch):
            step += 1
            rows = order[index * train.batch_size : (index + 1) * train.batch_size]
            yield Step(
                now,
                index + 1,
                steps_per_epoch,
                step,
                tuple(ids[row] for row in rows),
                rate_of(settings, now),
                temperature_of(settings, now),
                train.seed,
                name,
                settings.data.split,
                settings.run.log_every,
                validates(settings, now),
                train.ema_decay,
            )
        done = 0


class Trained(NamedTuple):
    """The reference after some history."""

    tensors: dict[str, Tensor]  # under the names of a checkpoint
    loss: float  # of the last step, summed over its samples


class Reference:
    """A training loop that knows nothing of files, resuming or epochs; each history is computed once."""

    def __init__(self, data: Mapping[str, Data], settings: Settings) -> None:
        self._data = data
        self._settings = settings
        self._known: dict[tuple[str, History], Trained] = {}
        self._validated: dict[tuple[str, History], float] = {}
        self.starts: dict[str, dict[str, Tensor]] = {}  # weights that runs start from, by name

    def after(self, start: str, steps: History) -> Trained:
        """Weights and averages after a history."""
        missing = []
        while (start, steps) not in self._known:
            missing.append(steps)
            if not steps:
                break
            steps = steps[:-1]
        for history in reversed(missing):
            self._known[start, history] = self._begin(start) if not history else self._learn(start, history)
        if len(self._known) > 20_000:
            self._known = dict(list(self._known.items())[10_000:])
        return self._known[start, missing[0]] if missing else self._known[start, steps]

    def _begin(self, start: str) -> Trained:
        kind, _, rest = start.partition(":")
        if kind == "weights":
            return Trained({f"model.{name}": tensor.clone() for name, tensor in self.starts[rest].items()}, 0.0)
        model = build_model(self._seeded(int(rest)), self._data["base"].opened)
        return Trained({f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}, 0.0)

    def _seeded(self, seed: int) -> Settings:
        return self._settings.model_copy(update={"train": self._settings.train.model_copy(update={"seed": seed})})

    def _learn(self, start: str, history: History) -> Trained:
        before, step = self._known[start, history[:-1]].tensors, history[-1]
        model, optimizer = self._built(before)
        model.train()
        data = self._data[step.data]
        samples = training_samples(data.opened, step.split, "ce")
        place = {number: index for index, number in enumerate(data.ids_of(step.split))}
        batch = samples.batch(np.array([place[number] for number in step.ids]))
        optimizer.param_groups[0]["lr"] = step.rate
        seed_step(step.seed, step=step.step, rank=0)
        scores, _ = model(batch.question_tokens, batch.cells(), temperature=step.temperature)
        loss = functional.cross_entropy(scores, batch.target, reduction="none").sum()
        loss.backward()
        optimizer.step()
        after = {f"model.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            state = optimizer.state[parameter]
            after["adam.step"] = state["step"]
            after[f"adam.average.{name}"], after[f"adam.square.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        if step.ema_decay is not None:
            count = int(before.get("ema.step", 0)) + 1
            after["ema.step"] = torch.tensor(count)
            share = torch.tensor((1 - step.ema_decay) / (1 - step.ema_decay**count))
            for name, parameter in model.named_parameters():
                old = before.get(f"ema.weights.{name}", torch.zeros_like(parameter.detach()))
                after[f"ema.weights.{name}"] = old + (parameter.detach() - old) * share
        return Trained(after, loss.detach().double().item())

    def _built(self, tensors: Mapping[str, Tensor]) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = build_model(self._settings, self._data["base"].opened)
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        train = self._settings.train
        optimizer = torch.optim.Adam(model.parameters(), betas=train.adam_betas, eps=train.adam_epsilon, fused=True)
        for name, parameter in model.named_parameters():
            if "adam.step" in tensors:
                optimizer.state[parameter] = {
                    "step": tensors["adam.step"].clone(),
                    "exp_avg": tensors[f"adam.average.{name}"].clone(),
                    "exp_avg_sq": tensors[f"adam.square.{name}"].clone(),
                }
        return model, optimizer

    def accuracy(self, start: str, steps: History, kind: str = "model.") -> float:
        """Percent of the val questions answered right, with the moving average for ``ema.weights.``."""
        if (kind + start, steps) not in self._validated:
            step, tensors = steps[-1], self.after(start, steps).tensors
            own = {name: tensor for name, tensor in tensors.items() if name.startswith(kind)}
            model, _ = self._built({name.replace(kind, "model.", 1): tensor for name, tensor in own.items()})
            data = self._data[step.data].opened
            samples = training_samples(data, "val", "ce")
            batch = samples.batch(np.arange(NUM_VAL))
            with torch.inference_mode():
                scores, _ = model.eval()(batch.question_tokens, batch.cells(), temperature=step.temperature)
            share = float((scores.argmax(dim=1) == batch.target).double().mean())
            self._validated[kind + start, steps] = 100 * share
        return self._validated[kind + start, steps]

    def lines(self, place: Place) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` ought to hold, as far as the clock has no say in it."""
        lines = []
        window = [0.0, 0]
        whole = [0.0, 0]
        for index, step in enumerate(place.steps):
            loss = self.after(place.start, place.steps[: index + 1]).loss
            for sums in (window, whole):
                sums[0] += loss
                sums[1] += len(step.ids)
            is_last = step.in_epoch == step.steps_per_epoch
            common = {"epoch": step.epoch + 1, "step": step.step}
            schedule = {"learning_rate": step.rate, "temperature": step.temperature}
            if step.step % step.log_every == 0 or is_last:
                lines.append({"event": "step", **common, "loss": window[0] / window[1], **schedule})
                window = [0.0, 0]
            if is_last and step.epoch < place.epoch:
                lines.append({"event": "epoch", **common, "loss": whole[0] / whole[1], **schedule})
                if step.is_validated:
                    accuracy = self.accuracy(place.start, place.steps[: index + 1])
                    lines.append({"event": "validation", **common, "overall": accuracy})
                    if step.ema_decay is not None:
                        accuracy = self.accuracy(place.start, place.steps[: index + 1], "ema.weights.")
                        lines.append({"event": "candidate", **common, "name": "ema", "overall": accuracy})
            if is_last:
                window, whole = [0.0, 0], [0.0, 0]
        return lines

    def num_worse(self, place: Place) -> int:
        """Validations after the best."""
        best = self.best(place)
        epochs = [line["epoch"] for line in self.lines(place) if line["event"] == "validation"]
        return sum(best is not None and epoch > best for epoch in epochs)

    def best(self, place: Place) -> int | None:
        """The epoch, counted from 1, with the best validation, the first of equals."""
        scores = {line["epoch"]: line["overall"] for line in self.lines(place) if line["event"] == "validation"}
        return max(scores, key=lambda epoch: (scores[epoch], -epoch)) if scores else None


# What is on the disk


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def contents(folder: Path, *, ignored: Sequence[str] = ()) -> dict[str, str]:
    """Digest of every file under a folder, by its path there."""
    if not folder.is_dir():
        return {}
    return {
        str(path.relative_to(folder)): digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ignored
    }


def header(path: Path) -> dict[str, Any] | None:
    """The description in a checkpoint, read without the program; None if the file is not whole at first sight."""
    content = path.read_bytes()
    try:
        size = struct.unpack("<Q", content[:8])[0]
        return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["trarctl"])
    except (struct.error, ValueError, KeyError):
        return None


@contextmanager
def quietly_forking() -> Iterator[None]:
    """Threads of the test runner do not matter to a child that never returns."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
