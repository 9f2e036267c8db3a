"""Random lives of a run: started, killed, resumed with changes, starved and damaged; what was promised holds all along.

``LIVES=2000 pytest tests/engine/test_life.py`` lives more of them than ``make test`` does, and ``LIFE_SEED=7`` others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from safetensors.torch import load as load_tensors

from tests.engine.lives import (
    Command,
    Data,
    Fault,
    Outcome,
    Place,
    Reference,
    contents,
    digest,
    header,
    make_data,
    planned,
    quietly_forking,
    validates,
)
from tests.engine.running import resume, train
from trarctl.config.resolve import amend, resolve
from trarctl.config.settings import Settings
from trarctl.engine.jobs import plan_resume, plan_start
from trarctl.engine.run import CHECKPOINT, RunFolder, find_run, read_settings

LIVES = int(os.environ.get("LIVES", "35"))
NAME = "life"
BASE = {
    "model.num_layers": 1,
    "model.hidden_size": 8,
    "model.num_heads": 2,
    "model.feed_forward_size": 8,
    "model.word_embedding_size": 4,
    "model.flat_mlp_size": 4,
    "model.flat_out_size": 8,
    "model.spans": "0,1",
    "model.grid_size": 2,
    "train.batch_size": 8,
    "train.accumulation": 1,
    "train.epochs": 2,
    "train.warmup_epochs": 0,
    "train.decay_epochs": "1,3",
    "run.gpus": "cpu",
    "run.num_threads": 1,
    "run.name": NAME,
    "run.keep": 0,
    "data.num_workers": 0,
}
# What may differ from epoch to epoch, but not within one.
SAMPLES = ("train.batch_size", "train.seed", "train.shuffle", "data.split", "data.path")
LOCK_FILES = (".lock",)

changes = st.fixed_dictionaries(
    {},
    optional={
        "train.epochs": st.integers(1, 5),
        "train.learning_rate": st.sampled_from([0.003, 0.01]),
        "run.log_every": st.integers(1, 3),
        "run.save_every": st.sampled_from(["none", "1", "2", "3"]),
        "run.keep": st.integers(0, 2),
        "run.validate_every": st.integers(0, 2),
        "train.ema_decay": st.sampled_from(["none", 0.5, 0.9]),
        "train.patience": st.sampled_from(["none", 1, 2]),
    },
)
sample_changes = st.fixed_dictionaries(
    {},
    optional={
        "train.batch_size": st.sampled_from([5, 8, 12]),
        "train.seed": st.integers(0, 1),
        "train.shuffle": st.booleans(),
        "data.split": st.sampled_from(["train", "train+val"]),
        "data": st.sampled_from(["base", "longer", "reordered"]),
    },
)
misfits = st.sampled_from([{"data": "other grid"}, {"data": "other words"}, {"model.hidden_size": 10}])
start_changes = st.tuples(changes, sample_changes).map(lambda pair: pair[0] | pair[1])
# Rarely all at once: most resumes of a real run change little.
resume_changes = st.one_of(st.just({}), changes, start_changes)
signals = st.sampled_from([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
faults = st.one_of(
    st.just(Fault()),
    st.builds(Fault, st.just("kill"), st.integers(1, 25)),
    st.builds(Fault, st.just("kill in a write"), st.integers(1, 40)),
    st.builds(Fault, st.just("signal"), st.integers(1, 25), signals),
    st.builds(Fault, st.just("no space"), st.integers(1, 40)),
    st.builds(Fault, st.just("full disk"), st.just(0), st.sampled_from([100, 1000, 3000, 5000, 20_000, 60_000])),
)


class Life(RuleBasedStateMachine):
    """One run from its beginning, and an independent account of what it ought to be."""

    root: ClassVar[Path]
    data: ClassVar[Mapping[str, Data]]
    reference: ClassVar[Reference]
    donor: ClassVar[Path]
    count: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.count["lives"] += 1
        self.runs = self.root / f"life-{self.count['lives']}"
        self.run = RunFolder(self.runs / NAME)
        self.known: dict[str, Place] = {}  # by digest of the checkpoint, whole ones only
        self.trained_with: dict[str, Settings] = {}  # by the same
        self.lost: set[tuple[str, int]] = set()  # lines of metrics.jsonl that somebody damaged: event and step

    def teardown(self) -> None:
        shutil.rmtree(self.runs, ignore_errors=True)

    # What happens

    @initialize(changes=start_changes, fault=faults)
    def begin(self, changes: dict[str, Any], fault: Fault) -> None:
        self.start(changes, fault, with_init=False)

    @rule(changes=start_changes, fault=faults, with_init=st.booleans())
    @precondition(lambda self: not self.checkpoints())
    def start(self, changes: dict[str, Any], fault: Fault, with_init: bool) -> None:
        plan, settings = self.started(changes, with_init=with_init)
        start = "weights:donor" if with_init else f"seed:{settings.train.seed}"
        expected = "refuse" if self.checkpoints() else "accept"
        self.carry_out("start", plan, settings, Place(start, (), 0), expected, fault)

    @rule(fault=faults)
    def resume(self, fault: Fault) -> None:
        self.resumed({}, fault)

    @rule(changes=start_changes, fault=faults)
    @precondition(lambda self: self.checkpoints())
    def resume_with_changes(self, changes: dict[str, Any], fault: Fault) -> None:
        self.resumed(changes, fault)

    @rule(changes=misfits)
    @precondition(lambda self: self.checkpoints())
    def resume_as_another_model(self, changes: dict[str, Any]) -> None:
        self.resumed(changes, Fault())

    @rule(changes=resume_changes, fault=faults, epoch=st.integers(1, 4))
    def resume_epoch(self, changes: dict[str, Any], fault: Fault, epoch: int) -> None:
        self.resumed(changes, fault, epoch=epoch)

    @rule(changes=resume_changes, fault=faults, choice=st.integers(0, 9))
    @precondition(lambda self: self.checkpoints())
    def resume_file(self, changes: dict[str, Any], fault: Fault, choice: int) -> None:
        files = self.checkpoints()
        self.resumed(changes, fault, file=files[choice % len(files)][2])

    @rule(what=st.sampled_from(["start", "start from weights", "epoch 99", "file and epoch", "run"]))
    @precondition(lambda self: self.checkpoints())
    def ask_for_what_cannot_be(self, what: str) -> None:
        if what.startswith("start"):
            plan, _ = self.started({}, with_init=what != "start")
        elif what == "run":
            plan = self.resuming({}, file=self.runs / "another")
        else:
            file = self.checkpoints()[0][2] if what.startswith("file") else None
            plan = self.resuming({}, epoch=1 if file else 99, file=file)
        self.carry_out(what, plan, None, None, "refuse", Fault())

    @rule(fault=faults)
    def resume_to_the_end(self, fault: Fault) -> None:
        """With one epoch more, if there is none left to do."""
        target = self.target(None, None)
        settings = self.settings()
        if target is not None and settings is not None:
            further = {"train.epochs": max(settings.train.epochs, target.epoch + 1), "train.patience": "none"}
            self.resumed(further, fault)

    @rule(
        changes=resume_changes,
        at=st.integers(1, 20),
        goes_on=st.booleans(),
        second=st.sampled_from(["start", "resume", "epoch", "init"]),
    )
    def two_writers(self, changes: dict[str, Any], at: int, goes_on: bool, second: str) -> None:
        self.second = second
        number = 0 if goes_on else signal.SIGKILL
        if self.checkpoints():
            self.resumed(changes, Fault("pause", at, number))
        elif not set(changes) & {"model.hidden_size"} and changes.get("data") not in ("other grid", "other words"):
            self.start(changes, Fault("pause", at, number), with_init=False)

    @rule(
        how=st.sampled_from(["cut", "flip", "empty", "delete"]),
        choice=st.integers(0, 9),
        position=st.floats(0, 1, exclude_max=True),
    )
    @precondition(lambda self: self.checkpoints())
    def damage_checkpoint(self, how: str, choice: int, position: float) -> None:
        files = self.checkpoints()
        path = files[-1 - choice % len(files)][2]
        content = bytearray(path.read_bytes())
        place = int(position * len(content))
        if not content:
            return
        self.count["damages"] += 1
        if how == "delete":
            path.unlink()
        elif how == "flip":
            content[place] ^= 1
            path.write_bytes(content)
        else:
            path.write_bytes(content[: 0 if how == "empty" else place])

    @rule(how=st.sampled_from(["torn", "garbled", "half a line more", "odd lines"]), choice=st.integers(0, 30))
    @precondition(lambda self: self.run.metrics_file.is_file() and self.run.metrics_file.stat().st_size)
    def damage_metrics(self, how: str, choice: int) -> None:
        self.count["damages"] += 1
        lines = self.run.metrics_file.read_bytes().splitlines(keepends=True)
        index = -1 if how == "torn" else choice % len(lines)
        if how in ("torn", "garbled"):
            try:
                entry = json.loads(lines[index])
                self.lost.add((entry["event"], entry["step"]))
            except (ValueError, KeyError, TypeError):
                pass
        if how == "torn":
            lines[-1] = lines[-1][: max(1, len(lines[-1]) // 2)]
        elif how == "garbled":
            lines[index] = b"\xff\x00{" + lines[index].removesuffix(b"\n")[4:] + b"\n"  # a short line keeps its end
        elif how == "half a line more":
            lines.append(b'{"event":"step","epoch":1,"st')
        else:
            odd = [b"[]\n", b"null\n", b'{"event":"validation"}\n', b'{"event":"step","step":"x"}\n', b"{}\n", b"\n"]
            lines.insert(index, odd[choice % len(odd)])
        self.run.metrics_file.write_bytes(b"".join(lines))

    @rule(how=st.sampled_from(["emptied", "cut", "no object", "deleted"]))
    @precondition(lambda self: self.run.settings_file.is_file())
    def lose_settings(self, how: str) -> None:
        """Those of the latest whole checkpoint take their place."""
        self.count["damages"] += 1
        content = self.run.settings_file.read_bytes()
        self.run.settings_file.write_bytes({"cut": content[: len(content) // 2], "no object": b"[]\n"}.get(how, b""))
        if how == "deleted":
            self.run.settings_file.unlink()
        self.resumed({}, Fault())
        if not self.checkpoints():
            self.run.settings_file.write_bytes(content)

    @rule(name=st.sampled_from([".epoch-002.safetensors.77.tmp", ".metrics.jsonl.77.tmp"]))
    @precondition(lambda self: self.run.checkpoints.is_dir())
    def leave_a_torn_file(self, name: str) -> None:
        (self.run.checkpoints / name).write_bytes(b"half")

    # How it is done

    def sets(self, changes: Mapping[str, Any]) -> list[str]:
        """Settings as on the command line; ``data`` names a variant."""
        values = {("data.path" if key == "data" else key): value for key, value in changes.items()}
        if "data" in changes:
            values["data.path"] = self.data[changes["data"]].folder
        return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]

    def started(self, changes: Mapping[str, Any], *, with_init: bool) -> tuple[Callable[[], Any], Settings]:
        sets = self.sets(BASE | {"data": "base", "run.folder": self.runs} | changes)
        resolved = resolve(dataset="clevr", environ={}, sets=sets)
        init = str(self.donor) if with_init else None
        return lambda: plan_start(resolved.settings, resolved.origins, init=init)[0], resolved.settings

    def resumed(
        self, changes: Mapping[str, Any], fault: Fault, *, epoch: int | None = None, file: Path | None = None
    ) -> None:
        plan = self.resuming(changes, epoch=epoch, file=file)
        current, target = self.settings(), self.target(epoch, file)
        if current is None or target is None:
            self.carry_out("resume", plan, None, None, "refuse", fault)
            return
        settings = amend(current, "run", sets=self.sets(changes)).settings
        before = self.trained_with[self.target_digest(epoch, file)]
        expected = "accept"
        is_other_model = "model.hidden_size" in changes or self.variant(settings) in ("other grid", "other words")
        if self.is_over(settings, target) or is_other_model:
            expected = "refuse"
        elif target.in_epoch and any(value_of(settings, key) != value_of(before, key) for key in SAMPLES):
            expected = "refuse" if changes else "accept"
        elif self.variant(settings) != self.variant(before):
            expected = "either"  # other features may be another experiment
        self.carry_out("resume", plan, settings, target, expected, fault)

    def resuming(
        self, changes: Mapping[str, Any], *, epoch: int | None = None, file: Path | None = None
    ) -> Callable[[], Any]:
        """The plan of the command, as the program makes it."""
        named = str(file) if file else NAME

        def plan() -> Any:
            found = find_run(named, self.runs)
            resolved = amend(read_settings(found), f"run {found.name}", sets=self.sets(changes))
            return plan_resume(found, resolved.settings, named=named, epoch=epoch)[0]

        return plan

    def carry_out(
        self,
        what: str,
        plan: Callable[[], Any],
        settings: Settings | None,
        target: Place | None,
        expected: str,
        fault: Fault,
    ) -> None:
        """Run a command, and compare what it did and left behind with what it ought to."""
        before = contents(self.runs, ignored=LOCK_FILES)
        self.metrics_before = self.metrics()
        with quietly_forking():
            command = Command(plan, self.runs, fault)
            if fault.kind == "pause" and command.is_paused():
                self.try_second_writer()
                command.signal(fault.number or signal.SIGCONT)
            outcome = command.wait()
        after = contents(self.runs, ignored=LOCK_FILES)
        self.count[what] += 1
        self.count["steps"] += len(outcome.steps)
        self.count["kills"] += outcome.end == "killed"
        hypothesis.note(f"{what} {fault}: expected to {expected}; {outcome}")
        assert outcome.end != "bug", outcome.traceback
        assert outcome.output == "", outcome
        assert outcome.end != "killed" or fault.kind in ("kill", "kill in a write", "signal", "pause")
        is_refused = outcome.end == "refused" and not outcome.steps and not self.is_excused(outcome, fault)
        if outcome.error is not None:
            assert outcome.error.exit_code in (3, 4, 5, *(128 + number for number in (2, 10, 15))), outcome
            assert outcome.error.hint, outcome
        if is_refused:
            self.count["refusals"] += 1
            assert expected != "accept", outcome
            assert after == before, difference(before, after)
            return
        if outcome.end == "refused" and not outcome.steps and after == before:
            return  # no space for the first file
        if expected == "refuse":
            assert outcome.end == "killed", outcome
            assert not outcome.steps, outcome
            if target is None or settings is None:
                assert after == before, difference(before, after)
                return
        assert settings is not None
        assert target is not None
        self.check(what, settings, target, outcome, before)

    def is_excused(self, outcome: Outcome, fault: Fault) -> bool:
        """Whether it was stopped, or its disk was full: no refusal."""
        if outcome.error is not None and outcome.error.kind == "Stopped":
            return fault.kind == "signal"
        return fault.kind in ("no space", "full disk") and outcome.error is not None and outcome.error.exit_code == 4

    def try_second_writer(self) -> None:
        """While the first is alive, another is refused and changes nothing."""
        before = contents(self.runs, ignored=LOCK_FILES)
        if self.second in ("start", "init"):
            plan, _ = self.started({"train.seed": 1}, with_init=self.second == "init")
        else:
            plan = self.resuming({"train.epochs": 5}, epoch=1 if self.second == "epoch" else None)
        outcome = Command(plan, self.runs, Fault()).wait()
        self.count["second writers"] += 1
        hypothesis.note(f"second writer ({self.second}): {outcome}")
        assert outcome.end == "refused", outcome
        assert contents(self.runs, ignored=LOCK_FILES) == before
        self.count["refusals"] += 1

    # What ought to be

    def checkpoints(self) -> list[tuple[int, int, Path]]:
        """Finished epochs, steps of the next, and file of each checkpoint, damaged ones included, oldest first."""
        found = []
        for path in self.run.checkpoints.glob("*.safetensors") if self.run.checkpoints.is_dir() else ():
            match = CHECKPOINT.match(path.name)
            assert match or path.name.endswith("-ema.safetensors"), path
            if match:
                found.append((int(match[1]), int(match[2] or 0), path))
        return sorted(found)

    def target_digest(self, epoch: int | None, file: Path | None) -> str:
        """Digest of the checkpoint that a resume ought to take; empty if there is none."""
        files = self.checkpoints()
        if epoch is not None:
            files = [entry for entry in files if entry[:2] == (epoch, 0)]
        elif file is not None:
            files = [entry for entry in files if entry[2] == file]
        for _, _, path in reversed(files):
            found = digest(path.read_bytes())
            if found in self.known:
                return found
        return ""

    def target(self, epoch: int | None, file: Path | None) -> Place | None:
        return self.known.get(self.target_digest(epoch, file))

    def settings(self) -> Settings | None:
        """What settings.json holds, or if that is damaged the latest whole checkpoint; None if there is none."""
        try:
            return Settings.model_validate(json.loads(self.run.settings_file.read_bytes()))
        except (OSError, ValueError):
            return self.trained_with.get(self.target_digest(None, None))

    def is_over(self, settings: Settings, place: Place) -> bool:
        """Whether nothing is left to do: all epochs are done, or the last validations were no better."""
        patience = settings.train.patience
        is_out = patience is not None and self.reference.num_worse(place) >= patience
        return place.epoch >= settings.train.epochs or is_out

    def variant(self, settings: Settings) -> str:
        return next(name for name, data in self.data.items() if data.folder == settings.data.path)

    def check(
        self,
        what: str,
        settings: Settings,
        target: Place,
        outcome: Outcome,
        before: Mapping[str, str],
    ) -> None:
        name = self.variant(settings)
        place = self.check_steps(settings, target, outcome, name)
        self.check_checkpoints(settings, target, place, before, is_start=what == "start")
        is_whole = outcome.end == "done" or (outcome.error is not None and outcome.error.kind == "Stopped")
        if is_whole:
            latest = self.target(None, None)
            assert latest is not None
            assert latest.steps == place.steps, f"saved {len(latest.steps)} of {len(place.steps)} steps"
            assert not list(self.run.path.rglob("*.tmp"))
            if outcome.end == "done":
                assert latest.epoch == place.epoch
                assert self.is_over(settings, place)
        self.check_averages(place)
        for count in range(len(target.steps) + 1, len(place.steps)):
            step = place.steps[count - 1]
            if step.in_epoch == step.steps_per_epoch:
                reached = Place(place.start, place.steps[:count], step.epoch + 1)
                assert not self.is_over(settings, reached), f"{reached.epoch} epochs were enough"
        self.check_metrics(target, place, is_whole=is_whole, may_be_old=not outcome.steps and not is_whole)
        self.check_settings(settings, before, is_whole=is_whole or bool(outcome.steps))

    def check_steps(self, settings: Settings, target: Place, outcome: Outcome, name: str) -> Place:
        """Each step is the next that was due: no sample twice, none left out, none from another data set."""
        plan = list(planned(settings, self.data[name], name, target))
        assert len(outcome.steps) <= len(plan), f"{len(outcome.steps)} steps, {len(plan)} were due"
        for done, due in zip(outcome.steps, plan, strict=False):
            found = done["epoch"], done["step"], tuple(done["ids"]), done["rate"]
            assert found == (due.epoch, due.step, due.ids, due.rate)
            trained_with = dict(done["settings"])
            assert trained_with == json.loads(settings.model_dump_json()), "trained with other settings"
        before = target.steps
        if target.in_epoch and target.in_epoch == before[-1].steps_per_epoch:
            # The end of its epoch is still to come.
            last = before[-1]._replace(is_validated=validates(settings, before[-1].epoch))
            if settings.train.ema_decay is None:
                last = last._replace(ema_decay=None)  # the checkpoint to come holds no average
            before = (*before[:-1], last)
        steps = (*before, *plan[: len(outcome.steps)])
        epoch = max(target.epoch, steps[-1].epoch if steps else 0)
        if outcome.end == "done":
            epoch = steps[-1].epoch + 1
        check_epochs(steps, self.data)
        return Place(target.start, steps, epoch)

    def check_checkpoints(
        self, settings: Settings, target: Place, place: Place, before: Mapping[str, str], *, is_start: bool
    ) -> None:
        """New ones hold what an undisturbed run would have come to; of the old ones only superfluous ones are gone."""
        after = checkpoints_among(contents(self.runs))
        before = checkpoints_among(before)
        for path, found in after.items():
            known = self.known.get(found)
            if known is None and found not in before.values():
                self.learn(self.runs / path, found, settings, place)
            elif known and "superseded" not in path and len(target.steps) < len(known.steps) <= len(place.steps):
                # The same bytes may have come about with other steps logged.
                self.known[found] = known._replace(steps=place.steps[: len(known.steps)])
        if is_start:
            assert not {*before.values()} - {*after.values()}, "a start lost a checkpoint"
            return
        best = self.reference.best(place)
        files = self.checkpoints()
        for path, found in before.items():
            if found in after.values():
                continue
            assert "superseded" not in path, f"{path}, set aside, is gone"
            match = CHECKPOINT.match(Path(path).name)
            assert match
            epoch, step = int(match[1]), int(match[2] or 0)
            assert (epoch, step) <= (target.epoch, target.in_epoch), f"{path}, after the point of resuming, is gone"
            newer = [number for number, steps, _ in files if not steps and number > epoch]
            if step:
                assert any(entry[:2] > (epoch, step) for entry in files), f"{path} is gone, and no newer one is there"
            else:
                assert settings.run.keep, f"{path} is gone, though all are kept"
                assert epoch != best, f"{path} is gone, the best"
                assert len(newer) >= settings.run.keep, f"{path} is gone, one of the latest {settings.run.keep}"

    def check_averages(self, place: Place) -> None:
        """The file of a moving average holds what it was after some epoch of the run; there is one at most."""
        files = list(self.run.checkpoints.glob("*-ema.safetensors")) if self.run.checkpoints.is_dir() else []
        for path in files:
            described = header(path)
            assert described is not None, f"{path} is not whole"
            progress = described["progress"]
            assert path.name == f"epoch-{progress['epoch']:03d}-ema.safetensors"
            if progress["step"] > len(place.steps):
                continue  # of an epoch whose own checkpoint a kill has kept from being written
            right = self.reference.after(place.start, place.steps[: progress["step"]]).tensors
            for key, tensor in load_tensors(path.read_bytes()).items():
                assert np.array_equal(tensor.numpy(), right[key.replace("model.", "ema.weights.", 1)].numpy()), key

    def learn(self, path: Path, found: str, settings: Settings, place: Place) -> None:
        """Take note of a new checkpoint, and compare it with the reference."""
        described = header(path)
        assert described is not None, f"{path} is not whole"
        progress = described["progress"]
        steps = place.steps[: progress["step"]]
        assert len(steps) == progress["step"], f"{path} says step {progress['step']} of {len(place.steps)}"
        reached = Place(place.start, steps, progress["epoch"])
        within = f"-step-{progress['step_in_epoch']:06d}" if progress["step_in_epoch"] else ""
        assert path.name == f"epoch-{progress['epoch']:03d}{within}.safetensors"
        assert reached.in_epoch == progress["step_in_epoch"]
        assert described["settings"] == settings.model_dump(mode="json")
        right = self.reference.after(place.start, steps).tensors
        tensors = load_tensors(path.read_bytes())
        assert tensors.keys() == right.keys()
        for key, tensor in right.items():
            assert np.array_equal(tensor.numpy(), tensors[key].numpy()), f"{key} of {path} is not as undisturbed"
        if "-step-" not in path.name:
            assert progress["best_epoch"] == self.reference.best(reached)
            assert progress["validations_since_best"] == self.reference.num_worse(reached)
        self.known[found] = reached
        self.trained_with[found] = settings
        self.count["checkpoints"] += 1

    def check_metrics(self, target: Place, place: Place, *, is_whole: bool, may_be_old: bool) -> None:
        """The lines are those that an undisturbed run would have written by then, each once, in order."""
        actual = self.metrics()
        if may_be_old and actual == self.metrics_before:
            return
        self.lost = {(event, step) for event, step in self.lost if step <= len(target.steps)}
        latest = self.target(None, None)
        if not is_whole and place.in_epoch and place.in_epoch == place.steps[-1].steps_per_epoch:
            place = place._replace(epoch=place.epoch + 1)  # the end of the epoch may be written, or not yet
        due = self.reference.lines(place)
        least = len(due) if is_whole else len(self.reference.lines(latest)) if latest else 0
        found = iter(actual)
        now = next(found, None)
        for index, line in enumerate(due):
            if now is not None and all(now.get(key) == value for key, value in line.items()):
                now = next(found, None)
            elif now is None and index >= least:
                break
            else:
                assert (line["event"], line["step"]) in self.lost, f"expected {line}, found {now}"
        assert now is None, f"{now} is one too many"

    def check_settings(self, settings: Settings, before: Mapping[str, str], *, is_whole: bool) -> None:
        """settings.json holds what the run trained with, or, if it did not come so far, what it held before."""
        current = self.settings()
        if not is_whole and contents(self.runs).get(f"{NAME}/settings.json") == before.get(f"{NAME}/settings.json"):
            return
        assert current is not None, "settings.json is not whole"
        assert current == settings

    def metrics(self) -> list[dict[str, Any]]:
        """The lines that can be read and say when they were written."""
        entries = []
        for line in self.run.metrics_file.read_bytes().splitlines() if self.run.metrics_file.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and ("loss" in entry or "overall" in entry):
                entries.append(entry)
        return entries


def value_of(settings: Settings, key: str) -> object:
    table, _, name = key.partition(".")
    return getattr(getattr(settings, table), name)


def checkpoints_among(files: Mapping[str, str]) -> dict[str, str]:
    return {path: found for path, found in files.items() if CHECKPOINT.match(Path(path).name)}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What a refused command changed, in words."""
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    return f"a refused command changed {', '.join(changed)}"


def check_epochs(steps: tuple[Any, ...], data: Mapping[str, Data]) -> None:
    """No sample twice in an epoch; of a whole one only those left out that do not fill a batch."""
    for epoch in {step.epoch for step in steps}:
        inside = [step for step in steps if step.epoch == epoch]
        seen = [number for step in inside for number in step.ids]
        assert len(seen) == len(set(seen)), f"epoch {epoch}: a sample twice"
        last = inside[-1]
        if last.in_epoch == last.steps_per_epoch:
            left_out = set(data[last.data].ids_of(last.split)) - set(seen)
            assert len(left_out) < len(last.ids), f"epoch {epoch}: {sorted(left_out)} never"


def test_random_lives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data")
    first = resolve(dataset="clevr", environ={}, sets=[f"{key}={value}" for key, value in BASE.items()]).settings
    Life.root, Life.data, Life.reference = tmp_path / "lives", data, Reference(data, first)
    Life.donor = make_donor(tmp_path, data)
    Life.count.clear()
    tensors = load_tensors(Life.donor.read_bytes())
    Life.reference.starts["donor"] = {
        name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")
    }
    is_fixed = "LIFE_SEED" not in os.environ
    settings = hypothesis.settings(
        max_examples=LIVES,
        stateful_step_count=6,
        derandomize=is_fixed,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink a life takes minutes, and six steps are read without
        suppress_health_check=list(HealthCheck),
    )
    machine = Life if is_fixed else hypothesis.seed(int(os.environ["LIFE_SEED"]))(Life)
    try:
        run_state_machine_as_test(machine, settings=settings)
    finally:
        with capfd.disabled():
            print("\n" + ", ".join(f"{number:,} {name}" for name, number in Life.count.items()))  # noqa: T201


def make_donor(folder: Path, data: Mapping[str, Data]) -> Path:
    """A checkpoint of another run, to take weights from; all that commands load is loaded by then, once."""
    values = BASE | {"run.name": "donor", "train.epochs": 1, "train.seed": 5}
    values |= {"data.path": data["base"].folder, "run.folder": folder / "donors"}
    settings = resolve(dataset="clevr", environ={}, sets=[f"{key}={value}" for key, value in values.items()]).settings
    run = train(settings)
    resume(run, epochs=2)
    return run.epoch_checkpoint(1)
