"""Ways to change files, JSON documents, arrays and texts, drawn from a random generator."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.harness import Effect, Mutation

Mutator = Callable[[Random, Path], Mutation]

TEXTS = (
    *("", " ", "x", "12", "-1", "1e3", "nan", "true", "null", "yes", "../../../../etc/passwd", "\x00", "\x1b[31mred"),
    *(
        "\U0001f600",
        "e\u0301",
        "\u202egnp.exe",
        "\ufeffx",
        "\u0661",
        "a\tb",
        "a\r\nb",
        "'; rm -rf /",
        "{}",
        "[bold]x[/]",
    ),
    *("a " * 700, "x" * 70_000, "%s%n", "${HOME}", "ß" * 300, "\u2028", "=1+1"),
)
NUMBERS = (
    *(0, 1, -1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.0, -0.0, 0.5, 1.5, 1e-320, 1e300, 3.0),
)
VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, ["x"] * 20, [None], *NUMBERS, *TEXTS)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def damage_bytes(random: Random, path: Path) -> Mutation:
    """Damage a file as disks, downloads and editors do."""
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        return Mutation("nothing")
    size = len(content)
    first = random.randrange(size + 1)
    length = random.choice((1, 2, 7, 64, 512, 5000))
    kind = random.choice(
        (
            "cut",
            "flip",
            "flips",
            "zeros",
            "removed",
            "repeated",
            "noise",
            "swapped",
            "appended",
            "empty",
            "text",
            "CR LF",
        )
    )
    if kind == "cut":
        content = content[:first]
    elif kind in ("flip", "flips") and size:
        changed = bytearray(content)
        for _ in range(1 if kind == "flip" else 20):
            changed[random.randrange(size)] ^= 1 << random.randrange(8)
        content = bytes(changed)
    elif kind == "zeros":
        content = content[:first] + bytes(len(content[first : first + length])) + content[first + length :]
    elif kind == "removed":
        content = content[:first] + content[first + length :]
    elif kind == "repeated":
        content = content[: first + length] + content[first : first + length] + content[first + length :]
    elif kind == "noise":
        noise = random.randbytes(len(content[first : first + length]))
        content = content[:first] + noise + content[first + length :]
    elif kind == "swapped":
        content = content[first:] + content[:first]
    elif kind == "appended":
        content += random.choice((b"\n", b"\0" * 100, b"x", content, b"\xff\xfe"))
    elif kind == "empty":
        content = b""
    elif kind == "text":
        content = b"<html><body>404: Not Found</body></html>\n"
    elif kind == "CR LF":
        content = content.replace(b"\n", b"\r\n")
    path.write_bytes(content)
    return Mutation(f"{path.name} bytes {kind}")


def replace_file(random: Random, path: Path) -> Mutation:
    """Put something else in the place of a file."""
    kind = random.choice(("nothing", "folder", "loop", "pipe", "dangling link", "forbidden", "device"))
    if not path.is_file():
        return Mutation("nothing")
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "forbidden":
        path.write_bytes(content)
        path.chmod(0)
    # Root may read what is forbidden, and the null device is an empty file.
    return Mutation(f"{path.name} is {kind}", Effect.ANY if kind in ("forbidden", "device") else Effect.DAMAGE)


def marked_text(path: Path) -> str:
    """Read text in UTF-8, or in what a byte order mark says; or raise."""
    if path.is_fifo():
        raise OSError(f"{path} is a pipe")
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode(json.detect_encoding(content) if marked else "utf-8")


def load_json(path: Path) -> Any:
    """Read JSON; None where an earlier mutation has left none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError):
        return None


def edit_json(path: Path, change: Callable[[Any], Mutation | None]) -> Mutation:
    """Change a JSON document in place; None means that it has nothing to change."""
    document = load_json(path)
    try:
        mutation = change(document)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        mutation = None
    if mutation is None or document is None:
        return Mutation("nothing")
    path.write_text(json.dumps(document), errors="surrogatepass")
    return mutation


def _places(document: Any, most: int = 4000) -> list[tuple[Any, Any, str]]:
    """List (container, key, path) of everything inside a document."""
    found: list[tuple[Any, Any, str]] = []
    queue = [(document, "")]
    while queue and len(found) < most:
        container, path = queue.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            where = f"{path}.{key}" if isinstance(container, dict) else f"{path}[]"
            found.append((container, key, where))
            if isinstance(value, dict | list):
                queue.append((value, where))
    return found


def mutate_document(random: Random, document: Any) -> Mutation | None:
    """Change one place of a document: another value, none, twice, another type, nested or swapped."""
    places = _places(document)
    if not places:
        return None
    # Of each path one: a long list should not outweigh what stands once.
    path = random.choice(sorted({path for *_, path in places}))
    container, key, _ = random.choice([place for place in places if place[2] == path])
    value = container[key]
    kind = random.choice(("other", "other", "gone", "twice", "type", "nested", "swapped", "added", "case"))
    if kind == "other":
        container[key] = random.choice((*VALUES, *NOT_FINITE))
        path += f" = {container[key]!r:.30}"
    elif kind == "gone":
        del container[key]
    elif kind == "twice":
        if isinstance(container, list):
            container.insert(random.randrange(len(container) + 1), value)
        elif isinstance(value, list):
            container[key] = value * 2
    elif kind == "type":
        container[key] = _retyped(random, value)
    elif kind == "nested":
        container[key] = random.choice(([value], {"value": value}, [[value]]))
    elif kind == "swapped":
        siblings = list(container) if isinstance(container, dict) else list(range(len(container)))
        other = random.choice(siblings)
        container[key], container[other] = container[other], container[key]
        path += f" with {other if isinstance(other, str) else 'another'}"
    elif kind == "added" and isinstance(container, dict):
        container[random.choice(("unknown", "", "Type", f"{key} ", str(key).upper()))] = random.choice(VALUES)
    elif kind == "case" and isinstance(value, str):
        container[key] = random.choice((value.upper(), f" {value}", f"{value}\n", value[:-1]))
    return Mutation(f"JSON{path} {kind}")


def _retyped(random: Random, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return random.choice((0, 1, "true", str(value)))
    if isinstance(value, int | float):
        return random.choice((str(value), float(value), [value], value + 0.5, -value, bool(value), value + 1))
    if isinstance(value, str):
        return random.choice((0, [value], {"text": value}, None, list(value)[:50], float("nan")))
    return random.choice((json.dumps(value), None, 0, dict(enumerate(value)) if isinstance(value, list) else [value]))


def rewrite_json(random: Random, path: Path, *, may_add: bool = True) -> Mutation:
    """Write the same document in another way that is as valid; readers that know all keys refuse a further one."""
    document = load_json(path)
    if document is None:
        return Mutation("nothing")
    kinds = ("indented", "escaped", "unescaped", "spaced", "other order of keys", "unknown key")
    kind = random.choice(kinds if may_add else kinds[:-1])
    if kind == "other order of keys":
        document = _reordered(random, document)
    if kind == "unknown key" and isinstance(document, dict):
        document = {"comment": {"questions": [1], "answers": []}, **document}
    text = json.dumps(document, indent=random.choice((1, "\t")) if kind == "indented" else None)
    if kind == "unescaped":
        text = json.dumps(document, ensure_ascii=False)
    if kind == "spaced":
        text = f"\n \t{json.dumps(document, separators=(' , ', ' : '))}\r\n  "
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return Mutation(f"{path.name} {kind}", Effect.NONE)


def _reordered(random: Random, value: Any) -> Any:
    if isinstance(value, list):
        return [_reordered(random, one) for one in value]
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: _reordered(random, value[key]) for key in keys}
    return value


def odd_json(random: Random, path: Path) -> Mutation:
    """Write a document in a way that JSON does not have, or that readers differ about."""
    if not path.is_file():
        return Mutation("nothing")
    content = path.read_bytes()
    kind = random.choice(("BOM", "UTF-16", "Latin-1", "comment", "trailing comma", "single quotes", "nested", "lines"))
    if kind == "BOM":
        content = b"\xef\xbb\xbf" + content
    elif kind == "UTF-16":
        content = content.decode("utf-8", "replace").encode("utf-16")
    elif kind == "Latin-1":
        content = content.replace(b"e", b"\xe9", 1)
    elif kind == "comment":
        content = b"// made by hand\n" + content
    elif kind == "trailing comma":
        at = content.rfind(random.choice((b"]", b"}")))
        content = content[:at] + b"," + content[at:]
    elif kind == "single quotes":
        content = content.replace(b'"', b"'")
    elif kind == "nested":
        content = b"[" * 5000 + content + b"]" * 5000
    elif kind == "lines":
        content += b"\n" + content
    path.write_bytes(content)
    return Mutation(f"{path.name} {kind}")


def mutate_array(random: Random, array: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Change an array's numbers, type or shape."""
    kind = random.choice(
        *[("not finite", "zeros", "constant", "transposed", "cut", "longer", "flat", "deeper", "type", "permuted",
           "zeroed range", "huge", "negative", "empty", "copied row", "text", "structured", "scalar")]
    )  # fmt: skip
    changed = array.copy()
    flat = changed.reshape(-1)
    place = random.randrange(flat.size) if flat.size else 0
    if kind == "not finite" and array.dtype.kind in "biufc":
        changed = changed if changed.dtype.kind == "f" else changed.astype(np.float64)
        changed.reshape(-1)[place : place + 1] = random.choice(NOT_FINITE)
    elif kind == "zeros":
        changed = np.zeros_like(array)
    elif kind == "constant":
        changed = np.full_like(array, flat[place]) if flat.size else array
    elif kind == "transposed":
        changed = np.ascontiguousarray(array.T)
    elif kind == "cut":
        changed = array[: random.randrange(len(array))] if array.ndim and len(array) else array
    elif kind == "longer":
        changed = np.concatenate([array, array[:1]]) if array.ndim and len(array) else array
    elif kind == "flat":
        changed = array.reshape(-1)
    elif kind == "deeper":
        changed = array[..., None]
    elif kind == "type":
        dtype = random.choice(("<f2", "<f4", "<f8", ">f4", ">i8", "<i8", "<i4", "<i2", "<u1", "?", "<c16"))
        kind = f"as {dtype}"
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                changed = array.astype(dtype)
            except (ValueError, TypeError):
                kind = "unchanged"
    elif kind == "permuted":
        order = list(range(len(array))) if array.ndim else []
        random.shuffle(order)
        changed = array[order] if order else array
    elif kind == "zeroed range" and flat.size:
        flat[place : place + random.choice((1, 3, 20))] = flat.dtype.type()
    elif kind in ("huge", "negative") and flat.dtype.kind in "iuf" and flat.size:
        limit = np.finfo(flat.dtype) if flat.dtype.kind == "f" else np.iinfo(flat.dtype)
        flat[place] = limit.max if kind == "huge" else max(-1.0, limit.min)
    elif kind == "empty":
        changed = array[:0] if array.ndim else array
    elif kind == "copied row" and array.ndim and len(array):
        changed[random.randrange(len(array))] = array[random.randrange(len(array))]
    elif kind == "text":
        changed = array.astype(str)
    elif kind == "structured":
        changed = np.zeros(array.shape, dtype=[("a", "<f4"), ("b", "<i4")])
    elif kind == "scalar":
        changed = np.array(1.0, dtype=np.float32)
    return changed, kind


def rewrite_npy(random: Random, path: Path) -> tuple[Path, str]:
    """Save the same numbers as ``numpy`` also can: another version, byte order or memory order."""
    array = np.load(path)
    kind = random.choice(("version 2", "Fortran order", "big-endian"))
    if kind == "version 2":
        with path.open("wb") as file:
            np.lib.format.write_array(file, array, version=(2, 0))
    elif kind == "Fortran order":
        np.save(path, np.asfortranarray(array))
    else:
        np.save(path, array.astype(array.dtype.newbyteorder(">")))
    return path, kind


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
