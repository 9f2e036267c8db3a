"""Checkpoints of both kinds, saved scores, answer files, and the files of a run."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.data.preparing import GOLDEN
from tests.data.reference_accuracy import Questions, plain_vqa_accuracy
from tests.fuzz.array_surfaces import evaluated, half_json
from tests.fuzz.bases import golden_prepared, golden_scores, small_run
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
from trarctl.engine.checkpoint import load_checkpoint
from trarctl.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
REJECTED = "a server would reject this"


def damaging(way: Mutator, file: str) -> Mutator:
    """Make a mutation of one file that is refused or comes to nothing."""

    def mutate(random: Random, folder: Path) -> Mutation:
        return Mutation(way(random, folder / file).what, Effect.DAMAGE)

    return mutate


class Evaluated(Surface):
    """A checkpoint that ``eval`` scores."""

    def arguments(self, work: Path) -> list[object]:
        """Give what names checkpoint, settings and data."""
        raise NotImplementedError

    def run(self, work: Path, random: Random) -> Ran:
        """Score the validation split."""
        outputs = ["--json", work / "out/e.json", "--save-scores", work / "out/scores.npz"]
        return call("eval", "--split", "val", *self.arguments(work), *outputs, "-q")

    def value(self, work: Path, ran: Ran) -> object:
        """Give accuracies and scores."""
        return evaluated(work / "out")

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is whole, and that nothing was run that a file holds."""
        return "code was run" if (work / "ran").exists() else half_json(work / "out/e.json", ran)


def change_tensors(random: Random, tensors: Tensors, prefix: str) -> Mutation:
    """Change weights in place, as another program or a slip does."""
    names = [name for name in sorted(tensors) if name.startswith(prefix)]
    name = random.choice(names)
    tensor = tensors[name]
    kinds = ("nan", "inf", "all nan", "missing", "extra", "transposed", "cut", "float64", "float16", "int", "scalar",
             "renamed", "shared", "huge", "not contiguous", "complex")  # fmt: skip
    kind = random.choice(kinds)
    effect = Effect.DAMAGE
    if kind in ("nan", "inf"):
        tensors[name] = tensor.clone()
        tensors[name].reshape(-1)[random.randrange(tensor.numel())] = float(kind)
    elif kind == "all nan":
        tensors[name] = torch.full_like(tensor, float("nan"))
    elif kind == "missing":
        del tensors[name]
    elif kind == "extra":
        tensors[f"{prefix}another.weight"] = torch.zeros(3)
    elif kind == "transposed":
        tensors[name] = tensor.t().contiguous() if tensor.ndim == 2 else tensor.reshape(-1, 1)
        effect = Effect.ANY  # a square matrix shows nothing
    elif kind == "cut":
        tensors[name] = tensor[:-1].clone()
    elif kind == "float64":
        tensors |= {name: tensors[name].double() for name in names}
        effect = Effect.NONE
    elif kind == "float16":
        tensors |= {name: tensors[name].half() for name in names}
        effect = Effect.ANY
    elif kind == "int":
        tensors[name] = tensor.to(torch.int64)
    elif kind == "complex":
        tensors[name] = tensor.to(torch.complex64)
    elif kind == "scalar":
        tensors[name] = torch.tensor(1.0)
    elif kind == "renamed":
        tensors[name + "_"] = tensors.pop(name)
    elif kind == "not contiguous":
        tensors[name] = torch.stack([tensor, tensor], dim=-1)[..., 0]
        effect = Effect.NONE
    elif kind == "huge":
        tensors[name] = tensor * 1e38
        effect = Effect.ANY
    return Mutation(f"tensor {kind}", effect)


def wrap_names(random: Random, tensors: Tensors, prefix: str) -> Mutation:
    """Put before the names what compilers and wrappers put there."""
    wrapper = random.choice(("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model."))
    renamed = {
        prefix + wrapper + name.removeprefix(prefix) if name.startswith(prefix) else name: tensor
        for name, tensor in tensors.items()
    }
    tensors.clear()
    tensors |= renamed
    return Mutation(f"names with {wrapper}", Effect.NONE)


class Checkpoints(Evaluated):
    """Checkpoints of this program."""

    name = "checkpoints"
    file = "c.safetensors"

    def build(self) -> None:
        """Copy a checkpoint of the small run."""
        (self.base / "in").mkdir()
        shutil.copyfile(small_run().runs / "tiny/checkpoints/epoch-002.safetensors", self.base / "in" / self.file)

    def arguments(self, work: Path) -> list[object]:
        """See ``Evaluated``."""
        return ["--ckpt", work / "in" / self.file]

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes; tensors and description changed with a right checksum."""
        return (
            *(damaging(way, self.file) for way in (damage_bytes, damage_bytes, replace_file)),
            self._header,
            *(self._rewritten(change) for change in (self._weights, self._weights, wrap_names, self._nothing)),
            *[self._rewritten(self._describe)] * 3,
            *(self._rewritten(self._without_adam), self._plain_weights),
        )

    def _rewritten(self, change: Callable[..., Mutation]) -> Mutator:
        """Make a mutation that writes the file again, checksum included."""

        def mutate(random: Random, folder: Path) -> Mutation:
            path = folder / self.file
            try:
                load_checkpoint(path)
            except CheckpointError:
                return Mutation("nothing")  # a right checksum would hide the damage of before
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = file.metadata()
            description = json.loads(metadata["trarctl"])
            mutation = change(random, tensors, "model.", *([description] if change == self._describe else []))
            text = json.dumps(description)
            save_file(tensors, path, metadata=metadata | {"trarctl": text, "sha256": checksum(tensors, text)})
            return mutation

        return mutate

    @staticmethod
    def _weights(random: Random, tensors: Tensors, prefix: str) -> Mutation:
        mutation = change_tensors(random, tensors, prefix)
        tensors |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        return mutation

    @staticmethod
    def _nothing(random: Random, tensors: Tensors, prefix: str) -> Mutation:
        return Mutation("written again", Effect.NONE)

    @staticmethod
    def _without_adam(random: Random, tensors: Tensors, prefix: str) -> Mutation:
        for name in [name for name in tensors if not name.startswith(prefix)]:
            del tensors[name]
        return Mutation("without the optimizer", Effect.NONE)

    @staticmethod
    def _describe(random: Random, tensors: Tensors, prefix: str, description: dict[str, Any]) -> Mutation:
        mutation = mutate_document(random, description)
        return Mutation("nothing") if mutation is None else mutation

    def _header(self, random: Random, folder: Path) -> Mutation:
        """Change the JSON that safetensors puts first, or its length."""
        path = folder / self.file
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        mutation = mutate_document(random, header) or Mutation("nothing")
        text = json.dumps(header).encode()
        length = random.choice((len(text), len(text), len(text), 0, 2**63, len(content)))
        path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
        return Mutation(f"header {mutation.what}", Effect.DAMAGE)

    def _plain_weights(self, random: Random, folder: Path) -> Mutation:
        """Leave out what makes it one of ours, as a file from elsewhere does."""
        path = folder / self.file
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = random.choice((None, {}, {"trarctl": ""}, {"trarctl": "{}"}, {"trarctl": "[]"}, {"format": "pt"}))
        save_file(tensors, path, metadata=metadata)
        return Mutation("without a description", Effect.DAMAGE)


def checksum(tensors: Tensors, text: str) -> str:
    """Compute the checksum as docs/files.md and version 0.1 have it."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class RunsCode:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


class Originals(Evaluated):
    """Checkpoints of the original program."""

    name = "originals"
    case: ClassVar[str] = "vqa_hard_fc"

    def build(self) -> None:
        """Copy a golden checkpoint and its settings."""
        (self.base / "in").mkdir()
        for suffix in (".pkl", ".yml"):
            shutil.copyfile(GOLDEN / f"cases/{self.case}{suffix}", self.base / f"in/c{suffix}")

    def arguments(self, work: Path) -> list[object]:
        """See ``Evaluated``."""
        return ["--ckpt", work / "in/c.pkl", "--config", work / "in/c.yml", "--data", golden_prepared("vqa")]

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, weights, epoch and what surrounds them."""

        def bytes_of(random: Random, folder: Path) -> Mutation:
            return damage_bytes(random, folder / "c.pkl")

        return (
            *(bytes_of, bytes_of, damaging(replace_file, "c.pkl")),
            *(self._saved(change) for change in (self._weights, self._weights, self._names, self._names)),
            *(self._saved(change) for change in (self._epoch, self._epoch, self._around, self._around)),
        )

    def _saved(self, change: Callable[[Random, dict[str, Any]], Mutation]) -> Mutator:
        def mutate(random: Random, folder: Path) -> Mutation:
            content = dict(torch.load(folder / "c.pkl", weights_only=True))
            mutation = change(random, content)
            torch.save(content.pop("all", content), folder / "c.pkl")
            return mutation

        return mutate

    @staticmethod
    def _weights(random: Random, content: dict[str, Any]) -> Mutation:
        return change_tensors(random, content["state_dict"], "")

    @staticmethod
    def _names(random: Random, content: dict[str, Any]) -> Mutation:
        state = content["state_dict"]
        kind = random.choice(("wrapped", "wrapped", "bare", "under model", "parameters"))
        if kind == "wrapped":
            return wrap_names(random, state, "")
        if kind == "bare":
            # Without its epoch the temperature of hard routing is not known.
            content["all"] = collections.OrderedDict(state)
            return Mutation("a bare state dict")
        if kind == "under model":
            content["model"] = content.pop("state_dict")
            return Mutation("state dict as model", Effect.NONE)
        content["state_dict"] = {name: torch.nn.Parameter(one.clone()) for name, one in state.items()}
        return Mutation("parameters instead of tensors", Effect.NONE)

    @staticmethod
    def _epoch(random: Random, content: dict[str, Any]) -> Mutation:
        epoch = int(content.get("epoch", 13))
        same = (np.int64(epoch), torch.tensor(epoch), float(epoch), np.array(epoch))
        other = (None, -1, 2.5, float("nan"), [epoch], torch.tensor([1, 2]), True, "x")
        kind = random.choice(("same", "other", "odd", "gone"))
        if kind == "gone":
            del content["epoch"]
            return Mutation("epoch gone", Effect.DAMAGE)
        content["epoch"] = random.choice({"same": same, "other": other, "odd": (str(epoch), 0, 10**9)}[kind])
        what = f"epoch {content['epoch']!r}"
        # Whatever is no number of finished epochs must not choose a temperature in silence.
        return Mutation(what, {"same": Effect.NONE, "other": Effect.DAMAGE}.get(kind, Effect.ANY))

    @staticmethod
    def _around(random: Random, content: dict[str, Any]) -> Mutation:
        kind = random.choice(
            ("no optimizer", "numpy scalar", "more keys", "code", "no state", "list", "tensor", "namespace")
        )
        if kind == "no optimizer":
            content.pop("optimizer", None)
        elif kind == "numpy scalar":
            content["best"] = random.choice((np.float64(71.2), np.float32(3), np.int64(7), np.arange(3)))
        elif kind == "more keys":
            content |= {"args": {"lr": 0.1}, "scaler": None, "date": "2021", "betas": (0.9, 0.98)}
        elif kind == "code":
            content["hook"] = RunsCode()
        elif kind == "no state":
            content["state_dict"] = random.choice((None, [], {}, 3, "x", {"a": 1}))
        elif kind == "list":
            content["all"] = [1, 2]
        elif kind == "tensor":
            content["all"] = torch.zeros(3)
        elif kind == "namespace":
            content["args"] = collections.Counter("abc")
        sound = kind in ("no optimizer", "numpy scalar", "more keys", "namespace")
        return Mutation(f"with {kind}", Effect.NONE if sound else Effect.DAMAGE)


class SavedScores(Surface):
    """Files of ``--save-scores`` that ``submit`` turns into answers."""

    name = "scores"
    dataset: ClassVar[str] = "vqa"

    def build(self) -> None:
        """Save scores of a tiny run."""
        (self.base / "in").mkdir()
        shutil.copyfile(golden_scores(self.dataset, "test"), self.base / "in/s.npz")

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, arrays and their order."""
        return (
            lambda random, folder: damage_bytes(random, folder / "s.npz"),
            lambda random, folder: replace_file(random, folder / "s.npz"),
            *[self._arrays(change) for change in (self._array, self._array, self._array, self._order, self._order)],
            *[self._arrays(change) for change in (self._numbers, self._numbers, self._keys, self._ids)],
            self._other_split,
        )

    def _arrays(self, change: Callable[[Random, dict[str, Any]], Mutation]) -> Mutator:
        def mutate(random: Random, folder: Path) -> Mutation:
            with np.load(folder / "s.npz") as file:
                arrays = dict(file)
            mutation = change(random, arrays)
            np.savez(folder / "s.npz", **arrays)
            return mutation

        return mutate

    @staticmethod
    def _array(random: Random, arrays: dict[str, Any]) -> Mutation:
        name = random.choice(("question_id", "scores", "answers", "routes", "is_exclusive"))
        arrays[name], kind = mutate_array(random, arrays[name])
        return Mutation(f"{name} {kind}")

    @staticmethod
    def _order(random: Random, arrays: dict[str, Any]) -> Mutation:
        kind = random.choice(("rows", "answers", "only scores"))
        rows = list(range(len(arrays["question_id"])))
        columns = list(range(len(arrays["answers"])))
        random.shuffle(rows)
        random.shuffle(columns)
        if kind == "rows":
            for name in ("question_id", "scores", "routes"):
                arrays[name] = arrays[name][rows]
        elif kind == "answers":
            arrays["answers"], arrays["scores"] = arrays["answers"][columns], arrays["scores"][:, columns]
        else:
            arrays["scores"] = arrays["scores"][rows]
        effects = {"rows": Effect.SAME, "answers": Effect.NONE}
        return Mutation(f"{kind} in another order", effects.get(kind, Effect.ANY))

    @staticmethod
    def _numbers(random: Random, arrays: dict[str, Any]) -> Mutation:
        kind = random.choice(("nan", "a nan", "inf", "constant", "zeros", "float64", "integers"))
        scores = arrays["scores"]
        if kind == "nan":
            scores = np.full_like(scores, np.nan)
        elif kind in ("a nan", "inf"):
            scores = scores.copy()
            place = random.randrange(len(scores)), random.randrange(scores.shape[1])
            scores[place] = np.nan if kind == "a nan" else np.inf
        elif kind in ("constant", "zeros"):
            scores = np.full_like(scores, 0 if kind == "zeros" else 0.3)
        elif kind == "float64":
            scores = scores.astype(np.float64)
        else:
            scores = (scores * 1000).astype(np.int64)
        arrays["scores"] = scores
        return Mutation(f"scores {kind}", {"float64": Effect.NONE, "integers": Effect.ANY}.get(kind, Effect.DAMAGE))

    @staticmethod
    def _keys(random: Random, arrays: dict[str, Any]) -> Mutation:
        kind = random.choice(("routes", "is_exclusive", "question_id", "scores", "answers", "pickled", "more"))
        if kind == "pickled":
            arrays["answers"] = arrays["answers"].astype(object)
            return Mutation("answers pickled", Effect.DAMAGE)
        if kind == "more":
            arrays["comment"] = np.array("mine")
            return Mutation("another array", Effect.NONE)
        del arrays[kind]
        return Mutation(f"without {kind}", Effect.ANY if kind in ("routes", "is_exclusive") else Effect.DAMAGE)

    @staticmethod
    def _ids(random: Random, arrays: dict[str, Any]) -> Mutation:
        kind = random.choice(("repeated", "fewer", "more", "float", "text", "unknown"))
        ids = arrays["question_id"].copy()
        if kind == "repeated":
            ids[0] = ids[-1]
        elif kind == "unknown":
            ids[0] = 2**40
        elif kind in ("float", "text"):
            ids = ids.astype(np.float64 if kind == "float" else str)
        elif kind in ("fewer", "more"):
            rows = slice(0, -1) if kind == "fewer" else [0, *range(len(ids))]
            ids, arrays["scores"], arrays["routes"] = ids[rows], arrays["scores"][rows], arrays["routes"][rows]
        arrays["question_id"] = ids
        return Mutation(f"ids {kind}", Effect.ANY if kind in ("float", "text") else Effect.DAMAGE)

    def _other_split(self, random: Random, folder: Path) -> Mutation:
        (folder / "s.npz").unlink(missing_ok=True)
        shutil.copyfile(golden_scores(self.dataset, "val"), folder / "s.npz")
        return Mutation("scores of another split", Effect.DAMAGE)

    def run(self, work: Path, random: Random) -> Ran:
        """Write an answer file."""
        data = golden_prepared(self.dataset)
        return call("submit", "--ckpt", work / "in/s.npz", "--data", data, "--split", "test", "--out", work / "out/a")

    def value(self, work: Path, ran: Ran) -> object:
        """Read the answer to each question, in order."""
        content = (work / "out/a").read_text()
        if self.dataset == "clevr":
            return content.removesuffix("\n").split("\n")
        answers = {row["question_id"]: row["answer"] for row in json.loads(content)}
        return [answers[number] for number in question_ids(self.dataset, "test")]

    def expected(self, work: Path) -> object:
        """Look up each question's row, and take its best answer that is not blank."""
        try:
            with np.load(work / "in/s.npz") as file:
                ids, scores, answers = file["question_id"], file["scores"].astype(np.float64), file["answers"]
            row_of = {int(number): row for row, number in enumerate(ids.tolist())}
            assert len(row_of) == len(ids) == len(scores) == len(question_ids(self.dataset, "test"))
            assert np.isfinite(scores).all()
            assert scores.shape == (len(ids), len(answers))
            scores[:, [not str(answer).strip() for answer in answers]] = -np.inf
            return [str(answers[scores[row_of[number]].argmax()]) for number in question_ids(self.dataset, "test")]
        except Exception:  # noqa: BLE001 - whatever is wrong with the file
            return REJECTED

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that a refusal leaves no file."""
        return "refused, but something was written" if ran.code and list((work / "out").iterdir()) else ""


class ClevrScores(SavedScores):
    """The same for CLEVR, whose answer file has no ids."""

    name = "scores-clevr"
    dataset = "clevr"


@cache
def question_ids(dataset: str, split: str) -> list[int]:
    """Read the ids of a golden split in file order."""
    return [record["question_id" if dataset == "vqa" else "question_index"] for record in raw_records(dataset, split)]


@cache
def raw_records(dataset: str, split: str) -> list[dict[str, Any]]:
    """Read the questions of a golden split."""
    year = {"val": "val2014", "test": "test2015"}[split]
    names = {"vqa": f"v2_OpenEnded_mscoco_{year}_questions.json", "clevr": f"questions/CLEVR_{split}_questions.json"}
    records: list[dict[str, Any]] = load_json(GOLDEN / f"mini_{dataset}/raw" / names[dataset])["questions"]
    return records


class Answers(Surface):
    """Answer files that are checked and scored."""

    name = "answers"
    dataset: ClassVar[str] = "vqa"
    file = "a.json"

    def build(self) -> None:
        """Answer each question with what some annotator said, or with something else."""
        (self.base / "in").mkdir()
        random = Random(3)
        answers = [random.choice([*given, "no"]) for given, *_ in truth(self.dataset)]
        rows = [
            {"question_id": number, "answer": answer}
            for number, answer in zip(question_ids(self.dataset, "val"), answers, strict=True)
        ]
        content = json.dumps(rows) if self.dataset == "vqa" else "".join(f"{answer}\n" for answer in answers)
        (self.base / "in" / self.file).write_text(content)

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes, rows and values."""

        def on(way: Callable[..., Mutation]) -> Mutator:
            return lambda random, folder: way(random, folder / self.file)

        def edited(change: Callable[[Random, Any], Mutation | None]) -> Mutator:
            return lambda random, folder: edit_json(folder / self.file, lambda document: change(random, document))

        return (
            *(on(way) for way in (damage_bytes, replace_file, odd_json, rewrite_json)),
            *(edited(change) for change in (*[mutate_document] * 4, self._rows, self._rows, self._answer)),
        )

    @staticmethod
    def _rows(random: Random, rows: Any) -> Mutation:
        kind = random.choice(("shuffled", "gone", "twice", "foreign", "with confidences", "ids as text"))
        if kind == "shuffled":
            random.shuffle(rows)
        elif kind == "gone":
            del rows[random.randrange(len(rows))]
        elif kind == "twice":
            rows.append(dict(random.choice(rows)))
        elif kind == "foreign":
            rows.append({"question_id": 2**40, "answer": "no"})
        elif kind == "with confidences":
            for row in rows:
                row["confidence"] = 0.5
        else:
            for row in rows:
                row["question_id"] = str(row["question_id"])
        return Mutation(
            f"rows {kind}", {"shuffled": Effect.NONE, "with confidences": Effect.ANY}.get(kind, Effect.DAMAGE)
        )

    @staticmethod
    def _answer(random: Random, rows: Any) -> Mutation:
        row = random.choice(rows)
        row["answer"] = random.choice(
            (f" {row['answer']} ", row["answer"].upper(), "", " ", "the " + row["answer"], "1,0")
        )
        return Mutation(f"answer {row['answer']!r:.20}")

    def run(self, work: Path, random: Random) -> Ran:
        """Check the file, then score it; what is fit for a server must be fit to be scored."""
        data, file = golden_prepared(self.dataset), work / "in" / self.file
        checked = call("submit", "--validate", file, "--data", data, "--split", "val")
        if checked.raised or checked.code not in (0, 4):
            return checked
        ran = call("eval", "--answers", file, "--data", data, "--split", "val", "--json", work / "out/e.json")
        if checked.code == 0 and ran.code:
            return Ran(99, "", f"--validate accepts what eval refuses: {ran.err}")
        self.is_valid = checked.code == 0
        return ran

    def value(self, work: Path, ran: Ran) -> object:
        """Give the accuracy, and whether a server would take the file."""
        document = load_json(work / "out/e.json")
        return {"overall": document["overall"], "questions": document["questions"], "valid": self.is_valid}

    def expected(self, work: Path) -> object:
        """Score the plain way."""
        try:
            answers, valid = self.plain(work / "in" / self.file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return REJECTED
        return {"overall": accuracy(self.dataset, answers), "questions": len(answers), "valid": valid}

    def plain(self, path: Path) -> tuple[list[str], bool]:
        """Read the answers in the order of the questions, and say whether a server would take them; or raise."""
        rows = json.loads(path.read_bytes().decode())
        if not isinstance(rows, list):
            raise TypeError("no list")
        answers = {row["question_id"]: row["answer"] for row in rows}
        wanted = question_ids(self.dataset, "val")
        if len(answers) != len(rows) or set(answers) != set(wanted) or {type(number) for number in answers} != {int}:
            raise ValueError("other questions")
        if {type(answer) for answer in answers.values()} != {str}:
            raise TypeError("no text")
        return [answers[number] for number in wanted], all(answer.strip() for answer in answers.values())


class ClevrAnswers(Answers):
    """CLEVR's answer files: one answer a line."""

    name = "answers-clevr"
    dataset = "clevr"
    file = "a.txt"

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to bytes and lines."""

        def lines(random: Random, folder: Path) -> Mutation:
            path = folder / self.file
            if not path.is_file():
                return Mutation("nothing")
            kinds = (
                "gone",
                "twice",
                "blank",
                "unknown",
                "capital",
                "spaces",
                "CR LF",
                "no last line end",
                "BOM",
                "tab",
            )
            kind = random.choice(kinds)
            given = path.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
            at = random.randrange(len(given)) if given else 0
            if given:
                replaced = {
                    "gone": [],
                    "twice": given[at : at + 1] * 2,
                    "blank": [""],
                    "unknown": ["giraffe"],
                    "capital": [given[at].upper()],
                    "spaces": [f" {given[at]} "],
                    "tab": [given[at] + "\t"],
                }.get(kind, given[at : at + 1])
                given[at : at + 1] = replaced
            end = "\r\n" if kind == "CR LF" else "\n"
            text = ("\ufeff" if kind == "BOM" else "") + end.join(given) + ("" if kind == "no last line end" else end)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            sound = {"no last line end": Effect.NONE, "gone": Effect.DAMAGE, "twice": Effect.DAMAGE}
            return Mutation(f"line {kind}", sound.get(kind, Effect.ANY))

        return (
            lambda random, folder: damage_bytes(random, folder / self.file),
            lambda random, folder: replace_file(random, folder / self.file),
            *[lines] * 6,
        )

    def plain(self, path: Path) -> tuple[list[str], bool]:
        """See ``Answers``; blanks around an answer, and how lines end, are left to the rule that is stated."""
        text = path.read_bytes().decode()
        answers = text.removesuffix("\n").split("\n")
        if len(answers) != len(truth("clevr")):
            raise ValueError("another number of lines")
        known = set(load_json(golden_prepared("clevr") / "answers.json"))
        return [answer.removesuffix("\r") for answer in answers], set(answers) <= known


@cache
def truth(dataset: str) -> list[tuple[list[str], str]]:
    """Read answers and type of each question of the golden validation split, in file order."""
    if dataset == "clevr":
        return [([record["answer"]], "") for record in raw_records("clevr", "val")]
    annotations = load_json(GOLDEN / "mini_vqa/raw/v2_mscoco_val2014_annotations.json")["annotations"]
    by_id = {record["question_id"]: record for record in annotations}
    found = [by_id[number] for number in question_ids("vqa", "val")]
    return [([answer["answer"] for answer in one["answers"]], one["answer_type"]) for one in found]


def accuracy(dataset: str, predictions: list[str]) -> object:
    """Score predictions the plain way."""
    given = truth(dataset)
    if dataset == "clevr":
        right = sum(answer == answers[0] for answer, (answers, _) in zip(predictions, given, strict=True))
        return round(100 * right / len(given), 2)
    types = [kind for _, kind in given]
    questions = Questions([answers for answers, _ in given], predictions, types, types)
    return plain_vqa_accuracy(questions, "official")["overall"]


class RunFiles(Surface):
    """Metrics, settings and log of a run that has another run beside it."""

    name = "runs"

    def build(self) -> None:
        """Copy the small run twice; checkpoints are links, since nothing here changes them."""
        for name in ("tiny", "other"):
            (self.base / f"in/{name}/checkpoints").mkdir(parents=True)
            for file in ("settings.json", "metrics.jsonl", "log.txt"):
                shutil.copyfile(small_run().runs / "tiny" / file, self.base / "in" / name / file)
            for file in (small_run().runs / "tiny/checkpoints").iterdir():
                (self.base / f"in/{name}/checkpoints" / file.name).symlink_to(file)

    @property
    def mutators(self) -> Sequence[Mutator]:
        """Damage to metrics and settings."""
        settings, metrics = (
            (lambda folder: folder / "tiny/settings.json"),
            (lambda folder: folder / "tiny/metrics.jsonl"),
        )

        def on(way: Callable[..., Mutation], where: Callable[[Path], Path], **more: Any) -> Mutator:
            def mutate(random: Random, folder: Path) -> Mutation:
                mutation = way(random, where(folder), **more)
                name = where(folder).name
                if way is replace_file and name == "metrics.jsonl":
                    mutation = Mutation(mutation.what)  # a run that has measured nothing yet has none
                return Mutation(mutation.what if name in mutation.what else f"{name} {mutation.what}", mutation.effect)

            return mutate

        def document(random: Random, path: Path) -> Mutation:
            return edit_json(path, lambda document: mutate_document(random, document))

        return (
            *(on(way, settings) for way in (damage_bytes, replace_file, odd_json)),
            *(on(rewrite_json, settings, may_add=False), *[on(document, settings)] * 4),
            *(on(way, metrics) for way in (damage_bytes, replace_file)),
            *[on(_change_lines, metrics)] * 8,
            self._odd_folder,
        )

    def _odd_folder(self, random: Random, folder: Path) -> Mutation:
        kind = random.choice(("file", "empty run", "only settings", "odd name", "odd checkpoint"))
        if kind == "file":
            (folder / "notes.txt").write_text("x")
        elif kind == "empty run":
            (folder / "empty").mkdir()
        elif kind == "only settings":
            (folder / "bare").mkdir()
            shutil.copyfile(folder / "other/settings.json", folder / "bare/settings.json")
        elif kind == "odd name":
            shutil.copytree(
                folder / "other", folder / random.choice(("a b", "[red]x[/]", "ü", "-x", "x\udcff")), symlinks=True
            )
        else:
            name = random.choice(("epoch-9.safetensors", "epoch-0x.safetensors", "epoch-003.safetensors.tmp", "x"))
            (folder / "tiny/checkpoints" / name).write_bytes(b"")
        return Mutation(f"folder with {kind}")

    def run(self, work: Path, random: Random) -> Ran:
        """List the runs."""
        return call("runs", work / "in", "--json", "-")

    def value(self, work: Path, ran: Ran) -> object:
        """Give what the list says of the run, and that both are there."""
        return self._listed(ran).get("tiny")

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the other run is listed as ever."""
        if ran.code:
            return "a damaged run hides the others"
        listed = self._listed(ran)
        expected = {"dataset": "easy-vqa", "epochs": 2, "epochs_done": 2, "state": "finished"}
        shown = {key: listed.get("other", {}).get(key) for key in expected}
        is_run = (work / "in/tiny/settings.json").is_file()
        is_whole = shown == expected and ("tiny" in listed or not is_run)
        return "" if is_whole else f"runs are listed as {list(listed)}, {shown}"

    @staticmethod
    def _listed(ran: Ran) -> dict[str, Any]:
        left_out = ("changed", "state_text", "num_bytes", "num_unreadable")
        runs = json.loads(ran.out)["runs"]
        return {run["name"]: {key: value for key, value in run.items() if key not in left_out} for run in runs}


def _change_lines(random: Random, path: Path) -> Mutation:
    """Change lines of a file of JSON lines, as crashes, disks and hands do."""
    if not path.is_file():
        return Mutation("nothing")
    lines = path.read_bytes().splitlines(keepends=True)
    at = random.randrange(len(lines)) if lines else 0
    kind = random.choice(
        ("cut", "blank", "garbage", "twice", "gone", "swapped", "value", "value", "value", "key", "scalar")
    )
    effect = Effect.ANY
    if not lines:
        return Mutation("nothing")
    if kind == "cut":
        lines[-1] = lines[-1][: random.randrange(len(lines[-1]))]
    elif kind == "blank":
        lines.insert(at, random.choice((b"\n", b"  \n", b"\r\n")))
        effect = Effect.SAME
    elif kind == "garbage":
        lines.insert(
            at, random.choice((b"{\n", b"\x00\xff\n", b"[1]\n", b"null\n", b"NaN\n", b"{}\n", b'{"event": []}\n'))
        )
    elif kind == "twice":
        lines.insert(at, lines[at])
    elif kind == "gone":
        del lines[at]
    elif kind == "swapped":
        random.shuffle(lines)
    else:
        entry = _entry(lines[at])
        if not isinstance(entry, dict) or not entry:
            return Mutation("nothing")
        key = random.choice(sorted(entry))
        if kind == "value":
            entry[key] = random.choice((*VALUES, float("nan"), float("inf")))
        elif kind == "key":
            del entry[key]
        lines[at] = json.dumps(entry if kind != "scalar" else entry[key]).encode() + b"\n"
        kind = f"{kind} {key}"
    path.write_bytes(b"".join(lines))
    return Mutation(f"line {kind}", effect)


def _entry(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


class ChosenByMetrics(RunFiles):
    """The same run, of which ``eval`` takes the best epoch."""

    name = "best-epoch"

    def may_write(self, ran: Ran) -> bool:
        """The run keeps what was measured."""
        return ran.code == 0

    def run(self, work: Path, random: Random) -> Ran:
        """Score the best epoch."""
        outputs = ["--json", work / "out/e.json", "--save-scores", work / "out/scores.npz"]
        return call("eval", "--ckpt", "tiny", "--set", f"run.folder={work / 'in'}", "--split", "val", *outputs, "-q")

    def value(self, work: Path, ran: Ran) -> object:
        """Give accuracies and scores."""
        return evaluated(work / "out")

    def complaint(self, work: Path, ran: Ran) -> str:
        """See that the JSON is whole."""
        return half_json(work / "out/e.json", ran)


class Resumed(RunFiles):
    """The same run, resumed for an epoch: the weights do not depend on the metrics, and a refusal changes nothing."""

    name = "resume"
    in_minute = 12

    def run(self, work: Path, random: Random) -> Ran:
        """Train another epoch."""
        return call("resume", "tiny", "--set", f"run.folder={work / 'in'}", "--epochs", 3, "-q")

    def may_write(self, ran: Ran) -> bool:
        """Only a refused resume leaves all as it was."""
        return ran.code == 0

    def value(self, work: Path, ran: Ran) -> object:
        """Give the weights after the last epoch, and which of its steps were measured."""
        with safe_open(work / "in/tiny/checkpoints/epoch-003.safetensors", framework="pt") as file:
            names = sorted(name for name in file.keys() if name.startswith("model."))  # noqa: SIM118 - not a mapping
            weights = b"".join(file.get_tensor(name).numpy().tobytes() for name in names)
        entries = [_entry(line) for line in (work / "in/tiny/metrics.jsonl").read_bytes().splitlines()]
        steps = [one["step"] for one in entries if isinstance(one, dict) and one.get("event") == "step"]
        return {"weights": hashlib.sha256(weights).hexdigest(), "steps": [step for step in steps if step > 12]}

    def complaint(self, work: Path, ran: Ran) -> str:
        """Nothing else is left behind."""
        return ""

    def expected(self, work: Path) -> object:
        """Where the settings that matter are the same, all is the same."""
        before, after = (
            load_json(folder / "settings.json") for folder in (small_run().runs / "tiny", work / "in/tiny")
        )
        if not isinstance(after, dict) or after.get("model") != before["model"] or after.get("data") != before["data"]:
            return UNKNOWN
        own, other = (one["train"] | {"epochs": 3} for one in (before, after))
        kept = all(
            after["run"][key] == before["run"][key] for key in ("precision", "attention", "compile", "log_every")
        )
        return self.sound if own == other and kept else UNKNOWN


SURFACES = (
    *(Checkpoints, Originals, SavedScores, ClevrScores, Answers, ClevrAnswers, RunFiles, ChosenByMetrics, Resumed),
)
