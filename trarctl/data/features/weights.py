"""Weights of networks that describe pictures: which reader they have, and a cache of those that are downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from trarctl.data import Progress
from trarctl.data.download import Download, fetch, plan, refuse_full_disk
from trarctl.errors import DataError
from trarctl.files import file_sha256
from trarctl.weights import WeightsReader

HINT = "--weights FILE, as it is published"
CACHE_VARIABLE = "TRARCTL_CACHE"
_LONGEST_WAIT_SECONDS = 3600.0


def weights_reader(hint: str = HINT) -> WeightsReader:
    """Give the reader of a network's weights; ``hint`` says which file to take."""
    return WeightsReader("weights file", DataError, hint)


def digest_of_file(path: Path, hint: str = HINT) -> str:
    """SHA-256 of a file of weights, hexadecimal; DataError if it cannot be read, or is plainly none."""
    weights_reader(hint).kind_of(path)
    return file_sha256(path)


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
