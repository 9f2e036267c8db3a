"""float32 to float16, several times as fast as numpy's own conversion, to the same bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
# The smallest float32 that is a normal number in float16, and the smallest that rounds to infinity there.
_SMALLEST_NORMAL = np.uint32(0x38800000)
_SMALLEST_INFINITE = np.uint32(0x477FF000)
# Moves the exponent from float32's bias of 127 to float16's of 15, and rounds the 13 bits that go, halves to even.
_REBIAS_AND_ROUND = np.uint32((0xFFF - (112 << 23)) % 2**32)
_DROPPED_BITS = np.uint32(13)


def store_half(array: npt.NDArray[np.float32], out: npt.NDArray[np.float16]) -> bool:
    """Convert, rounding to the nearest float16.

    Args:
        array: any shape.
        out: where to write, of the same shape.

    Returns:
        Whether every value is finite in float16; if not, ``out`` is not written.
    """
    bits = array.view(np.uint32)
    magnitude = bits & _MAGNITUDE
    if magnitude.max(initial=0) >= _SMALLEST_INFINITE:
        return False
    half = magnitude >> _DROPPED_BITS
    half &= np.uint32(1)
    half += magnitude
    half += _REBIAS_AND_ROUND
    half >>= _DROPPED_BITS
    # Smaller values come out as rubbish: zeros are set here, the few others below.
    half *= magnitude >= _SMALLEST_NORMAL
    bits = bits & _SIGN
    bits >>= np.uint32(16)
    half |= bits
    out.view(np.uint16)[...] = half
    magnitude -= np.uint32(1)
    is_tiny = magnitude < _SMALLEST_NORMAL - np.uint32(1)
    if is_tiny.any():
        out[is_tiny] = array[is_tiny].astype(np.float16)
    return True
