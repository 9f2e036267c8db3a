"""A tiny copy of a published data set, and the way through the program with it: prepare, train, eval, submit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tests.data.preparing import write_features
from tests.data.reference_accuracy import Questions
from tests.engine.running import sets
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.checkpoint import load_checkpoint

Run = Callable[..., tuple[int, str, str]]


def asked(records: Sequence[dict[str, Any]], said: Mapping[Any, str], name: str = "question_id") -> Questions:
    """Put what was said to records with ten annotators' answers beside them; ``name`` is their id's field."""
    return Questions(
        [[answer["answer"] for answer in one["answers"]] for one in records],
        [said[one[name]] for one in records],
        [one["answer_type"] for one in records],
        [one.get("question_type", "") for one in records],
    )


@dataclass(frozen=True)
class Tiny:
    """Where everything is; ``trarctl`` runs a command."""

    dataset: str
    folder: Path
    trarctl: Run

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def data(self) -> PreparedData:
        return open_prepared(self.folder / "prepared")

    def write(self, **files: Any) -> None:
        """Write JSON files by their names without ``.json``."""
        self.raw.mkdir(exist_ok=True)
        for name, content in files.items():
            (self.raw / f"{name}.json").write_text(json.dumps(content))

    def write_features(self, image_set: str, names: Sequence[str]) -> None:
        """Write features whose mean is about the image's place in the list."""
        for number, name in enumerate(names):
            random = np.random.default_rng(crc32(f"{image_set}/{name}".encode()))
            array = random.normal(number, 1, (4, 6)).astype(np.float32)
            write_features(self.folder / "feats" / image_set / name, array)

    def prepare(self, *options: object) -> tuple[int, str, str]:
        where = ["--raw", self.raw, "--vectors", "none", "--grid", 2, "--out", self.folder / "prepared"]
        return self.trarctl("prepare", self.dataset, *where, *options)

    def train_two_steps(self, **settings: object) -> None:
        """Train for an epoch that has two batches, the rest left out."""
        num_samples = len(self.data.split("train").training_order)
        changes = {"train__epochs": 1, "train__batch_size": num_samples // 2, "run__folder": self.folder / "runs"}
        options = [part for text in sets(**changes, **settings) for part in ("--set", text)]
        code, _, err = self.trarctl("train", self.dataset, "--data", self.folder / "prepared", *options, "-q")
        assert code == 0, err
        (checkpoint,) = (self.folder / "runs").rglob("*.safetensors")
        assert load_checkpoint(checkpoint)[1].progress.step == 2

    def eval(self, *options: object) -> dict[str, Any]:
        """Score the run, or what ``--answers`` names."""
        named = [] if "--answers" in options else ["--ckpt", "tiny", "--set", f"run.folder={self.folder / 'runs'}"]
        code, out, err = self.trarctl("eval", "--data", self.folder / "prepared", *named, *options, "--json", "-")
        assert code == 0, err
        return json.loads(out)

    def submit(self, *options: object) -> Any:
        """Write the answer file, have it checked, and give its content."""
        file = self.folder / "answers.json"
        data = ["--data", self.folder / "prepared", *options]
        named = ["--ckpt", "tiny", "--set", f"run.folder={self.folder / 'runs'}", "-q"]
        code, _, err = self.trarctl("submit", *data, *named, "--out", file)
        assert code == 0, err
        code, out, err = self.trarctl("submit", "--validate", file, *data)
        assert (code, "no problems found" in out) == (0, True), err
        return json.loads(file.read_text())

    def refused(self, content: Any, *options: object) -> str:
        """Give what ``submit --validate`` says of a file that it refuses."""
        file = self.folder / "wrong.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        code, _, err = self.trarctl("submit", "--validate", file, "--data", self.folder / "prepared", *options)
        assert code == 4, err
        return " ".join(err.split())
