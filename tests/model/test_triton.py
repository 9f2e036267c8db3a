"""The Triton kernels without a GPU: right in Triton's interpreter, and small enough when compiled for one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trarctl.config import Precision
from trarctl.engine.distributed import tf32_allowed
from trarctl.model import kernels
from trarctl.model.kernels import triton
from trarctl.model.spans import Spans

HERE = Path(__file__).parent
MOST_SHARED_BYTES = 100 * 1024


def program(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python with its own environment: Triton chooses its interpreter when it is first imported."""
    pytest.importorskip("triton")
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=clean | environ, cwd=HERE.parents[1], capture_output=True, text=True)


def test_the_interpreted_kernels_are_right() -> None:
    tests = [str(HERE / name) for name in ("interpreted_triton.py", "interpreted_layers.py")]
    ran = program("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_compiled_kernels_fit_the_device(capability: int, tmp_path: Path) -> None:
    ran = program("-m", "tests.model.compiled_triton", str(capability), "--json", TRITON_CACHE_DIR=str(tmp_path))
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert len(found) == 2 * 9 + 14
    for name, use in found.items():
        assert use["shared"] <= MOST_SHARED_BYTES, name
        assert use.get("STACK", 0) == 0, f"{name} spills registers"


def test_nothing_needs_triton_until_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "IS_INSTALLED", False)
    heads = [torch.randn(1, 2, 4, 16) for _ in range(3)]
    arguments = {"span_weights": torch.rand(1, 2), "spans": Spans([0, 1], 2), "is_padding": None}
    ours, exact = (kernels.attend(*heads, kernel=name, **arguments) for name in ("triton", "reference"))
    assert torch.equal(ours, exact)
    assert kernels._fastest(*(head.to("meta") for head in heads)) == "reference"


@pytest.mark.parametrize(
    ("cells", "precision", "gigabytes", "chosen"),
    [
        (256, "fp32", 80, "triton"),
        (1024, "fp32", 80, "reference"),  # the faster, as measured
        (1024, "fp32", 8, "triton"),  # where maps would not fit
        (1024, "tf32", 80, "triton"),
        (1024, "bf16", 80, "triton"),
    ],
)
def test_auto_takes_the_faster_as_far_as_memory_allows(
    cells: int, precision: Precision, gigabytes: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "IS_INSTALLED", True)
    monkeypatch.setattr(kernels, "_memory", lambda _: gigabytes * 10**9)
    with FakeTensorMode(allow_non_fake_inputs=True), tf32_allowed(torch.device("cuda"), precision):
        heads = torch.empty(4, 8, cells, 64, dtype=torch.bfloat16 if precision == "bf16" else None, device="cuda")
        assert kernels._fastest(heads, heads, heads) == chosen


@pytest.mark.parametrize(
    ("query", "value", "is_supported"),
    [
        (torch.empty(1, 1, 4, 64, dtype=torch.bfloat16), None, True),
        (torch.empty(1, 1, 4, 8), None, True),
        (torch.empty(1, 1, 4, 64, dtype=torch.float64), None, False),
        (torch.empty(1, 1, 4, 256), None, False),
        (torch.empty(1, 1, 4, 64), torch.empty(1, 1, 4, 32), False),
        (torch.empty(1, 1, 4, 64), torch.empty(1, 1, 4, 64, dtype=torch.float16), False),
    ],
)
def test_supports_tells_what_the_kernels_compute(
    query: torch.Tensor, value: torch.Tensor | None, is_supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = query if value is None else value
    monkeypatch.setattr(triton, "IS_INSTALLED", True)
    assert not triton.supports(query, query, value)  # on a CPU
    monkeypatch.setattr(triton, "IS_INTERPRETED", True)
    assert triton.supports(query, query, value) is is_supported
