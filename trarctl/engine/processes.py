"""Devices and processes: where a run computes, and with whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trarctl.errors import DeviceError


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Attributes:
        rank: number of this process, 0 leads: it alone writes files and speaks.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def choose_device(gpus: str | None) -> torch.device:
    """The device that ``--gpus`` names.

    Args:
        gpus: a GPU's index, ``cpu``, or None for a GPU where there is one.

    Raises:
        DeviceError: if there is no such GPU.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus is None:
        return torch.device("cuda", 0) if available else torch.device("cpu")
    if gpus == "cpu":
        return torch.device("cpu")
    if not gpus.isdigit():
        raise DeviceError(f"--gpus {gpus}: expected a GPU index or cpu", "for example --gpus 0, or --gpus cpu")
    if int(gpus) >= available:
        there = f"GPUs 0 to {available - 1}" if available else "no GPU"
        raise DeviceError(f"--gpus {gpus}: this machine has {there}", "--gpus cpu runs on the CPU")
    return torch.device("cuda", int(gpus))


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seed dropout and noise for one step, so that they depend on nothing but the seed, the step and the process.

    A resumed run therefore draws what the undisturbed run would have drawn.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**63
    torch.manual_seed(mixed)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on the device; for the CPU, its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
