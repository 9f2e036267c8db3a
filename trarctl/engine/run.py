"""Run folders: where a run keeps its settings, log, metrics and checkpoints, and how a user names one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trarctl.config.settings import Settings, from_dict
from trarctl.errors import CheckpointError, DataError, SettingsError
from trarctl.files import (
    LOOK_SECONDS,
    claimed,
    is_claimed,
    open_regular,
    read_regular,
    remove,
    sync_folder,
    whole_file,
    write_bytes,
)

CHECKPOINT = re.compile(r"^epoch-(\d+)(?:-step-(\d+))?\.safetensors$")
EXPORTED, EXPORTED_CONFIG = "model.safetensors", "config.json"  # weights of an exported folder, and all else
CANDIDATES = ("ema", "average")  # averages of weights that are validated beside those of the epochs
CANDIDATE = re.compile(rf"^epoch-(\d+)-({'|'.join(CANDIDATES)})\.safetensors$")
KEPT_WITHIN_EPOCH = 2  # if the latest is damaged there is one before


# What the readers of ``metrics.jsonl`` need of a line, by its event.
_NUMBERS: dict[str, tuple[str, ...]] = {
    "step": ("epoch", "step", "loss", "learning_rate", "temperature"),
    "epoch": ("epoch", "step"),
    "validation": ("epoch", "overall"),
    "candidate": ("epoch", "step", "overall"),
}


@dataclass(frozen=True)
class Metrics:
    """The lines of a run's ``metrics.jsonl`` by kind, in order."""

    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    validations: dict[int, dict[str, Any]]  # by epoch, counted from 1; of one validated again, the last
    num_unreadable: int = 0  # lines that were left out
    candidates: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)  # by epoch and name

    def best_epoch(self, among: Collection[int] | None = None) -> int | None:
        """Find the epoch with the best validation, the first of equals; None without one."""
        known = [epoch for epoch in self.validations if among is None or epoch in among]
        return max(known, key=lambda epoch: (self.validations[epoch]["overall"], -epoch), default=None)

    def best_candidate(self, among: Collection[tuple[int, str]] | None = None) -> tuple[int, str] | None:
        """Find epoch and name of the average of weights with the best validation, the first of equals."""
        known = [key for key in self.candidates if among is None or key in among]
        return max(known, key=lambda key: (self.candidates[key]["overall"], -key[0]), default=None)

    def best(
        self, epochs: Collection[int] | None = None, candidates: Collection[tuple[int, str]] | None = None
    ) -> tuple[int, str, float] | None:
        """Find the best of all that was validated: epoch, name (empty for the epoch's own weights) and percent."""
        epoch, candidate = self.best_epoch(epochs), self.best_candidate(candidates)
        found = [] if epoch is None else [(epoch, "", self.validations[epoch]["overall"])]
        found += [] if candidate is None else [(*candidate, self.candidates[candidate]["overall"])]
        return max(found, key=lambda one: one[2]) if found else None


class RunFolder:
    """One run on the disk; its name is that of its folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.settings_file = path / "settings.json"  # resolved
        self.metrics_file = path / "metrics.jsonl"  # what was measured, one JSON object a line
        self.log_file = path / "log.txt"  # the same for people
        self.checkpoints = path / "checkpoints"

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}: checkpoints of epochs {self.saved_epochs()}>"

    @property
    def reference(self) -> str:
        """How to name the run in a command: by its name in the folder ``runs``, else by its path."""
        return shlex.quote(self.name if self.path.parent == Path("runs") else str(self.path))

    @property
    def start_again(self) -> str:
        """The command that starts a run that has no checkpoint from its beginning."""
        return f"trarctl train --name {self.name} --set run.folder={shlex.quote(str(self.path.parent))}"

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` finished epochs is, or will be."""
        return self.checkpoints / f"epoch-{epoch:03d}.safetensors"

    def existing_checkpoint(self, epoch: str, hint: str) -> Path:
        """The checkpoint of an epoch that a user named; a CheckpointError says which there are, and the hint."""
        path = self.epoch_checkpoint(int(epoch)) if epoch.isascii() and epoch.isdecimal() else None
        if path is None or not path.is_file():
            names = sorted({name for _, name in self.saved_candidates()})
            kept = ", ".join(map(str, [*self.saved_epochs(), *names])) or "none"
            raise CheckpointError(f"run {self.name} has no checkpoint of epoch {epoch}", f"there are: {kept}; {hint}")
        return path

    def step_checkpoint(self, epoch: int, step: int) -> Path:
        """Where a checkpoint ``step`` steps into the epoch after ``epoch`` finished ones is, or will be."""
        return self.checkpoints / f"epoch-{epoch:03d}-step-{step:06d}.safetensors"

    def candidate_checkpoint(self, epoch: int, name: str) -> Path:
        """Where an average of weights after ``epoch`` finished epochs is, or will be; nothing is trained from it."""
        return self.checkpoints / f"epoch-{epoch:03d}-{name}.safetensors"

    def saved_candidates(self, only: str | None = None) -> list[tuple[int, str]]:
        """Epoch and name of the averages of weights that have a file, oldest first."""
        files = self.checkpoints.glob("epoch-*.safetensors") if self.checkpoints.is_dir() else ()
        found = [(int(match[1]), match[2]) for file in files if (match := CANDIDATE.match(file.name))]
        return sorted(one for one in found if only in (None, one[1]))

    def saved(self) -> list[tuple[int, int, Path]]:
        """(finished epochs, steps done of the next, file) of all checkpoints, oldest first."""
        found = []
        for file in self.checkpoints.glob("epoch-*.safetensors") if self.checkpoints.is_dir() else ():
            if match := CHECKPOINT.match(file.name):
                found.append((int(match[1]), int(match[2] or 0), file))
        return sorted(found)

    def saved_epochs(self) -> list[int]:
        """The numbers of finished epochs that have a checkpoint."""
        return [epoch for epoch, step, _ in self.saved() if step == 0]

    def exists(self) -> bool:
        """Whether the folder holds a run: settings or a checkpoint."""
        return self.settings_file.is_file() or bool(self.saved())

    def create(self) -> None:
        """Make the folder; DataError if it cannot be written."""
        with self.writable():
            self.path.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claimed(self, *, wait_seconds: float = LOOK_SECONDS) -> Iterator[bool]:
        """Be the only writer of the run, see ``files.claimed``; a folder made for it goes if it does not become one."""
        is_new = not self.path.exists()
        self.create()
        with ExitStack() as stack:
            with self.writable():
                is_locked = stack.enter_context(
                    claimed(self.path, f"run {self.name}", CheckpointError, wait_seconds=wait_seconds)
                )
            try:
                yield is_locked
            finally:
                if is_new and not self.exists():
                    remove(self.path)

    def is_written(self) -> bool:
        """Whether a process writes the run now."""
        return is_claimed(self.path)

    @contextmanager
    def writable(self, file: Path | None = None) -> Iterator[None]:
        """Tell what the file system refuses in the block as a DataError; ``file`` is what is written, if it is one."""
        try:
            yield
        except OSError as error:
            path = Path(os.fsdecode(error.filename or file or self.path))
            path = path.parent if path.name.startswith(".") else path  # a temporary name, or the lock
            is_inside = self.path in path.parents
            again = f"choose another with {'--name NAME' if self.path.is_dir() else '--set run.folder=DIR'}"
            if self.exists():
                again = f"then trarctl resume {self.reference} goes on"
            hint = f"free some space or correct its permissions; {again}"
            if isinstance(error, IsADirectoryError | FileExistsError | NotADirectoryError):
                hint = f"move it away; {again}"
            elif is_inside and not self.path.is_dir():
                hint = f"its folder was moved or removed; where it is now, trarctl resume DIR goes on ({self.path})"
            what = path if is_inside else f"the run folder {path}"
            raise DataError(f"cannot write {what}: {error.strerror or error}", hint) from error

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self._append(self.metrics_file, orjson.dumps(dict(entry)) + b"\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` that can be read; one that a crash cut off cannot."""
        return (entry for entry in self._lines() if entry is not None)

    def read_metrics(self) -> Metrics:
        """Read what was measured, by kind."""
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _NUMBERS}
        num_unreadable = 0
        for entry in self._lines():
            if entry is None:
                num_unreadable += 1
            else:
                kinds[entry["event"]].append(entry)
        validations = {entry["epoch"]: entry for entry in kinds["validation"]}
        candidates = {(entry["epoch"], entry["name"]): entry for entry in kinds["candidate"]}
        return Metrics(kinds["step"], kinds["epoch"], validations, num_unreadable, candidates)

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        """Each whole line of ``metrics.jsonl``, None for one that cannot be used."""
        try:
            with open_regular(self.metrics_file) as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield _read_line(line)
        except FileNotFoundError:
            return
        except OSError:
            yield None

    def log(self, *lines: str) -> None:
        """Append lines for people to ``log.txt``; without any, see that it can be written."""
        self._append(self.log_file, "".join(f"{line}\n" for line in lines).encode())

    def _append(self, path: Path, content: bytes) -> None:
        with self.writable(path), open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            file.write(content)

    def prune(self, *, epoch: int, best_epoch: int | None, keep: int) -> None:
        """Remove the checkpoints that a new one, after ``epoch`` finished epochs, makes superfluous.

        Those within finished epochs go, older ones within the next, and all finished epochs but the latest ``keep``
        (0 for all) and the best. Of each kind of average the best stays, or the latest if none was validated.
        """
        saved = self.saved()
        within = [(number, path) for number, step, path in saved if step]
        epochs = [(number, path) for number, step, path in saved if not step]
        surplus = [path for number, path in within if number < epoch]
        surplus += [path for _, path in within[:-KEPT_WITHIN_EPOCH]]
        surplus += [path for number, path in epochs[:-keep] if number != best_epoch] if keep else []
        for name in CANDIDATES:
            if len(there := self.saved_candidates(name)) > 1:
                best = self.read_metrics().best_candidate(there) or there[-1]
                surplus += [self.candidate_checkpoint(*one) for one in there if one != best]
        for path in surplus:
            path.unlink(missing_ok=True)

    def rewind(self, *, epoch: int, step_in_epoch: int, step: int) -> Path | None:
        """Go back to that point: later metrics are dropped; DataError if the folder cannot be written.

        Later checkpoints are set aside, together with all settings and metrics so far: a run of its own.

        Returns:
            The folder of what was set aside, if anything was.
        """

        def is_before(entry: Mapping[str, Any]) -> bool:
            # After the last step of an epoch its own end is still to come.
            is_end_of_epoch = entry["event"] != "step" and step_in_epoch > 0
            return entry.get("step", 0) < step or (entry.get("step", 0) == step and not is_end_of_epoch)

        later = [path for number, steps, path in self.saved() if (number, steps) > (epoch, step_in_epoch)]
        averages = [self.candidate_checkpoint(*one) for one in self.saved_candidates() if one[0] > epoch]
        kept = [entry for entry in self.metrics() if is_before(entry)]
        with self.writable(), whole_file(self.metrics_file) as temporary:
            # A full disk shows here, before anything is moved.
            temporary.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in kept))
            aside = self._set_aside([*averages, *later]) if later else None
            if aside is None:
                # Of an epoch whose own checkpoint was not written yet: they come again with it.
                for path in averages:
                    path.unlink()
        return aside

    def remove_torn_files(self) -> None:
        """Remove what writers that were killed left half-written; only the run's one writer may."""
        for torn in self.path.rglob(".*.tmp"):
            torn.unlink(missing_ok=True)

    def _set_aside(self, checkpoints: Sequence[Path]) -> Path:
        folder = self.path / "superseded"
        numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal()]
        aside = RunFolder(folder / str(max(numbers, default=0) + 1))
        try:
            aside.checkpoints.mkdir(parents=True)
            for ours, theirs in ((self.settings_file, aside.settings_file), (self.metrics_file, aside.metrics_file)):
                if ours.is_file():
                    write_bytes(theirs, ours.read_bytes())
        except OSError:
            remove(aside.path)
            with suppress(OSError):
                folder.rmdir()
            raise
        # The latest first: whatever ends this in between, a plain resume goes on from what is left.
        for path in reversed(checkpoints):
            path.replace(aside.checkpoints / path.name)
        sync_folder(aside.checkpoints)
        return aside.path


def list_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder, the most recently written last."""
    if not folder.is_dir():
        return []
    runs = [RunFolder(path) for path in folder.iterdir() if RunFolder(path).exists()]
    return sorted(runs, key=lambda run: (_last_written(run), run.name))


def find_run(text: str | None, folder: Path) -> RunFolder:
    """The run that the user means by a name, a directory or one of its checkpoints; None is the latest."""
    runs = list_runs(folder)
    if text is None:
        if not runs:
            raise CheckpointError(f"no runs in {folder}", "start one: trarctl train")
        return runs[-1]
    for path in (folder / text, Path(text)):
        if is_exported(path):
            what = f"{path} is an exported folder, which holds no state of a training to resume"
            raise CheckpointError(what, f"trarctl train --init {shlex.quote(str(path))} starts a run from its weights")
        path = path.parent.parent if path.is_file() else path
        if RunFolder(path).exists():
            return RunFolder(path if path.name not in ("", "..") else path.resolve())
    known = ", ".join(run.name for run in runs[-5:]) or "none"
    raise CheckpointError(f"no run {text!r} in {folder} (latest: {known})", "trarctl train starts one")


def is_exported(path: Path) -> bool:
    """Whether a folder is one that ``trarctl export`` wrote, by its files."""
    return all((path / name).is_file() for name in (EXPORTED, EXPORTED_CONFIG))


def find_checkpoint(text: str | None, folder: Path) -> tuple[Path, str]:
    """The checkpoint file that ``RUN``, ``RUN@EPOCH``, ``FILE`` or an exported folder means; how it was chosen."""
    if text is not None and Path(text).is_file():
        return Path(text), "the file given"
    for path in () if not text else (folder / text, Path(text)):
        if is_exported(path):
            return path / EXPORTED, "the exported folder"
    named = re.fullmatch(r"(.*)@([^@]*)", text or "", re.DOTALL)
    name, epoch_text = named.groups() if named else (text or "", "")
    for path in () if not (name and epoch_text) else (folder / name, Path(name)):
        if is_exported(path):
            what = f"{path} is an exported folder: it holds one model, and no epochs to choose from"
            raise CheckpointError(what, f"--ckpt {shlex.quote(str(path))}")
    run = find_run(name or None, folder)
    chosen = "the latest run" if not name else f"run {run.name}"
    there = run.saved_candidates()
    metrics = run.read_metrics()
    if epoch_text in CANDIDATES and (own := run.saved_candidates(epoch_text)):
        picked = metrics.best_candidate(own) or own[-1]
        return run.candidate_checkpoint(*picked), f"{chosen}, {epoch_text} of epoch {picked[0]}"
    if epoch_text:
        path = run.existing_checkpoint(epoch_text, f"--ckpt {run.reference}@EPOCH, or without @EPOCH the best")
        return path, f"{chosen}, epoch {epoch_text}"
    if metrics.num_unreadable:
        chosen += f" (unreadable lines of its metrics.jsonl: {metrics.num_unreadable})"
    if best := metrics.best(run.saved_epochs(), there):
        epoch, name, _ = best
        if name:
            return run.candidate_checkpoint(epoch, name), f"{chosen}, its best: {name} of epoch {epoch}"
        return run.epoch_checkpoint(epoch), f"{chosen}, its best epoch {epoch}"
    saved = run.saved()
    if not saved:
        raise CheckpointError(f"run {run.name} has no checkpoint yet", f"if it does not train: {run.start_again}")
    return saved[-1][2], f"{chosen}, its latest checkpoint (no validation to choose the best by)"


def _last_written(run: RunFolder) -> float:
    files = (run.settings_file, run.metrics_file, *(path for *_, path in run.saved()[-1:]))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)


def _read_line(line: bytes) -> dict[str, Any] | None:
    """What a line of ``metrics.jsonl`` says; None if something that its readers need is missing or of another type."""
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    names = _NUMBERS.get(entry["event"]) if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None
    if names is None or not all(type(entry.get(name)) in (int, float) for name in names):
        return None
    step, per_type, routes = entry.get("step", 0), entry.get("per_type", {}), entry.get("routes")
    numbers = [entry.get("samples_per_second", 0.0), *(per_type.values() if isinstance(per_type, dict) else [None])]
    is_sound = all(type(value) in (int, float) for value in numbers) and (not routes or _is_table(routes))
    is_counted = type(step) is type(entry["epoch"]) is int and step >= (entry["event"] != "validation")
    is_named = entry["event"] != "candidate" or entry.get("name") in CANDIDATES
    return entry if is_sound and is_counted and is_named and entry["epoch"] >= 1 else None


def _is_table(rows: Any) -> bool:
    """Whether it is a list of equally long lists of numbers."""
    if not (isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
        return False
    return len({len(row) for row in rows}) == 1 and all(type(value) in (int, float) for row in rows for value in row)


@contextmanager
def replaced_settings(run: RunFolder, settings: Settings, data: Path) -> Iterator[None]:
    """Keep the resolved settings beside the run, with the absolute path of its data, once the block has ended well.

    A folder that cannot be written or a full disk shows before the block begins.
    """
    values = settings.model_dump(mode="json")
    values["data"]["path"] = str(data.resolve())
    with run.writable(), whole_file(run.settings_file) as temporary:
        temporary.write_bytes(orjson.dumps(values, option=orjson.OPT_INDENT_2) + b"\n")
        yield


def read_settings(run: RunFolder, notes: list[str] | None = None) -> Settings:
    """The settings of a run, under the name and in the folder that it has now.

    If ``settings.json`` is missing or damaged, they are those of the latest checkpoint that can be read; ``notes``
    takes what the user should know of it.
    """
    problems: list[CheckpointError] = []
    for path in (run.settings_file, *(path for *_, path in reversed(run.saved()))):
        try:
            settings = _settings_in(path)
        except CheckpointError as error:
            problems.append(error)
            continue
        if problems and notes is not None:
            notes.append(f"{problems[0].what}; taking the settings from {path.name}")
        here = settings.run.model_copy(update={"name": run.name, "folder": run.path.parent})
        return settings.model_copy(update={"run": here})
    raise problems[0]


def saved_settings(values: Mapping[str, Any], path: Path) -> Settings:
    """Settings as a run or a checkpoint keeps them; what earlier versions did not know is as they did it."""
    for table, key, value in (("train", "caps_warmup", False), ("run", "keep", 0)):
        held = values.get(table)
        if isinstance(held, Mapping) and key not in held:
            values = {**values, table: {**held, key: value}}
    return from_dict(values, str(path))


def _settings_in(path: Path) -> Settings:
    """The settings that ``settings.json`` or a checkpoint holds."""
    try:
        if path.suffix == ".safetensors":
            from trarctl.engine.checkpoint import load_checkpoint  # listing sound runs needs no torch

            _, description = load_checkpoint(path)
            settings = saved_settings(description.settings, path)
            data = settings.data.model_copy(update={"path": Path(description.data)})
            return settings.model_copy(update={"data": data})
        values = orjson.loads(read_regular(path))
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
        return saved_settings(values, path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path}: {why}", "start again: trarctl train") from error
    except SettingsError as error:
        raise CheckpointError(error.what, error.hint) from error
