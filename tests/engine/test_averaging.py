"""Averages of weights: what they are, that they change no training, and that they can be chosen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.engine.running import resume, tiny_settings, train, weights
from trarctl.data.metrics import measure
from trarctl.data.prepared import open_prepared
from trarctl.engine.averaging import MovingAverage, exchanged
from trarctl.engine.callbacks import CandidateValidated, Event, Progressed, StepDone
from trarctl.engine.checkpoint import load_checkpoint, load_description
from trarctl.engine.distributed import World
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.loading import load_model
from trarctl.engine.run import RunFolder, find_checkpoint, read_settings
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import Trainer
from trarctl.errors import CheckpointError, Stopped
from trarctl.report.model_card import model_card

Weights = dict[str, NDArray[np.float64]]
DECAY, LAST, EPOCHS = 0.8, 3, 4


@dataclass(frozen=True)
class Averaged:
    """A run with averages, and its weights after each step as a bystander saw them."""

    run: RunFolder
    after_step: list[Weights]
    events: list[Event]


@pytest.fixture(scope="module")
def averaged(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Averaged:
    after_step: list[Weights] = []
    events: list[Event] = []
    train_step = Trainer.train_step

    def watched(trainer: Trainer, *args: object, **options: object) -> object:
        result = train_step(trainer, *args, **options)  # type: ignore[arg-type]
        after_step.append({name: value.detach().double().numpy() for name, value in trainer.model.named_parameters()})
        return result

    changes = {"train__ema_decay": DECAY, "train__average_epochs": LAST, "train__epochs": EPOCHS, "run__keep": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", watched)
        settings = tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("averaged"), **changes)
        run = train(settings, on_event=events.append)
    return Averaged(run, after_step, events)


def test_the_moving_average_is_the_weighted_mean_of_the_weights_after_each_step() -> None:
    model, random = torch.nn.Linear(3, 2), torch.Generator().manual_seed(0)
    average, seen = MovingAverage(model, 0.9, {}), []
    for _ in range(7):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=random))
        seen.append(model.weight.detach().double().numpy().copy())
        average.begin_step()
        average.update()
    counts = 0.9 ** np.arange(6, -1, -1)
    expected = np.tensordot(counts / counts.sum(), np.stack(seen), axes=1)
    assert average.weights["weight"].numpy() == pytest.approx(expected, abs=1e-6)
    again = MovingAverage(model, 0.9, average.tensors())
    for one in (average, again):
        one.begin_step()
        one.update()
    assert torch.equal(again.weights["weight"], average.weights["weight"])
    with pytest.raises(CheckpointError, match=r"ema\.weights\.bias is missing, expected \[2\]"):
        MovingAverage(model, 0.9, {"ema.step": torch.tensor(1), "ema.weights.weight": torch.zeros(2, 3)})


def test_a_model_has_its_own_weights_again_whatever_happens() -> None:
    model = torch.nn.Linear(3, 2)
    before, place = model.weight.detach().clone(), model.weight.data_ptr()
    other = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}

    def fail() -> None:
        with exchanged(model, other):
            assert not model.weight.any()
            assert model.weight.data_ptr() == place
            raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        fail()
    assert torch.equal(model.weight, before)


def test_the_moving_average_of_a_run(averaged: Averaged) -> None:
    tensors, _ = load_checkpoint(averaged.run.epoch_checkpoint(EPOCHS))
    counts = DECAY ** np.arange(len(averaged.after_step) - 1, -1, -1)
    assert int(tensors["ema.step"]) == len(counts) == 4 * 7
    for name in averaged.after_step[0]:
        expected = np.tensordot(counts / counts.sum(), np.stack([one[name] for one in averaged.after_step]), axes=1)
        assert tensors[f"ema.weights.{name}"].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_average_is_the_mean_of_the_last_epochs(averaged: Averaged) -> None:
    tensors, description = load_checkpoint(averaged.run.candidate_checkpoint(EPOCHS, "average"))
    ends = [averaged.after_step[7 * epoch - 1] for epoch in range(EPOCHS - LAST + 1, EPOCHS + 1)]
    assert description.candidate == "average"
    for name in ends[0]:
        expected = np.mean([end[name] for end in ends], axis=0)
        assert tensors[f"model.{name}"].numpy() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert {name.partition(".")[0] for name in tensors} == {"model"}
    own = load_description(averaged.run.epoch_checkpoint(EPOCHS)).accuracy
    assert description.accuracy is not None
    assert own is not None
    for name in ("split", "questions", "baselines"):
        assert description.accuracy[name] == own[name]
    card = model_card(description, [])
    assert f"Saved after epoch {EPOCHS} of {EPOCHS}, the average of the last epochs' weights, in fp32" in card
    assert "| question alone | commonest answer |" in card


def test_averages_change_nothing_of_the_training(
    averaged: Averaged, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    plain = train(tiny_settings(golden_data["vqa"], tmp_path, train__epochs=EPOCHS))
    held = {name: value for name, value in weights(averaged.run).items() if not name.startswith("ema.")}
    assert held == weights(plain)
    timed = ("seconds", "samples_per_second", "memory_bytes")

    def lines(run: RunFolder) -> list[dict[str, object]]:
        entries = [entry for entry in run.metrics() if entry["event"] != "candidate"]
        return [{key: value for key, value in entry.items() if key not in timed} for entry in entries]

    assert lines(averaged.run) == lines(plain)
    assert not any(name.startswith("ema.") for name in weights(plain))


def test_candidates_are_measured_named_and_chosen(averaged: Averaged, golden_data: dict[str, Path]) -> None:
    run, data = averaged.run, open_prepared(golden_data["vqa"])
    found = [event for event in averaged.events if isinstance(event, CandidateValidated)]
    assert [(event.name, event.epoch) for event in found] == [*(("ema", n) for n in (1, 2, 3, 4)), ("average", 4)]
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    recorded = [entry for entry in lines if entry["event"] == "candidate"]
    assert [(one["name"], one["epoch"], one["overall"]) for one in recorded] == [
        (event.name, event.epoch, event.overall) for event in found
    ]
    for name in ("ema", "average"):
        path, how = find_checkpoint(f"{run.path}@{name}", Path())
        best = max((one for one in found if one.name == name), key=lambda one: (one.overall, -one.epoch))
        assert path == run.candidate_checkpoint(best.epoch, name)
        assert how == f"run {run.name}, {name} of epoch {best.epoch}"
        loaded = load_model(path, data, read_settings(run), origin={}, world=World(0, 1, torch.device("cpu")))
        scores = Evaluator(loaded.model, loaded.settings, loaded.temperature, World(0, 1, torch.device("cpu"))).score(
            data, "val"
        )
        measured = measure(scores.predictions(), data, data.split("val"), "official")
        assert measured.overall == best.overall == (load_description(path).accuracy or {})["overall"]
    assert run.saved_candidates("ema") == [(max(found[:4], key=lambda one: (one.overall, -one.epoch)).epoch, "ema")]
    # The best epoch, and one more than the latest, since the average needed it.
    best_epoch = run.read_metrics().best_epoch()
    assert set(run.saved_epochs()) == {3, 4} | {best_epoch}


def test_no_training_goes_on_from_an_average(averaged: Averaged) -> None:
    path = averaged.run.candidate_checkpoint(EPOCHS, "average")
    with pytest.raises(CheckpointError, match="is an average of weights .average., which no") as raised:
        resume(averaged.run, file=path, epochs=EPOCHS + 1)
    assert f"--init {path} starts another run" in str(raised.value.hint)


def test_what_is_not_validated_has_its_averages_at_the_end(golden_data: dict[str, Path], tmp_path: Path) -> None:
    changes = {"train__ema_decay": DECAY, "train__average_epochs": LAST, "data__split": "train+val", "train__epochs": 2}
    run = train(tiny_settings(golden_data["vqa"], tmp_path, **changes))
    assert run.saved_candidates() == [(2, "average"), (2, "ema")]
    assert find_checkpoint(f"{run.path}@ema", Path())[0] == run.candidate_checkpoint(2, "ema")
    assert find_checkpoint(str(run.path), Path())[0] == run.epoch_checkpoint(2)
    assert load_description(run.candidate_checkpoint(2, "ema")).accuracy is None


def test_a_stop_while_an_average_is_validated_saves_the_own_weights(
    averaged: Averaged, golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds, requests = [0], list[StopRequest]()
    handle = StopRequest.defer

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone):
            rounds[0] = 0
        if isinstance(event, Progressed):
            rounds[0] += event.done == event.total
            if rounds[0] == 2 and event.done == event.total:
                requests[0].handle(15, None)  # after the own weights come those of the average

    def defer(request: StopRequest) -> StopRequest:
        requests.append(request)
        return handle(request)

    settings = tiny_settings(golden_data["vqa"], tmp_path, train__ema_decay=DECAY, train__epochs=EPOCHS)
    monkeypatch.setattr(StopRequest, "defer", defer)
    with pytest.raises(Stopped, match="after step 7"):
        train(settings, on_event=on_event)
    monkeypatch.undo()
    run = RunFolder(tmp_path / "runs" / "tiny")
    tensors, _ = load_checkpoint(run.saved()[-1][2])
    for name, value in averaged.after_step[6].items():
        assert np.array_equal(tensors[f"model.{name}"].numpy(), value.astype(np.float32))
    resume(run)
    assert weights(run) == weights(averaged.run)
