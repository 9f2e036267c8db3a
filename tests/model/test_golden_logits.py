"""The original's scores, through every way that the model can be computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from trarctl.config.resolve import resolve
from trarctl.data.loader import scoring_samples
from trarctl.data.prepared import open_prepared
from trarctl.engine.checkpoint import load_upstream
from trarctl.model.trar import TRAR, ModelSizes

CASES = sorted((GOLDEN / "cases").glob("*.json"))
TEMPERATURE = 0.1  # at which the original's scores were taken


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_reference_cpu_kernel_and_compiled_model_give_the_originals_scores(
    file: Path, golden_data: dict[str, Path]
) -> None:
    case = json.loads(file.read_text())
    data = open_prepared(golden_data[case["dataset"]])
    settings = resolve(dataset=case["dataset"], config=file.with_suffix(".yml"), environ={}).settings
    sizes = ModelSizes(len(data.vocabulary), len(data.answers), data.features.width)
    samples = scoring_samples(data, case["split"])
    batch = samples.batch(np.arange(len(samples)))
    state = load_upstream(file.with_suffix(".pkl"))[0]
    with np.load(file.with_suffix(".npz")) as theirs:
        expected, routes = theirs["scores"], theirs["alphas"]
    for way in ("reference", "cpu", "compiled"):
        model = TRAR(settings.model, sizes, attention="auto" if way == "compiled" else way).eval()
        model.load_state_dict(state)
        if way == "compiled":
            torch.compiler.reset()
            model.compile(backend="aot_eager", fullgraph=True)
        with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
            ours = model(batch.question_tokens, batch.cells(), temperature=TEMPERATURE)
        assert np.abs(ours[0].numpy() - expected).max() < 1e-4, way
        assert np.abs(ours[1].numpy() - routes).max() < 1e-4, way
