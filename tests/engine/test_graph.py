"""The recorded step computes what the step computes, its kernels wait for nothing, and it gives way where it must."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from benchmarks import launches
from benchmarks.gpu_check import Size
from tests.engine.op_recorder import Counted, OpRecorder
from tests.engine.programs import free_port
from tests.engine.running import Killed, golden_run, kill_after, resume, tiny_settings, train, weights
from trarctl.config.settings import Settings
from trarctl.data.loader import Batch, load_batches, training_samples, trimmed_length
from trarctl.data.prepared import open_prepared
from trarctl.engine import distributed, evaluator, graph
from trarctl.engine.callbacks import Event, Note, StepDone, no_callback
from trarctl.engine.checkpoint import TrainState, state_tensors
from trarctl.engine.distributed import Placement, World, joined
from trarctl.engine.evaluator import Evaluator
from trarctl.engine.graph import NUM_UNRECORDED, CudaRecorder, Outputs, Work
from trarctl.engine.jobs import plan_start
from trarctl.engine.loading import build_model
from trarctl.engine.run import RunFolder
from trarctl.engine.signals import StopRequest
from trarctl.engine.trainer import STEPS_BETWEEN_REQUESTS, Trainer, answer_loss
from trarctl.errors import Stopped
from trarctl.groups import Group
from trarctl.model import kernels

HARD = {"model__routing": "hard", "train__accumulation": 2, "train__gradient_clip": 0.5, "train__epochs": 2}
HARD |= {"train__ema_decay": 0.9, "run__validate_every": 0}  # scoring is recorded too, and would be counted


class Unrecorded(OpRecorder):
    """A device on which nothing can be recorded."""

    def record(self, work: Work) -> tuple[Outputs, Callable[[], None]]:
        random_state = torch.get_rng_state()
        with Counted():
            work()
        torch.set_rng_state(random_state)  # a recording computes nothing
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch operations, where the CPU has kernels of its own that draw their seed on the host."""
    monkeypatch.setattr(kernels, "runs_on_cpu", lambda _states: False)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> OpRecorder:
    return use(OpRecorder(), monkeypatch)


def use(recorder: OpRecorder | None, monkeypatch: pytest.MonkeyPatch) -> OpRecorder:
    monkeypatch.setattr(graph, "recorder_for", lambda _world, _wanted: recorder)
    return recorder  # type: ignore[return-value]


def trainer_of(settings: Settings, data: Path, device: str = "cpu") -> Trainer:
    return Trainer(
        settings,
        open_prepared(data),
        RunFolder(Path("unused")),
        World(0, 1, torch.device(device)),
        callback=no_callback,
        stop=StopRequest(),
        tensors={},
        state=TrainState(),
    )


def difference(ours: RunFolder, right: RunFolder) -> float:
    """Of all weights and averages, relative to their size."""
    found, wanted = (
        np.concatenate([np.frombuffer(content, np.float32) for _, content in sorted(weights(run).items())])
        for run in (ours, right)
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def losses(run: RunFolder) -> list[float]:
    return [float(str(entry["loss"])) for entry in run.metrics() if entry["event"] == "step"]


def parts_of(data: Path, number: int, *, size: int = 20) -> list[Batch]:
    """The first batches of train, their questions as long as the longest."""
    opened = open_prepared(data)
    plan = list(np.arange(number * size).reshape(number, size))
    samples = training_samples(opened, "train", "bce")
    return [part.padded(opened.manifest.text.max_words) for part in load_batches(samples, plan, num_workers=0)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_replayed_run_is_the_run(
    dropout: float, golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    recorders = {"replayed": OpRecorder(), "unrecorded": OpRecorder(), "eager": None}
    for name, recorder in recorders.items():
        use(recorder, monkeypatch)
        monkeypatch.setattr(graph, "NUM_UNRECORDED", 10_000 if name == "unrecorded" else NUM_UNRECORDED)
        settings = tiny_settings(golden_data["vqa"], tmp_path, **HARD, model__dropout=dropout, run__name=name)
        found[name] = train(settings)
    replayed = recorders["replayed"]
    assert replayed is not None
    num_steps = 2 * (len(open_prepared(golden_data["vqa"]).split("train").training_order) // 20)
    assert (replayed.num_runs, replayed.num_recorded) == (3 * NUM_UNRECORDED, 3)
    assert replayed.num_replays == 3 * (num_steps - NUM_UNRECORDED - 1)
    assert weights(found["replayed"]) == weights(found["unrecorded"])
    assert losses(found["replayed"]) == losses(found["unrecorded"])
    if not dropout:  # otherwise questions of another length draw another mask
        assert losses(found["replayed"]) == pytest.approx(losses(found["eager"]), rel=1e-5)
        assert difference(found["replayed"], found["eager"]) < 1e-3


def _train_in_one_of_two(rank: int, port: int, data: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    placement = Placement(("cpu", "cpu"), Group(rank, 2, rank, 2, "127.0.0.1", port))
    with joined(placement, timeout_seconds=60) as world, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "runs_on_cpu", lambda _states: False)
        for name, recorder in {"replayed": OpRecorder(), "unrecorded": OpRecorder(), "eager": None}.items():
            use(recorder, patch)
            patch.setattr(graph, "NUM_UNRECORDED", 10_000 if name == "unrecorded" else NUM_UNRECORDED)
            changes = HARD | {"train__accumulation": 3, "train__batch_size": 24, "model__dropout": 0}
            settings = tiny_settings(data, folder, **changes, run__name=name)
            job, _ = plan_start(settings, {}, init=None)
            all_reduce = torch.distributed.all_reduce
            with mock.patch.object(torch.distributed, "all_reduce", wraps=all_reduce) as exchanged:
                job.work(world, no_callback)
            # Beside the sums of losses and requests, which are few numbers.
            num_large = sum(call.args[0].numel() > 100 for call in exchanged.call_args_list)
            num_steps = 2 * (len(open_prepared(data).split("train").training_order) // 24)
            assert num_large == num_steps
            if name == "replayed" and recorder is not None:
                # The first, the middle and the last part, and the update.
                assert (recorder.num_recorded, recorder.num_replays) == (4, 4 * (num_steps - NUM_UNRECORDED - 1))


def test_two_processes_replay_their_steps_and_exchange_gradients_once(
    golden_data: dict[str, Path], tmp_path: Path
) -> None:
    arguments = (free_port(), golden_data["vqa"], tmp_path)
    torch.multiprocessing.spawn(_train_in_one_of_two, arguments, nprocs=2)
    replayed, unrecorded, eager = (RunFolder(tmp_path / "runs" / name) for name in ("replayed", "unrecorded", "eager"))
    assert weights(replayed) == weights(unrecorded)
    assert losses(replayed) == losses(unrecorded) == pytest.approx(losses(eager), rel=1e-5)
    assert difference(replayed, eager) < 1e-3


@pytest.mark.parametrize("name", ["vqa_soft_avg", "vqa_soft_attention_accu2"])
def test_a_replayed_run_trains_as_the_original_does(
    name: str, golden_data: dict[str, Path], tmp_path: Path, recorder: OpRecorder
) -> None:
    _, steps, golden = golden_run(name, golden_data["vqa"], tmp_path, gpus="cpu")
    sums = [step.loss * golden["batch_size"] for step in steps if step.loss is not None]
    assert sums == pytest.approx([step["loss_sum"] for step in golden["steps"]], rel=1e-4)
    assert recorder.num_replays > 0


@pytest.mark.usefixtures("recorder")
def test_a_replayed_run_that_was_killed_goes_on_as_if_it_was_not(golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, **HARD, run__save_every=1, run__name="whole")
    whole = train(settings)
    killed = settings.model_copy(update={"run": settings.run.model_copy(update={"name": "killed"})})
    with pytest.raises(Killed):
        train(killed, on_event=kill_after(lambda event: isinstance(event, StepDone) and event.step == 11))
    assert weights(resume(RunFolder(tmp_path / "runs" / "killed"))) == weights(whole)


def test_what_cannot_be_recorded_runs_unrecorded_after_one_warning(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, events = {}, []
    for recorder in (Unrecorded(), OpRecorder()):
        use(recorder, monkeypatch)
        settings = tiny_settings(golden_data["vqa"], tmp_path, **HARD, run__name=type(recorder).__name__)
        found[recorder] = train(settings, on_event=events.append)
    failed, worked = found.values()
    assert weights(failed) == weights(worked)
    (text,) = (event.text for event in events if isinstance(event, Note) and "recorded" in event.text)
    why = "operation not permitted when stream is capturing"
    assert text == f"the training step cannot be recorded, its kernels are launched one by one: {why}"


def test_a_gradient_that_is_not_finite_changes_nothing(
    golden_data: dict[str, Path], tmp_path: Path, recorder: OpRecorder
) -> None:
    trainer = trainer_of(tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4), golden_data["vqa"])
    good, bad = parts_of(golden_data["vqa"], 2)
    bad.features.fill_(torch.inf)
    for _ in range(NUM_UNRECORDED + 1):
        trainer.train_step([good], learning_rate=1e-3)
    before = {name: tensor.clone() for name, tensor in state_tensors(trainer.model, trainer.optimizer).items()}
    assert not trainer.train_step([bad], learning_rate=1e-3).gradient_norm.isfinite()
    after = state_tensors(trainer.model, trainer.optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    kept = trainer.train_step([good], learning_rate=1e-3)
    norm = kept.gradient_norm.clone()
    trainer.train_step([bad], learning_rate=1e-3)
    assert torch.equal(kept.gradient_norm, norm)  # a result stays what it was when the next step is replayed
    assert state_tensors(trainer.model, trainer.optimizer)["adam.step"] == NUM_UNRECORDED + 2
    assert recorder.num_replays == 2 * 3


def test_a_step_of_another_shape_runs_as_it_is(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, states = golden_data["vqa"], []
    usual, other = parts_of(data, 6), parts_of(data, 1, size=7)
    for unrecorded in (NUM_UNRECORDED, 100):
        recorder = use(OpRecorder(), monkeypatch)
        monkeypatch.setattr(graph, "NUM_UNRECORDED", unrecorded)
        trainer = trainer_of(tiny_settings(data, tmp_path, model__grid_size=4), data)
        for part in (*usual[:5], *other, usual[5]):
            trainer.train_step([part], learning_rate=1e-3)
        trainer.train_step(usual[:2], learning_rate=1e-3)  # two parts, where one was recorded
        trainer.train_step(usual[:1], learning_rate=1e-3)
        states.append(state_tensors(trainer.model, trainer.optimizer))
        assert recorder.num_replays == (2 * 3 if unrecorded < 100 else 0)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_padding_changes_no_score(golden_data: dict[str, Path], tmp_path: Path) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4, model__dropout=0, model__num_layers=2)
    trainer = trainer_of(settings, golden_data["vqa"])
    (whole,) = parts_of(golden_data["vqa"], 1, size=40)
    num_words = trimmed_length(whole.question_tokens.numpy())
    cut = replace(whole, question_tokens=whole.question_tokens[:, :num_words])
    found = []
    for part in (whole, cut, whole.padded(20)):
        trainer.model.zero_grad()
        scores, routes = trainer.model(part.question_tokens, part.cells())
        scores.square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
        found.append((scores.detach(), routes.detach(), gradient / gradient.norm()))
    for other in found[1:]:
        for ours, right in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, right, rtol=0, atol=1e-6)


def test_no_operation_of_a_step_waits_for_the_device(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(None, monkeypatch)
    size = {"model__num_layers": 6, "model__spans": "0,1,2,3", "model__grid_size": 4, "train__gradient_clip": 1.0}
    trainer = trainer_of(tiny_settings(golden_data["vqa"], tmp_path, **size), golden_data["vqa"])
    good, other = parts_of(golden_data["vqa"], 2)
    trainer.train_step([good], learning_rate=1e-3)
    with Counted() as counted:  # refuses such an operation
        trainer.train_step([other], learning_rate=1e-3)
    assert counted.counts["_fused_adam_"] == 1
    assert 1_000 < counted.counts.total() < 3_600


def test_a_step_at_8x8_launches_few_operators_none_of_which_waits() -> None:
    counted = launches.count_step(Size(8, (0, 1, 2, 3), 64), "fp32", Counted())
    assert counted.counts["routed_attention"] == counted.counts["routed_attention_backward"] == 18
    assert counted.counts["norm"] == counted.counts["norm_backward"] == 31
    assert counted.counts["_fused_adam_"] == counted.counts["lstm_backward"] == 1
    assert launches.num_launches(counted) <= 900


@pytest.mark.parametrize("kind", [OpRecorder, Unrecorded])
def test_a_replayed_model_gives_the_scores(
    kind: type[OpRecorder], golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4)
    data, events = open_prepared(golden_data["vqa"]), list[Event]()
    recorder, found = kind(), []
    for one in (None, recorder):
        use(one, monkeypatch)
        world = World(0, 1, torch.device("cpu"))
        scorer = Evaluator(build_model(settings, data), settings, 1.0, world, events.append, batch_size=12)
        found.append((scorer.score(data, "val"), scorer.answer(data, "val")))
    (eager, eager_answers), (replayed, answers) = found
    assert np.abs(replayed.scores - eager.scores).max() < 1e-5
    assert np.abs(replayed.routes - eager.routes).max() < 1e-5
    assert np.array_equal(answers[0], eager_answers[0])
    texts = {event.text for event in events if isinstance(event, Note)}
    if kind is OpRecorder:  # 100 questions, twice: 8 batches and one of another size
        assert (recorder.num_recorded, recorder.num_replays, texts) == (1, 2 * 8 - NUM_UNRECORDED - 1, set())
    else:
        assert [text.startswith("the forward pass cannot be recorded, ") for text in texts] == [True]


def test_validations_of_a_run_replay_the_first_one_at_their_own_temperatures(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = HARD | {"run__validate_every": 1, "train__batch_size": 10, "train__accumulation": 1, "train__epochs": 3}
    found = {}
    for name, recorder in {"replayed": OpRecorder(), "eager": None}.items():
        use(recorder, monkeypatch)
        monkeypatch.setattr(evaluator, "FEWEST_AT_ONCE", 10)
        run = train(tiny_settings(golden_data["vqa"], tmp_path, **hard, model__dropout=0, run__name=name))
        found[name] = [(one["overall"], one["routes"]) for one in run.metrics() if one["event"] == "validation"]
        if recorder is not None:
            assert recorder.num_recorded == 3  # the two halves of a step, and the forward pass
    assert len(found["eager"]) == 3
    for ours, right in zip(found["replayed"], found["eager"], strict=True):
        assert ours[0] == right[0]
        assert np.abs(np.array(ours[1]) - np.array(right[1])).max() < 2e-4
    assert found["eager"][0][1] != found["eager"][1][1] != found["eager"][2][1]


def test_nothing_is_computed_between_steps_that_are_not_logged(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(None, monkeypatch)
    settings = tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4, run__log_every=50)
    trainer = trainer_of(settings, golden_data["vqa"])
    (part,) = parts_of(golden_data["vqa"], 1)
    result = trainer.train_step([part], learning_rate=1e-3)
    trainer.world = World(0, 1, torch.device("cuda"))  # on a CPU every loss is read, which costs nothing there
    with Counted() as counted:
        trainer._finish_step(result)
    assert not counted.counts


class Counting(World):
    """One of two GPUs, whose exchanges of values are counted and change nothing."""

    def all_reduce(self, array: Any) -> Any:
        exchanges.append(array.copy())
        return array

    def all_gather(self, value: Any) -> list[Any]:
        raise AssertionError(f"{value} was gathered")

    def broadcast(self, value: Any) -> Any:
        return value


exchanges: list[Any] = []


def test_several_gpus_exchange_values_only_where_a_step_is_logged_or_now_and_then(
    golden_data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(None, monkeypatch)
    settings = tiny_settings(
        golden_data["vqa"], tmp_path, model__grid_size=4, train__batch_size=2, run__log_every=25, run__save_every="40"
    )
    trainer = trainer_of(settings, golden_data["vqa"])
    assert trainer.steps_per_epoch > 60
    (part,) = parts_of(golden_data["vqa"], 1, size=2)
    result, found = trainer.train_step([part], learning_rate=1e-3), []
    stop, saved = StopRequest(), []
    trainer.world, trainer.stop = Counting(0, 2, torch.device("cuda"), stop=stop), stop
    monkeypatch.setattr(trainer, "_save", lambda: saved.append(trainer.state.step) or Path("saved"))
    monkeypatch.setattr(distributed, "peak_memory_bytes", lambda _device: 0)
    exchanges.clear()
    for step in range(1, 64):
        if step == 52:
            stop.signal_number = signal.SIGTERM
        num_before = len(exchanges)
        trainer._finish_step(replace(result, step=step))
        found += [step] * (len(exchanges) > num_before)
    with pytest.raises(Stopped) as stopped:
        trainer._finish_step(replace(result, step=64))
    assert STEPS_BETWEEN_REQUESTS == 16
    assert found == [16, 25, 32, 40, 48, 50]
    # The losses of 25 steps at once; where nothing else is logged, they are read for what is saved.
    loss = float(result.loss)
    assert [round(float(one[0]) / loss, 3) for one in exchanges[:6]] == [0, 25, 0, 0, 15, 0]
    assert (stopped.value.signal_number, saved) == (signal.SIGTERM, [40, 64])


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_compiled_step_is_compiled_once(golden_data: dict[str, Path], tmp_path: Path, recorder: OpRecorder) -> None:
    settings = tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4, model__routing="hard")
    trainer = trainer_of(settings, golden_data["vqa"])
    trainer.network.compile(backend="aot_eager")
    (part,) = parts_of(golden_data["vqa"], 1)
    num_graphs = []
    for epoch in range(NUM_UNRECORDED):  # each with a temperature and a rate of its own
        trainer.state = TrainState(epoch=epoch)
        trainer.train_step([part], learning_rate=1e-3 * (1 + epoch))
        num_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert num_graphs == num_graphs[:1] * NUM_UNRECORDED
    assert num_graphs[0] > 0


@pytest.mark.parametrize(("routing", "loss"), [("soft", "bce"), ("hard", "kld")])
def test_forward_loss_and_backward_are_one_graph(
    loss: Any, routing: str, golden_data: dict[str, Path], tmp_path: Path
) -> None:
    size = {"model__grid_size": 4, "model__dropout": 0, "model__routing": routing}
    trainer = trainer_of(tiny_settings(golden_data["vqa"], tmp_path, **size), golden_data["vqa"])
    (part,) = parts_of(golden_data["vqa"], 1)
    graphs: list[torch.fx.GraphModule] = []

    def loss_of(tokens: torch.Tensor, cells: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return answer_loss(trainer.model(tokens, cells, temperature=1.0)[0], target, loss=loss).sum()

    def look(module: torch.fx.GraphModule, _given: object) -> Callable[..., Any]:
        graphs.append(module)
        return make_boxed_func(module.forward)

    found = []
    torch.compiler.reset()
    whole = torch.compile(loss_of, backend=aot_autograd(fw_compiler=look, bw_compiler=look), fullgraph=True)
    for function in (loss_of, whole):
        trainer.model.zero_grad()
        torch.manual_seed(4)  # of hard routing's noise
        with torch._dynamo.config.patch(allow_rnn=True):  # otherwise Dynamo leaves torch's LSTM out of any graph
            result = function(part.question_tokens, part.cells(), part.target)
            result.backward()
        found.append([result.detach(), *(one.grad for one in trainer.model.parameters() if one.grad is not None)])
    assert len(graphs) == 2  # one each way
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_step_leaves_the_device(golden_data: dict[str, Path], tmp_path: Path) -> None:
    """Tensors without content: an operation that wants to know a value, or to copy it, has none."""
    trainer = trainer_of(tiny_settings(golden_data["vqa"], tmp_path, model__grid_size=4), golden_data["vqa"], "meta")
    (part,) = parts_of(golden_data["vqa"], 1)
    loss, routes = trainer.forward_backward(part.to(torch.device("meta")), is_first=True, is_last=True)
    assert (loss.is_meta, routes.is_meta) == (True, True)
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in trainer.model.parameters())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    """Stands for ``torch.cuda``, its names and arguments, where there is no GPU."""
    cuda = mock.create_autospec(torch.cuda)
    cuda.default_generators = (mock.create_autospec(torch.Generator, instance=True),)
    cuda.Stream.return_value.device = torch.device("cuda:0")
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda  # type: ignore[no-any-return]


def test_work_to_be_recorded_runs_on_the_stream_of_the_recording(cuda: mock.MagicMock) -> None:
    work, main, side = mock.Mock(), cuda.current_stream.return_value, cuda.Stream.return_value
    order = mock.Mock()
    for name, part in {"work": work, "main": main.wait_stream, "side": side.wait_stream}.items():
        order.attach_mock(part, name)
    assert CudaRecorder(torch.device("cuda:0")).run(work) is work.return_value
    assert order.mock_calls == [mock.call.side(main), mock.call.work(), mock.call.main(side)]
    cuda.stream.assert_called_once_with(side)


def test_a_recording_is_replayed_at_once(cuda: mock.MagicMock) -> None:
    recorder, graphs = CudaRecorder(torch.device("cuda:0")), cuda.CUDAGraph.return_value
    outputs, replay = recorder.record(lambda: (torch.ones(1),))
    replay()
    assert (outputs, graphs.replay.call_count) == ((torch.ones(1),), 2)
    pool, stream = cuda.graph_pool_handle.return_value, cuda.Stream.return_value
    cuda.graph.assert_called_once_with(graphs, pool=pool, stream=stream, capture_error_mode="thread_local")
    cuda.set_stream.assert_not_called()


def test_a_recording_that_breaks_off_leaves_no_trace(cuda: mock.MagicMock) -> None:
    recorder, (generator,) = CudaRecorder(torch.device("cuda:0")), cuda.default_generators
    works: list[Work] = [lambda: (torch.rand(1),), mock.Mock(side_effect=RuntimeError("cannot be captured"))]
    for work, why in zip(works, ("a random number on the host", "cannot be captured"), strict=True):
        cuda.graph.return_value.__exit__.return_value = None
        with pytest.raises(RuntimeError, match=why):
            recorder.record(work)
        cuda.set_stream.assert_called_with(cuda.current_stream.return_value)
        generator.graphsafe_set_state.assert_called_with(generator.clone_state.return_value)
    cuda.CUDAGraph.return_value.replay.assert_not_called()


def test_a_gpu_records_unless_that_is_off(cuda: mock.MagicMock) -> None:
    device = torch.device("cuda:0")
    assert graph.recorder_for(device, "auto") is not None
    assert graph.recorder_for(device, "on") is not None
    assert graph.recorder_for(device, "off") is None
    assert graph.recorder_for(torch.device("cpu"), "on") is None
    assert cuda.Stream.call_count == 2
