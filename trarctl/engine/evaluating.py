"""A checkpoint and prepared data to scores: what eval, submit and predict have in common."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trarctl.config.resolve import Origin, amend, resolve
from trarctl.config.settings import Settings, from_dict
from trarctl.data.loader import scoring_samples
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine.callbacks import Callback, Note
from trarctl.engine.checkpoint import load_description
from trarctl.engine.distributed import World, use_threads
from trarctl.engine.evaluator import Evaluator, Scores, load_spilled
from trarctl.engine.launch import Task, Watch, run_task
from trarctl.engine.loading import Loaded, is_upstream, load_model
from trarctl.engine.memory import reuse_freed_memory
from trarctl.engine.run import find_checkpoint
from trarctl.errors import CheckpointError


@dataclass(frozen=True)
class Request:
    """What to score with what, as a user says it.

    Attributes:
        ckpt: ``RUN``, ``RUN@EPOCH`` or ``FILE``; None for the latest run.
        data: prepared folder; None for the one that the checkpoint was trained on.
        split: of the data.
        config: settings that belong to a checkpoint of the original program.
        sets: ``KEY=VALUE`` settings.
        gpus: devices; None for a GPU where there is one.
    """

    ckpt: str | None
    data: Path | None
    split: str
    config: Path | None = None
    sets: tuple[str, ...] = ()
    gpus: str | None = None


@dataclass(frozen=True)
class Chosen:
    """A request with its gaps filled.

    Attributes:
        checkpoint: the file.
        how: how it was chosen, in words.
        data: prepared folder.
        settings: of the model and of the run.
        origin: where each dotted key came from.
        notes: what the user should know.
    """

    checkpoint: Path
    how: str
    data: Path
    settings: Settings
    origin: dict[str, Origin]
    notes: tuple[str, ...]


def choose(request: Request) -> Chosen:
    """Find the checkpoint, its settings and its data.

    Raises:
        CheckpointError: if there is no such checkpoint.
        DataError: if its data is gone.
        SettingsError: for settings that are unknown or out of their limits.
    """
    folder_sets = [text for text in request.sets if text.startswith("run.folder")]
    path, how = find_checkpoint(request.ckpt, resolve(sets=folder_sets).settings.run.folder)
    if is_upstream(path):
        data = request.data or Path("data/vqa/prepared")
        dataset = open_prepared(data).dataset
        resolved = resolve(dataset=dataset, config=request.config, sets=request.sets)
        return Chosen(path, how, data, resolved.settings, resolved.origins, tuple(resolved.notes))
    if request.config is not None:
        raise CheckpointError(
            f"{path} holds its own settings, --config {request.config} is for checkpoints of the original program",
            "leave --config out; --set KEY=VALUE changes single settings",
        )
    description = load_description(path)
    resolved = amend(from_dict(description.settings, str(path)), f"checkpoint {path.name}", sets=request.sets)
    data = request.data or Path(description.data)
    return Chosen(path, how, data, resolved.settings, resolved.origins, ())


def open_model(chosen: Chosen, data: PreparedData, world: World) -> Loaded:
    """Load the chosen model onto this process's device."""
    use_threads(chosen.settings.run.num_threads)
    reuse_freed_memory()
    return load_model(chosen.checkpoint, data, chosen.settings, origin=chosen.origin, world=world)


def score_split(request: Request, watch: Watch) -> tuple[Scores, Chosen]:
    """Score a split with a checkpoint, in as many processes as there are devices.

    Args:
        request: what to score with what.
        watch: see ``trarctl.engine.launch.run_task``.

    Returns:
        The scores in file order, and what was chosen.

    Raises:
        TrarError: if checkpoint, data and settings are missing or do not fit together.
    """
    chosen = choose(request)
    data = open_prepared(chosen.data)
    data.split(request.split)
    with tempfile.TemporaryDirectory(prefix="trarctl-") as folder:
        work = functools.partial(_score, chosen, request.split, Path(folder))
        scores = run_task(Task(work, name="scoring", cure="start it again", gpus=request.gpus), watch)
        if scores is None:
            is_exclusive = chosen.settings.train.loss != "bce"
            scores = load_spilled(Path(folder), data.answers, is_exclusive=is_exclusive)
    return scores, chosen


def _score(chosen: Chosen, split: str, folder: Path, world: World, callback: Callback) -> Scores | None:
    """Score a split; several processes leave the result in a folder, since gigabytes do not fit through a pipe."""
    data = open_prepared(chosen.data)
    loaded = open_model(chosen, data, world)
    for text in chosen.notes:
        callback(Note(text))
    train = loaded.settings.train
    scorer = Evaluator(
        loaded.model,
        loaded.temperature,
        world,
        precision=loaded.settings.run.precision,
        batch_size=max(train.batch_size // train.accumulation, 64),
        num_workers=loaded.settings.data.num_workers,
        callback=callback,
        task=f"scoring {split}",
    )
    scores = scorer.score(scoring_samples(data, split), data.answers, is_exclusive=train.loss != "bce")
    if world.size == 1:
        return scores
    if world.is_main:
        scores.spill(folder)
    return None
