"""Sweeps: several runs by one command, one after another, over a grid of settings and seeds.

The runs of a sweep are ordinary runs beside each other, ``SWEEP-learning_rate-0.0003-seed-1``. A file beside them,
``SWEEP.sweep.json``, is written before the first begins and never changed: it lists the runs with all their settings,
so that the sweep can go on after any end.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from trarctl.config.settings import (
    CIRCUMSTANCES,
    FIELDS,
    Settings,
    flat,
    from_text,
    kinds_of,
    short_names,
    to_text,
    unknown,
)
from trarctl.engine.run import RunFolder, find_run, list_runs, saved_settings
from trarctl.errors import CheckpointError, SettingsError, listed
from trarctl.files import claimed, read_regular, refusing, write_json

ENDING = ".sweep.json"
SEED = "train.seed"
MOST_RUNS = 1000
# They say where a run is, or are the same for all runs that can be compared.
_FIXED = ("data.dataset", "data.name", "data.path", "run.name", "run.folder", "run.gpus")

Values = dict[str, object]  # of the varied settings, by dotted key
Axes = dict[str, list[object]]


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    settings: Settings  # fitted to the data; ``run.name`` and ``run.folder`` say where it is
    values: Values

    @property
    def run(self) -> RunFolder:
        """Its folder."""
        return RunFolder(self.settings.run.folder / str(self.settings.run.name))

    @property
    def is_trained(self) -> bool:
        """Whether its last epoch is saved."""
        return self.run.epoch_checkpoint(self.settings.train.epochs).is_file()


@dataclass(frozen=True)
class Sweep:
    """Runs that one command trains."""

    name: str
    folder: Path  # of the runs
    data: Path  # prepared folder
    init: Path | None  # checkpoint whose weights all runs start from
    members: tuple[Member, ...]

    @property
    def file(self) -> Path:
        """Where it is described."""
        return self.folder / f"{self.name}{ENDING}"

    @property
    def reference(self) -> str:
        """How to name it in a command."""
        return RunFolder(self.folder / self.name).reference

    def write(self) -> None:
        """Write the description, unless one is there; DataError if it cannot be written."""
        if self.file.exists():
            return
        again = "free some space or correct its permissions; choose another with --set run.folder=DIR"
        with refusing(f"cannot write {self.file}", again):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.file, self._document())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only process that trains the sweep, also between two runs; a CheckpointError names another."""
        again = "correct its permissions, or choose another with --set run.folder=DIR"
        with ExitStack() as stack:
            with refusing(f"cannot write {self.folder}", again):
                lock = f".{self.name}.lock"
                stack.enter_context(claimed(self.folder, f"sweep {self.name}", CheckpointError, lock=lock))
            yield

    def _document(self) -> dict[str, Any]:
        runs = [
            {"name": one.run.name, "values": one.values, "settings": one.settings.model_dump(mode="json")}
            for one in self.members
        ]
        init = None if self.init is None else str(self.init.absolute())
        return {"format": 1, "data": str(self.data.absolute()), "init": init, "runs": runs}


def read_axes(seeds: str | None, grids: Sequence[str]) -> Axes:
    """Read ``--seeds 1,2`` and ``--grid KEY=A,B``: the values of each setting that varies, seeds last.

    A SettingsError says what is not valid; the values themselves are checked with the rest of the settings.
    """
    axes: Axes = {}
    for text in grids:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not equals or not values:
            raise SettingsError(f"--grid {text}: must be KEY=VALUE,VALUE", "--grid train.learning_rate=1e-4,3e-4")
        if key not in FIELDS:
            raise unknown(f"--grid {text}", key)
        if key in _FIXED:
            what = f"--grid {text}: {key} is the same for all runs of a sweep"
            raise SettingsError(what, "leave it out; another data set or folder is another sweep")
        if key in axes:
            raise SettingsError(f"--grid {key} is given twice", f"--grid {key}=A,B,C lists all its values")
        axes[key] = _read_values(f"--grid {text}", key, values)
    if seeds is not None:
        if SEED in axes:
            raise SettingsError(f"--seeds and --grid {SEED} are the same setting", "leave out one of them")
        axes[SEED] = _read_values(f"--seeds {seeds}", SEED, seeds)
    number = math.prod(map(len, axes.values()))
    if number > MOST_RUNS:
        raise SettingsError(f"{number:,} runs are more than a sweep may have, {MOST_RUNS:,}", "list fewer values")
    return axes


def _read_values(blame: str, key: str, text: str) -> list[object]:
    if tuple in kinds_of(key):
        found = re.findall(r"\[[^\[\]]*\]", text)
        if ",".join(found) != re.sub(r"\s*,\s*(?=\[)", ",", text.strip()):
            raise SettingsError(
                f"{blame}: {key} is a list, so each value needs brackets", f"--grid '{key}=[0,1],[0,2]'"
            )
    else:
        found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise SettingsError(f"{blame}: there is no value between two commas", "list the values as A,B,C")
    values = [from_text(key, one) for one in found]
    seen: set[str] = set()
    for value in values:
        # 1e-4 and 0.0001 are one number.
        same = to_text(float(value) if isinstance(value, int) and float in kinds_of(key) else value)
        if same in seen:
            raise SettingsError(f"{blame}: {to_text(value)} is listed twice", "list each value once")
        seen.add(same)
    return values


def combinations(axes: Axes) -> list[Values]:
    """All combinations of the values, the last setting's change fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def names_of(sweep: str, chosen: Sequence[Values]) -> list[str]:
    """Name the run of each combination: ``SWEEP-learning_rate-0.0003-seed-1``; SettingsError if two are the same."""
    names = []
    short = short_names(chosen[0] if chosen else ())
    for values in chosen:
        parts = [sweep]
        for key, value in values.items():
            parts.append(short[key])
            parts.append(re.sub(r"[^A-Za-z0-9.+]+", "_", to_text(value)).strip("_").replace("+", "_") or "none")
        names.append("-".join(parts))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(
            f"two runs would have the same name: {listed(twice)}", "give values that differ in a letter"
        )
    return names


def refuse_taken(sweep: Sweep) -> None:
    """See, before the first run begins, that no other run or sweep has the names; it may go on where it is the same."""
    there = read_sweep(sweep.file) if sweep.file.exists() else None
    if there is None:
        names = [sweep.name, *(one.run.name for one in sweep.members)]
        if taken := [name for name in names if RunFolder(sweep.folder / name).exists()]:
            raise SettingsError(
                f"in {sweep.folder} there is already a run {listed(taken, most=3)}",
                "--name gives the sweep another name",
            )
        return
    if changes := _changes(there, sweep):
        raise SettingsError(
            f"sweep {sweep.name} exists in {sweep.folder} and is another: {listed(changes, most=3)}",
            f"trarctl resume {sweep.reference} goes on with it; --name gives a new one another name",
        )


def _changes(then: Sweep, now: Sweep) -> list[str]:
    before, after = ([one.run.name for one in sweep.members] for sweep in (then, now))
    if before != after:
        return [f"its runs are {listed(before, most=4)}"]
    if then.init != (None if now.init is None else now.init.absolute()):
        return [f"its runs start from {then.init or 'random weights'}"]
    changes: dict[str, None] = {}
    for one, other in zip(then.members, now.members, strict=True):
        old, new = flat(one.settings), flat(other.settings)
        changes |= dict.fromkeys(
            f"{key} is {to_text(old[key])}, not {to_text(new[key])}"
            for key in old
            if key not in CIRCUMSTANCES and old[key] != new[key]
        )
    return list(changes)


def find_sweep(text: str | None, folder: Path) -> Sweep | None:
    """The sweep that a user names, by its name, or by its file; None if it is none, or a run has the name."""
    if text is None:
        return None
    for path in (folder / text, Path(text)):
        if RunFolder(path).exists():
            return None
        file = path if path.name.endswith(ENDING) else path.with_name(f"{path.name}{ENDING}")
        if path.name not in ("", "..") and file.is_file():
            return read_sweep(file)
    return None


def read_sweep(file: Path) -> Sweep:
    """Read the description of a sweep; CheckpointError if it is damaged."""
    name, folder = file.name.removesuffix(ENDING), file.parent
    try:
        document = orjson.loads(read_regular(file))
        members = []
        for one in document["runs"]:
            settings = saved_settings(one["settings"], file)
            if one["name"] != settings.run.name:  # a name of the settings is one that a folder may have
                raise ValueError("a run has two names")
            here = settings.run.model_copy(update={"folder": folder})
            data = settings.data.model_copy(update={"path": Path(document["data"])})
            members.append(Member(settings.model_copy(update={"run": here, "data": data}), dict(one["values"])))
        if not members or len({one.run.name for one in members}) < len(members):
            raise ValueError("it has no runs, or one twice")
        init = None if document["init"] is None else Path(document["init"])
        return Sweep(name, folder, Path(document["data"]), init, tuple(members))
    except (OSError, LookupError, ValueError, TypeError, AttributeError, SettingsError) as error:
        why = getattr(error, "strerror", None) or "it is cut off or changed"
        again = f"its runs are whole: trarctl runs '{name}-*'; trarctl resume RUN goes on with one"
        raise CheckpointError(f"cannot read the sweep {file}: {why}", again) from error


def is_pattern(text: str) -> bool:
    """Whether a text names several runs."""
    return any(character in text for character in "*?[")


def find_runs(texts: Sequence[str], folder: Path) -> list[RunFolder]:
    """The runs that names, sweeps and patterns such as ``'rates-*'`` mean, each once; CheckpointError for none."""
    found: dict[str, RunFolder] = {}
    for text in texts:
        sweep = find_sweep(text, folder)
        if sweep is not None:
            runs = [one.run for one in sweep.members if one.run.exists()]
        elif is_pattern(text):
            runs = _matching(text, folder)
        else:
            runs = [find_run(text, folder)]
        if not runs:
            known = ", ".join(run.name for run in list_runs(folder)[-5:]) or "none"
            raise CheckpointError(f"no run matches {text!r} in {folder} (latest: {known})", "trarctl runs lists them")
        for run in runs:
            found.setdefault(os.path.realpath(run.path), run)
    return list(found.values())


def find_checkpoint_names(texts: Sequence[str], folder: Path) -> list[str]:
    """What ``find_checkpoint`` takes, for each run that a sweep or a pattern means; other texts stay as they are."""
    names = []
    for text in texts:
        name, at, epoch = text.rpartition("@") if "@" in text else (text, "", "")
        is_several = not Path(text).exists() and (is_pattern(name) or find_sweep(name, folder) is not None)
        if not is_several:
            names.append(text)
            continue
        for run in find_runs([name], folder):
            names.append(f"{run.name if run.path.parent == folder else run.path}{at}{epoch}")
    return list(dict.fromkeys(names))


def _matching(pattern: str, folder: Path) -> list[RunFolder]:
    path = Path(pattern)
    part = str(path.relative_to(path.anchor))
    for place in [Path(path.anchor)] if path.anchor else [folder, Path()]:
        with suppress(ValueError):  # a pattern that is none matches nothing
            if runs := [run for run in map(RunFolder, place.glob(part)) if run.exists()]:
                return sorted(runs, key=lambda run: _natural(run.name))
    return []


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort ``seed-2`` before ``seed-10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
