"""Devices and processes: where a run computes, in which processes, and how they exchange values.

One process per device. A run on several devices is started by ``trarctl.engine.launch``, or joins the group that
``torchrun`` or Slurm has made. What a process changes about itself stands here too: threads, memory, precision, seed.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from trarctl.config import Precision
from trarctl.errors import DeviceError, SettingsError, listed

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

        Values are compared and shown as text.

        Raises:
            SettingsError: in every process, if any value differs from process 0's; it names keys and both values.
        """
        everyone: list[dict[str, str]] = self.all_gather({key: str(value) for key, value in values.items()})
        first, differing = everyone[0], {}
        for rank, mine in enumerate(everyone):
            for key in (*first, *(key for key in mine if key not in first)):
                if key not in differing and first.get(key) != mine.get(key):
                    pair = _shortened(first.get(key)), _shortened(mine.get(key))
                    differing[key] = f"{key} is {pair[0]} in process 0 and {pair[1]} in process {rank}"
        if differing:
            raise SettingsError(
                f"the processes of this group differ: {listed(differing.values(), len(differing), most=5)}", hint
            )

    def may_report(self, *, knows_cause: bool) -> bool:
        """Whether this process is the one of all to report what ended the work early; to be asked once.

        One that does not know the cause, but only lost another process, waits a moment for those that do.
        """
        if self.store is None:
            return True
        if not knows_cause:
            time.sleep(GRACE_SECONDS)
        try:
            return bool(self.store.compare_set("reporter", "", str(self.rank)) == str(self.rank).encode())
        except RuntimeError:
            # Where process 0 keeps the store, both go together: the next one reports.
            return self.rank == 1


def _shortened(value: str | None) -> str:
    if not value:
        return "not there" if value is None else "empty"
    return value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}..."


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
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and not _NETWORK.search(text):
            raise
        raise LostProcess(
            f"another process was lost ({text[:300]})", "trarctl resume goes on from the latest checkpoint"
        ) from error


def share_gradients(model: nn.Module, world: World) -> nn.Module:
    """The model as training calls it: with several processes, their gradients are averaged after each batch."""
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    with collective(), warnings.catch_warnings():
        # Newer versions call the argument another name, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        network = DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    if world.device.type == "cpu":
        # A lambda, since torch compares a function's annotations and they are text here.
        network.register_comm_hook(world.size, lambda size, bucket: _average_in_order(size, bucket))
    return network


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
    """Where the processes of a command compute; ``rank`` and ``size`` are those of a group that exists already."""

    devices: tuple[str, ...]  # one name a process on this machine, ``cpu`` or ``cuda:INDEX``
    rank: int | None = None
    local_rank: int = 0  # among the processes on this machine
    size: int = 1

    @property
    def launches(self) -> bool:
        """Whether processes have to be started."""
        return self.rank is None and len(self.devices) > 1

    @property
    def num_processes(self) -> int:
        """How many processes work together."""
        return self.size if self.rank is not None else len(self.devices)


def plan_placement(gpus: str | None, environ: Mapping[str, str]) -> Placement:
    """Decide where to compute; the environment says whether ``torchrun`` or Slurm has started several processes.

    ``gpus`` are indices joined by commas, ``cpu``, ``cpu:COUNT``, or None for a GPU where there is one.

    Raises:
        DeviceError: if there is no such GPU, or the text cannot be read.
    """
    group = _torchrun_group(environ) or _slurm_group(environ)
    if group is None:
        return Placement(_devices(gpus, 1))
    rank, local_rank, local_size, size = group
    devices = _devices(gpus, local_size)
    if len(devices) == 1:
        devices *= local_size
    if len(devices) != local_size:
        raise DeviceError(
            f"--gpus {gpus} names {len(devices)} devices, {local_size} processes were started on this machine",
            f"start as many processes as devices: --nproc-per-node {len(devices)}",
        )
    return Placement(devices, rank, local_rank, size)


@contextmanager
def joined(placement: Placement, *, timeout_seconds: float) -> Iterator[World]:
    """Join the group of processes, and leave it when the block ends; DeviceError if the others cannot be reached."""
    rank = placement.rank or 0
    device = torch.device(placement.devices[placement.local_rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if placement.num_processes == 1:
        yield World(0, 1, device)
        return
    timeout = timedelta(seconds=timeout_seconds)
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(placement.devices)))
    try:
        store, rank, size = next(rendezvous("env://", rank, placement.size, timeout=timeout))
        # The elastic launcher keeps one store through restarts: without a prefix of its own, an attempt would take the
        # addresses of lost processes for those of its own.
        store = PrefixStore(f"attempt-{num_restarts()}-of-{size}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DeviceError(
            f"process {rank} of {placement.size} cannot join the others: {first}",
            "check that all machines reach MASTER_ADDR:MASTER_PORT and started with the same number of processes",
        ) from error
    try:
        yield World(rank, size, device, PrefixStore("trarctl", store))
    finally:
        dist.destroy_process_group()
        time.sleep(RELEASE_SECONDS)


def num_restarts() -> int:
    """How often the launcher has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def use_threads(num_threads: int | None) -> Iterator[None]:
    """Compute on that many CPU threads while the block runs; None leaves it as it is."""
    before = torch.get_num_threads()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        if num_threads is not None:
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


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device; for the CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _devices(gpus: str | None, num_processes: int) -> tuple[str, ...]:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        return tuple(f"cuda:{index}" for index in range(min(num_processes, available))) or ("cpu",)
    if match := re.fullmatch(r"cpu(?::(\d+))?", gpus):
        return ("cpu",) * max(int(match[1] or 1), 1)
    indices = gpus.replace(" ", "").split(",")
    if not all(index.isdigit() for index in indices) or len(set(indices)) != len(indices):
        raise DeviceError(
            f"--gpus {gpus}: expected different GPU indices joined by commas, cpu, or cpu:COUNT",
            "for example --gpus 0, --gpus 0,1 or --gpus cpu",
        )
    missing = [index for index in indices if int(index) >= available]
    if missing:
        present = {0: "no GPU", 1: "one GPU, 0"}.get(available, f"GPUs 0 to {available - 1}")
        raise DeviceError(
            f"--gpus {gpus}: there is no GPU {', '.join(missing)}; this machine has {present}",
            "--gpus cpu runs on the CPU" if not available else "choose among those, or --gpus cpu",
        )
    return tuple(f"cuda:{index}" for index in indices)


def _torchrun_group(environ: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")
    if not all(name in environ for name in (*names, "MASTER_ADDR", "MASTER_PORT")):
        return None
    rank, local_rank, local_size, size = (int(environ[name]) for name in names)
    return rank, local_rank, local_size, size


def _slurm_group(environ: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """The group that ``srun`` started, if it started several tasks; sets the address for them."""
    size = int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1")))
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ or size < 2:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST", environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    os.environ.setdefault("MASTER_ADDR", first_host(nodes))
    os.environ.setdefault("MASTER_PORT", str(10_000 + int(environ.get("SLURM_JOB_ID", "0")) % 20_000))
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1"))
    counts: list[int] = []
    for per_node, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(per_node)] * int(repeat or 1)
    local_size = counts[min(int(environ.get("SLURM_NODEID", "0")), len(counts) - 1)]
    return int(environ["SLURM_PROCID"]), int(environ.get("SLURM_LOCALID", "0")), local_size, size


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``gpu[03-05,9],cpu1`` -> ``gpu03``."""
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return nodes if match is None else match[1] + (match[2] or "")
