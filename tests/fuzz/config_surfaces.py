"""Settings from files and options, environment variables, and command lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import yaml

from tests.data.preparing import GOLDEN
from tests.fuzz.bases import small_run
from tests.fuzz.harness import UNKNOWN, Effect, Mutation, Ran, Surface, call, captured
from tests.fuzz.mutators import (
    NUMBERS,
    TEXTS,
    VALUES,
    Mutator,
    damage_bytes,
    edit_json,
    load_json,
    marked_text,
    mutate_document,
    odd_json,
    replace_file,
    rewrite_json,
)
from trarctl.commands.console import show_error
from trarctl.config.settings import FIELDS
from trarctl.engine.distributed import Placement, plan_placement
from trarctl.errors import TrarError
from trarctl.processors import prepare_environment

OTHERWISE = "a plain reader understands something else"
KEYS = sorted(FIELDS)


class SettingsFile(Surface):
    """A file for ``--config``, shown by ``--dry-run``."""

    file: ClassVar[str]

    def run(self, work: Path, random: Random) -> Ran:
        """Show the settings."""
        return call("train", "easy-vqa", "--dry-run", "--config", work / "in" / self.file)

    def value(self, work: Path, ran: Ran) -> object:
        """Read the settings that were shown."""
        return tomllib.loads(ran.out)

    def expected(self, work: Path) -> object:
        """Take what the undamaged file gives, and put in what the file says."""
        try:
            said = self.plain(work / "in" / self.file)
        except Exception:  # noqa: BLE001 - any reader stumbles over something else
            return UNREADABLE
        return said

    def plain(self, path: Path) -> object:
        """Read the file the plain way."""
        raise NotImplementedError

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that nothing was run that a file holds."""
        return "code was run" if (work / "ran").exists() else ""


UNREADABLE = "a plain reader cannot read this"


def agrees(shown: Any, said: Any) -> bool:
    """Whether a setting that is shown is what a file says, in whatever notation."""
    if isinstance(said, bool) or isinstance(shown, bool) or shown in ("on", "off"):
        true, false = ("true", "yes", "on", "1", "1.0"), ("false", "no", "off", "0", "0.0", "-0.0")
        shown, said = (str(one).strip().lower() for one in (shown, said))
        return any(shown in words and said in words for words in (true, false))
    if shown == "none":
        return said is None or str(said).strip().lower() in ("none", "null", "")
    if isinstance(said, list | tuple) or isinstance(shown, list | tuple):
        if isinstance(said, str):
            said = [part.strip().strip("'\"") for part in said.strip().strip("[]()").split(",") if part.strip()]
        shown, said = ([one] if not isinstance(one, list | tuple) else one for one in (shown, said))
        return len(shown) == len(said) and all(map(agrees, shown, said))
    if isinstance(said, str) and re.search(r"[,\s]", said.strip()) and not isinstance(shown, str):
        return True
    try:
        return float(shown) == float(said) or str(shown) == str(said)
    except (TypeError, ValueError):
        return str(shown).strip(" /").lower() == str(said).strip().strip(" /").lower()


def of_the_rest(key: str, said: Mapping[str, object]) -> bool:
    """Whether a setting should be as the recipe has it: the rest of a schedule follows the number of epochs."""
    follows = "train.epochs" in said and key in ("train.decay_epochs", "train.warmup_epochs")
    return key not in said and not follows


class OwnFile(SettingsFile):
    """The same for files of this program's own keys: whatever is accepted is what the file says."""

    def value(self, work: Path, ran: Ran) -> object:
        """Read the settings that were shown, and compare those that the file names with the file."""
        shown = flat(tomllib.loads(ran.out))
        try:
            said = flat(self.plain(work / "in" / self.file))
        except Exception:  # noqa: BLE001 - any reader stumbles over something else
            return UNREADABLE + f" but {shown}"
        other = {key: (shown.get(key), value) for key, value in said.items() if value is not None}
        # The argument DATASET counts more than the file.
        other = {key: pair for key, pair in other.items() if key != "data.dataset" and not agrees(*pair)}
        rest = {key: value for key, value in shown.items() if of_the_rest(key, said)}
        return {"other": other, "rest": rest}

    def expected(self, work: Path) -> object:
        """Nothing differs from the file, and nothing else changes but by its absence."""
        try:
            said = flat(self.plain(work / "in" / self.file))
        except Exception:  # noqa: BLE001 - any reader stumbles over something else
            return UNREADABLE
        defaults = {key: value for key, value in self.defaults.items() if of_the_rest(key, said)}
        return {"other": {}, "rest": defaults}

    @property
    def defaults(self) -> dict[str, Any]:
        """What holds without a file."""
        if not hasattr(self, "_defaults"):
            self._defaults = flat(tomllib.loads(call("train", "easy-vqa", "--dry-run").out))
        return self._defaults


def flat(document: Any) -> dict[str, Any]:
    """Give values by dotted key."""
    if not isinstance(document, dict):
        raise TypeError("no table")
    found: dict[str, Any] = {}
    for table, values in document.items():
        if isinstance(values, dict):
            found |= {f"{table}.{key}": value for key, value in values.items()}
        else:
            found[table] = values
    return found


class TomlSettings(OwnFile):
    """TOML."""

    name = "settings-toml"
    file = "c.toml"

    def build(self) -> None:
        """Set a dozen keys."""
        (self.base / "in").mkdir()
        (self.base / "in/c.toml").write_text(
            "[train]\nepochs = 3\nbatch_size = 32\nlearning_rate = 1e-4\nseed = 7\naccumulation = 2\n"
            "[model]\nnum_layers = 2\nspans = [0, 1]\nrouting = 'soft'\npooling = 'avg'\ndropout = 0.2\n"
            "[run]\nkeep = 2\nsave_every = '5min'\nname = 'mine'\n[data]\nsplit = 'train'\n"
        )

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, lines and values."""

        def line(random: Random, folder: Path) -> Mutation:
            path = folder / self.file
            if not path.is_file():
                return Mutation("nothing")
            lines = path.read_text(errors="replace").splitlines()
            at = random.choice([at for at, line in enumerate(lines) if not line.startswith("#")] or [0])
            kind = random.choice(
                ("value", "value", "value", "value", "key", "twice", "gone", "table", "dotted", "comment")
            )
            name, _, value = lines[at].partition(" = ") if lines else ("x", "", "1")
            effect = Effect.ANY
            if kind == "value" and value:
                lines[at] = f"{name} = {_toml(random)}"
            elif kind == "key" and value:
                lines[at] = (
                    f"{random.choice((name + 's', name.upper(), '', 'unknown', '[[x]]', name + '.x'))} = {value}"
                )
                effect = Effect.REFUSED
            elif kind == "twice":
                lines.insert(at, lines[at])
                effect = Effect.REFUSED
            elif kind == "gone" and lines:
                del lines[at]
            elif kind == "table":
                lines.insert(at, random.choice(("[model]", "[x]", "[[train]]", "[train.x]", "[", "[]")))
            elif kind == "dotted":
                lines = [f"{random.choice(KEYS)} = {_toml(random)}", *lines]
            elif kind == "comment":
                lines.insert(at, "# comment \u00fc")
                effect = Effect.NONE
            path.write_text("\n".join(lines) + "\n")
            return Mutation(f"line {kind} {name}", effect)

        return (
            lambda random, folder: damage_bytes(random, folder / self.file),
            lambda random, folder: replace_file(random, folder / self.file),
            *[line] * 8,
        )

    def plain(self, path: Path) -> object:
        """See ``SettingsFile``."""
        return tomllib.loads(marked_text(path))


def _toml(random: Random) -> str:
    value = random.choice((*NUMBERS, *TEXTS, True, False))
    written = json.dumps(value) if isinstance(value, str) else str(value).lower()
    odd = ("nan", "inf", "-inf", "[]", "[1, 2]", "[0, [1]]", "{a = 1}", "1979-05-27", "07:32:00", "0x10", "1_000",
           "'5min'",
           "'hard'", "'fc'", "[true]", "'bf16'", "-0", "1e400")  # fmt: skip
    return random.choice((written, random.choice(odd)))


class JsonSettings(OwnFile):
    """The ``settings.json`` of a run."""

    name = "settings-json"
    file = "c.json"

    def build(self) -> None:
        """Copy the settings of the small run."""
        (self.base / "in").mkdir()
        shutil.copyfile(small_run().runs / "tiny/settings.json", self.base / "in/c.json")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes and values."""

        def document(random: Random, folder: Path) -> Mutation:
            return edit_json(folder / self.file, lambda document: mutate_document(random, document))

        def rewritten(random: Random, folder: Path) -> Mutation:
            return rewrite_json(random, folder / self.file, may_add=False)

        ways = (damage_bytes, replace_file, odd_json)
        return (
            *(lambda random, folder, way=way: way(random, folder / self.file) for way in ways),
            rewritten,
            *[document] * 7,
        )

    def plain(self, path: Path) -> object:
        """See ``SettingsFile``."""
        return json.loads(marked_text(path))


class YamlSettings(SettingsFile):
    """The original's ``trar.yml``."""

    name = "settings-yaml"
    file = "c.yml"
    numbers: ClassVar[dict[str, str]] = {
        "LAYER": "model.num_layers",
        "HIDDEN_SIZE": "model.hidden_size",
        "BATCH_SIZE": "train.batch_size",
        "MAX_EPOCH": "train.epochs",
        "LR_BASE": "train.learning_rate",
        "DROPOUT_R": "model.dropout",
    }

    def build(self) -> None:
        """Copy a golden file."""
        (self.base / "in").mkdir()
        shutil.copyfile(GOLDEN / "cases/vqa_hard_fc.yml", self.base / "in/c.yml")

    def run(self, work: Path, random: Random) -> Ran:
        """Show the settings."""
        return call("train", "vqa", "--dry-run", "--config", work / "in" / self.file)

    def value(self, work: Path, ran: Ran) -> object:
        """Give the settings that the sound file names by numbers."""
        shown = flat(tomllib.loads(ran.out))
        return {key: shown[key] for key in self.numbers.values()}

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, lines and values."""
        odd = ("yes", "off", "0o7", "1e3", ".nan", ".inf", "2001-01-01", "[1, 2]", "{a: 1}", "*x", "&x [*x]", "|",
               "!!binary x",
               "!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "'(1,'", "\t1", "1:30", "~",
               "0x10",
               "1_000", "-1", "0", "3.0", "'3'", "\"\\x00\"", "?", "- 1", "%x", "@x", "`x`")  # fmt: skip

        def line(random: Random, folder: Path) -> Mutation:
            path = folder / self.file
            if not path.is_file():
                return Mutation("nothing")
            lines = path.read_text(errors="replace").splitlines()
            at = random.choice([at for at, line in enumerate(lines) if not line.startswith("#")] or [0])
            name, _, value = lines[at].partition(": ") if lines else ("x", "", "1")
            kind = random.choice(
                ("value", "value", "value", "key", "twice", "gone", "documents", "comment", "tab", "bomb")
            )
            effect = Effect.ANY
            if kind == "value":
                lines[at] = f"{name}: {random.choice((*odd, *map(repr, VALUES)))}"
            elif kind == "key":
                lines[at] = f"{random.choice((name.lower(), name + 'S', '1', '[1]', '~'))}: {value}"
                effect = Effect.REFUSED
            elif kind == "twice":
                lines.insert(at, f"{name}: {value}0")
                effect = Effect.REFUSED
            elif kind == "gone" and lines:
                del lines[at]
            elif kind == "documents":
                lines.insert(at, "---")
            elif kind == "comment":
                lines.insert(at, "# comment \u00fc")
                effect = Effect.NONE
            elif kind == "tab":
                lines.insert(at, "\t")
            elif kind == "bomb":
                lines += ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
                effect = Effect.REFUSED
            path.write_text("\n".join(lines) + "\n")
            return Mutation(f"line {kind} {name}", effect)

        return (
            lambda random, folder: damage_bytes(random, folder / self.file),
            lambda random, folder: replace_file(random, folder / self.file),
            *[line] * 8,
        )

    def expected(self, work: Path) -> object:
        """Read the numbers with PyYAML, which takes ``1e-4`` for text as the original's readers do."""
        try:
            document = yaml.safe_load((work / "in/c.yml").read_bytes().decode())
            assert isinstance(self.sound, dict)
            found = {}
            for name, key in self.numbers.items():
                default = DEFAULTS_OF_VQA[key] if name not in document else document[name]
                found[key] = float(str(default))
        except Exception:  # noqa: BLE001 - any reader stumbles over something else
            return UNKNOWN
        return found


DEFAULTS_OF_VQA = {
    "model.num_layers": 6,
    "model.hidden_size": 512,
    "train.batch_size": 64,
    "train.epochs": 13,
    "train.learning_rate": 1e-4,
    "model.dropout": 0.1,
}


class SetOptions(Surface):
    """``--set``, with values of every kind."""

    name = "settings-set"

    def build(self) -> None:
        """Name one setting."""
        (self.base / "in").mkdir()
        (self.base / "in/sets.json").write_text(json.dumps(["train.seed=3"]))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Name settings, known and not, with values that suit them and not."""

        def known(random: Random, folder: Path) -> Mutation:
            key = random.choice(KEYS)
            suited = (
                "0",
                "1",
                "2",
                "0.5",
                "true",
                "false",
                "none",
                "0,1",
                "hard",
                "soft",
                "avg",
                "fc",
                "1e-3",
                "10min",
                "cpu",
            )
            value = random.choice(
                (*suited, *suited, *map(str, NUMBERS), *TEXTS, "[0, 1]", "(1,)", "nan", "inf", "None", "0,,1")
            )
            return self._add(folder, f"{key}={value}", Effect.ANY)

        def unknown(random: Random, folder: Path) -> Mutation:
            key = random.choice(KEYS)
            text = random.choice(
                (f"{key}s=1", f"{key.upper()}=1", key, "=1", "", f"{key.partition('.')[2]}=1", f"-{key}=1", "x.y=z")
            )
            return self._add(folder, text, Effect.REFUSED)

        return (known, known, known, known, unknown)

    @staticmethod
    def _add(folder: Path, text: str, effect: Effect) -> Mutation:
        path = folder / "sets.json"
        path.write_text(json.dumps([*load_json(path), text]))
        return Mutation(f"--set {text:.60}", effect)

    def run(self, work: Path, random: Random) -> Ran:
        """Show the settings."""
        sets = [part for text in load_json(work / "in/sets.json") for part in ("--set", text)]
        return call("train", "easy-vqa", "--dry-run", *sets)

    def value(self, work: Path, ran: Ran) -> object:
        """Compare what is shown with what was said last of each key."""
        shown = flat(tomllib.loads(ran.out))
        said = dict(text.split("=", 1) for text in load_json(work / "in/sets.json"))
        other = {
            key: (shown.get(key), value) for key, value in said.items() if not agrees(shown.get(key), value.strip())
        }
        return {"other": other, "rest": {key: value for key, value in shown.items() if of_the_rest(key, said)}}

    def expected(self, work: Path) -> object:
        """Nothing differs."""
        assert isinstance(self.sound, dict)
        said = [text.partition("=")[0] for text in load_json(work / "in/sets.json")]
        rest = {key: value for key, value in self.sound["rest"].items() if of_the_rest(key, said)}
        return {"other": {}, "rest": rest}


TORCHRUN = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NO_NUMBERS = ("", " ", "x", "-1", "\u00b2", "1.0", "0x1", "99999999999999999999", "1 2", "None", "\u0661")


class Environment(Surface):
    """Variables of launchers, of this program, and of the system."""

    name = "environment"

    def build(self) -> None:
        """Start with none of them."""
        (self.base / "in").mkdir()
        (self.base / "in/env.json").write_text("{}")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Set variables, whole groups of them or parts."""
        return (self._torchrun, self._torchrun, self._slurm, self._slurm, self._other_launcher, self._own, self._system,
                self._threads)  # fmt: skip

    @staticmethod
    def _set(folder: Path, variables: dict[str, str], what: str, effect: Effect) -> Mutation:
        path = folder / "env.json"
        before = load_json(path)
        if before.keys() & variables:  # one group in another's place: what the first should cause is gone
            return Mutation("nothing", Effect.NONE)
        path.write_text(json.dumps(before | variables))
        return Mutation(what, effect)

    def _torchrun(self, random: Random, folder: Path) -> Mutation:
        size = random.choice((1, 1, 2, 4))
        rank = random.randrange(size)
        group = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "WORLD_SIZE": size}
        variables = {name: str(value) for name, value in group.items()} | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
        }
        kind = random.choice(("whole", "part", "part", "no number", "contradiction"))
        if kind == "part":
            for name in random.sample(TORCHRUN, random.choice((1, 2, 4))):
                del variables[name]
            # An address alone is no group: many machines have it set.
            told = {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"} & set(variables)
            effect = Effect.REFUSED if told and size > 1 else Effect.ANY
            return self._set(folder, variables, f"torchrun without {sorted(set(TORCHRUN) - set(variables))}", effect)
        if kind == "no number":
            name = random.choice(TORCHRUN[:4])
            variables[name] = random.choice(NO_NUMBERS)
            # A process of its own may leave blank what a group would need.
            effect = Effect.REFUSED if size > 1 or variables[name].strip() else Effect.ANY
            return self._set(folder, variables, f"torchrun {name}={variables[name]!r}", effect)
        if kind == "contradiction":
            name, value = random.choice(
                (("RANK", size), ("LOCAL_RANK", size), ("WORLD_SIZE", 0), ("LOCAL_WORLD_SIZE", size + 1))
            )
            variables[name] = str(value)
            return self._set(folder, variables, f"torchrun {name} beyond the group", Effect.REFUSED)
        return self._set(folder, variables, f"torchrun {rank} of {size}", Effect.NONE if size == 1 else Effect.ANY)

    def _slurm(self, random: Random, folder: Path) -> Mutation:
        size = random.choice((1, 2, 4))
        rank = random.randrange(size)
        variables = {
            "SLURM_JOB_ID": "4711",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": str(size),
            "SLURM_STEP_NUM_TASKS": str(size),
            "SLURM_NODEID": "0",
            "SLURM_STEP_TASKS_PER_NODE": str(size),
            "SLURM_STEP_NODELIST": "localhost",
        }
        kind = random.choice(("whole", "part", "no number", "odd list"))
        name = random.choice(sorted(variables))
        if kind == "part":
            del variables[name]
        elif kind == "no number":
            name = random.choice([name for name in variables if name != "SLURM_STEP_NODELIST"])
            variables[name] = random.choice(NO_NUMBERS)
        elif kind == "odd list":
            name = random.choice(("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"))
            variables[name] = random.choice(("", "2(x", "(x2)", "a[", "[1-2]", "x", "2(x999999999)", ",", "n[01-,3]"))
        what = f"Slurm {kind}{'' if kind == 'whole' else f' {name}={variables.get(name)!r}'}, {rank} of {size}"
        return self._set(folder, variables, what, Effect.NONE if kind == "whole" and size == 1 else Effect.ANY)

    def _other_launcher(self, random: Random, folder: Path) -> Mutation:
        variables = random.choice((
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, {"PMI_RANK": "1", "PMI_SIZE": "2"},
            {"TORCHELASTIC_RESTART_COUNT": random.choice(NO_NUMBERS)},
            {"TORCHELASTIC_MAX_RESTARTS": random.choice(NO_NUMBERS)},
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        ))  # fmt: skip
        return self._set(folder, variables, f"{variables}", Effect.ANY)

    def _own(self, random: Random, folder: Path) -> Mutation:
        key = random.choice(KEYS)
        name = f"TRARCTL_{key.upper().replace('.', random.choice(('_', '__')))}"
        name = random.choice((name, name, name, name.lower(), name + "S", "TRARCTL_", "TRARCTL_PLUGINS"))
        texts = [text for text in TEXTS if "\0" not in text]
        variables = {name: random.choice((*texts, *map(str, NUMBERS), "true", "0,1", "none", "nan"))}
        return self._set(folder, variables, f"{name}={variables[name]!r:.40}", Effect.ANY)

    def _system(self, random: Random, folder: Path) -> Mutation:
        variables = random.choice((
            {"COLUMNS": random.choice((*NO_NUMBERS, "0", "1", "100000"))},
            {"LINES": "x"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""},
            {"HOME": "/nowhere"},
            {"LANG": "C", "LC_ALL": "xx"}, {"CUDA_VISIBLE_DEVICES": random.choice(NO_NUMBERS)},
            {"TZ": "x/y"}, {"PATH": ""},
        ))  # fmt: skip
        return self._set(folder, variables, f"{variables}", Effect.NONE)

    def _threads(self, random: Random, folder: Path) -> Mutation:
        variables = {"OMP_NUM_THREADS": random.choice(NO_NUMBERS)}
        return self._set(folder, variables, f"{variables}", Effect.SAME)

    def run(self, work: Path, random: Random) -> Ran:
        """Ask where to compute, and score where that is in one process; a group would wait for its others."""
        os.environ |= load_json(work / "in/env.json")
        prepare_environment()  # as every command does first
        placements: list[Placement] = []
        ran = captured(lambda: self._place(placements))
        self.placed: object = placements and (placements[0].rank, placements[0].num_processes)
        if ran.code or ran.raised or placements[0].num_processes > 1:
            return ran
        ckpt = small_run().runs / "tiny/checkpoints/epoch-002.safetensors"
        self.placed = None
        return call("eval", "--ckpt", ckpt, "--gpus", "cpu", "--split", "val", "--json", work / "out/e.json", "-q")

    @staticmethod
    def _place(placements: list[Placement]) -> int:
        try:
            placements.append(plan_placement("cpu", os.environ))
        except TrarError as error:
            show_error(error.what, error.hint)
            return error.exit_code
        return 0

    def value(self, work: Path, ran: Ran) -> object:
        """Give the place in a group, or the accuracy."""
        document = load_json(work / "out/e.json")
        return self.placed or ("nothing was written" if document is None else document["overall"])

    def expected(self, work: Path) -> object:
        """Say which group is told of, as far as one variable can be trusted for that."""
        variables = load_json(work / "in/env.json")
        sizes = {variables.get("WORLD_SIZE"), variables.get("SLURM_STEP_NUM_TASKS"), variables.get("SLURM_NTASKS")} - {
            None
        }
        if len(sizes) > 1 or not all(re.fullmatch("[0-9]{1,3}", size) for size in sizes):
            return UNKNOWN
        rank = variables.get("RANK", variables.get("SLURM_PROCID"))
        if not sizes or sizes == {"1"}:
            return self.sound
        return (int(rank), int(sizes.pop())) if rank is not None and re.fullmatch("[0-9]{1,3}", rank) else UNKNOWN


class CommandLines(Surface):
    """Arguments: repeated, missing, odd, unknown, in any order."""

    name = "commands"
    templates: ClassVar[tuple[str, ...]] = (
        "runs {runs} --json -",
        "runs {runs}",
        "eval --ckpt {ckpt} --gpus cpu --split val --json {out}/e.json",
        "eval --ckpt tiny@1 --set run.folder={runs} --gpus cpu --evaluator upstream",
        "eval --answers {runs} --data {data} --split val",
        "eval --compare {ckpt} {ckpt} --gpus cpu --json -",
        "submit --ckpt {ckpt} --split val --out {out}/a.json --gpus cpu",
        "submit --validate {picture} --data {data} --split val",
        "predict --ckpt {ckpt} --image {picture} --question what --top 2 --json -",
        "predict --ckpt {ckpt} --batch {runs}/q.csv",
        "train easy-vqa --dry-run --epochs 3 --batch-size 32 --seed 1 --accu 2 --keep 1 --name x",
        "train vqa --dry-run --config {runs}/tiny/settings.json",
        "resume tiny --set run.folder={out} --epochs 3",
        "prepare easy-vqa --raw {raw} --out {out}/p --vectors none",
        "prepare clevr --raw {out} --check",
        "--help",
        "train --help",
        "--version",
    )
    options: ClassVar[tuple[str, ...]] = (
        *(
            "--json",
            "--json -",
            "-q",
            "--quiet",
            "--split test",
            "--split",
            "--epoch 1",
            "--epoch -1",
            "--top 0",
            "--top 99",
        ),
        *(
            "--gpus cpu",
            "--gpus 0",
            "--gpus -1",
            "--gpus \u00b2",
            "--gpus 0,0",
            "--gpus",
            "--gpus cpu:",
            "--unknown",
            "--",
            "-",
        ),
        *(
            "--set train.seed=1",
            "--set x",
            "--config {picture}",
            "--config {out}",
            "--data {out}",
            "--data {picture}",
            "-h",
        ),
        *(
            "--ckpt {picture}",
            "--ckpt x@y",
            "--ckpt @",
            "--ckpt tiny@99",
            "--ckpt {out}",
            "--report {out}/r",
            "--images {out}",
        ),
        *(
            "--save-scores {out}/s.npz",
            "--save-scores {out}",
            "--json {out}",
            "--json /nowhere/x",
            "--out {out}",
            "--compare x",
        ),
        *(
            "--evaluator x",
            "--dry-run",
            "--min-answer-count -1",
            "--grid 0",
            "--max-words 99999999999",
            "--pack float8",
        ),
        *(
            "--vectors {picture}",
            "--vectors nowhere",
            "--extractor x",
            "--weights {picture}",
            "--init {picture}",
            "--check",
        ),
        *(
            "--epochs 0",
            "--batch-size 1e3",
            "--accu 3",
            "--seed -1",
            "--name ../x",
            "--name -x",
            "--keep x",
            "--save-every 0",
        ),
    )

    def build(self) -> None:
        """Start with a list of runs."""
        (self.base / "in").mkdir()
        (self.base / "in/argv.json").write_text(json.dumps(self.templates[0].split()))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Take a command and change its words."""

        def words(random: Random, folder: Path) -> Mutation:
            argv = random.choice(self.templates).split()
            for _ in range(random.choice((0, 1, 1, 2, 3))):
                at = random.randrange(len(argv) + 1)
                kind = random.choice(("option", "option", "option", "odd", "gone", "twice", "swapped", "joined"))
                if kind == "option":
                    argv[at:at] = random.choice(self.options).split()
                elif kind == "odd" and at:
                    argv[at - 1 : at] = [random.choice([text for text in TEXTS if "\0" not in text])]
                elif kind == "gone":
                    del argv[at : at + 1]
                elif kind == "twice":
                    argv[at:at] = argv[at : at + random.choice((1, 2))]
                elif kind == "swapped":
                    random.shuffle(argv)
                elif kind == "joined" and 0 < at < len(argv):
                    argv[at - 1 : at + 1] = [f"{argv[at - 1]}={argv[at]}"]
            # What trains has no data here, so that nothing goes on for long.
            (folder / "argv.json").write_text(json.dumps(argv or ["--help"]))
            return Mutation(" ".join(argv)[:160])

        return (words,)

    def run(self, work: Path, random: Random) -> Ran:
        """Run it, now and then as a program of its own."""
        run = small_run()
        places = {"runs": run.runs, "data": run.prepared, "picture": run.picture, "out": work / "out", "raw": run.raw}
        places["ckpt"] = run.runs / "tiny/checkpoints/epoch-002.safetensors"
        argv = [
            re.sub(r"\{(\w+)\}", lambda match: str(places.get(match[1], match[0])), word)
            for word in load_json(work / "in/argv.json")
        ]
        ran = call(*argv)
        if ran.raised is None and random.random() < 0.01:
            remade = work / "out"
            shutil.rmtree(remade)
            remade.mkdir()
            command = [sys.executable, "-X", "faulthandler", "-m", "trarctl", *argv]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=25, cwd=work, errors="replace", check=False
            )
            if done.returncode != ran.code:
                return Ran(99, "", f"{ran.code} here, {done.returncode} as a program: {done.stderr}")
            return Ran(done.returncode, done.stdout, done.stderr)
        return ran

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that JSON on stdout is all there is there, and whole."""
        if ran.code == 0 and ran.out.startswith("{"):
            try:
                json.loads(ran.out)
            except ValueError:
                return "stdout holds more than JSON"
        return ""

    def value(self, work: Path, ran: Ran) -> object:
        """Whatever it says is right here."""
        return None


SURFACES = (TomlSettings, JsonSettings, YamlSettings, SetOptions, Environment, CommandLines)
