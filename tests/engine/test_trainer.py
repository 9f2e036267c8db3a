"""One optimizer step: gradients of the whole batch whatever its parts, and no update from what is not finite."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from tests.engine.programs import free_port
from tests.engine.running import tiny_settings
from trarctl.config.settings import Settings
from trarctl.data.prepared import open_prepared
from trarctl.engine import jobs, trainer
from trarctl.engine.callbacks import Event, StepDone
from trarctl.engine.distributed import Placement, World, joined
from trarctl.engine.evaluator import Evaluator, Scores
from trarctl.engine.jobs import plan_start
from trarctl.engine.loading import build_model
from trarctl.engine.run import RunFolder
from trarctl.engine.trainer import Fault, Trainer, describe_faults
from trarctl.groups import Group

NUM_STEPS = 20 if os.environ.get("FAULTS") else 4
ALONE = World(0, 1, torch.device("cpu"))


def gradients(settings: Settings, world: World) -> np.ndarray:
    """The gradient of the whole model at each of the first steps of a run in float64, [steps, parameters]."""
    found: list[np.ndarray] = []
    trainers: list[Trainer] = []

    class Watched(Trainer):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[arg-type]
            trainers.append(self)

    def callback(event: Event) -> None:
        if isinstance(event, StepDone):
            parameters = trainers[0].model.parameters()
            found.append(np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters]))

    job, _ = plan_start(settings, {}, init=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "build_model", lambda *arguments: build_model(*arguments).double())
        patch.setattr(jobs, "Trainer", Watched)
        job.work(world, callback)
    return np.stack(found[:NUM_STEPS])


def settings_of(dataset: str, data: Path, folder: Path, name: str, accumulation: int) -> Settings:
    settings = tiny_settings(
        data,
        folder,
        dataset,
        model__dropout=0,
        model__routing="soft",
        model__grid_size={"vqa": 4, "clevr": 5}[dataset],
        train__accumulation=accumulation,
        train__epochs=20,
        train__ema_decay=0.9,
        train__average_epochs=2,
        run__name=name,
        run__validate_every=0,
    )
    num_steps = len(open_prepared(data).split("train").training_order) // settings.train.batch_size
    return settings.model_copy(
        update={"train": settings.train.model_copy(update={"epochs": -(-NUM_STEPS // num_steps)})}
    )


def scored(settings: Settings, world: World) -> tuple[Scores, np.ndarray]:
    """Scores of val by a model with start weights; the last round is not full."""
    data = open_prepared(Path(str(settings.data.path)))
    evaluator = Evaluator(build_model(settings, data), settings, 1.0, world, batch_size=24)
    return evaluator.score(data, "val"), evaluator.answer(data, "val")[0]


def _in_one_of_two(rank: int, port: int, data: dict[str, Path], folder: Path) -> None:
    torch.set_num_threads(1)
    group = Group(rank, 2, rank, 2, "127.0.0.1", port)
    with joined(Placement(("cpu", "cpu"), group), timeout_seconds=60) as world:
        for dataset, path in data.items():
            # DistributedDataParallel takes the graph to be static where gradients are not accumulated.
            settings = settings_of(dataset, path, folder, f"{dataset}-two", {"vqa": 2, "clevr": 1}[dataset])
            found = gradients(settings, world)
            scores, answered = scored(settings, world)
            if rank == 0:
                np.save(folder / f"{dataset}.npy", found)
                scores.save(folder / f"{dataset}.npz")
                np.save(folder / f"{dataset}-answered.npy", answered)
            else:
                assert scores.scores.size == 0


@pytest.fixture(scope="module")
def in_two_processes(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have computed together."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(_in_one_of_two, (free_port(), golden_data, folder), nprocs=2)
    return folder


def test_the_gradient_is_that_of_the_whole_batch(
    in_two_processes: Path, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    for dataset, path in golden_data.items():
        whole = gradients(settings_of(dataset, path, tmp_path, f"{dataset}-one", 1), ALONE)
        parts = gradients(settings_of(dataset, path, tmp_path, f"{dataset}-four", 4), ALONE)
        processes = np.load(in_two_processes / f"{dataset}.npy")
        assert whole.shape[0] == NUM_STEPS
        assert whole.dtype == np.float64
        size = np.linalg.norm(whole, axis=1)
        assert size.min() > 1e-3
        assert (np.linalg.norm(parts - whole, axis=1) / size).max() < 1e-6
        assert (np.linalg.norm(processes - whole, axis=1) / size).max() < 1e-6


def test_the_norm_of_the_gradient_is_logged(golden_data: dict[str, Path], tmp_path: Path) -> None:
    for clip in (None, 1e-3):
        changes = {} if clip is None else {"train": {"gradient_clip": clip}}
        settings = settings_of("vqa", golden_data["vqa"], tmp_path, f"clip-{clip}", 2)
        settings = Settings.model_validate(merged(settings.model_dump(), changes | {"run": {"log_every": 3}}))
        found = np.linalg.norm(gradients(settings, ALONE), axis=1)
        steps = [entry for entry in RunFolder(tmp_path / "runs" / f"clip-{clip}").metrics() if entry["event"] == "step"]
        assert [entry["step"] for entry in steps[:1]] == [3]
        if clip is None:
            assert steps[0]["gradient_norm"] == pytest.approx(found[2], rel=1e-6)
        else:
            assert found[2] == pytest.approx(clip, rel=1e-3)
            assert steps[0]["gradient_norm"] > 10 * clip


def merged(values: dict[str, dict[str, object]], changes: dict[str, dict[str, object]]) -> dict[str, object]:
    return {name: part | changes.get(name, {}) for name, part in values.items()}


def test_each_question_is_scored_once_by_one_of_the_processes(
    in_two_processes: Path, golden_data: dict[str, Path]
) -> None:
    for dataset, path in golden_data.items():
        settings = settings_of(dataset, path, in_two_processes, "unused", 1)
        scores, answered = scored(settings, ALONE)
        with np.load(in_two_processes / f"{dataset}.npz") as two:
            assert np.array_equal(two["question_id"], scores.question_id)
            assert np.array_equal(two["scores"], scores.scores)
            assert np.array_equal(two["routes"], scores.routes)
        assert np.array_equal(np.load(in_two_processes / f"{dataset}-answered.npy"), answered)
        assert np.abs(scores.scores).min() > 0


@pytest.mark.parametrize("kind", [np.int64, np.str_])
def test_a_fault_is_described_by_those_who_had_it(kind: type) -> None:
    here, there = Fault(7, np.array([1, 2], kind), False), Fault(7, np.arange(10, 20).astype(kind), True)
    assert describe_faults([here, there]) == "step 7 (questions 10, 11, 12, 13, 14, 15, 16, 17 and 2 more)"
    assert describe_faults([here, None, Fault(8, np.array([9], kind), True)]) == "step 7 (questions 1, 2)"
