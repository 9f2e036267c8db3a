from __future__ import annotations

import pytest
import torch

from trarctl.model.kernels import dropout
from trarctl.model.kernels.dropout import KeepMask, draw_seed, relu_dropout


def drawn(probability: float, *shape: int) -> torch.Tensor:
    """A mask of that shape."""
    mask = KeepMask(probability, draw_seed(), torch.device("cpu")).draw(torch.empty(shape))
    assert mask is not None
    return mask


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_share_and_scale(probability: float) -> None:
    torch.manual_seed(0)
    mask = drawn(probability, 500, 400)
    six_deviations = 6 * (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(float(mask.mean()) - (1 - probability)) < six_deviations
    assert mask.unique().tolist() == [0, 1]
    assert abs(KeepMask(probability, draw_seed(), mask.device).scale - 1 / (1 - probability)) < 1e-4


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 9, 17, 1001])
def test_masks_of_every_size(size: int) -> None:
    torch.manual_seed(2)
    assert 0.2 < float(torch.stack([drawn(0.5, size) for _ in range(200)]).mean()) < 0.8


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(1)
    kept = drawn(0.5, 4096, 64)
    correlation = torch.corrcoef(kept.T) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.1
    # The two elements that share random bits lie half a mask apart, or half and one.
    flat = kept.view(2, -1)
    for shift in (0, 1):
        pair = torch.stack([flat[0].roll(-shift), flat[1]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


def test_relu_dropout_has_the_values_and_gradient_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout, "BLOCK_NUMBERS", 128)
    states = torch.randn(50, 9, requires_grad=True)
    torch.manual_seed(3)
    both = relu_dropout(states * 1, 0.2, training=True)
    torch.manual_seed(3)
    keep = KeepMask(0.2, draw_seed(), states.device)
    mask = torch.cat([keep.draw(torch.empty(len(part))) for part in states.detach().view(-1).split(128)])  # type: ignore[misc]
    apart = torch.relu(states) * mask.view(50, 9) * keep.scale
    torch.testing.assert_close(both, apart)
    assert 0.05 < float((mask == 0).float().mean()) < 0.35
    weight = torch.randn(50, 9)
    (ours,) = torch.autograd.grad((both * weight).sum(), states)
    (theirs,) = torch.autograd.grad((apart * weight).sum(), states)
    torch.testing.assert_close(ours, theirs)


def test_the_seed_decides() -> None:
    torch.manual_seed(0)
    first = relu_dropout(torch.ones(100, 100), 0.5, training=True)
    second = relu_dropout(torch.ones(100, 100), 0.5, training=True)
    torch.manual_seed(0)
    assert torch.equal(relu_dropout(torch.ones(100, 100), 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation() -> None:
    states = torch.randn(3, 3)
    assert torch.equal(relu_dropout(states.clone(), 0.5, training=False), states.relu())
    assert torch.equal(relu_dropout(states.clone(), 0.0, training=True), states.relu())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_layouts(dtype: torch.dtype) -> None:
    states = torch.ones(3, 5, 1, dtype=dtype, requires_grad=True)
    dropped = relu_dropout(states.transpose(0, 1) * 1, 0.5, training=True)
    assert dropped.dtype == dtype
    assert set(dropped.unique().tolist()) <= {0.0, 2.0}
    dropped.sum().backward()
    assert states.grad is not None
    assert states.grad.dtype == dtype
    assert torch.equal(states.grad.transpose(0, 1), dropped)
