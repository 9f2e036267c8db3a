from __future__ import annotations

import pytest
import torch

from trarctl.model.dropout import dropout, relu_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_share_and_scale(probability: float) -> None:
    torch.manual_seed(0)
    states = torch.ones(500, 400)
    six_deviations = 6 * (probability * (1 - probability) / states.numel()) ** 0.5
    dropped = dropout(states, probability, training=True)
    assert abs(float((dropped == 0).float().mean()) - probability) < six_deviations
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - probability)]), rtol=1e-4, atol=0)


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(1)
    kept = dropout(torch.ones(4096, 64), 0.5, training=True) > 0
    correlation = torch.corrcoef(kept.float().T) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.1


def test_the_gradient_sees_the_same_mask() -> None:
    torch.manual_seed(0)
    states = torch.randn(30, 7, requires_grad=True)
    dropped = dropout(states, 0.3, training=True)
    torch.manual_seed(9)
    dropped.sum().backward()
    assert states.grad is not None
    assert torch.equal(states.grad == 0, dropped == 0)
    torch.testing.assert_close(states.grad * states, dropped)


def test_relu_dropout_has_the_values_and_gradient_of_both() -> None:
    states = torch.randn(50, 9, requires_grad=True)
    torch.manual_seed(3)
    both = relu_dropout(states * 1, 0.2, training=True)
    torch.manual_seed(3)
    apart = dropout(torch.relu(states), 0.2, training=True)
    torch.testing.assert_close(both, apart)
    weight = torch.randn(50, 9)
    (ours,) = torch.autograd.grad((both * weight).sum(), states)
    (theirs,) = torch.autograd.grad((apart * weight).sum(), states)
    torch.testing.assert_close(ours, theirs)


def test_the_seed_decides() -> None:
    states = torch.ones(100, 100)
    torch.manual_seed(0)
    first = dropout(states, 0.5, training=True)
    second = dropout(states, 0.5, training=True)
    torch.manual_seed(0)
    assert torch.equal(dropout(states, 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_nothing_happens_in_evaluation() -> None:
    states = torch.randn(3, 3)
    assert dropout(states, 0.5, training=False) is states
    assert dropout(states, 0.0, training=True) is states
    assert torch.equal(relu_dropout(states.clone(), 0.5, training=False), states.relu())


def test_float64_and_odd_sizes() -> None:
    states = torch.ones(5, 1, 3, dtype=torch.float64, requires_grad=True)
    dropout(states, 0.5, training=True).sum().backward()
    assert states.grad is not None
    assert states.grad.dtype == torch.float64
