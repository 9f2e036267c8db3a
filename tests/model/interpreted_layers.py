"""The Triton kernels of norm, ReLU and dropout by Triton's interpreter; ``test_triton.py`` runs this."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from tests.model import reference
from trarctl.config.resolve import resolve
from trarctl.engine.trainer import answer_loss
from trarctl.model import kernels
from trarctl.model.kernels import triton, triton_layers
from trarctl.model.layers import FeedForward, ResidualNorm, SampleNorm
from trarctl.model.trar import TRAR, ModelSizes

EPS = 1e-6
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-7}  # the interpreter cuts bits off, where a GPU rounds


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels, whose rows are shared among a few programs."""
    assert triton.IS_INTERPRETED
    monkeypatch.setattr(kernels, "runs_on_cpu", lambda _states: False)
    monkeypatch.setattr(triton_layers, "MOST_PROGRAMS", 3)
    torch.manual_seed(0)
    with np.errstate(all="ignore"):  # what numpy says of numbers that a mask leaves out
        yield


def norm_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """States, change, gain and bias."""
    states, change = torch.randn(shape) + 2.0, torch.randn(shape).to(dtype)
    return [one.requires_grad_() for one in (states, change, torch.randn(shape[-1]), torch.randn(shape[-1]))]


def gradients(result: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).sin().view(result.shape)
    return torch.autograd.grad((result * weight).sum(), inputs)


def assert_near(ours: Tensor, exact: Tensor, tolerance: float) -> None:
    """Compare by the norm of all numbers, since single ones may cancel."""
    assert ours.shape == exact.shape
    assert (ours.double() - exact).norm().item() <= tolerance * exact.norm().item()


def norm_of(states: Tensor, change: Tensor, gain: Tensor, bias: Tensor, dropout: float, eps: float = EPS) -> Tensor:
    torch.manual_seed(5)
    return kernels.residual_norm(states, change, gain, bias, eps, dropout)


@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 5), (7, 64), (2, 512), (1, 1000), (2, 1024), (1, 4096)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_is_its_formula_with_one_mask_in_both_passes(
    shape: tuple[int, ...], dropout: float, dtype: torch.dtype
) -> None:
    inputs = norm_inputs(*shape, dtype=dtype)
    ours = norm_of(*inputs, dropout)
    found = gradients(ours, inputs)
    assert [one.dtype for one in (ours, *found)] == [torch.float32, torch.float32, dtype, torch.float32, torch.float32]
    # What the backward pass lets through of the change, of what the forward pass must have let through.
    passes = torch.where(found[1].abs() > 0.3 * found[0].abs(), 1 / (1 - dropout), 0.0).double()
    if not dropout:
        assert bool((passes == 1).all())
    wide = [one.detach().double().requires_grad_() for one in inputs]
    exact = reference.sample_norm(wide[0] + passes * wide[1], *wide[2:], EPS)
    wanted = gradients(exact, wide)
    assert_near(ours, exact, 1e-5)
    for one, right in zip(found, wanted, strict=True):
        assert_near(one, right, TOLERANCES[one.dtype])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_the_norm_of_states_alone(scale: float, eps: float) -> None:
    norm = SampleNorm(100, eps=eps)
    torch.nn.init.normal_(norm.gain)
    states = (scale * torch.randn(5, 100)).requires_grad_()
    inputs = [states, norm.gain, norm.bias]
    ours, exact = norm(states), reference.sample_norm(states, norm.gain, norm.bias, eps)
    assert_near(ours, exact, 1e-5)
    for one, right in zip(gradients(ours, inputs), gradients(exact, inputs), strict=True):
        assert_near(one, right.double(), 1e-4)


def test_a_norm_far_from_zero_keeps_its_digits() -> None:
    states, gain, bias = torch.randn(3, 512) * 1e-2 + 100, torch.ones(512), torch.zeros(512)
    assert_near(kernels.sample_norm(states, gain, bias, EPS), reference.sample_norm(states, gain, bias), 1e-3)
    narrow = states.bfloat16()
    assert kernels.sample_norm(narrow, gain, bias, EPS).dtype == torch.float32
    narrow = torch.randn(3, 512).bfloat16()
    assert_near(kernels.sample_norm(narrow, gain, bias, EPS), reference.sample_norm(narrow, gain, bias), 1e-5)


def test_a_constant_row_is_its_bias_and_has_a_finite_gradient() -> None:
    states, change, gain, bias = norm_inputs(2, 5)
    states.data.fill_(3.0)
    change.data.zero_()
    normed = norm_of(states, change, gain, bias, 0.0)
    torch.testing.assert_close(normed, bias.expand(2, 5))
    assert all(bool(one.isfinite().all()) for one in gradients(normed, [states, change, gain, bias]))


def test_what_is_not_finite_stays_so() -> None:
    for value in (torch.nan, torch.inf):
        states = torch.ones(2, 8)
        states[1, 3] = value
        normed = kernels.sample_norm(states, torch.ones(8), torch.zeros(8), EPS)
        assert (normed[0].isfinite().all(), normed[1].isfinite().any()) == (True, False)
    states = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0]).repeat(8).requires_grad_()
    dropped = kernels.relu_dropout(states, 0.1)
    assert bool(dropped[::4].isnan().all())
    assert bool((dropped[2::4] == 0).all())
    assert not bool(dropped[1::4].isfinite().any())
    (gradient,) = torch.autograd.grad(dropped.sum(), states)
    assert bool((gradient[2::4] == 0).all())


def kept_by_norm(shape: tuple[int, int], dropout: float, seed: int) -> Tensor:
    """Where a residual norm keeps the change: where its gradient is not 0."""
    change = torch.zeros(shape, requires_grad=True)
    torch.manual_seed(seed)
    weight = torch.ones(shape[-1])
    normed = kernels.residual_norm(torch.randn(shape[-1]).expand(shape), change, weight, weight, EPS, dropout)
    (gradient,) = torch.autograd.grad((normed * torch.randn(shape[-1])).sum(), change)
    return gradient != 0


def kept_by_relu(shape: tuple[int, int], dropout: float, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return kernels.relu_dropout(torch.ones(shape), dropout) != 0


@pytest.mark.parametrize("kept", [kept_by_norm, kept_by_relu])
def test_dropout_drops_the_given_share_independently(kept: Callable[[tuple[int, int], float, int], Tensor]) -> None:
    shape, dropout = (40, 2048), 0.3
    is_kept = kept(shape, dropout, 0)
    variance = dropout * (1 - dropout)
    centered = is_kept.double() - (1 - dropout)
    assert abs(float(centered.mean())) < 4 * (variance / is_kept.numel()) ** 0.5
    flat = centered.flatten()
    for lag in (1, 2, 3, 4, 5, 256, 1024, 2048, 4096):
        correlation = float((flat[lag:] * flat[:-lag]).mean()) / variance
        assert abs(correlation) < 4.5 / (len(flat) - lag) ** 0.5, lag
    assert torch.equal(kept((4, 2048), dropout, 0), kept((4, 2048), dropout, 0))
    assert not torch.equal(kept((4, 2048), dropout, 0), kept((4, 2048), dropout, 1))


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 1024), (2500,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_relu_and_dropout_have_one_mask_in_both_passes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    mask = kernels.relu_dropout(torch.ones(shape, dtype=torch.float64).to(dtype), 0.25).double()
    assert ((mask == 0) | ((mask - 1 / 0.75).abs() < 2 * TOLERANCES[dtype])).all()
    states = torch.randn(shape).to(dtype).requires_grad_()
    torch.manual_seed(1)
    ours = kernels.relu_dropout(states, 0.25)
    (found,) = gradients(ours, [states])
    passes = torch.where((mask != 0) & (states > 0), 1 / 0.75, 0.0).double()
    exact = passes * states.double()
    wanted = passes * torch.linspace(-1, 1, exact.numel(), dtype=dtype).sin().view(shape).double()
    assert (ours.dtype, found.dtype) == (dtype, dtype)
    torch.testing.assert_close(ours.double(), exact, rtol=TOLERANCES[dtype], atol=0)
    torch.testing.assert_close(found.double(), wanted, rtol=TOLERANCES[dtype], atol=0)


def test_without_dropout_no_random_number_is_drawn() -> None:
    inputs = norm_inputs(2, 6)
    before = torch.get_rng_state()
    kernels.residual_norm(*inputs, EPS, 0.0)
    kernels.sample_norm(inputs[0], *inputs[2:], EPS)
    assert torch.equal(kernels.relu_dropout(inputs[1], 0.0), inputs[1].relu())
    assert torch.equal(before, torch.get_rng_state())


def test_a_layout_of_any_kind() -> None:
    inputs = norm_inputs(3, 5, 8)
    states, change = (one.detach().transpose(0, 1).contiguous().transpose(0, 1) for one in inputs[:2])
    assert not states.is_contiguous()
    assert torch.equal(norm_of(states, change, *inputs[2:], 0.2), norm_of(*inputs, 0.2))
    torch.manual_seed(2)
    dropped = kernels.relu_dropout(states, 0.2)
    torch.manual_seed(2)
    assert torch.equal(dropped, kernels.relu_dropout(inputs[0], 0.2))


def test_nothing_is_kept_but_the_inputs_and_what_the_next_layer_keeps() -> None:
    kept: set[int] = set()
    norm, feed = ResidualNorm(64, dropout=0.1), FeedForward(64, 128, dropout=0.1)
    states = torch.randn(4, 9, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (kept.add(tensor.untyped_storage()._cdata), tensor)[1], lambda tensor: tensor
    ):
        inner = feed.expand(states)
        dropped = kernels.relu_dropout(inner, 0.1)
        change = feed.contract(dropped)
        norm(states, change)
    assert inner.untyped_storage()._cdata not in kept
    own = {one.untyped_storage()._cdata for one in (states, dropped, change, *norm.parameters(), *feed.parameters())}
    assert len(kept - own) == 1  # the norm's seed


def test_the_operators_keep_what_torch_asks_of_one() -> None:
    states, change, gain, bias = norm_inputs(2, 3, 6)
    seed = torch.tensor([3])
    for arguments in ((states, change, gain, bias, seed, EPS, 0.2), (states, None, gain, bias, None, EPS, 0.0)):
        torch.library.opcheck(triton_layers._norm, arguments)
    torch.library.opcheck(triton_layers._relu_dropout, (states, seed, 0.2))


def test_a_compiler_sees_one_piece() -> None:
    norm, feed, states = ResidualNorm(8, dropout=0.0), FeedForward(8, 16, dropout=0.1), torch.randn(2, 3, 8)
    compiled = torch.compile(lambda given: norm(given, feed(given)), backend="aot_eager", fullgraph=True)
    compiled(states).sum().backward()
    assert all(parameter.grad is not None for parameter in (*norm.parameters(), *feed.parameters()))
    with torch.no_grad():
        feed.dropout = 0.0
        exact = reference.sample_norm(states + feed(states), norm.gain, norm.bias)
        assert_near(norm(states, feed(states)), exact, 1e-5)


def test_a_compiler_sees_forward_loss_and_backward_as_one_graph() -> None:
    sets = ["hidden_size=16", "num_heads=2", "num_layers=1", "spans=0,1", "grid_size=3", "feed_forward_size=24"]
    sets += ["flat_mlp_size=8", "flat_out_size=20", "routing=hard"]
    settings = resolve(dataset="vqa", environ={}, sets=[f"model.{one}" for one in sets]).settings.model
    model = TRAR(settings, ModelSizes(9, 5, 6), attention="triton")
    tokens, features, target = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.randn(2, 9, 6), torch.rand(2, 5)
    operators: list[str] = []

    def loss_of(tokens: Tensor, features: Tensor) -> Tensor:
        scores, _ = model(tokens, features, temperature=0.5)
        return answer_loss(scores, target, loss="bce").sum()

    def look(graph: torch.fx.GraphModule, _inputs: object) -> object:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    compiled = torch.compile(loss_of, backend=aot_autograd(fw_compiler=look, bw_compiler=look), fullgraph=True)
    with torch._dynamo.config.patch(allow_rnn=True):  # Dynamo refuses the LSTM unless it is told not to
        compiled(tokens, features).backward()
    for name, count in {"norm": 6, "relu_dropout": 4, "routed_attention": 3}.items():
        both = [operators.count(f"trarctl.{operator}.default") for operator in (name, f"{name}_backward")]
        assert both == [count, count]
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("states", "change", "is_supported"),
    [
        (torch.empty(2, 8), None, True),
        (torch.empty(2, 8), torch.empty(2, 8, dtype=torch.bfloat16), True),
        (torch.empty(2, 8), torch.empty(8), False),
        (torch.empty(2, 8, dtype=torch.float64), None, False),
        (torch.empty(2, 8), torch.empty(2, 8, dtype=torch.float64), False),
        (torch.empty(2, 1), None, False),
        (torch.empty(2, 8192), None, False),
        (torch.empty(0, 8), None, False),
    ],
)
def test_what_the_kernels_do_not_compute_is_left_to_torch(
    states: Tensor, change: Tensor | None, is_supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain = torch.ones(states.shape[-1], dtype=states.dtype)
    assert triton_layers.norms(states, change, gain) is is_supported
    monkeypatch.setattr(triton, "IS_INSTALLED", False)
    assert not triton_layers.norms(states, change, gain)
    assert not triton_layers.drops(states)
