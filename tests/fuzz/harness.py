"""Runs one mutated input after the other in this process, and judges what the program made of it.

Each input of a surface is a function of the surface's name, the seed and the index, so that one number repeats it. An
outcome is good if it is the right value, a success with a warning, or one error with its documented exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from trarctl import cli

SECONDS_BEFORE_IT_HANGS = 30.0
REFUSALS = (2, 3, 4, 5, 6, 7)
UNKNOWN = object()  # an expected value that cannot be told independently


class Effect(Enum):
    """What a mutation may do to the outcome."""

    NONE = "must not matter"  # the same value as of the undamaged input, without a warning
    SAME = "must not matter, but may be warned of"
    DAMAGE = "must matter"  # refused or warned of, unless the value is that of the undamaged input
    REFUSED = "must be refused"  # or warned of, whatever the value
    ANY = "may matter"  # refused, warned of, or the value that is expected of the changed input


@dataclass(frozen=True)
class Mutation:
    """What was done to an input; the words are for people."""

    what: str
    effect: Effect = Effect.ANY


@dataclass(frozen=True)
class Ran:
    """How a command ended; ``raised`` is what came out of it besides an exit code."""

    code: int
    out: str = ""
    err: str = ""
    raised: BaseException | None = None
    warned: tuple[str, ...] = ()  # raw warnings of Python and libraries

    @property
    def notes(self) -> list[str]:
        """Its lines that warn or note."""
        return [line for line in self.err.splitlines() if line.startswith(("warning: ", "note:  "))]


@dataclass(frozen=True)
class Fault:
    """What is wrong about an outcome: the kind, and where or what, by which faults are told apart."""

    kind: str
    where: str
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    index: int
    mutation: Mutation
    ending: str  # right, warned or refused
    message: str
    fault: Fault | None
    seconds: float


class Surface(ABC):
    """One kind of input: how a sound one is made and mutated, what reads it, and what is right.

    An input is a folder: ``in`` holds what the program reads and must not change, ``out`` what it may write.
    """

    name: ClassVar[str]
    in_minute: ClassVar[int] = 25  # inputs in the tests

    def __init__(self, base: Path) -> None:
        self.base = base
        self.sound: object = UNKNOWN  # value of the undamaged input
        self.sound_notes: list[str] = []

    @abstractmethod
    def build(self) -> None:
        """Write the undamaged input into ``base/in``; once."""

    @property
    @abstractmethod
    def mutators(self) -> Sequence[Callable[[Random, Path], Mutation]]:
        """What may be done to the input in the folder ``in``."""

    @abstractmethod
    def run(self, work: Path, random: Random) -> Ran:
        """Have the program read the input."""

    def value(self, work: Path, ran: Ran) -> object:
        """Give what the program made of an input that it accepted; comparable."""
        return ran.out

    def expected(self, work: Path) -> object:
        """Work out the same independently; UNKNOWN if that is not possible."""
        return UNKNOWN

    def complaint(self, work: Path, ran: Ran) -> str:
        """Say what else is wrong, such as something half-written; empty if nothing."""
        return ""

    def may_write(self, ran: Ran) -> bool:
        """Whether the program may change the input folder."""
        return False

    def prepare(self) -> None:
        """Build the undamaged input and see that it is sound."""
        self.base.mkdir(parents=True, exist_ok=True)
        self.build()
        work = self.base / "sound"
        outcome, ran = self._try(work, Random(0), None)
        if outcome is not None or ran.code != 0:
            raise AssertionError(f"{self.name}: the undamaged input is not accepted: {outcome} {ran}")
        self.sound = self.value(work, ran)
        self.sound_notes = ran.notes
        expected = self.expected(work)
        if expected is not UNKNOWN and expected != self.sound:
            raise AssertionError(f"{self.name}: {_difference(self.sound, expected)}")
        shutil.rmtree(work)

    def copy_base(self, work: Path) -> None:
        """Make a new input folder of the undamaged input."""
        shutil.copytree(self.base / "in", work / "in", copy_function=shutil.copyfile, symlinks=True)
        (work / "out").mkdir()

    def attempt(self, seed: int, index: int, *, keep: Path | None = None) -> Outcome:
        """Mutate, run and judge one input."""
        random = Random(f"{self.name} {seed} {index}")
        work = keep or self.base / f"work-{index}"
        began = time.monotonic()
        fault: Fault | None
        try:
            mutations = [random.choice(self.mutators) for _ in range(random.choice((1, 1, 1, 1, 2)))]
            fault, ran, mutation = self._mutated(work, random, mutations)
        except (Exception, Hang) as error:  # noqa: BLE001 - what was accepted cannot be read, or this harness is wrong
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = Fault("unreadable outcome", f"{type(error).__name__} {where.name}: {where.line}", str(error)[:300])
            ran, mutation = Ran(1), Mutation("see --index")
        finally:
            if keep is None:
                _remove(work)
        lines = [line for line in ran.err.splitlines() if line.startswith(("error: ", "Error: ", "warning: "))]
        new_notes = set(ran.notes) - set(self.sound_notes)
        ending = "refused" if ran.code else "warned" if new_notes else "right"
        return Outcome(index, mutation, ending, " | ".join(lines)[:2000], fault, time.monotonic() - began)

    def _mutated(self, work: Path, random: Random, mutators: Sequence[Any]) -> tuple[Fault | None, Ran, Mutation]:
        done: list[Mutation] = []

        def mutate() -> None:
            for mutator in mutators:
                if done and _holds_pipe(work / "in"):
                    return  # whoever opened it would wait for ever
                try:
                    done.append(mutator(random, work / "in"))
                except Exception:
                    # What the first has damaged, the second may not be able to read.
                    if not done:
                        raise
                    done.append(Mutation("as damaged before"))

        fault, ran = self._try(work, random, mutate)
        # A harmless change leaves another what it is; what else is combined, and may cancel, is judged by its value.
        effects = [one.effect for one in done]
        harmful = [effect for effect in effects if effect not in (Effect.NONE, Effect.SAME)]
        harmless = Effect.SAME if Effect.SAME in effects else Effect.NONE
        effect = Effect.ANY if len(harmful) > 1 else harmful[0] if harmful else harmless
        decisive = [one for one in done if one.effect is not Effect.NONE] or done
        mutation = Mutation(", then ".join(one.what for one in decisive), effect)
        with _time_limit():
            return fault or self._judge(work, ran, mutation), ran, mutation

    def _try(self, work: Path, random: Random, mutate: Callable[[], None] | None) -> tuple[Fault | None, Ran]:
        """Make an input, run it, and judge what holds of every input."""
        self.copy_base(work)
        if mutate is not None:
            with _time_limit(), warnings.catch_warnings(action="ignore"):
                mutate()
        before = snapshot(work / "in")
        with _time_limit(), _as_it_was(work):
            ran = self.run(work, random)
        ran = replace(ran, err=ran.err.replace(str(work), "WORK"), out=ran.out.replace(str(work), "WORK"))
        fault = _ill(ran)
        if fault is None and not self.may_write(ran):
            changed = _changed(before, snapshot(work / "in"))
            if changed:
                fault = Fault("changed input", re.sub(r"\d+", "N", changed[0]), ", ".join(changed[:5]))
        if fault is None:
            complaint = self.complaint(work, ran)
            fault = Fault("half-written", complaint, ran.err) if complaint else None
        return fault, ran

    def _judge(self, work: Path, ran: Ran, mutation: Mutation) -> Fault | None:
        what = _shape_of(mutation.what)
        is_sound = mutation.effect in (Effect.NONE, Effect.SAME)
        if ran.code:
            return Fault("sound input refused", what, ran.err) if is_sound else None
        value = self.value(work, ran)
        new_notes = set(ran.notes) - set(self.sound_notes)
        if is_sound:
            if value != self.sound:
                return Fault("other value", what, _difference(value, self.sound))
            warned = [line for line in new_notes if line.startswith("warning: ") and mutation.effect is Effect.NONE]
            return Fault("warning about sound input", what, warned[0]) if warned else None
        if mutation.effect is Effect.REFUSED and not new_notes:
            return Fault("accepted", what, str(value)[:200])
        if mutation.effect is Effect.DAMAGE and not new_notes and value != self.sound:
            return Fault("silent", what, _difference(value, self.sound))
        expected = self.expected(work)
        if expected is not UNKNOWN and not new_notes and value != expected:
            return Fault("wrong value", what, _difference(value, expected))
        return None


def call(*arguments: object) -> Ran:
    """Run a command in this process as the console script would."""
    return captured(lambda: cli.run([str(argument) for argument in arguments]))


def captured(function: Callable[[], int]) -> Ran:
    """Call a function that gives an exit code, and catch whatever else comes out of it."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    raised: BaseException | None = None
    code = 1
    with (
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("always")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        try:
            code = function()
        except (Exception, SystemExit, Hang) as error:  # noqa: BLE001 - nothing should come out
            raised = error
    texts = []
    for stream in (out, err):
        stream.flush()
        text = stream.buffer.getvalue().decode("utf-8", "replace")
        texts.append(re.sub(r"\x1b\[[0-9;]*m", "", text))  # colors, for which the environment may ask  # type: ignore[attr-defined]
    return Ran(code, *texts, raised, tuple(f"{one.category.__name__}: {one.message}" for one in caught))


class Hang(BaseException):
    """The time for one input is over; no ``except Exception`` of the program catches it."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_BEFORE_IT_HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _as_it_was(work: Path) -> Iterator[None]:
    """Run in the input's folder, and undo what a command may do to the process."""
    folder, environment = Path.cwd(), dict(os.environ)
    os.chdir(work)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Keep names and contents of what is in a folder; hidden files are locks and the like."""
    found: dict[str, bytes | str] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*files, *folders]:
            path = Path(root) / name
            if name.startswith("."):
                continue
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = f"link to {path.readlink()}"
            elif path.is_dir():
                found[key] = "folder"
            else:
                found[key] = path.read_bytes() if path.is_file() else "special"
    return found


def _holds_pipe(folder: Path) -> bool:
    return any(path.is_fifo() for path in folder.rglob("*"))


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _remove(work: Path) -> None:
    for root, folders, _ in os.walk(work):
        for name in folders:
            with contextlib.suppress(OSError):
                (Path(root) / name).chmod(0o700)
    shutil.rmtree(work, ignore_errors=True)


_RAW = re.compile(
    r"Traceback \(most recent call last\)|(?:^|: )\w*Warning: |^\w+Error: |File \"[^\"]+\", line \d+| at 0x[0-9a-f]+",
    re.M,
)


def _ill(ran: Ran) -> Fault | None:
    """Judge what no input may cause."""
    if isinstance(ran.raised, Hang):
        return Fault("hang", _place(ran.raised))
    if ran.raised is not None:
        error = ran.raised
        return Fault("traceback", f"{type(error).__name__} {_place(error)}", f"{error}"[:300])
    if ran.code not in (0, *REFUSALS):
        return Fault("exit code", str(ran.code), ran.err[-300:])
    if ran.warned:
        return Fault("raw warning", _shape_of(ran.warned[0])[:120], ran.warned[0])
    usage = re.sub(r"^Error: ", "", ran.err, flags=re.M) if ran.code == 2 else ran.err
    if raw := _RAW.search(usage):
        return Fault("raw output", _shape_of(raw[0]), usage[-400:])
    errors = re.findall(r"^(?:error|Error): ", ran.err, flags=re.M)
    if len(errors) != (1 if ran.code else 0):
        return Fault("message", f"{len(errors)} errors with exit code {ran.code}", ran.err[-400:])
    if ran.code and not re.search(r"^(?:error|Error): +\S", ran.err, flags=re.M):
        return Fault("message", "an empty error", ran.err[-400:])
    kinds = Counter(_shape_of(line)[:60] for line in ran.notes if line.startswith("warning"))
    if kinds and max(kinds.values()) > 4:
        return Fault("message", f"the same warning {max(kinds.values())} times", kinds.most_common(1)[0][0])
    return None


def _place(error: BaseException) -> str:
    """Name the innermost lines of the program in a traceback: the last of ours, and where it ended."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/trarctl/" in frame.filename]
    if not frames:
        return ""
    chosen = ours[-1] if ours else frames[-1]
    return f"{chosen.filename.rpartition('/trarctl/')[2]}:{chosen.name}: {(chosen.line or '')[:80]}"


def _shape_of(text: str) -> str:
    """Leave out of a text what differs from input to input."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    return re.sub(r"/[\w./-]+", "PATH", re.sub(r"\d[\d.,e+]*", "N", text))[:160]


def _difference(one: object, other: object) -> str:
    """Say where two values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if one.get(key, UNKNOWN) != other.get(key, UNKNOWN):
                return f"{key}: {_difference(one.get(key), other.get(key))}"
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            if mine != theirs:
                return f"[{place}]: {_difference(mine, theirs)}"
    shown = [f"{len(value)} bytes" if isinstance(value, bytes) else f"{value!r:.200}" for value in (one, other)]
    return f"{shown[0]} instead of {shown[1]}"


@contextlib.contextmanager
def fast_and_quiet() -> Iterator[Path]:
    """Leave out waiting for the disk, and catch what libraries write past Python; the file holds that."""
    fsync, os.fsync = os.fsync, lambda descriptor: None
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.NamedTemporaryFile() as raw:
        try:
            os.dup2(raw.fileno(), 2)
            yield Path(raw.name)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.fsync = fsync


@dataclass
class Tally:
    """Outcomes of one surface: counts, and an example of each fault."""

    inputs: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    faults: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.inputs += 1
        self.seconds += outcome.seconds
        if outcome.fault is None:
            self.endings[outcome.ending] += 1
            self.messages[f"{outcome.ending}: {_shape_of(outcome.message)[:110]}"] += 1
        else:
            self.faults.setdefault((outcome.fault.kind, outcome.fault.where), []).append(outcome)

    @property
    def num_faults(self) -> int:
        """Inputs with a fault."""
        return sum(map(len, self.faults.values()))


def campaign(surface: Surface, seed: int, indices: Iterator[int]) -> Tally:
    """Try many inputs of a surface, which is prepared."""
    tally = Tally()
    with fast_and_quiet() as raw:
        for index in indices:
            outcome = surface.attempt(seed, index)
            if raw.stat().st_size and outcome.fault is None:
                text = raw.read_text(errors="replace")
                fault = Fault("raw output", _shape_of(text)[:100], text[:300])
                outcome = Outcome(index, outcome.mutation, "", "", fault, outcome.seconds)
            if raw.stat().st_size:
                os.truncate(raw, 0)
            tally.add(outcome)
    return tally
