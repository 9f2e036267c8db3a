"""Where features are kept, what is said of it, and in which order copies and steps begin on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.engine.running import Killed, kill_after, resume, tiny_settings, train, weights
from trarctl.data.loader import Batch, load_batches, scoring_plan, scoring_samples
from trarctl.data.prepared import PreparedData, open_prepared
from trarctl.engine import feeding
from trarctl.engine.callbacks import Event, Note, RunStarted, StepDone
from trarctl.engine.checkpoint import load_description
from trarctl.engine.distributed import World
from trarctl.engine.feeding import CudaCopies, keep_features, memory_of, on_device
from trarctl.engine.run import RunFolder
from trarctl.errors import DeviceError
from trarctl.processors import Memory, usable_memory

ROWS = np.arange(10)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def data(golden_data: dict[str, Path]) -> PreparedData:
    return open_prepared(golden_data["vqa"])


@pytest.fixture
def num_bytes(data: PreparedData) -> int:
    return int(data.features.read(ROWS).nbytes)


class Together(World):
    """Processes of one machine that all read the same."""

    def all_gather(self, value: Any) -> list[Any]:
        return [value] * self.size


def kept_where(
    data: PreparedData, wanted: str, world: World, gpu: Memory, machine: Memory, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.device | None, list[str]]:
    """The device that features are kept on, the machine's memory being None, and the notes; ``file`` if in none."""
    notes: list[str] = []
    asked = mock.Mock(return_value="in their files")
    monkeypatch.setattr(feeding, "ResidentFeatures", asked)

    def on_event(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    def read_memory(device: torch.device) -> Memory:
        return gpu if device.type == "cuda" else machine

    found = keep_features(data, lambda: ROWS, wanted, world, on_event, read_memory=read_memory)  # type: ignore[arg-type]
    assert (found is None) != asked.called
    return ("files" if found is None else asked.call_args.kwargs["device"]), notes  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("gpu", "machine", "place", "note"),
    [
        (2.4, 9.0, GPU, "data.cache=device: the features of 10 images take {size} GB of cuda:0"),
        (1.5, 2.4, None, "data.cache=ram: the features of 10 images take {size} GB of memory"),
        (1.5, 1.5, "files", "data.cache=none: the features of 10 images take {size} GB, too much for what is free ("),
    ],
)
def test_features_are_kept_where_they_fit_beside_a_quarter(
    gpu: float,
    machine: float,
    place: object,
    note: str,
    data: PreparedData,
    num_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memories = [Memory(int(4 * num_bytes), int(free * num_bytes)) for free in (gpu, machine)]
    found, notes = kept_where(data, "auto", World(0, 1, GPU), *memories, monkeypatch)
    assert (found, len(notes)) == (place, 1)
    assert notes[0].startswith(note.format(size=f"{num_bytes / 1e9:.2f}"))


def test_all_processes_of_a_machine_need_room_for_their_copies(
    data: PreparedData, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4, "MASTER_PORT": 1}
    for name, value in (names | {"MASTER_ADDR": "host"}).items():
        monkeypatch.setenv(name, str(value))
    enough, little = (Memory(int(times * num_bytes), int(times * num_bytes)) for times in (6, 5))
    none, on_four = Memory(0, 0), Together(0, 4, GPU)
    place, notes = kept_where(data, "auto", on_four, none, enough, monkeypatch)
    assert (place, notes[0].endswith(" of memory, in each of 4 processes")) == (None, True)
    assert kept_where(data, "auto", on_four, none, little, monkeypatch)[0] == "files"
    single = Memory(2 * num_bytes, 2 * num_bytes)
    assert kept_where(data, "auto", on_four, single, none, monkeypatch)[0] == GPU  # each has a GPU of its own
    with pytest.raises(DeviceError, match=r"^data.cache=ram: the features of 10 images .* in each of 4 processes, mem"):
        kept_where(data, "ram", on_four, none, single, monkeypatch)


def test_what_does_not_fit_where_it_is_wanted_is_refused(
    data: PreparedData, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, less = Memory(num_bytes, num_bytes), Memory(num_bytes, num_bytes - 1)
    assert kept_where(data, "device", World(0, 1, GPU), exact, less, monkeypatch)[0] == GPU
    with pytest.raises(DeviceError, match=r"take 0.00 GB, cuda:0 has 0.00 GB free$") as raised:
        kept_where(data, "device", World(0, 1, GPU), less, exact, monkeypatch)
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("--set data.cache=auto keeps them where they fit")


@pytest.mark.parametrize(("wanted", "device"), [("auto", CPU), ("none", CPU), ("none", GPU)])
def test_nothing_is_looked_at_where_nothing_is_kept(wanted: Any, device: torch.device, data: PreparedData) -> None:
    never = mock.Mock(side_effect=AssertionError)
    assert keep_features(data, never, wanted, World(0, 1, device), never, read_memory=never) is None


def test_the_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < memory_of(CPU).free <= memory_of(CPU).total == usable_memory().total
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3, 7) if device == GPU else None)
    assert memory_of(GPU) == Memory(total=7, free=3)


@pytest.fixture(scope="module")
def plain(golden_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny_settings(golden_data["vqa"], tmp_path_factory.mktemp("plain"), **TWO))


TWO: dict[str, object] = {"train__epochs": 2, "model__routing": "hard", "run__save_every": 3}


@pytest.mark.parametrize("cache", ["ram", "device"])
def test_a_run_with_kept_features_is_the_run(
    cache: str, plain: RunFolder, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    events: list[Event] = []
    settings = tiny_settings(golden_data["vqa"], tmp_path, **TWO, data__cache=cache)

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(settings, on_event=on_event)
    run = resume(RunFolder(tmp_path / "runs" / "tiny"), on_event=kill_after(lambda _event: False))
    assert weights(run) == weights(plain)
    measured, right = ([(one["event"], one.get("routes")) for one in which.metrics()] for which in (run, plain))
    assert measured == right
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.cache == cache == load_description(run.epoch_checkpoint(2)).cache
    (note,) = (event.text for event in events if isinstance(event, Note))
    assert note.startswith(f"data.cache={cache}: the features of ")
    assert run.log_file.read_text().count(note) == 2
    again = resume(run, epochs=3, data__cache="none", on_event=events.append)
    assert load_description(again.epoch_checkpoint(3)).cache == "none"
    assert not any("changed from here on" in event.text for event in events if isinstance(event, Note))


class FakeCopies:
    """A device that writes down in which order its work is begun."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        name = str(batch.question_id[0])
        self._order.append(f"copy {name}")

        def ready() -> Batch:
            self._order.append(f"wait for {name}")
            return batch

        return ready


def batches_of(data: PreparedData, number: int) -> Iterator[Batch]:
    return load_batches(scoring_samples(data, "val"), scoring_plan(number, batch_size=1), num_workers=0)


def test_a_batch_is_copied_before_the_step_on_the_one_before(data: PreparedData) -> None:
    order: list[str] = []
    a, b, c = data.split("val").question_id[:3].tolist()
    for batch in on_device(batches_of(data, 3), GPU, FakeCopies(order)):
        order.append(f"step {batch.question_id[0]}")
    begun = [f"copy {a}", f"copy {b}", f"wait for {a}", f"step {a}", f"copy {c}", f"wait for {b}", f"step {b}"]
    assert order == [*begun, f"wait for {c}", f"step {c}"]
    assert list(on_device([], GPU, FakeCopies(order))) == []


def test_a_cpu_copies_nothing_and_reads_nothing_ahead(data: PreparedData) -> None:
    assert feeding.copies_to(CPU) is None
    read: list[Batch] = []
    given = on_device((read.append(batch) or batch for batch in batches_of(data, 3)), CPU, None)  # type: ignore[func-returns-value]
    first = next(given)
    assert len(read) == 1
    assert first.features is read[0].features


def test_a_copy_has_a_stream_of_its_own_and_its_memory_is_kept_for_those_who_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, batch, copied, tensor = mock.create_autospec(torch.cuda), mock.Mock(), mock.Mock(), mock.Mock()
    monkeypatch.setattr(torch, "cuda", cuda)
    stream, user = cuda.Stream.return_value, cuda.current_stream.return_value
    batch.to.return_value, copied.tensors.return_value = copied, [tensor]
    order = mock.Mock()
    parts = {"enter": cuda.stream.return_value.__enter__, "leave": cuda.stream.return_value.__exit__, "to": batch.to}
    parts |= {"event": stream.record_event, "wait": user.wait_event, "keep": tensor.record_stream}
    for name, part in parts.items():
        order.attach_mock(part, name)
    ready = CudaCopies(GPU).begin(batch)
    assert [name for name, *_ in order.mock_calls] == ["enter", "to", "event", "leave"]
    cuda.stream.assert_called_once_with(stream)
    batch.to.assert_called_once_with(GPU)
    order.reset_mock()
    assert ready() is copied
    begun = [call for call in order.mock_calls if call[0] in parts]
    assert begun == [mock.call.wait(stream.record_event.return_value), mock.call.keep(user)]
