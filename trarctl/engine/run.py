"""Run folders: where a run keeps its settings, log, metrics and checkpoints, and how a user names one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from trarctl.config.settings import Settings, from_dict
from trarctl.errors import CheckpointError, DataError, SettingsError
from trarctl.files import write_bytes, write_json

CHECKPOINT = re.compile(r"^epoch-(\d+)(?:-step-(\d+))?\.safetensors$")
KEPT_WITHIN_EPOCH = 2  # if the latest is damaged there is one before


@dataclass(frozen=True)
class Metrics:
    """The lines of a run's ``metrics.jsonl`` by kind, in order."""

    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    validations: dict[int, dict[str, Any]]  # by epoch, counted from 1; of one validated again, the last

    def best_epoch(self, among: Collection[int] | None = None) -> int | None:
        """Find the epoch with the best validation, the first of equals; None without one."""
        scores = {
            epoch: entry["overall"] for epoch, entry in self.validations.items() if among is None or epoch in among
        }
        return max(scores, key=lambda epoch: (scores[epoch], -epoch)) if scores else None


class RunFolder:
    """One run on the disk; its name is that of its folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.settings_file = path / "settings.json"  # resolved
        self.metrics_file = path / "metrics.jsonl"  # what was measured, one JSON object a line
        self.log_file = path / "log.txt"  # the same for people
        self.checkpoints = path / "checkpoints"

    def epoch_checkpoint(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` finished epochs is, or will be."""
        return self.checkpoints / f"epoch-{epoch:03d}.safetensors"

    def step_checkpoint(self, epoch: int, step: int) -> Path:
        """Where a checkpoint ``step`` steps into the epoch after ``epoch`` finished ones is, or will be."""
        return self.checkpoints / f"epoch-{epoch:03d}-step-{step:06d}.safetensors"

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

    def create(self) -> None:
        """Make the folder; DataError if it cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DataError(
                f"cannot write the run folder {self.path}: {error.strerror or error}",
                "choose another with --set run.folder=DIR, or correct its permissions",
            ) from error

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        self._append(self.metrics_file, orjson.dumps(dict(entry)) + b"\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that a crash cut off is left out."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open("rb") as file:
            for line in file:
                try:
                    entry = orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
                if isinstance(entry, dict):
                    yield entry

    def read_metrics(self) -> Metrics:
        """Read what was measured, by kind."""
        kinds: dict[str, list[dict[str, Any]]] = {"step": [], "epoch": [], "validation": []}
        for entry in self.metrics():
            kinds.get(entry.get("event", ""), []).append(entry)
        return Metrics(kinds["step"], kinds["epoch"], {entry["epoch"]: entry for entry in kinds["validation"]})

    def log(self, text: str) -> None:
        """Append a line for people to ``log.txt``."""
        self._append(self.log_file, f"{text}\n".encode())

    def _append(self, path: Path, content: bytes) -> None:
        try:
            with path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise DataError(
                f"cannot write {path}: {error.strerror or error}",
                f"free some space or correct its permissions; then trarctl resume {self.name} goes on",
            ) from error

    def prune(self, *, epoch: int, best_epoch: int | None, keep: int) -> None:
        """Remove the checkpoints that a new one, after ``epoch`` finished epochs, makes superfluous.

        Those within finished epochs go, older ones within the next, and all finished epochs but the latest ``keep``
        (0 for all) and the best.
        """
        saved = self.saved()
        within = [(number, path) for number, step, path in saved if step]
        epochs = [(number, path) for number, step, path in saved if not step]
        surplus = [path for number, path in within if number < epoch]
        surplus += [path for _, path in within[:-KEPT_WITHIN_EPOCH]]
        surplus += [path for number, path in epochs[:-keep] if number != best_epoch] if keep else []
        for path in surplus:
            path.unlink(missing_ok=True)

    def rewind(self, *, epoch: int, step_in_epoch: int, step: int) -> None:
        """Forget what the run did after that point: metrics are dropped, checkpoints set aside, torn files removed."""

        def is_before(entry: Mapping[str, Any]) -> bool:
            # After the last step of an epoch its own end is still to come.
            is_end_of_epoch = entry.get("event") != "step" and step_in_epoch > 0
            return entry.get("step", 0) < step or (entry.get("step", 0) == step and not is_end_of_epoch)

        kept = [entry for entry in self.metrics() if is_before(entry)]
        write_bytes(self.metrics_file, b"".join(orjson.dumps(entry) + b"\n" for entry in kept))
        for number, steps, path in self.saved():
            if (number, steps) > (epoch, step_in_epoch):
                aside = self.checkpoints / "superseded"
                aside.mkdir(exist_ok=True)
                path.replace(aside / path.name)
        for torn in self.checkpoints.glob(".*.tmp"):
            torn.unlink(missing_ok=True)

    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, with the best validation so far that still has a checkpoint."""
        return self.read_metrics().best_epoch(self.saved_epochs())


def list_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder, the most recently written last."""
    if not folder.is_dir():
        return []
    runs = [RunFolder(path) for path in folder.iterdir() if (path / "settings.json").is_file()]
    return sorted(runs, key=lambda run: (_last_written(run), run.name))


def find_run(text: str | None, folder: Path) -> RunFolder:
    """The run that the user means by a name, a directory or one of its checkpoints; None is the latest.

    Raises:
        CheckpointError: if there is none; the message names the nearest ones.
    """
    runs = list_runs(folder)
    if text is None:
        if not runs:
            raise CheckpointError(f"no runs in {folder}", "start one: trarctl train")
        return runs[-1]
    for path in (folder / text, Path(text)):
        if (path / "settings.json").is_file():
            return RunFolder(path)
        if path.is_file() and (path.parent.parent / "settings.json").is_file():
            return RunFolder(path.parent.parent)
    known = ", ".join(run.name for run in runs[-5:]) or "none"
    raise CheckpointError(f"no run {text!r} in {folder} (latest: {known})", "trarctl train starts one")


def find_checkpoint(text: str | None, folder: Path) -> tuple[Path, str]:
    """The checkpoint file that ``RUN``, ``RUN@EPOCH`` or ``FILE`` means, and how it was chosen, in words.

    Raises:
        CheckpointError: if there is no such run, epoch or file.
    """
    if text is not None and Path(text).is_file():
        return Path(text), "the file given"
    name, at, epoch_text = (text or "").rpartition("@")
    if not at:
        name, epoch_text = text or "", ""
    run = find_run(name or None, folder)
    chosen = "the latest run" if not name else f"run {run.name}"
    if epoch_text:
        if not epoch_text.isdigit() or not run.epoch_checkpoint(int(epoch_text)).is_file():
            kept = ", ".join(map(str, run.saved_epochs())) or "none"
            raise CheckpointError(
                f"run {run.name} has no checkpoint of epoch {epoch_text}", f"there are: {kept}; --ckpt {run.name}@EPOCH"
            )
        return run.epoch_checkpoint(int(epoch_text)), f"{chosen}, epoch {epoch_text}"
    best = run.best_epoch()
    if best is not None:
        return run.epoch_checkpoint(best), f"{chosen}, its best epoch {best}"
    saved = run.saved()
    if not saved:
        raise CheckpointError(f"run {run.name} has no checkpoint yet", f"trarctl resume {run.name}")
    return saved[-1][2], f"{chosen}, its latest checkpoint (no validation to choose the best by)"


def _last_written(run: RunFolder) -> float:
    return max(file.stat().st_mtime for file in (run.settings_file, run.metrics_file) if file.is_file())


def write_settings(run: RunFolder, settings: Settings, data: Path) -> None:
    """Keep the resolved settings beside the run, with the absolute path of its data."""
    values = settings.model_dump(mode="json")
    values["data"]["path"] = str(data.resolve())
    write_json(run.settings_file, values)


def read_settings(run: RunFolder) -> Settings:
    """The settings of a run, under the name and in the folder that it has now; CheckpointError if they are damaged."""
    try:
        settings = from_dict(orjson.loads(run.settings_file.read_bytes()), str(run.settings_file))
    except (OSError, orjson.JSONDecodeError) as error:
        raise CheckpointError(f"cannot read {run.settings_file}: {error}", "start again: trarctl train") from error
    except SettingsError as error:
        raise CheckpointError(error.what, error.hint) from error
    here = settings.run.model_copy(update={"name": run.name, "folder": run.path.parent})
    return settings.model_copy(update={"run": here})
