"""How batches reach the device that computes: from features that stay in memory, copied while it computes.

Where features are kept changes no number. Each process keeps a copy of its own; all copies on a machine are counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch

from trarctl.config import Cache, WantedCache
from trarctl.data.features.resident import ResidentFeatures, num_resident_bytes
from trarctl.data.loader import Batch, Rows
from trarctl.data.prepared import PreparedData
from trarctl.engine.callbacks import Callback, Note, Progressed
from trarctl.engine.distributed import World
from trarctl.errors import DeviceError
from trarctl.groups import read_group
from trarctl.processors import Memory, usable_memory

RESERVED = 0.25  # of all memory, that features leave to a model and its batches if nobody says where to keep them


def memory_of(device: torch.device) -> Memory:
    """The memory of a device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total, free)
    return usable_memory()


def keep_features(
    data: PreparedData,
    rows: Callable[[], Rows],
    wanted: WantedCache,
    world: World,
    callback: Callback,
    *,
    num_threads: int = 1,
    read_memory: Callable[[torch.device], Memory] = memory_of,
) -> ResidentFeatures | None:
    """Read the features of images into memory if they shall stay there; all processes take part and decide alike.

    ``rows`` of the image table, ascending, are asked for only then. ``wanted`` is ``data.cache``; ``auto`` keeps them
    on a GPU if they fit beside what is reserved there, else in the machine's memory likewise; for a CPU it keeps none.
    ``callback`` gets one note: where they are kept and how much memory they take, or why they are not.
    ``read_memory`` tells the memory of a device.

    Raises:
        DeviceError: if they do not fit where the user wants them.
    """
    device, cpu = world.device, torch.device("cpu")
    if wanted == "none" or (wanted == "auto" and device.type == "cpu"):
        return None
    images = rows()
    num_bytes = num_resident_bytes(data.features, len(images))
    group = read_group(os.environ) if world.size > 1 else None
    num_here = world.size if group is None else group.local_size
    # All read before one of them takes any.
    readings = world.all_gather((read_memory(device), read_memory(cpu), num_here))
    # Processes on one machine share its memory; each has a GPU of its own.
    sharing = max(reading[2] for reading in readings)
    memories = {
        "device": (_least(reading[0] for reading in readings), 1 if device.type == "cuda" else sharing),
        "ram": (_least(reading[1] for reading in readings), sharing),
    }
    names = {"device": str(device), "ram": "memory"}
    kept = f"the features of {len(images):,} images take {num_bytes / 1e9:,.2f} GB"
    place: Cache = "none"
    if wanted != "auto":
        place = wanted
        memory, copies = memories[place]
        if copies * num_bytes > memory.free:
            each = f" in each of {copies} processes" if copies > 1 else ""
            raise DeviceError(
                f"data.cache={wanted}: {kept}{each}, {names[wanted]} has {memory.free / 1e9:,.2f} GB free",
                "--set data.cache=auto keeps them where they fit, data.cache=none reads them from their files",
            )
    else:
        for choice in ("device", "ram"):
            memory, copies = memories[choice]
            if place == "none" and copies * num_bytes <= memory.free - RESERVED * memory.total:
                place = choice
    callback(Note(f"data.cache={place}: {kept}{_where(place, names, memories, world)}"))
    if place == "none":
        return None

    def progress(task: str, done: int, total: int | None) -> None:
        callback(Progressed(task, done, total))

    on = device if place == "device" else None
    return ResidentFeatures(data.features, images, device=on, num_threads=max(num_threads, 1), progress=progress)


def _least(readings: Iterable[Memory]) -> Memory:
    """The memory with the least that is free, beside what is reserved of it."""
    return min(readings, key=lambda memory: memory.free - RESERVED * memory.total)


def _where(place: Cache, names: dict[str, str], memories: dict[str, tuple[Memory, int]], world: World) -> str:
    """The end of the note: where features are kept, or how much room there is."""
    if place == "none":
        rooms = (f"{memory.free / 1e9:,.2f} GB of {names[name]}" for name, (memory, _) in memories.items())
        beside = f"a quarter of each is left for the rest; each of {world.size} process(es) keeps a copy"
        return f", too much for what is free ({', '.join(rooms)}; {beside}): they are read from their files"
    copies = f", in each of {world.size} processes" if world.size > 1 else ""
    return f" of {names[place]}{copies}"


class Copies(Protocol):
    """What copies batches to a device while that computes."""

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        """Begin to copy a batch: what gives it on the device, to work that begins afterwards and waits for the copy."""
        ...


class CudaCopies:
    """Copy on a stream of its own, whose memory the streams that use a batch must be known to."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> Callable[[], Batch]:
        """See ``Copies``."""
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device)
            done = self._stream.record_event()

        def ready() -> Batch:
            user = torch.cuda.current_stream(self._device)
            user.wait_event(done)
            for tensor in copied.tensors():
                # Otherwise a later copy might take its memory while this stream still reads it.
                tensor.record_stream(user)
            return copied

        return ready


def copies_to(device: torch.device) -> Copies | None:
    """What copies batches to a device while it computes; None where that is of no use."""
    return CudaCopies(device) if device.type == "cuda" else None


def on_device(batches: Iterable[Batch], device: torch.device, copies: Copies | None) -> Iterator[Batch]:
    """Give batches on a device; with ``copies``, the copy of each begins before the work on the one before it."""
    if copies is None:
        yield from (batch.to(device) for batch in batches)
        return
    before: Callable[[], Batch] | None = None
    for batch in batches:
        begun = copies.begin(batch)
        if before is not None:
            yield before()
        before = begun
    if before is not None:
        yield before()
