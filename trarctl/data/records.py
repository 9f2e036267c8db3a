"""Read the long list of a raw JSON file in pieces, so that memory does not grow with the file."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from trarctl.data.progress import Progress, no_progress
from trarctl.errors import DataError

# Small enough that a piece and what is made of it stay in the processor's cache.
PIECE_BYTES = 1 << 19

_READABLE = "it has to be a file that can be read"

_QUOTE, _OPEN, _CLOSE, _COMMA, _BACKSLASH = 1, 2, 3, 4, 5
_KIND = np.zeros(256, dtype=np.uint8)
for _characters, _kind in ((b'"', _QUOTE), (b"{[", _OPEN), (b"}]", _CLOSE), (b",", _COMMA), (b"\\", _BACKSLASH)):
    for _character in _characters:
        _KIND[_character] = _kind


def read_records(
    path: Path, key: str | None, *, progress: Progress = no_progress, piece_bytes: int = PIECE_BYTES
) -> Iterator[list[object]]:
    """Read the list ``key`` of the object in a JSON file, a piece at a time.

    Args:
        path: the file: one JSON object, or a list where ``key`` is None.
        key: name of the list.
        progress: told the bytes read.
        piece_bytes: about how much is parsed at once.

    Yields:
        The elements of the list in order, many at a time.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or has no such list.
    """
    size = _size(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = _list_start(path, text, key)
        end = None
        for first, last, is_end in _cuts(path, text, start, piece_bytes):
            if records := _parse_piece(path, text, first, last, is_whole=is_end and first == start + 1):
                yield records
            progress(f"reading {path.name}", last, size)
            end = last
        assert end is not None  # noqa: S101 - _cuts ends with the closing bracket or raises
        _check_frame(path, text, start, end, key)


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise DataError(f"no file {path}", _READABLE)
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", _READABLE) from error
    if size == 0:
        raise DataError(f"{path} is empty", "download it again")
    return size


def _list_start(path: Path, text: mmap.mmap, key: str | None) -> int:
    """Find the bracket that opens the list."""
    pattern = rb"\s*\[" if key is None else rb'(?<!\\)"' + re.escape(key.encode()) + rb'"\s*:\s*\['
    match = re.match(pattern, text) if key is None else re.search(pattern, text)
    if match is None:
        _refuse_damaged(path, text)
        raise DataError(_missing_list(path, key), "check that it is the file that its name says")
    return match.end() - 1


def _missing_list(path: Path, key: str | None) -> str:
    return f"{path} does not hold a list" if key is None else f'{path} has no list "{key}"'


def _refuse_damaged(path: Path, text: mmap.mmap) -> None:
    try:
        orjson.loads(memoryview(text))
    except orjson.JSONDecodeError as error:
        raise _not_json(path, error.pos, error.msg) from None


def _not_json(path: Path, position: int, reason: str) -> DataError:
    return DataError(f"{path} is not valid JSON near byte {position:,}: {reason.split(':')[0]}", "download it again")


def _cuts(path: Path, text: mmap.mmap, start: int, piece_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Cut the list that opens at ``start`` between elements.

    Yields:
        First byte of a piece, the byte behind it (a comma, or the closing bracket), whether it is the closing bracket.
    """
    depth, is_inside_string, is_escaped = 0, False, False
    piece_start = start + 1
    size = len(text)
    for block_start in range(start, size, piece_bytes):
        positions, kinds, is_escaped = _block_tokens(text, block_start, piece_bytes, is_escaped=is_escaped)
        parity = np.cumsum(kinds == _QUOTE, dtype=np.int64) + is_inside_string
        is_outside = (parity & 1) == 0
        steps = ((kinds == _OPEN).astype(np.int8) - (kinds == _CLOSE)) * is_outside
        depths = np.cumsum(steps, dtype=np.int64) + depth
        closings = np.flatnonzero((depths == 0) & (steps == -1))
        stop = closings[0] if len(closings) else len(kinds)
        commas = np.flatnonzero((kinds[:stop] == _COMMA) & (depths[:stop] == 1) & is_outside[:stop])
        if len(closings):
            yield piece_start, block_start + int(positions[stop]), True
            return
        if len(commas):
            cut = block_start + int(positions[commas[-1]])
            yield piece_start, cut, False
            piece_start = cut + 1
        if len(kinds):
            depth, is_inside_string = int(depths[-1]), bool(parity[-1] & 1)
    raise DataError(f"{path} is cut off: it ends inside its list, after {size:,} bytes", "download it again")


def _block_tokens(
    text: mmap.mmap, start: int, length: int, *, is_escaped: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], bool]:
    # The view of the file must not outlive this call: a file that is still viewed cannot be closed.
    block = np.frombuffer(text, dtype=np.uint8, count=min(length, len(text) - start), offset=start)
    return _unescaped_tokens(block, is_escaped=is_escaped)


def _unescaped_tokens(
    block: npt.NDArray[np.uint8], *, is_escaped: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], bool]:
    """Find quotes, brackets and commas, leaving out quotes behind a backslash.

    Args:
        block: bytes, [B].
        is_escaped: whether the byte before the block is a backslash that escapes the first byte.

    Returns:
        Positions in the block [K], their kinds [K], and whether the block ends with an escaping backslash.
    """
    kinds = _KIND[block]
    positions = np.flatnonzero(kinds)
    kinds = kinds[positions]
    is_backslash = kinds == _BACKSLASH
    ends_escaping = False
    escaped = [0] if is_escaped else []
    if is_backslash.any():
        # A backslash escapes what follows unless it is itself escaped: within a run every second one is.
        slashes = positions[is_backslash]
        starts_run = np.ones(len(slashes), dtype=bool)
        starts_run[1:] = np.diff(slashes) != 1
        run_start = np.maximum.accumulate(np.where(starts_run, np.arange(len(slashes)), 0))
        place = slashes - slashes[run_start]
        if is_escaped and slashes[0] == 0:
            place[run_start == 0] += 1
        escaping = slashes[place % 2 == 0]
        ends_escaping = bool(len(escaping)) and int(escaping[-1]) == len(block) - 1
        escaped_positions = np.concatenate([np.asarray(escaped, dtype=np.int64), escaping + 1])
    else:
        escaped_positions = np.asarray(escaped, dtype=np.int64)
    if not is_backslash.any() and not escaped:
        return positions, kinds, False
    keeps = ~(is_backslash | ((kinds == _QUOTE) & np.isin(positions, escaped_positions)))
    return positions[keeps], kinds[keeps], ends_escaping


def _parse_piece(path: Path, text: mmap.mmap, first: int, last: int, *, is_whole: bool) -> list[object]:
    piece = text[first:last]
    if not piece.strip() and not is_whole:
        raise _not_json(path, last, "an element is missing")
    try:
        records = orjson.loads(b"[" + piece + b"]")
    except orjson.JSONDecodeError as error:
        raise _not_json(path, first + max(error.pos - 1, 0), error.msg) from None
    assert isinstance(records, list)  # noqa: S101 - it was parsed from "[...]"
    return records


def _check_frame(path: Path, text: mmap.mmap, start: int, end: int, key: str | None) -> None:
    """See that what stands around the list is valid, and that the list is where it should be."""
    try:
        frame = orjson.loads(text[:start] + b"[]" + text[end + 1 :])
    except orjson.JSONDecodeError as error:
        position = error.pos if error.pos <= start else error.pos - start - 2 + end
        raise _not_json(path, position, error.msg) from None
    if key is not None and not (isinstance(frame, dict) and frame.get(key) == []):
        raise DataError(_missing_list(path, key), "check that it is the file that its name says")
