"""What is handed on and compared: exported folders, sweeps, kept evaluations, averages of weights, packed features."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fuzz.array_surfaces import PackedFeatures, half_json, load, save
from tests.fuzz.bases import averaged_run, exported, small_run, small_sweep, sweep_command
from tests.fuzz.harness import UNKNOWN, Effect, Mutation, Ran, Surface, call
from tests.fuzz.mutators import (
    VALUES,
    Mutator,
    damage_bytes,
    edit_json,
    load_json,
    mutate_array,
    mutate_document,
    odd_json,
    replace_file,
    rewrite_json,
)
from tests.fuzz.run_surfaces import Evaluated, Tensors, change_tensors, checksum, damaging, wrap_names

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ExportedFolders(Evaluated):
    """A folder that ``export`` wrote, with the data that it was trained on."""

    name = "exported"

    def build(self) -> None:
        """Copy an exported folder."""
        shutil.copytree(exported(), self.base / "in")

    def arguments(self, work: Path) -> list[object]:
        """See ``Evaluated``."""
        return ["--ckpt", work / "in", "--data", small_run().prepared]

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to each of the two files, changes of both with a right checksum, and files that belong to another."""
        return (
            *(damaging(way, CONFIG) for way in (damage_bytes, replace_file, odd_json)),
            *(damaging(way, WEIGHTS) for way in (damage_bytes, replace_file)),
            *(self._document, self._document, self._rewritten_config, self._other, self._files),
            *[self._sealed(self._describe)] * 5,
            *(self._sealed(change) for change in (self._weights, self._weights, wrap_names)),
        )

    @staticmethod
    def _document(random: Random, folder: Path) -> Mutation:
        mutation = edit_json(folder / CONFIG, lambda document: mutate_document(random, document))
        return Mutation(mutation.what, Effect.DAMAGE)

    @staticmethod
    def _rewritten_config(random: Random, folder: Path) -> Mutation:
        mutation = rewrite_json(random, folder / CONFIG, may_add=False)
        # The checksum is over the keys in their order, and says so if it does not match.
        return Mutation(mutation.what, Effect.DAMAGE) if "order" in mutation.what else mutation

    @staticmethod
    def _describe(random: Random, tensors: Tensors, description: dict[str, Any]) -> Mutation:
        return mutate_document(random, description) or Mutation("nothing")

    @staticmethod
    def _weights(random: Random, tensors: Tensors, description: dict[str, Any]) -> Mutation:
        mutation = change_tensors(random, tensors, "")
        tensors |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        return mutation

    def _sealed(self, change: Callable[[Random, Tensors, Any], Mutation]) -> Mutator:
        """Make a mutation of weights or description that writes both again, checksum included."""

        def mutate(random: Random, folder: Path) -> Mutation:
            description = load_json(folder / CONFIG)
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = file.metadata()
            given = description.pop("sha256")
            if given != checksum(tensors, compact(description)):
                return Mutation("nothing")  # a right checksum would hide the damage of before
            mutation = change(random, tensors, "" if change is wrap_names else description)
            save_file(tensors, folder / WEIGHTS, metadata=metadata)
            seal = checksum(tensors, compact(description))
            (folder / CONFIG).write_text(json.dumps({"sha256": seal, **description}))
            return mutation

        return mutate

    @staticmethod
    def _other(random: Random, folder: Path) -> Mutation:
        """Put one of the files of another export there."""
        name = random.choice((WEIGHTS, CONFIG))
        shutil.copyfile(exported("averaged") / name, folder / name)
        return Mutation(f"{name} of another export", Effect.DAMAGE)

    @staticmethod
    def _files(random: Random, folder: Path) -> Mutation:
        """Do to the folder what sharing sites and hands do."""
        kind = random.choice(("no card", "git", "model.onnx", "torn export", "checkpoints"))
        if kind == "no card":
            (folder / "README.md").unlink(missing_ok=True)
        elif kind == "git":
            (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        elif kind == "model.onnx":
            (folder / "model.onnx").write_bytes(b"x")
        elif kind == "torn export":
            (folder / ".building").mkdir(exist_ok=True)
            (folder / ".building" / WEIGHTS).write_bytes(b"x")
        else:
            (folder / "checkpoints").mkdir(exist_ok=True)
        return Mutation(f"folder with {kind}", Effect.NONE)


class AskedAlone(ExportedFolders):
    """The same, asked about a picture without its data."""

    name = "exported-alone"

    def run(self, work: Path, random: Random) -> Ran:
        """Ask."""
        picture = ["--image", small_run().picture, "--question", "what color is the shape?"]
        return call("predict", "--ckpt", work / "in", *picture, "--json", work / "out/e.json")

    def value(self, work: Path, ran: Ran) -> object:
        """Give answers, routes and attention to four decimals."""
        return rounded(json.loads((work / "out/e.json").read_text())["predictions"])


def rounded(value: Any) -> Any:
    """Round the numbers in a document."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items() if key != "image"}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def compact(document: object) -> str:
    """Write JSON as the checksum has it: as short as can be, in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


class Averages(Evaluated):
    """A run whose best weights are an average: its file, and the lines of the metrics that choose it."""

    name = "averages"

    def build(self) -> None:
        """Copy the run."""
        shutil.copytree(averaged_run() / "averaged", self.base / "in/averaged")

    def arguments(self, work: Path) -> list[object]:
        """See ``Evaluated``."""
        return ["--ckpt", "averaged@ema", "--set", f"run.folder={work / 'in'}"]

    def may_write(self, ran: Ran) -> bool:
        """See ``Surface``; the evaluation is kept."""
        return ran.code == 0

    @staticmethod
    def path(folder: Path) -> Path:
        """Find the file of the moving average."""
        return min((folder / "averaged/checkpoints").glob("*-ema.safetensors"))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes; tensors and description changed with a right checksum; another file in its place."""
        name = f"averaged/checkpoints/{averaged_file().name}"
        return (
            *(damaging(way, name) for way in (damage_bytes, damage_bytes)),
            *(self._changed, self._changed, self._changed, self._described, self._described, self._moved),
        )

    def _changed(self, random: Random, folder: Path) -> Mutation:
        return self._resealed(folder, lambda tensors, _: change_tensors(random, tensors, "model."))

    def _described(self, random: Random, folder: Path) -> Mutation:
        return self._resealed(folder, lambda _, text: mutate_document(random, text) or Mutation("nothing"))

    def _resealed(self, folder: Path, change: Callable[[Tensors, Any], Mutation]) -> Mutation:
        return resealed(self.path(folder), change)

    def _moved(self, random: Random, folder: Path) -> Mutation:
        """Put another of the run's checkpoints under its name."""
        others = sorted({*self.path(folder).parent.glob("*.safetensors")} - {self.path(folder)})
        other = random.choice(others)
        shutil.copyfile(other, self.path(folder))
        return Mutation(f"{other.name} under the name of the average", Effect.DAMAGE)


def averaged_file() -> Path:
    """Find the file of the moving average of the small run that has one."""
    return Averages.path(averaged_run())


def resealed(path: Path, change: Callable[[Tensors, Any], Mutation]) -> Mutation:
    """Change a checkpoint's tensors or description, and its checksum with them."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        description = json.loads(file.metadata()["trarctl"])
    if description.pop("sha256") != checksum(tensors, compact(description)):
        return Mutation("nothing")
    mutation = change(tensors, description)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    seal = checksum(tensors, compact(description))
    save_file(tensors, path, metadata={"trarctl": compact({"sha256": seal, **description})})
    return mutation


class ResumedAverages(Surface):
    """A run with a moving average, resumed for an epoch from a checkpoint that holds it."""

    name = "resume-ema"
    in_minute = 12

    def build(self) -> None:
        """Copy the run."""
        shutil.copytree(averaged_run() / "averaged", self.base / "in/averaged")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Change the average in the latest checkpoint, and the files of averages beside it."""
        latest = "averaged/checkpoints/epoch-002.safetensors"

        def average(random: Random, folder: Path) -> Mutation:
            return resealed(folder / latest, lambda tensors, _: change_tensors(random, tensors, "ema."))

        def step(random: Random, folder: Path) -> Mutation:
            def change(tensors: Tensors, _: Any) -> Mutation:
                value = random.choice((0, -1, 10**9, 2.5, float("nan")))
                tensors["ema.step"] = tensors["ema.step"].new_tensor(value) if value == value else tensors["ema.step"]
                if random.random() < 0.3:
                    tensors["ema.step"] = tensors["ema.step"].repeat(2)
                return Mutation(f"ema.step {tensors['ema.step'].tolist()}")

            return resealed(folder / latest, change)

        def beside(random: Random, folder: Path) -> Mutation:
            path = random.choice(sorted((folder / "averaged/checkpoints").glob("*-*-*.safetensors")))
            way = random.choice((damage_bytes, replace_file))
            return Mutation(way(random, path).what, Effect.SAME)

        def metrics(random: Random, folder: Path) -> Mutation:
            path = folder / "averaged/metrics.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            entry = random.choice([one for one in lines if one["event"] == "candidate"])
            entry[random.choice(sorted(entry))] = random.choice(VALUES)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            return Mutation("line of a candidate")

        return (average, average, average, step, beside, beside, metrics)

    def run(self, work: Path, random: Random) -> Ran:
        """Train another epoch."""
        return call("resume", "averaged", "--set", f"run.folder={work / 'in'}", "--epochs", 3, "-q")

    def may_write(self, ran: Ran) -> bool:
        """Only a refused resume leaves all as it was."""
        return ran.code == 0

    def value(self, work: Path, ran: Ran) -> object:
        """Give the weights after the last epoch, which no average changes."""
        with safe_open(work / "in/averaged/checkpoints/epoch-003.safetensors", framework="pt") as file:
            names = sorted(name for name in file.keys() if name.startswith("model."))  # noqa: SIM118 - not a mapping
            return hashlib.sha256(b"".join(file.get_tensor(name).numpy().tobytes() for name in names)).hexdigest()

    def expected(self, work: Path) -> object:
        """Say that the average does not matter to it."""
        return self.sound


class SweepFiles(Surface):
    """The description of a sweep whose runs are finished, which ``runs`` reads."""

    name = "sweeps"
    file = "rates.sweep.json"

    def build(self) -> None:
        """Copy the sweep."""
        shutil.copytree(small_sweep(), self.base / "in")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to the file, and changes of what it says."""

        def document(random: Random, folder: Path) -> Mutation:
            mutation = edit_json(folder / self.file, lambda document: mutate_document(random, document))
            self._keep_short(folder / self.file)
            return mutation

        def rewritten(random: Random, folder: Path) -> Mutation:
            return rewrite_json(random, folder / self.file, may_add=False)

        def runs(random: Random, folder: Path) -> Mutation:
            return edit_json(folder / self.file, lambda document: self._change_runs(random, document))

        def damaged(random: Random, folder: Path) -> Mutation:
            way = random.choice((damage_bytes, replace_file, odd_json))
            return Mutation(way(random, folder / self.file).what)

        return (damaged, damaged, document, document, document, document, rewritten, runs, runs)

    @staticmethod
    def _keep_short(path: Path) -> None:
        """Take back a number of epochs that would take years."""

        def change(document: Any) -> None:
            for run in document.get("runs", []) if isinstance(document, dict) else []:
                settings = run.get("settings") if isinstance(run, dict) else None
                train = settings.get("train") if isinstance(settings, dict) else None
                if isinstance(train, dict) and isinstance(train.get("epochs"), int | float):
                    train["epochs"] = min(train["epochs"], 3)

        edit_json(path, lambda document: change(document) or Mutation(""))  # type: ignore[func-returns-value]

    @staticmethod
    def _change_runs(random: Random, document: Any) -> Mutation:
        if not isinstance(document, dict) or not isinstance(document.get("runs"), list) or not document["runs"]:
            return Mutation("nothing")
        run = random.choice(document["runs"])
        kind = random.choice(("name", "name", "twice", "none", "another run"))
        if kind == "name":
            run["name"] = random.choice(("../rates", "/etc", "..", ".", "a/b", "x" * 300, "\x00", "rates", "", "-x", 3))
        elif kind == "twice":
            document["runs"].append(run)
        elif kind == "none":
            document["runs"].clear()
        else:
            run["name"] = "tiny"
        return Mutation(f"runs with {kind} {run['name']!r:.20}")

    def run(self, work: Path, random: Random) -> Ran:
        """Compare its runs."""
        return call("runs", work / "in/rates", "--json", "-")

    def value(self, work: Path, ran: Ran) -> object:
        """Give what it says of the runs and of their groups."""
        document = json.loads(ran.out)
        return [(run["name"], run["best"], run["differs"]) for run in document["runs"]], document.get("groups")

    def expected(self, work: Path) -> object:
        """Say that where the same runs are named, all is the same."""
        before, after = load_json(self.base / "in" / self.file), load_json(work / "in" / self.file)
        try:
            is_same = [run["name"] for run in before["runs"]] == [run["name"] for run in after["runs"]]
        except (KeyError, TypeError):
            return UNKNOWN
        return self.sound if is_same else UNKNOWN

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that nothing was written beside the folder."""
        return strays(work)


def strays(work: Path) -> str:
    """Name what a command left where it has nothing to write."""
    found = sorted({path.name for path in work.iterdir()} - {"in", "out"})
    return f"wrote {found}" if found else ""


class SweepsResumed(SweepFiles):
    """The same sweep, gone on with: of finished runs nothing is trained, and the runs stay as they are."""

    name = "resume-sweep"
    in_minute = 12

    def run(self, work: Path, random: Random) -> Ran:
        """Go on with it."""
        return call("resume", work / "in/rates", "-q")

    def may_write(self, ran: Ran) -> bool:
        """A run that is not finished by the changed description goes on."""
        return ran.code == 0

    def value(self, work: Path, ran: Ran) -> object:
        """Give the weights of the runs, and the table."""
        files = sorted((work / "in").glob("rates-*/checkpoints/epoch-001.safetensors"))
        digests = {path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return digests, [line.split()[:4] for line in ran.out.splitlines() if line.startswith("rates-")]


class SweepsRepeated(SweepsResumed):
    """The same sweep, by the command that began it: what is in the file must be what the command says."""

    name = "repeat-sweep"

    def run(self, work: Path, random: Random) -> Ran:
        """Give the command again."""
        return call(*sweep_command(work / "in"))

    def expected(self, work: Path) -> object:
        """Whatever is accepted is the same sweep."""
        return self.sound


class Evaluations(Surface):
    """Kept evaluations of two runs, which ``eval --compare`` takes if they are whole, and makes again if not."""

    name = "evaluations"

    def build(self) -> None:
        """Copy a sweep whose runs were evaluated."""
        shutil.copytree(small_sweep(), self.base / "in")

    def _path(self, random: Random, folder: Path, pattern: str) -> Path:
        return random.choice(sorted(path for path in folder.glob(f"*/evaluations/{pattern}") if path.is_file()))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to figures and arrays, and those of another run or checkpoint in their place."""

        def damaged(random: Random, folder: Path) -> Mutation:
            way = random.choice((damage_bytes, damage_bytes, replace_file))
            return Mutation(way(random, self._path(random, folder, "*.*")).what, Effect.DAMAGE)

        def document(random: Random, folder: Path) -> Mutation:
            path = self._path(random, folder, "*.json")
            return Mutation(edit_json(path, lambda one: mutate_document(random, one)).what, Effect.DAMAGE)

        def figures(random: Random, folder: Path) -> Mutation:
            def change(one: Any) -> Mutation:
                key = random.choice(("overall", "questions", "per_type", "epoch", "checkpoint", "split", "made"))
                values = {"overall": 99.9, "questions": 7, "per_type": {"x": 5.0}, "made": "now", "epoch": 9}
                one[key] = values.get(key, "test")
                return Mutation(f"{key} of another evaluation", Effect.DAMAGE)

            return edit_json(self._path(random, folder, "*.json"), change)

        def arrays(random: Random, folder: Path) -> Mutation:
            """Change an array, with the checksum that the figures have of the file."""
            path = self._path(random, folder, "*.npz")
            with np.load(path) as held:
                content = {name: held[name] for name in held.files}
            name = random.choice(sorted(content))
            content[name], kind = mutate_array(random, content[name])
            np.savez(path, **content)
            figures, digest = path.with_suffix(".json"), hashlib.sha256(path.read_bytes()).hexdigest()
            figures.write_text(json.dumps(load_json(figures) | {"sha256": digest}))
            return Mutation(f"array {name} {kind}", Effect.DAMAGE)

        def moved(random: Random, folder: Path) -> Mutation:
            one, other = random.sample(sorted(folder.glob("*/evaluations")), 2)
            for path in other.iterdir():
                shutil.copyfile(path, one / path.name)
            return Mutation("the evaluation of another run", Effect.DAMAGE)

        def sound(random: Random, folder: Path) -> Mutation:
            kind = random.choice(("gone", "other file", "indented"))
            if kind == "gone":
                shutil.rmtree(self._path(random, folder, "*.npz").parent)
            elif kind == "other file":
                (self._path(random, folder, "*.npz").parent / "notes.txt").write_text("x")
            else:
                path = self._path(random, folder, "*.json")
                path.write_text(json.dumps(load_json(path), indent=1))
            return Mutation(f"evaluation {kind}", Effect.SAME)

        return (damaged, damaged, damaged, document, document, figures, figures, arrays, arrays, moved, sound)

    def run(self, work: Path, random: Random) -> Ran:
        """Compare the runs."""
        return call("eval", "--compare", work / "in/rates", "--split", "val", "--json", work / "out/e.json", "-q")

    def may_write(self, ran: Ran) -> bool:
        """See ``Surface``; what is not whole is made and kept again."""
        return True

    def value(self, work: Path, ran: Ran) -> object:
        """Give all figures."""
        text = (work / "out/e.json").read_text()
        return json.loads(text.replace(str(work), "WORK"))

    def expected(self, work: Path) -> object:
        """Say that figures are of the checkpoints, whatever was kept."""
        return self.sound

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is whole."""
        return half_json(work / "out/e.json", ran)


class EvaluationsListed(Evaluations):
    """The same, as ``runs`` shows them."""

    name = "evaluations-listed"

    def run(self, work: Path, random: Random) -> Ran:
        """List the runs and what they keep."""
        return call("runs", work / "in/rates", "--json", work / "out/e.json")

    def may_write(self, ran: Ran) -> bool:
        """See ``Surface``; listing writes nothing."""
        return False

    def value(self, work: Path, ran: Ran) -> object:
        """Give the evaluations, and what the groups come to."""
        document = json.loads((work / "out/e.json").read_text())
        return [run["evaluations"] for run in document["runs"]], document["groups"], document["bootstrap"]

    def expected(self, work: Path) -> object:
        """Say that it cannot be told: what was removed is not shown."""
        return UNKNOWN

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Take away what may change the list."""
        return super().mutators[:-1]


class ZippedFeatures(PackedFeatures):
    """Features in one archive, as ``extract --pack`` leaves them; a file that lies beside it counts more."""

    name = "features-zip"

    def build(self) -> None:
        """Put the files into an archive."""
        super().build()
        folder = self.base / "in/feats"
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))
        with zipfile.ZipFile(folder / "features.zip", "w") as archive:
            for name in names:
                archive.write(folder / name, name)
        for name in names:
            (folder / name).unlink()
        (folder / "backbone.json").write_text(json.dumps({"name": "none", "extraction": {}}))

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to the archive, its members and its directory."""
        path: Callable[[Path], Path] = lambda folder: folder / "feats/features.zip"  # noqa: E731

        def damaged(random: Random, folder: Path) -> Mutation:
            return Mutation(damage_bytes(random, path(folder)).what, Effect.DAMAGE)

        def replaced(random: Random, folder: Path) -> Mutation:
            return Mutation(replace_file(random, path(folder)).what, Effect.DAMAGE)

        def flipped(random: Random, folder: Path) -> Mutation:
            """Flip a bit of a member's numbers."""
            content = bytearray(path(folder).read_bytes())
            content[random.randrange(200, int(0.9 * len(content)))] ^= 1 << random.randrange(8)
            path(folder).write_bytes(content)
            return Mutation("archive with a flipped bit", Effect.DAMAGE)

        def directory(random: Random, folder: Path) -> Mutation:
            content = bytearray(path(folder).read_bytes())
            first = content.index(b"PK\1\2")
            for _ in range(random.choice((1, 3))):
                content[random.randrange(first, len(content))] = random.choice((0, 1, 255, random.randrange(256)))
            path(folder).write_bytes(content)
            return Mutation("directory of the archive", Effect.DAMAGE)

        def members(random: Random, folder: Path) -> Mutation:
            return self._change_members(random, path(folder))

        def beside(random: Random, folder: Path) -> Mutation:
            """Lay a file beside the archive, which counts more than the member of its name."""
            with zipfile.ZipFile(path(folder)) as archive:
                name = random.choice(archive.namelist())
                content = archive.read(name)
            target = folder / "feats" / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            if random.random() < 0.7:
                save(target, np.ascontiguousarray(load(target)[::-1]))
            return Mutation("a file beside the archive")

        return (damaged, damaged, replaced, flipped, flipped, directory, directory, *[members] * 5, beside)

    @staticmethod
    def _change_members(random: Random, path: Path) -> Mutation:
        with zipfile.ZipFile(path) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        kind = random.choice(("deflated", "gone", "twice", "renamed", "hostile name", "comment", "array", "empty"))
        name = random.choice(sorted(held))
        effect = Effect.DAMAGE
        way = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", way) as archive:
            if kind == "gone":
                del held[name]
            elif kind == "renamed":
                held[name.upper()] = held.pop(name)
            elif kind == "empty":
                held[name] = b""
            elif kind == "hostile name":
                archive.writestr(random.choice(("../x.npy", "/etc/x.npy", "x\n.npy", "a/" * 100 + "b.npy")), b"x")
                effect = Effect.NONE
            elif kind == "comment":
                archive.comment = b"packed"
                effect = Effect.NONE
            elif kind == "array":
                first = path.parent / "changed.npy"
                first.write_bytes(held[name])
                save(first, np.ascontiguousarray(load(first) * np.nan))
                held[name] = first.read_bytes()
                first.unlink()
            for one, content in held.items():
                archive.writestr(one, content)
            if kind == "twice":
                archive.writestr(name, held[name])
                effect = Effect.SAME
        return Mutation(f"archive with a member {kind}", effect)

    def expected(self, work: Path) -> object:
        """Unpack it the plain way, and read each file; what lies beside it stays."""
        folder = work / "in/feats"
        if not (folder / "features.zip").is_file():
            return UNKNOWN
        unpacked = work / "unpacked"
        (unpacked / "in").mkdir(parents=True)
        (unpacked / "out").symlink_to(work / "out")
        try:
            with zipfile.ZipFile(folder / "features.zip") as archive:
                archive.extractall(unpacked / "in/feats")
        except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
            return UNKNOWN
        for path in folder.rglob("*.npy"):
            target = unpacked / "in/feats" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return super().expected(unpacked)


class Repacked(Surface):
    """A folder that ``extract --pack`` wrote, and extracts into again: the same features come out, or it is named."""

    name = "extract-zip"
    in_minute = 15
    options: ClassVar = ("--extractor", "patches", "--grid", 4, "--gpus", "cpu", "--pack")

    def build(self) -> None:
        """Extract some pictures."""
        shutil.copytree(small_run().raw / "test/images", self.base / "in/pictures")
        call("extract", self.base / "in/pictures", *self.options, "--out", self.base / "in/feats")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to the archive and to what says how it was made."""
        archive, description = (
            (lambda way, effect, random, folder, name=name: Mutation(way(random, folder / name).what, effect))
            for name in ("feats/features.zip", "feats/backbone.json")
        )

        def of_archive(random: Random, folder: Path) -> Mutation:
            way = random.choice((damage_bytes, damage_bytes, replace_file))
            return archive(way, Effect.ANY, random, folder)

        def of_description(random: Random, folder: Path) -> Mutation:
            way = random.choice((damage_bytes, replace_file, odd_json))
            return description(way, Effect.ANY, random, folder)

        def document(random: Random, folder: Path) -> Mutation:
            return edit_json(folder / "feats/backbone.json", lambda one: mutate_document(random, one))

        def leftover(random: Random, folder: Path) -> Mutation:
            """Leave what a killed process leaves."""
            scratch = folder / "feats/.unfinished-0"
            scratch.mkdir(exist_ok=True)
            (scratch / random.choice(("features.zip", "0.png.npy"))).write_bytes(b"half")
            return Mutation("leftover of a killed process", Effect.NONE)

        def picture(random: Random, folder: Path) -> Mutation:
            """Touch a picture, whose features are made again."""
            path = random.choice(sorted((folder / "pictures").iterdir()))
            os.utime(path, (10**9, 10**9))
            return Mutation("a picture changed its time", Effect.NONE)

        return (of_archive, of_archive, of_archive, of_description, document, document, leftover, picture)

    def run(self, work: Path, random: Random) -> Ran:
        """Extract again."""
        return call("extract", work / "in/pictures", *self.options, "--out", work / "in/feats")

    def may_write(self, ran: Ran) -> bool:
        """See ``Surface``; features are made again."""
        return True

    def value(self, work: Path, ran: Ran) -> object:
        """Unpack the features."""
        with zipfile.ZipFile(work / "in/feats/features.zip") as archive:
            return {name: archive.read(name) for name in sorted(archive.namelist())}

    def expected(self, work: Path) -> object:
        """Say that the pictures are the same, unless it says that others made their features."""
        before, after = (load_json(folder / "in/feats/backbone.json") for folder in (self.base, work))
        return self.sound if before == after else UNKNOWN


SURFACES = (
    *(ExportedFolders, AskedAlone, Averages, ResumedAverages, SweepFiles, SweepsResumed, SweepsRepeated),
    *(Evaluations, EvaluationsListed, ZippedFeatures, Repacked),
)
