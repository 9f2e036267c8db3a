"""Files of weights, checkpoints and maps that other programs wrote, read without trusting them: nothing in them is run.

What kind a file is, its content says, never its name. Torch is loaded only where tensors are read.
"""

from __future__ import annotations

import argparse
import codecs
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from trarctl.errors import TrarError, listed
from trarctl.files import refusing

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["safetensors", "zip", "legacy"]
"""Safetensors, or what ``torch.save`` writes: an archive, and before torch 1.6 pickles in a row."""
PREFIXES = {"module", "_orig_mod", "model", "net", "network"}  # what programs and their wrappers put before names

_LFS_HINT = "fetch the file: git lfs pull"
_COPY_HINT = "copy it again from where it came, and compare the sizes"
# Where other programs keep a model's weights.
_STATES = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
# How the pickles of torch before 1.6 begin: with a number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CHUNK = 1 << 20
# What zipfile raises over a damaged archive.
_ARCHIVE_FAULTS = (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
# Plain values that programs keep beside the weights. None of them runs anything when it is read.
_scalar, _reconstruct = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
_HARMLESS: list[Any] = [
    _scalar,
    _reconstruct,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"),
    (codecs.encode, "_codecs.encode"),
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
]


class Weights(NamedTuple):
    """What a file of weights holds: tensors by name, and the versions of the modules that wrote them, if it tells."""

    tensors: dict[str, Tensor]
    versions: dict[str, int]


@dataclass(frozen=True)
class WeightsReader:
    """Reads files for one purpose, which decides what errors call them and advise.

    Attributes:
        noun: what a file is taken for, such as ``checkpoint``.
        error: the kind of error that every method raises.
        hint: which file to give instead of one that holds something else.
        missing: what helps where there is no file; as ``hint``, if not given.
        folder: what helps where it is a folder; likewise.
        damaged_hint: what helps where a file is damaged and cannot be copied again.
    """

    noun: str
    error: type[TrarError]
    hint: str
    missing: str | None = None
    folder: str | None = None
    damaged_hint: str = _COPY_HINT

    def kind_of(self, path: Path) -> Kind:
        """Tell what a file is by its first bytes; an error says what it is if it holds no weights."""
        if path.is_dir():
            raise self.error(f"{path} is a folder, not a {self.noun}", self.folder or self.hint)
        if not path.is_file():
            if path.exists():  # reading it might wait for ever
                raise self.error(f"{path} is a pipe or a device, not a {self.noun}", self.hint)
            raise self.error(f"no {self.noun} at {path}", self.missing or self.hint)
        with refusing(f"cannot read {path}", "make it readable: chmod u+r", self.error), path.open("rb") as file:
            head = file.read(512)
        if head[:4] == b"PK\x03\x04":
            self._refuse_other_archive(path)
            return "zip"
        if head.startswith(_LEGACY):
            return "legacy"
        header_bytes = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and header_bytes < 1 << 32:
            return "safetensors"
        if not head:
            raise self.damaged(path, "it is empty", self.damaged_hint)
        for start, what, hint in self._other_files():
            if head.lstrip().startswith(start):
                raise self.error(f"{path} is {what}", hint)
        if head.isascii() and b"\0" not in head:
            raise self.error(f"{path} is a text file, no {self.noun}", self.hint)
        raise self.damaged(path, f"its beginning is that of no {self.noun}", self.damaged_hint)

    def _other_files(self) -> tuple[tuple[bytes | tuple[bytes, ...], str, str], ...]:
        """List what is taken for such a file: how it begins, what it is, and what to do."""
        unpack = f"unpack it and give the {self.noun} in it"
        return (
            (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for", _LFS_HINT),
            (b"<", f"a web page or XML, no {self.noun}", "save the file itself, not the page about it"),
            (b"\x80", "a pickle that torch.save did not write", self.hint),
            ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"), "a gzip, bzip2 or xz archive", unpack),
        )

    def content(self, path: Path) -> Any:
        """Read what a file holds, if it is tensors and plain values."""
        kind = self.kind_of(path)
        if kind == "safetensors":
            return self.safetensors(path)[0]
        if kind == "zip":
            self._check_archive(path)
        return self._unpickled(path)

    def safetensors(self, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Read the tensors and the metadata of a safetensors file."""
        from safetensors import SafetensorError

        try:
            with self.opened(path) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            raise self.damaged(path, str(error), self.damaged_hint) from error

    def opened(self, path: Path) -> Any:
        """Open a safetensors file; it is closed by the ``with`` that it is used in."""
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise self.damaged(path, str(error), self.damaged_hint) from error

    def state_in(self, path: Path, content: Any) -> dict[Any, Any]:
        """Give the state dict in what a file holds: the content itself, or what stands under one of the usual keys."""
        if (state := _state_in(content)) is not None:
            return state
        inside = f"it is of type {type(content).__name__}"
        if isinstance(content, Mapping) and content:
            inside = f"its keys are {listed((repr(str(key)) for key in content), len(content))}"
        raise self.error(f"{path} holds no state_dict of tensors: {inside}", self.hint)

    def weights(self, path: Path) -> Weights:
        """Read the tensors of a state dict, of whatever types; what is no tensor is passed over.

        Names lose what wrappers put before all of them.
        """
        import torch

        state = self.state_in(path, self.content(path))
        tensors = {
            name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        if faults := [f"{name} {fault}" for name, value in tensors.items() if (fault := fault_of(value))]:
            raise self.unusable(path, faults, len(tensors))
        versions = {
            name: one["version"]
            for name, one in (getattr(state, "_metadata", None) or {}).items()
            if isinstance(name, str) and isinstance(one, Mapping) and isinstance(one.get("version"), int)
        }
        prefix = _common_prefix(tensors)
        return Weights(
            {name.removeprefix(prefix): value for name, value in tensors.items()},
            {name.removeprefix(prefix): version for name, version in versions.items()},
        )

    def refuse_nonfinite(self, path: Path, tensors: Mapping[str, Tensor], hint: str | None = None) -> None:
        """See that all tensors are finite; an error names those that are not."""
        odd = []
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and (count := int((~tensor.isfinite()).sum())):
                odd.append(f"{name} ({count:,} of {tensor.numel():,})")
        if odd:
            what = f"{path} holds values that are not finite in {len(odd)} of {len(tensors)} tensors: {listed(odd)}"
            raise self.error(what, hint or self.hint)

    def unusable(self, path: Path, faults: list[str], num_tensors: int) -> TrarError:
        """Give the error that names weights that cannot be used."""
        what = f"{len(faults):,} of {num_tensors:,} weights in {path} cannot be used: {listed(faults)}"
        return self.error(what, self.hint)

    def damaged(self, path: Path, why: str, hint: str = _COPY_HINT) -> TrarError:
        """Give the error that says how a file is damaged."""
        return self.error(f"the {self.noun} {path} is damaged ({why})", hint)

    @contextmanager
    def _archive(self, path: Path) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except _ARCHIVE_FAULTS as error:
            raise self.damaged(path, "its archive is cut off or changed") from error

    def _refuse_other_archive(self, path: Path) -> None:
        """See that a zip archive holds what ``torch.save`` writes; one that cannot be listed is damaged."""
        with self._archive(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):  # as OpenAI publishes CLIP
            raise self.error(f"{path} is a program in TorchScript; it is not run to get its weights", self.hint)
        if not any(name.endswith("/data.pkl") for name in names):
            raise self.error(f"{path} is an archive of other files: {listed(names)}", self.hint)

    def _unpickled(self, path: Path) -> Any:
        """Read what ``torch.save`` wrote, if it is tensors and plain values."""
        import torch

        try:
            # The open file, since torch goes by the ending of a name.
            with path.open("rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle makes its reader raise whatever it stumbles over
            if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
                raise self.error(
                    f"{path} holds objects other than tensors: {foreign[1]}",
                    "save its weights alone, where they come from: torch.save(model.state_dict(), FILE)",
                ) from error
            raise self.damaged(path, "its content cannot be read") from error

    def _check_archive(self, path: Path) -> None:
        """See that a zip archive is whole by its own checksums, which torch does not compare, and of a likely size."""
        with self._archive(path) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members)
            if unpacked > 4 * path.stat().st_size + _CHUNK:
                raise self.damaged(path, f"it would unpack to {unpacked:,} bytes")
            changed = [member.filename for member in members if not _is_intact(archive, member)]
        # Without a single right checksum the program that wrote it had them switched off.
        if changed and len(changed) < sum(member.file_size > 0 for member in members):
            raise self.damaged(path, f"changed since it was written: {listed(changed, most=3)}")


def archive_members(path: Path) -> set[str]:
    """List what a zip archive holds; nothing, if a file is none or cannot be read."""
    if not path.is_file():
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except _ARCHIVE_FAULTS:
        return set()


def without_prefixes(name: str) -> str:
    """Give a parameter's name without what wrappers put anywhere in it; for a model that has no modules so called."""
    return ".".join(part for part in name.split(".") if part not in PREFIXES)


def fault_of(value: object) -> str:
    """Say why a value of a state dict cannot be used; empty for a tensor of plain numbers."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    usual = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    is_unusual = value.is_floating_point() and value.dtype not in usual
    if value.layout is not torch.strided or is_unusual or value.is_complex() or value.is_quantized:
        return f"holds {value.dtype}".replace("torch.", "")
    if value.is_meta or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"is {list(value.shape)}, the file has fewer numbers"
    return ""


def _is_intact(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(_CHUNK):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _state_in(content: Any, depth: int = 4) -> dict[Any, Any] | None:
    from torch import Tensor

    if not isinstance(content, dict) or not depth:
        return None
    inside = (_state_in(content.get(key), depth - 1) for key in _STATES)
    own = content if any(isinstance(value, Tensor) for value in content.values()) else None
    return next((state for state in inside if state is not None), own)


def _common_prefix(names: Mapping[str, object]) -> str:
    """Give what wrappers put before all names, with its periods: ``module._orig_mod.``; a part alone is no prefix."""
    prefix = ""
    while True:
        firsts = {name.removeprefix(prefix).partition(".")[::2] for name in names}
        parts = {part for part, rest in firsts if rest}
        if len(parts) != 1 or not parts <= PREFIXES or not all(rest for _, rest in firsts):
            return prefix
        prefix += f"{parts.pop()}."
