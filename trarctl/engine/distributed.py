"""Devices and processes: where a run computes, in which processes, and how they exchange values.

One process per device. A run on several devices is started by ``trarctl.engine.launch``, or joins the group that
``torchrun`` or Slurm has made. What a process changes about itself stands here too: threads, memory, precision, seed.
"""

from __future__ import annotations

import ctypes
import re
import resource
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.parallel import DistributedDataParallel

from trarctl.config import Precision, WantedPrecision
from trarctl.engine.signals import StopRequest
from trarctl.errors import DeviceError, SettingsError, first_line, listed, shortened
from trarctl.groups import LEFT_BEHIND, Group, num_restarts, read_group
from trarctl.processors import threads_of_each

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

MOST_SHOWN = 60  # characters of a value that differs between processes
GRACE_SECONDS = 2.0  # for which a process that lost another lets those report that know the cause
# For threads of gloo to release what they have computed. They need Python for it: where it is ending, they abort.
RELEASE_SECONDS = 0.2
# Names and numbers of glibc's malloc.h, and its defaults.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
_MALLOC_DEFAULTS = {M_MMAP_MAX: 65_536, M_TRIM_THRESHOLD: 128 * 2**10, M_TOP_PAD: 128 * 2**10}
_MALLOC_REUSING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * 2**20}


@dataclass(frozen=True)
class World:
    """The processes that work together, as one of them sees them."""

    rank: int
    size: int
    device: torch.device
    store: Store | None = None  # what all of them can read and write; None for one that is alone
    stop: StopRequest = field(default_factory=StopRequest)  # of this process

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def all_reduce(self, array: NDArray[Any]) -> NDArray[Any]:
        """The sum of all processes' arrays, in place, in every process."""
        if self.size > 1:
            with collective():
                dist.all_reduce(torch.from_numpy(array))
        return array

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """All processes' arrays, of the same shape and type, in the main process; nothing in the others."""
        if self.size == 1:
            return [array]
        arrays = [np.empty_like(array) for _ in range(self.size if self.is_main else 0)]
        with collective():
            dist.gather(torch.from_numpy(array), [torch.from_numpy(one) for one in arrays] or None)
        return arrays

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in every process; it is pickled, so small and our own."""
        if self.size == 1:
            return value
        box = [value]
        with collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's CPU tensors, in every process."""
        if self.size == 1:
            return tensors
        shapes = self.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        shared = {}
        for name, (shape, dtype) in shapes.items():
            shared[name] = tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)
            with collective():
                dist.broadcast(shared[name], src=0)
        return shared

    def all_gather(self, value: Any) -> list[Any]:
        """All processes' values, in every process; they are pickled, so small and our own."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with collective():
            dist.all_gather_object(values, value)
        return values

    def require_equal(self, values: Mapping[str, object], hint: str) -> None:
        """Compare what all processes must agree on; collective, with the same number of values or not.

        Values are compared and shown as text. A SettingsError, in every process, names those that differ.
        """
        everyone: list[dict[str, str]] = self.all_gather({key: str(value) for key, value in values.items()})
        first, differing = everyone[0], {}
        for rank, mine in enumerate(everyone):
            for key in first | mine:
                pair = _shown(first.get(key)), _shown(mine.get(key))
                if first.get(key) != mine.get(key) and key not in differing:
                    differing[key] = f"{key} is {pair[0]} in process 0 and {pair[1]} in process {rank}"
        if differing:
            raise SettingsError(f"the processes of this group differ: {listed(differing.values(), most=5)}", hint)

    def may_report(self, *, knows_cause: bool) -> bool:
        """Whether this process is the one of all to report what ended the work early; to be asked once.

        One that does not know the cause, but only lost another process, waits a moment for those that do.
        """
        if self.store is None:
            return True
        if not knows_cause:
            time.sleep(GRACE_SECONDS)
        store, mine = self.store, str(self.rank)
        try:
            return bool(within(GRACE_SECONDS, lambda: store.compare_set("reporter", "", mine)) == mine.encode())
        except (RuntimeError, TimeoutError):
            # Where process 0 keeps the store, both go together: the next one reports.
            return self.rank == 1


def _shown(value: str | None) -> str:
    return "not there" if value is None else shortened(value, most=MOST_SHOWN) or "empty"


class LostProcess(DeviceError):
    """Another process has gone or does not answer; why, that one may know."""


_NETWORK = re.compile(r"gloo|nccl|connection|timed? ?out|broken pipe|socket|store", re.IGNORECASE)


@contextmanager
def collective() -> Iterator[None]:
    """Wrap what processes do together: a lost one shows as a network error, which becomes a ``LostProcess``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = first_line(error)
        if not isinstance(error, dist.DistError) and not _NETWORK.search(text):
            raise
        raise LostProcess(
            f"another process was lost ({text[:300]})", "trarctl resume goes on from the latest checkpoint"
        ) from error


def share_gradients(model: nn.Module, world: World, *, is_accumulated: bool) -> nn.Module:
    """The model as training calls it: with several processes, their gradients are averaged after each batch.

    ``is_accumulated``: gradients of several parts are added up first.
    """
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    with collective(), warnings.catch_warnings():
        # Newer versions call the argument another name, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        network = DistributedDataParallel(
            model,
            device_ids=ids,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # With it, torch would exchange the first gradients of all after the first part instead of the last.
            static_graph=not is_accumulated,
        )
    if world.device.type == "cpu":
        # A lambda, since torch compares a function's annotations and they are text here.
        network.register_comm_hook(world.size, lambda size, bucket: _average_in_order(size, bucket))
    return network


def share_weights(model: nn.Module) -> None:
    """Give all processes the weights of the main one."""
    with collective():
        for weight in model.parameters():
            dist.broadcast(weight.detach(), src=0)


class PackedGradients:
    """The gradients of a model in one tensor that keeps its place, for one collective between two recordings.

    Args:
        model: the same in all processes.
        world: which average its gradients.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self._model, self._world = model, world
        self._parameters: list[nn.Parameter] = []  # those that have a gradient
        self._packed = torch.empty(0)
        self._parts: list[torch.Tensor] = []  # of it, one for each of them

    def pack(self) -> None:
        """Copy the gradients there."""
        if not self._parameters:
            self._parameters = [one for one in self._model.parameters() if one.grad is not None]
            # Each begins at a multiple of 16 bytes, where kernels read four numbers at once.
            sizes = [-(-one.numel() // 4) * 4 for one in self._parameters]
            self._packed = self._parameters[0].new_zeros(sum(sizes))
            parts = zip(self._packed.split(sizes), self._parameters, strict=True)
            self._parts = [part[: one.numel()].view_as(one) for part, one in parts]
        torch._foreach_copy_(self._parts, [cast(torch.Tensor, one.grad) for one in self._parameters])

    def average(self) -> None:
        """Average them over all processes."""
        with collective():
            dist.all_reduce(self._packed)
        self._packed /= self._world.size

    def unpack(self) -> None:
        """Let the parameters have them as their gradients."""
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part


def _average_in_order(num_processes: int, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average gradients so that the last bit does not depend on how they are packed.

    DistributedDataParallel adds them in an order that depends on where a gradient lies in its bucket, and packs the
    buckets again after the first step: a resumed run would differ. For two processes the order does not matter.
    """
    mine = bucket.buffer()
    if num_processes == 2:
        summed = dist.all_reduce(mine, async_op=True).get_future()
        return summed.then(lambda done: done.value()[0].div_(num_processes))
    parts = [torch.empty_like(mine) for _ in range(num_processes)]

    def average(_done: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
        for part in parts[1:]:
            parts[0].add_(part)
        return parts[0].div_(num_processes)

    return dist.all_gather(parts, mine, async_op=True).get_future().then(average)


@dataclass(frozen=True)
class Placement:
    """Where the processes of a command compute; ``group`` is one that exists already."""

    devices: tuple[str, ...]  # one name a process on this machine, ``cpu`` or ``cuda:INDEX``
    group: Group | None = None

    @property
    def num_processes(self) -> int:
        """How many processes work together."""
        return len(self.devices) if self.group is None else self.group.size

    @property
    def rank(self) -> int:
        """The number of this process among all."""
        return 0 if self.group is None else self.group.rank

    @property
    def device(self) -> str:
        """Where this process computes."""
        return self.devices[0 if self.group is None else self.group.local_rank]


def plan_placement(gpus: str | None, environ: Mapping[str, str]) -> Placement:
    """Decide where to compute; the environment says whether ``torchrun`` or Slurm has started several processes.

    ``gpus`` are indices joined by commas, ``cpu``, ``cpu:COUNT``, or None for a GPU where there is one.
    """
    group = read_group(environ)
    if group is None:
        return Placement(_devices(gpus, 1))
    devices = _devices(gpus, group.local_size)
    if len(devices) == 1:
        devices *= group.local_size
    if len(devices) != group.local_size:
        raise DeviceError(
            f"--gpus {gpus} names {len(devices)} devices, {group.local_size} processes were started on this machine",
            f"start as many processes as devices: --nproc-per-node {len(devices)}",
        )
    return Placement(devices, group)


@contextmanager
def joined(placement: Placement, *, timeout_seconds: float) -> Iterator[World]:
    """Join the group of processes, and leave it when the block ends; DeviceError if the others cannot be reached."""
    group = placement.group
    device = torch.device(placement.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if group is None or group.size == 1:
        yield World(0, 1, device)
        return
    timeout = timedelta(seconds=timeout_seconds)
    try:
        # A little longer than the waits inside, which say better what they wait for.
        store = within(timeout_seconds + GRACE_SECONDS, lambda: _meet(group, timeout))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=timeout)
    except (RuntimeError, ValueError, TimeoutError) as error:
        where = f"{group.address}:{group.port}"
        raise DeviceError(
            f"process {group.rank} of {group.size} cannot join the others at {where}: {first_line(error)}",
            "check that all machines reach MASTER_ADDR:MASTER_PORT, that no other program uses that port, and that all "
            "processes were started, each with its own number",
        ) from error
    num_threads = threads_of_each(len(placement.devices)) if device.type == "cpu" else None
    try:
        with use_threads(num_threads):
            yield World(group.rank, group.size, device, PrefixStore("trarctl", store))
    finally:
        dist.destroy_process_group()
        time.sleep(RELEASE_SECONDS)


def _meet(group: Group, timeout: timedelta) -> Store:
    """Find the other processes, and see that they are those of this group; afterwards all have come."""
    is_host = group.rank == 0 and not group.has_agent
    store: Store = TCPStore(group.address, group.port, group.size, is_host, timeout, wait_for_workers=False)
    if not group.has_agent:
        # Process 0 says which group it is; a launcher that keeps the store itself has seen to that.
        mine = f"{group.name} with {group.size} processes"
        if is_host:
            store.set("trarctl-group", mine)
        theirs = store.get("trarctl-group").decode()
        if theirs != mine:
            raise DeviceError(
                f"another group meets at {group.address}:{group.port}: {theirs}; this process belongs to {mine}",
                "give each group a MASTER_PORT of its own",
            )
    # The elastic launcher keeps one store through restarts: without a prefix of its own, an attempt would take the
    # addresses of lost processes for those of its own.
    store = PrefixStore(f"attempt-{num_restarts()}-of-{group.size}", store)
    if not group.has_agent and store.add(f"has-come-{group.rank}", 1) > 1:
        raise DeviceError(
            f"there is already a process {group.rank} of {group.size} at {group.address}:{group.port}",
            "give each process a RANK of its own, and each group a MASTER_PORT of its own",
        )
    store.set(f"is-here-{group.rank}", "")
    store.wait([f"is-here-{rank}" for rank in range(group.size)], timeout)
    return store


Result = TypeVar("Result")


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function of the network that may never return, and no signal may interrupt; TimeoutError if it does not.

    It is called in another thread, which is left behind then.
    """
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            future.set_exception(error)

    threading.Thread(target=call, name=LEFT_BEHIND, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


@contextmanager
def use_threads(num_threads: int | None) -> Iterator[None]:
    """Compute on that many CPU threads while the block runs; None: as now, but no more than this process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or min(before, threads_of_each(1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reuse_freed_memory() -> bool:
    """Let the C library reuse large blocks, which otherwise the system fills with zeros again; whether it is glibc."""
    return _set_malloc(_MALLOC_REUSING)


@contextmanager
def reused_memory() -> Iterator[None]:
    """``reuse_freed_memory`` while the block runs; afterwards the C library has its defaults again."""
    reuse_freed_memory()
    try:
        yield
    finally:
        _set_malloc(_MALLOC_DEFAULTS)


def _set_malloc(options: Mapping[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in options.items())


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed dropout and noise for one step, so that a resumed run draws what the undisturbed one would have drawn."""
    mixed = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed) % 2**63)


def training_precision(device: torch.device, wanted: WantedPrecision, before: Precision | None = None) -> Precision:
    """The precision that a run trains in: ``auto`` is bf16 on a GPU that has it, fp32 elsewhere.

    A run that goes on keeps with ``auto`` that of ``before``, if the device has it.
    """
    if wanted != "auto":
        return wanted
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if before == "fp32" or (before == "bf16" and has_bf16):
        return before
    return "bf16" if has_bf16 else "fp32"


@contextmanager
def tf32_allowed(device: torch.device, precision: Precision) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products on NVIDIA GPUs while the block runs; for what runs backward, too."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if device.type == "cuda":
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def precision_of(device: torch.device, precision: Precision) -> Iterator[None]:
    """Give matrix products of a forward pass that precision while the block runs."""
    is_bf16 = precision == "bf16"
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if is_bf16 else nullcontext()
    with tf32_allowed(device, precision), autocast:
        yield


@contextmanager
def enough_memory(hint: str) -> Iterator[None]:
    """Turn the errors of memory that the system does not give, on the CPU, into a DeviceError with a hint."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and "can't allocate memory" not in text:
            raise
        asked = re.search(r"allocate ([\d.]+) ?(\w+)", text)
        many = f": {float(asked[1]):,.0f} {asked[2]} more were asked for" if asked else ""
        raise DeviceError(f"the computer has too little memory{many}", hint) from error


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device; for the CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _devices(gpus: str | None, num_processes: int) -> tuple[str, ...]:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        return tuple(f"cuda:{index}" for index in range(min(num_processes, available))) or ("cpu",)
    if match := re.fullmatch(r"cpu(?::(0*[1-9][0-9]{0,2}))?", gpus.strip()):
        return ("cpu",) * int(match[1] or 1)
    texts = [text.strip() for text in gpus.split(",")]
    indices = [int(text) for text in texts if re.fullmatch(r"[0-9]{1,4}", text)]
    if len(set(indices)) != len(texts):
        raise DeviceError(
            f"--gpus {gpus}: expected different GPU indices joined by commas, cpu, or cpu:COUNT",
            "for example --gpus 0, --gpus 0,1 or --gpus cpu",
        )
    missing = [str(index) for index in indices if index >= available]
    if missing:
        present = {0: "no GPU", 1: "one GPU, 0"}.get(available, f"GPUs 0 to {available - 1}")
        raise DeviceError(
            f"--gpus {gpus}: there is no GPU {', '.join(missing)}; this machine has {present}",
            "--gpus cpu runs on the CPU" if not available else "choose among those, or --gpus cpu",
        )
    return tuple(f"cuda:{index}" for index in indices)
