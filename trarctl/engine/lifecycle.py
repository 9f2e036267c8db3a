"""Starting a run, and going on with one."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trarctl.config.settings import Settings
from trarctl.data.loader import training_samples
from trarctl.data.prepared import PreparedData
from trarctl.engine.callbacks import Callback, Note, both, no_callback
from trarctl.engine.checkpoint import Description, TrainState, load_checkpoint
from trarctl.engine.distributed import World, average_in_order, collective, use_threads
from trarctl.engine.journal import journal
from trarctl.engine.loading import check_words, load_weights, read_weights
from trarctl.engine.loggers import open_loggers
from trarctl.engine.memory import reuse_freed_memory
from trarctl.engine.run import RunFolder, write_settings
from trarctl.engine.setup import build_model
from trarctl.engine.signals import stop_requests
from trarctl.engine.state import MODEL, model_tensors, restore_optimizer, share_tensors
from trarctl.engine.stepping import Stepper
from trarctl.engine.trainer import Trainer
from trarctl.errors import CheckpointError, SettingsError
from trarctl.model.trar import TRAR


def start_run(
    settings: Settings, data: PreparedData, *, init: Path | None, world: World, callback: Callback
) -> TrainState:
    """Train from the beginning in a run folder that has no checkpoints yet.

    Args:
        settings: resolved and fitted to the data, ``run.name`` included.
        data: prepared data.
        init: checkpoint to take the start weights from; None draws them.
        world: device and processes.
        callback: told what happens, in the leading process.

    Returns:
        The place at the end.

    Raises:
        SettingsError: if the batch does not fit.
        DataError: if the run folder cannot be written or a split is missing.
        Stopped: after a signal.
    """
    run = RunFolder(settings.run.folder / str(settings.run.name))
    check_batch(settings, data, world.size)
    if world.is_main:
        run.create()
        run.metrics_file.unlink(missing_ok=True)
        write_settings(run, settings, data.path)
        run.log(f"run {run.name}: {data.dataset}, {data.path}, {_now()}")
        run.log(orjson.dumps(settings.model_dump(mode="json")).decode())
        callback = both(journal(run), callback)
    tensors = {}
    if init is not None and world.is_main:
        tensors = {MODEL + name: tensor for name, tensor in read_weights(init).items()}
    return _train(settings, data, run, (share_tensors(tensors, world), TrainState()), world=world, callback=callback)


def resume_run(
    settings: Settings, data: PreparedData, *, epoch: int | None, world: World, callback: Callback
) -> TrainState:
    """Go on from a checkpoint exactly as if the run had never stopped.

    Later checkpoints of the run move to ``checkpoints/superseded``; lines of ``metrics.jsonl`` from behind the
    checkpoint are dropped.

    Args:
        settings: the run's, with what the user changed.
        data: the data it was trained on.
        epoch: finished epochs to go on from; None for the latest checkpoint that is whole.
        world: device and processes; only the leading one reads the checkpoint.
        callback: told what happens, in the leading process.

    Raises:
        CheckpointError: if there is no usable checkpoint, or it does not fit the data.
        SettingsError: if the run has done all its epochs.
        Stopped: after a signal.
    """
    run = RunFolder(settings.run.folder / str(settings.run.name))
    check_batch(settings, data, world.size)
    tensors: dict[str, Tensor] = {}
    place = TrainState()
    if world.is_main:
        path, tensors, description = choose_checkpoint(run, epoch, callback)
        check_words(path, description, data)
        place = description.progress
        if place.epoch >= settings.train.epochs:
            raise SettingsError(
                f"run {run.name} has finished its {settings.train.epochs} epochs",
                f"trarctl resume {run.name} --epochs {settings.train.epochs + 1} trains on",
            )
        rewind(run, place)
        write_settings(run, settings, data.path)
        run.log(f"resumed from {path.name}, {_now()}")
        callback = both(journal(run), callback)
    place = world.broadcast(place)
    return _train(settings, data, run, (share_tensors(tensors, world), place), world=world, callback=callback)


def _train(
    settings: Settings,
    data: PreparedData,
    run: RunFolder,
    state: tuple[dict[str, Tensor], TrainState],
    *,
    world: World,
    callback: Callback,
) -> TrainState:
    tensors, place = state
    use_threads(settings.run.num_threads)
    reuse_freed_memory()
    model = build_model(settings, data)
    if tensors:
        load_weights(model, model_tensors(tensors), run.path)
    model.to(world.device)
    train = settings.train
    optimizer = torch.optim.Adam(
        model.parameters(), lr=train.learning_rate, betas=train.adam_betas, eps=train.adam_epsilon, fused=True
    )
    restore_optimizer(model, optimizer, tensors)
    with (
        stop_requests() as stop,
        open_loggers(run, settings, first_step=place.step) if world.is_main else nullcontext(no_callback) as log,
    ):
        callback = both(callback, log)
        network = wrap_network(model, settings, world)
        stepper = Stepper(settings, world, model, network, optimizer, len(data.answers))
        return Trainer(settings, data, run, world, callback, stepper, place, stop).fit()


def wrap_network(model: TRAR, settings: Settings, world: World) -> nn.Module:
    """The model as training calls it: compiled if asked for, sharing gradients where there are several processes."""
    network: nn.Module = model
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        with collective(), warnings.catch_warnings():
            # Newer versions call the argument another name, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            network = DistributedDataParallel(
                network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        if world.device.type == "cpu":
            # A lambda, since torch compares a function's annotations and they are text here.
            network.register_comm_hook(world.size, lambda size, bucket: average_in_order(size, bucket))
    if settings.run.compile:
        network.compile()
    return network


def check_batch(settings: Settings, data: PreparedData, num_processes: int) -> None:
    """See that the batch divides among parts and processes, and that there are samples for one.

    Raises:
        SettingsError: naming the nearest sizes that do.
        DataError: if a split is missing or has no answers.
    """
    train = settings.train
    share = train.accumulation * num_processes
    if train.batch_size % share:
        below, above = train.batch_size // share * share, (train.batch_size // share + 1) * share
        sizes = f"{below} and {above}" if below else str(above)
        raise SettingsError(
            f"batch size {train.batch_size} does not divide into {share} equal parts, {train.accumulation} on each of "
            f"{num_processes} processes (nearest that do: {sizes})",
            f"--batch-size {above}",
        )
    for split in {settings.data.split, settings.data.later_split or settings.data.split}:
        num_samples = len(training_samples(data, split, train.loss))
        if num_samples < train.batch_size:
            raise SettingsError(
                f"batch size {train.batch_size} is larger than the {num_samples} samples of {split}",
                f"--batch-size {num_samples // share * share or 1} or less",
            )


def choose_checkpoint(
    run: RunFolder, epoch: int | None, callback: Callback
) -> tuple[Path, dict[str, Tensor], Description]:
    """Load the checkpoint to go on from: that of an epoch, or the latest that is whole.

    Damaged ones are named and passed over, except the one asked for.

    Raises:
        CheckpointError: if there is none.
    """
    saved = run.saved()
    if epoch is not None:
        path = run.epoch_checkpoint(epoch)
        if not path.is_file():
            kept = ", ".join(str(finished) for finished, step, _ in saved if step == 0) or "none"
            raise CheckpointError(
                f"run {run.name} has no checkpoint of epoch {epoch} (there are: {kept})",
                f"trarctl resume {run.name} --epoch N",
            )
        return path, *load_checkpoint(path)
    for _, _, path in reversed(saved):
        try:
            return path, *load_checkpoint(path)
        except CheckpointError as error:
            callback(Note(f"{error.what}; taking the one before"))
    raise CheckpointError(f"run {run.name} has no usable checkpoint", "start again: trarctl train")


def rewind(run: RunFolder, place: TrainState) -> None:
    """Forget what a run did behind a place: metrics are dropped, checkpoints set aside, torn ones removed."""

    def is_before(entry: dict[str, Any]) -> bool:
        step = entry.get("step", 0)
        # Behind the last step of an epoch its own end is still to come.
        is_end_of_epoch = entry.get("event") != "step" and place.step_in_epoch > 0
        return step < place.step or (step == place.step and not is_end_of_epoch)

    kept = [entry for entry in run.metrics() if is_before(entry)]
    temporary = run.metrics_file.with_suffix(".tmp")
    temporary.write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in kept))
    temporary.replace(run.metrics_file)
    for epoch, step, path in run.saved():
        if (epoch, step) > (place.epoch, place.step_in_epoch):
            aside = run.checkpoints / "superseded"
            aside.mkdir(exist_ok=True)
            path.replace(aside / path.name)
    for torn in run.checkpoints.glob(".*.tmp"):
        torn.unlink(missing_ok=True)


def _now() -> str:
    return f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
