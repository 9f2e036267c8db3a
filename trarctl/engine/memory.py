"""The C library's memory: kept for the next step instead of given back after each."""

from __future__ import annotations

import ctypes

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEEP_BYTES = 2**31 - 1
GROW_BYTES = 64 * 2**20


def reuse_freed_memory() -> bool:
    """Let large blocks be reused: by default each goes back to the system, which fills it with zeros the next time.

    A training step frees and takes the same blocks over and over; so does whatever reads batches ahead.

    Returns:
        Whether the C library is one that can be told (glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEEP_BYTES), (M_TOP_PAD, GROW_BYTES))
    return all(mallopt(option, value) == 1 for option, value in options)
