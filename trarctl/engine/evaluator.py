"""Model + data -> scores: the one path of validation, eval, submit and the API; predict takes its forward pass.

Axes: Q questions, A answers, L layers, K spans.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trarctl.config.resolve import Origin, amend, is_runs_folder, resolve, runs_folder
from trarctl.config.settings import Settings
from trarctl.data.features.resident import ResidentFeatures
from trarctl.data.loader import Rows, load_batches, scoring_plan, scoring_samples
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.data.records import Ids, rows_of
from trarctl.data.submission import id_problems
from trarctl.engine import graph
from trarctl.engine.callbacks import Callback, Note, Progressed, no_callback
from trarctl.engine.checkpoint import SAVED_SCORES, Description, is_ours, load_description, misnamed
from trarctl.engine.distributed import World, enough_memory, precision_of, use_threads
from trarctl.engine.feeding import Copies, copies_to, on_device
from trarctl.engine.graph import RecordedForward
from trarctl.engine.launch import Job, Watch, run_job
from trarctl.engine.loading import (
    Loaded,
    is_exclusive,
    is_prepared,
    load_model,
    model_changes,
    prepared_folder,
    recorded_data,
)
from trarctl.engine.run import RunFolder, find_checkpoint, read_settings, saved_settings
from trarctl.errors import CheckpointError, DataError, listed
from trarctl.files import refusing, whole_result
from trarctl.model.trar import TRAR
from trarctl.weights import archive_members

FEWEST_AT_ONCE = 64  # questions that any machine that trains can score at once
ROWS_AT_ONCE = 16_384  # bounds the memory for temporary probabilities
_ARRAYS = ("question_id", "scores", "routes")  # that a process leaves in files
_ENDINGS = (".safetensors", ".pkl", ".pt", ".pth", ".bin", ".ckpt", ".npz")  # of what is meant as a file
_LARGEST_LIST_BYTES = 1 << 28  # of ids or answers in a file of scores: all of VQA-v2's take 4 MB
_NOT_FINITE_HINT = "--set run.precision=fp32 if it was another; otherwise look at these questions' features"
_AGAIN = "write them again: trarctl eval --save-scores FILE, or submit --save-scores FILE"


@dataclass(frozen=True)
class Scores:
    """The scores that a model gives to the answers of a split's questions, in file order."""

    question_id: NDArray[Any]  # int64 or text, as in the data, [Q]
    scores: NDArray[np.float32]  # answer logits, [Q, A]
    routes: NDArray[np.float32]  # span weights before binarizing, [Q, L, K]
    answers: tuple[str, ...]  # of each index, A of them
    is_exclusive: bool  # probabilities are a softmax over the answers; otherwise a sigmoid of each
    dataset: str | None = None  # this and the next two: whose questions they answer; None in files of version 0.3
    split: str | None = None
    questions: str | None = None  # ``PreparedSplit.digest``

    def __repr__(self) -> str:
        of = f"{self.dataset or 'unknown'} {self.split or ''}".strip()
        return f"<Scores of {len(self.scores):,} questions of {of}: {self.scores.shape[1]:,} answers>"

    def predictions(self) -> list[str]:
        """The answer with the highest score, for each question."""
        return [self.answers[index] for index in self.scores.argmax(axis=1)]

    def in_order_of(self, question_id: Ids, name: str = "the scores") -> Scores:
        """The same scores with the questions in another order; a DataError calls those of other questions ``name``."""
        if np.array_equal(self.question_id, question_id):
            return self
        if problems := id_problems(self.question_id.tolist(), np.asarray(question_id).tolist()):
            what = f"{name} answer other questions: {'; '.join(problems)}"
            raise DataError(what, "score the same split of the same data with each: --split NAME --data DIR")
        rows = rows_of(question_id, self.question_id)
        routes = self.routes[rows]
        return dataclasses.replace(self, question_id=np.asarray(question_id), scores=self.scores[rows], routes=routes)

    def oddity(self) -> str | None:
        """Say that the scores cannot tell questions or answers apart, which no trained model does; None if they can."""
        rows, columns = self.scores.shape
        if rows < 2 or columns < 2:
            return None
        if _everywhere(self.scores, lambda part: part == self.scores[0]):
            return f"all {rows:,} questions have the same scores: the model does not look at them"
        if _everywhere(self.scores, lambda part: part == part[:, :1]):
            return f"all {columns:,} answers have the same score, at each of {rows:,} questions"
        return None

    def save(self, path: Path) -> None:
        """Write all of it as an ``.npz`` file, whole or not at all; DataError if it cannot be written."""
        belongs_to = {"dataset": self.dataset, "split": self.split, "questions": self.questions}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {"answers": np.array(self.answers, dtype=np.str_), "is_exclusive": np.array(self.is_exclusive)}
        arrays |= {name: np.array(value) for name, value in belongs_to.items() if value is not None}
        refused = refusing(f"cannot write the scores to {path}", "choose another file with --save-scores")
        with refused, whole_result(path) as target, target.open("wb") as file:
            np.savez(file, **arrays)


def _everywhere(scores: NDArray[np.float32], holds: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> bool:
    """Whether something holds for all scores [Q, A], looked at in parts, since they may fill the memory."""
    return all(bool(holds(scores[start : start + ROWS_AT_ONCE]).all()) for start in range(0, len(scores), ROWS_AT_ONCE))


def _refuse_nonfinite(scores: NDArray[np.float32], question_id: Ids, what: str, hint: str) -> None:
    """See that scores [Q, A] are finite numbers; a DataError counts the questions where they are not."""
    if _everywhere(scores, np.isfinite):
        return
    odd = [row for row, values in enumerate(scores) if not np.isfinite(values).all()]
    ids = np.asarray(question_id)[odd].tolist()
    many = f"{len(odd):,} of {len(scores):,} questions"
    raise DataError(f"{what} not finite for {many}: {listed(ids)}", hint)


@dataclass
class Evaluator:
    """A model, and how to run it without dropout or noise.

    One process scores as many questions at once as a part of a training batch has, whatever the number of processes, so
    that this number cannot change the scores.
    """

    model: TRAR  # on ``world.device``; left in the mode that it came in
    settings: Settings  # that it was trained with; they give precision, threads and batch size
    temperature: float  # of hard routing: that of the last epoch trained
    world: World  # its processes take turns at the batches
    callback: Callback = no_callback  # gets the progress, under the name ``task``
    task: str = "scoring"
    check: Callable[[], None] | None = None  # called after each round, in all processes alike; may raise
    kept: ResidentFeatures | None = None  # with those of all images that are scored
    batch_size: int = 0

    def __post_init__(self) -> None:
        train = self.settings.train
        self.batch_size = self.batch_size or max(train.batch_size // train.accumulation, FEWEST_AT_ONCE)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients, in the run's precision; where the run left that open, in float32."""
        wanted = self.settings.run.precision
        with torch.inference_mode(), precision_of(self.world.device, "fp32" if wanted == "auto" else wanted):
            yield

    def forward(
        self, question_tokens: Tensor, cells: Tensor, temperature: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the model, which is in evaluation mode: scores [B, A] and routes [B, L, K], on the device."""
        device, own = self.world.device, self.temperature
        with self.inference():
            return self.model(
                question_tokens.to(device), cells.to(device), temperature=own if temperature is None else temperature
            )

    @functools.cached_property
    def _copies(self) -> Copies | None:
        return copies_to(self.world.device)

    @functools.cached_property
    def _recorded(self) -> RecordedForward | None:
        """What replays ``forward`` where the device can: kept, so that a later scoring need not record it again.

        What it holds of the device's memory until then, the later scoring would take again.
        """
        recorder = graph.recorder_for(self.world.device, self.settings.run.compile)
        return None if recorder is None else RecordedForward(self.forward, recorder, self._note)

    def replay(self, question_tokens: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model as ``forward`` does, by a replay where the device can."""
        if self._recorded is None:
            return self.forward(question_tokens, cells)
        # A replay reads the temperature, too, from its place in memory.
        return self._recorded(question_tokens, cells, torch.tensor(self.temperature, device=self.world.device))

    def score(self, data: PreparedData, split: str) -> Scores:
        """Score all questions of a split; the main process has the arrays, those of the others are empty."""
        part, num_answers = data.split(split), len(data.answers)
        kept = len(part) if self.world.is_main else 0
        scores = np.zeros((kept, num_answers), dtype=np.float32)
        routes = self._empty_routes(kept)
        share = np.zeros((self.batch_size, num_answers + math.prod(routes.shape[1:])), dtype=np.float32)
        for turn, scored in enumerate(self._rounds(data, split)):
            if scored is not None:
                flat = torch.cat([scored[1], scored[2].flatten(1)], dim=1)
                share[: len(flat)] = flat.cpu().numpy()
            # Round by round, so that no process but the main one ever holds more than a batch.
            for rank, rows in enumerate(self.world.gather(share)):
                start = (turn * self.world.size + rank) * self.batch_size
                valid = rows[: max(kept - start, 0)]
                scores[start : start + len(valid)] = valid[:, :num_answers]
                routes[start : start + len(valid)] = valid[:, num_answers:].reshape(-1, *routes.shape[1:])
        ids = np.asarray(part.question_id[:kept])
        _refuse_nonfinite(scores, ids, "the model's scores are", _NOT_FINITE_HINT)
        return _scores_of(data, split, (ids, scores, routes), self.settings)

    def answer(self, data: PreparedData, split: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Choose the likeliest answer of each question, in memory that does not grow with the number of answers.

        Returns:
            Indices of answers [Q] and routes [Q, L, K], in every process.
        """
        num_questions = len(data.split(split))
        chosen, is_odd = np.zeros((2, num_questions), dtype=np.int64)
        routes = self._empty_routes(num_questions)
        for scored in self._rounds(data, split):
            if scored is not None:
                chosen[scored[0]] = scored[1].argmax(dim=1).cpu().numpy()
                is_odd[scored[0]] = (~scored[1].isfinite().all(dim=1)).cpu().numpy()
                routes[scored[0]] = scored[2].cpu().numpy()
        if num_odd := int(self.world.all_reduce(is_odd).sum()):
            # A note, since the epoch that is validated has to be saved all the same.
            self.callback(Note(f"the scores of {num_odd:,} of {num_questions:,} questions of {split} are not finite"))
        return self.world.all_reduce(chosen), self.world.all_reduce(routes)

    def _note(self, text: str) -> None:
        self.callback(Note(text))

    def _empty_routes(self, num_questions: int) -> NDArray[np.float32]:
        model = self.model.settings
        return np.zeros((num_questions, model.num_layers, len(model.spans)), dtype=np.float32)

    def _rounds(self, data: PreparedData, split: str) -> Iterator[tuple[Rows, Tensor, Tensor] | None]:
        """Rounds in which each process scores a batch: its rows, scores and routes; None where none is left for it."""
        world, samples = self.world, scoring_samples(data, split)
        total = len(samples)
        plan = scoring_plan(total, batch_size=self.batch_size, rank=world.rank, num_processes=world.size)
        num_workers = self.settings.data.num_workers
        pin = world.device.type == "cuda"
        loaded = load_batches(samples, plan, num_workers=num_workers, pin=pin, kept=self.kept)
        batches = on_device(loaded, world.device, self._copies)
        was_training = self.model.training
        self.model.eval()
        try:
            with use_threads(self.settings.run.num_threads):
                for turn in range(-(-total // (self.batch_size * world.size))):
                    if turn < len(plan):
                        batch = next(batches)
                        if self._recorded is not None:  # which needs one shape
                            batch = batch.padded(data.manifest.text.max_words)
                        yield plan[turn], *self.replay(batch.question_tokens, batch.cells())
                    else:
                        yield None
                    self.callback(Progressed(self.task, min((turn + 1) * self.batch_size * world.size, total), total))
                    if self.check is not None:
                        self.check()
        finally:
            self.model.train(was_training)


def _scores_of(data: PreparedData, split: str, arrays: Sequence[NDArray[Any]], settings: Settings) -> Scores:
    """Scores of a split, from the arrays named by ``_ARRAYS``."""
    part, (ids, scores, routes) = data.split(split), arrays
    answers = tuple(data.answers)
    return Scores(ids, scores, routes, answers, is_exclusive(settings), data.name, part.name, part.digest)


@dataclass(frozen=True)
class Request:
    """What to score with which checkpoint, as a user names them."""

    ckpt: str | None  # ``RUN``, ``RUN@EPOCH`` or ``FILE``; None for the latest run
    data: Path | None  # prepared folder; None for the one that the checkpoint was trained on
    split: str
    config: Path | None = None  # settings that belong to a checkpoint of the original program
    sets: tuple[str, ...] = ()  # ``KEY=VALUE`` settings
    gpus: str | None = None  # None for a GPU where there is one

    @property
    def is_as_trained(self) -> bool:
        """Whether ``sets`` changes nothing of the model or of how it is scored."""
        return all(map(is_runs_folder, self.sets))


@dataclass(frozen=True)
class Chosen:
    """A request with its gaps filled; ``how`` says in words how the checkpoint was chosen."""

    request: Request
    checkpoint: Path
    how: str
    data: Path | None  # prepared folder; None: none is needed
    settings: Settings
    origin: dict[str, Origin]
    notes: tuple[str, ...]

    def open_data(self) -> PreparedData:
        """Open the prepared folder."""
        if self.data is None:
            raise AssertionError("chosen without data")
        return open_prepared(self.data)

    def open_model(self, data: PreparedData | None, world: World) -> Loaded:
        """Load the model onto this process's device; without data one that stands alone, see ``load_model``."""
        return load_model(self.checkpoint, data, self.settings, origin=self.origin, world=world)


def choose(request: Request, *, needs_data: bool = True) -> Chosen:
    """Find the checkpoint, its settings and its data, or raise the TrarError that says what is missing.

    Unless it ``needs_data``, a checkpoint that stands alone gets only the data that the request names.
    """
    try:
        path, how = find_checkpoint(request.ckpt, runs_folder(request.sets))
    except CheckpointError:
        named = Path(request.ckpt or "")
        is_folder = bool(request.ckpt) and named.is_dir() and not (named / "settings.json").exists()
        if is_folder or named.suffix in _ENDINGS:
            is_ours(named)  # says that it is a folder, or that there is no such file
        raise
    if not is_ours(path):
        folder = request.data or prepared_folder(resolve(dataset="vqa").settings)
        dataset = open_prepared(folder).dataset
        resolved = resolve(dataset=dataset, config=request.config, sets=request.sets)
        return Chosen(request, path, how, folder, resolved.settings, resolved.origins, tuple(resolved.notes))
    if request.config is not None:
        raise CheckpointError(
            f"{path} holds its own settings, --config {request.config} is for checkpoints of the original program",
            "leave --config out; --set KEY=VALUE changes single settings",
        )
    description = load_description(path)
    trained = saved_settings(description.settings, path)
    resolved = amend(trained, f"checkpoint {path.name}", sets=request.sets)
    data = request.data
    if data is None and (needs_data or description.card(path) is None):
        try:
            data = _data_of(path, description)
        except DataError as error:
            if needs_data:
                raise
            older = "an older trarctl wrote this checkpoint, which does not hold all that predict needs; with the data,"
            makes = f"trarctl export --ckpt {shlex.quote(str(path))} --data DIR --out DIR makes one that does"
            raise DataError(error.what, f"{error.hint}; {older} {makes}") from error
    notes = [text] if (text := misnamed(path, description)) else []
    if changes := model_changes(trained, resolved.settings, may_change=["model.binarize"]):
        notes.append(f"what is scored is not the model that was trained: {', '.join(changes)}")
    return Chosen(request, path, how, data, resolved.settings, resolved.origins, tuple(notes))


def _data_of(path: Path, description: Description) -> Path:
    """The data that a checkpoint was trained on: where it was then, or where its run has it now."""
    places = [Path(description.data)]
    run = RunFolder(path.absolute().parent.parent)
    if run.exists():
        with suppress(CheckpointError):
            places.append(prepared_folder(read_settings(run)))
    return recorded_data(next(filter(is_prepared, places), places[-1]), description.dataset)


def recorded_folder(chosen: Chosen) -> Path | None:
    """The prepared folder that a checkpoint was trained on, where it is still there."""
    with suppress(DataError):
        return chosen.data or _data_of(chosen.checkpoint, load_description(chosen.checkpoint))
    return None


@dataclass(frozen=True, kw_only=True)
class ScoreJob(Job):
    """Score a split; several processes leave the result in a folder, since gigabytes do not fit through a pipe."""

    chosen: Chosen
    folder: Path
    title: str = "scoring"
    hint: str = "start it again"

    def work(self, world: World, callback: Callback) -> Scores | None:
        """Score in one process, or this process's share; see ``trarctl.engine.launch.Job``."""
        data = self.chosen.open_data()
        loaded = self.chosen.open_model(data, world)
        for text in (*self.chosen.notes, *loaded.warnings):
            callback(Note(text))
        split = self.chosen.request.split
        evaluator = Evaluator(loaded.model, loaded.settings, loaded.temperature, world, callback, f"scoring {split}")
        with enough_memory("--set train.batch_size=64 scores fewer questions at once"):
            scores = evaluator.score(data, split)
        if world.size == 1:
            return scores
        if world.is_main:
            hint = "TMPDIR=DIR names a folder with more room; --gpus cpu or a single GPU needs none"
            with refusing(f"cannot keep the scores in {self.folder} for the other process", hint):
                for name in _ARRAYS:
                    np.save(self.folder / f"{name}.npy", getattr(scores, name))
        return None


def score_chosen(chosen: Chosen, watch: Watch) -> Scores:
    """Score the split of a request with what was chosen for it, in as many processes as there are devices."""
    request, data = chosen.request, chosen.open_data()
    data.split(request.split)
    with tempfile.TemporaryDirectory(prefix="trarctl-") as temporary:
        job = ScoreJob(chosen=chosen, folder=Path(temporary), gpus=request.gpus)
        scores: Scores | None = run_job(job, watch)
        if scores is None:
            # The arrays stay on the disk, also once their files have no name any more.
            arrays = [np.load(job.folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
            scores = _scores_of(data, request.split, arrays, chosen.settings)
    if oddity := scores.oddity():
        warnings.warn(f"{chosen.checkpoint}: {oddity}", stacklevel=2)
    return scores


def probabilities(scores: NDArray[np.float32], *, is_exclusive: bool) -> NDArray[np.float32]:
    """Turn answer logits [Q, A] into probabilities: a softmax over exclusive answers, otherwise a sigmoid of each."""
    if not is_exclusive:
        return np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * scores))
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def combine(parts: Sequence[Scores]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Average the probabilities that several models give to each answer; one a model does not know counts as 0.

    Returns:
        Mean probabilities [Q, A] in the first's order of questions; answers in the order of their first appearance.
    """
    first = parts[0]
    answers = tuple(dict.fromkeys(answer for part in parts for answer in part.answers))
    column = {answer: index for index, answer in enumerate(answers)}
    total = np.zeros((len(first.question_id), len(answers)), dtype=np.float32)
    for number, part in enumerate(parts, start=1):
        aligned = part.in_order_of(first.question_id, f"the scores number {number}")
        columns = np.array([column[answer] for answer in part.answers])
        for start in range(0, len(total), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            total[rows, columns] += probabilities(aligned.scores[rows], is_exclusive=part.is_exclusive)
    total /= np.float32(len(parts))
    return total, answers


def likeliest(
    scores: NDArray[np.float32], *, is_exclusive: bool | None, but: Sequence[int] = ()
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The likeliest answer to each question and its probability, a few thousand rows at a time.

    Args:
        scores: logits [Q, A], or probabilities.
        is_exclusive: as for ``probabilities``; None: the scores are probabilities.
        but: answers that are not to be chosen; their probability counts all the same.

    Returns:
        Indices of answers [Q], and probabilities [Q].
    """
    chosen = np.empty(len(scores), dtype=np.int64)
    share = np.empty(len(scores), dtype=np.float32)
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = np.asarray(scores[rows])
        open_to = part
        if len(but):
            open_to = part.copy()
            open_to[:, list(but)] = -np.inf
        best = open_to.argmax(axis=1)
        top = np.take_along_axis(part, best[:, None], axis=1)
        chosen[rows] = best
        if is_exclusive is None:
            share[rows] = top[:, 0]
        elif is_exclusive:
            # The largest of all, lest the exponentials overflow where it is not to be chosen.
            most = part.max(axis=1, keepdims=True)
            share[rows] = np.exp(top - most)[:, 0] / np.exp(part - most).sum(axis=1)
        else:
            share[rows] = probabilities(top, is_exclusive=False)[:, 0]
    return chosen, share


def answers_to_submit(parts: Sequence[Scores]) -> tuple[list[str], NDArray[np.float32]]:
    """The likeliest answer to each question [Q] that is not blank, since a test server rejects those; probabilities.

    Several models answer together, as ``combine`` has it.
    """
    scores, answers = parts[0].scores, parts[0].answers
    is_exclusive: bool | None = parts[0].is_exclusive
    if len(parts) > 1:
        (scores, answers), is_exclusive = combine(parts), None
    blank = [index for index, answer in enumerate(answers) if not answer.strip()]
    chosen, share = likeliest(scores, is_exclusive=is_exclusive, but=blank)
    return [answers[index] for index in chosen.tolist()], share


def is_saved_scores(path: Path) -> bool:
    """Whether a file holds saved scores: by its ending, or by its content if that can be read."""
    return path.suffix.lower() == ".npz" or archive_members(path) >= SAVED_SCORES


def load_scores(path: Path, data: PreparedData, split: str) -> tuple[Scores, list[str]]:
    """Read what ``--save-scores`` wrote about exactly the questions of a split, and put it in their order.

    Returns:
        The scores, without routes, and what is odd about them.
    """
    part = data.split(split)
    scores = _read_scores(path, is_exclusive=data.spec.has_one_answer)
    odd = []
    if scores.dataset not in (None, data.name):
        raise _other_questions(path, f"those of {scores.dataset}, {data.path} holds {data.name}")
    ids = scores.question_id
    if (ids.dtype.kind == "U") != (part.question_id.dtype.kind == "U"):
        raise _other_questions(path, f"ids of type {ids.dtype}, {data.path} has {part.question_id.dtype}")
    if scores.questions is None:
        odd.append(f"{path} does not say which split it answers: only the ids of its questions could be compared")
    elif scores.questions != part.digest:
        if scores.split != part.name:
            raise _other_questions(path, f"those of the split {scores.split}, asked for is {part.name}")
        if np.array_equal(ids, part.question_id):
            raise _other_questions(path, f"the same ids, but other texts or images than {part.name} of {data.path}")
    aligned = scores.in_order_of(part.question_id, str(path))
    if aligned is not scores:
        odd.append(f"the questions of {path} stood in another order than {part.name} of {data.path}: put in that order")
    if unknown := len(set(scores.answers).difference(data.answers)):
        many = f"{unknown:,} of {len(scores.answers):,} answers"
        odd.append(f"{many} in {path} are not in the answer list of {data.path}")
    if oddity := scores.oddity():
        odd.append(f"{path}: {oddity}")
    if _everywhere(scores.scores, lambda part: (part >= 0) & (part <= 1)):
        odd.append(f"{path}: all scores are between 0 and 1, like probabilities; they are taken for logits")
    return aligned, odd


def _other_questions(path: Path, difference: str) -> DataError:
    what = f"{path} holds scores for other questions: {difference}"
    return DataError(what, "give the --split and --data that were scored")


def _read_scores(path: Path, *, is_exclusive: bool) -> Scores:
    """The content of a file of scores, checked by itself; ``is_exclusive`` holds if the file does not say."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise DataError(f"cannot read scores from {path}: it is a folder, a pipe or a device", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = [name for name in ("question_id", "scores", "answers") if name not in names]
            if not missing:
                ids, answers = (_array(archive, name, _LARGEST_LIST_BYTES) for name in ("question_id", "answers"))
                scores = _array(archive, "scores", _LARGEST_LIST_BYTES + 16 * ids.size * answers.size)
                more = ("is_exclusive", "dataset", "split", "questions")
                told = {name: _array(archive, name, 1 << 16).item() for name in more if name in names}
    except Exception as error:  # a damaged archive makes its reader raise whatever it stumbles over
        why = getattr(error, "strerror", None) or "it is cut off or changed, or no .npz file of numbers and text"
        raise DataError(f"cannot read scores from {path}: {why}", _AGAIN) from error
    if missing:
        there = listed(sorted(names))
        raise DataError(f"{path} holds no scores: {', '.join(missing)} missing, there is {there}", _AGAIN)
    expected = [ids.size, answers.size]
    for name, array, kinds, shape, wanted in (
        ("question ids", ids, "iuU", expected[:1], "whole numbers or text"),
        ("answers", answers, "U", expected[1:], "text"),
        ("scores", scores, "f", expected, "floating-point numbers"),
    ):
        if array.dtype.kind not in kinds or list(array.shape) != shape or not array.size:
            found = f"of shape {list(array.shape)} and type {array.dtype}"
            raise DataError(f"{path} holds {name} {found}, expected shape {shape or [1]} of {wanted}", _AGAIN)
    if len(set(answers.tolist())) < answers.size:
        raise DataError(f"{path} lists {answers.size - len(set(answers.tolist())):,} answers twice", _AGAIN)
    with np.errstate(over="ignore"):
        logits = scores.astype(np.float32, copy=False)
    _refuse_nonfinite(logits, ids, f"the scores in {path} are", _AGAIN)
    routes = np.zeros((len(ids), 0, 0), dtype=np.float32)
    exclusive = told.pop("is_exclusive", is_exclusive)
    if not isinstance(exclusive, bool):
        raise DataError(f"{path} holds is_exclusive {exclusive!r}, expected true or false", _AGAIN)
    return Scores(ids, logits, routes, tuple(answers.tolist()), exclusive, **{name: str(told[name]) for name in told})


def _array(archive: zipfile.ZipFile, name: str, most_bytes: int) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > most_bytes:
        raise ValueError(f"{name} would take {info.file_size:,} bytes")
    with archive.open(info) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.lib.format.read_array(file, allow_pickle=False)
