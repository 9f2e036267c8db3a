"""Weights of networks that describe pictures: read without trusting the file, or downloaded once for all data sets."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trarctl.data import Progress
from trarctl.data.download import Download, fetch, plan, refuse_full_disk
from trarctl.errors import DataError
from trarctl.files import refusing

if TYPE_CHECKING:
    from torch import Tensor

HINT = "--weights FILE, as it is published"
CACHE_VARIABLE = "TRARCTL_CACHE"
_LONGEST_WAIT_SECONDS = 3600.0


class Weights(NamedTuple):
    """What a file of weights holds: tensors by name, and the versions of the modules that wrote them, if it tells."""

    tensors: dict[str, Tensor]
    versions: dict[str, int]


def read_weights(path: Path, hint: str = HINT) -> Weights:
    """Read a state dict from ``.safetensors``, or from what ``torch.save`` writes; no code in it is run.

    A dictionary around it is taken off: ``model`` (detectron2, timm), ``state_dict`` and ``model_state_dict``; so is
    the prefix ``module.``, if all names have it.

    Raises:
        DataError: if the file cannot be read or holds no tensors; ``hint`` says which file to take.
    """
    import torch

    with refusing(f"cannot read the weights {path}", hint), path.open("rb") as file:
        head = file.read(16)
    if _is_program(path):
        raise DataError(f"{path} is a program in TorchScript; it is not run to get its weights", hint)
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes its reader raise is not documented
        raise DataError(f"{path} is not a file of weights, or is damaged", hint) from error
    for around in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(around), dict):
            found = found[around]
    if not isinstance(found, dict):
        raise DataError(f"{path} does not hold weights by name", hint)
    metadata = getattr(found, "_metadata", None) or {}
    tensors = {
        name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise DataError(f"{path} does not hold weights by name", hint)
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    versions = {
        name.removeprefix(prefix): one["version"]
        for name, one in metadata.items()
        if isinstance(one, dict) and isinstance(one.get("version"), int)
    }
    return Weights({name.removeprefix(prefix): value for name, value in tensors.items()}, versions)


def _is_program(path: Path) -> bool:
    """Whether a file is an archive of ``torch.jit.save``, as OpenAI publishes CLIP."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file of weights, hexadecimal; DataError if it cannot be read."""
    with refusing(f"cannot read the weights {path}", HINT), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Give the folder of downloaded weights: TRARCTL_CACHE, or ``trarctl`` in the user's own folder of caches."""
    if named := os.environ.get(CACHE_VARIABLE, "").strip():
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trarctl"


def fetch_weights(download: Download, progress: Progress) -> tuple[Path, str]:
    """Have published weights in the cache, fetched if they are missing, and give their path and SHA-256."""
    refuse_full_disk(plan([download], cache_folder()), cache_folder())
    try:
        # Processes that share pictures ask for the same weights at once.
        (fetched,) = fetch([download], cache_folder(), progress, wait_seconds=_LONGEST_WAIT_SECONDS)
    except DataError as error:
        raise DataError(
            error.what, f"{HINT}, needs no network; or run it again later: what has arrived is kept"
        ) from error
    return fetched.path, fetched.sha256
