"""Every golden case through ONNX and torch's own format: too slow for each test run; ``make test-onnx`` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import GOLDEN
from tests.engine.test_export import check_scores, of_the_original
from trarctl.engine.export import export
from trarctl.report.model_card import model_card

CASES = sorted(path.stem for path in (GOLDEN / "cases").glob("*.json"))


@pytest.mark.parametrize("case", CASES)
def test_both_formats_give_the_originals_scores(case: str, golden_data: dict[str, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export(of_the_original(case, golden_data), tmp_path, model_card, onnx=True, pt2=True)
    names = ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    named = ["question_tokens", "features"]
    assert [one.name for one in session.get_inputs()] == named
    check_scores(
        case,
        golden_data,
        lambda *given: session.run(["scores", "routes"], dict(zip(named, (one.numpy() for one in given), strict=True))),
    )
    program = torch.export.load(tmp_path / "model.pt2").module()
    check_scores(case, golden_data, lambda *given: [one.detach().numpy() for one in program(*given)])
