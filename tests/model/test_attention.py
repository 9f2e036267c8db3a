"""Attention cores against the plain definition, one map a span, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model import reference
from trarctl.model.attention import attention, chosen_span_attention, routed_attention, routed_attention_map
from trarctl.model.kernels import blocks as attention_blocks
from trarctl.model.kernels import cpu as attention_kernel
from trarctl.model.kernels import windows as attention_windows
from trarctl.model.spans import Spans

HEADS, WIDTH = 2, 4
Setting = tuple[list[int], int]  # spans and grid size
SETTINGS: list[Setting] = [([0, 1, 2, 3], 8), ([0, 1, 3], 5), ([2, 1, 1], 5), ([1], 4), ([0, 9], 3), ([9, 1, 0], 4)]


@pytest.fixture(params=["plain", "kept", "small blocks", "shifted", "as on other devices"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way through the kernel: exponentials kept, whole examples or few rows in a block, scores shifted or not."""
    if request.param == "kept":
        monkeypatch.setattr(attention_kernel, "keeps_exponentials", lambda _: True)
    if request.param == "small blocks":
        monkeypatch.setitem(attention_blocks.BLOCK_NUMBERS, "cpu", 80)
    if request.param == "as on other devices":
        monkeypatch.setattr(attention_blocks, "WIDENING_DEVICES", set())
    if request.param in ("shifted", "as on other devices"):
        monkeypatch.setattr(attention_kernel, "is_safe", lambda _: False)
    return str(request.param)


def draw(orders: list[int], grid_size: int, batch: int, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value as the model makes them (views of [B, N, H * d]), and span weights."""
    num_cells = grid_size**2
    flat = torch.randn(3, batch, num_cells, HEADS * WIDTH, dtype=dtype)
    heads = [states.view(batch, num_cells, HEADS, WIDTH).transpose(1, 2) for states in flat]
    return [*heads, torch.randn(batch, len(orders), dtype=dtype).softmax(dim=-1)]


def draw_padding(batch: int, num_cells: int) -> Tensor:
    """Padding in patches, so that small windows see nothing; the first example is all padding, the last has none."""
    is_padding = torch.rand(batch, num_cells) < 0.7
    is_padding[0], is_padding[-1] = True, False
    return is_padding


def run(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of all inputs for a fixed gradient of the result."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).sin().view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


def assert_as_defined(
    inputs: list[Tensor], setting: Setting, is_padding: Tensor | None, *, tolerance: float = 1e-5
) -> None:
    spans = Spans(*setting)
    ours = run(lambda *tensors: routed_attention(*tensors, spans, is_padding=is_padding), inputs, torch.float32)
    defined = run(
        lambda *tensors: reference.routed_attention(*tensors, *setting, is_padding=is_padding), inputs, torch.float64
    )
    for mine, exact in zip(ours, defined, strict=True):
        largest = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_routed_attention_is_the_blend_of_k_maps(setting: Setting, has_padding: bool) -> None:
    is_padding = draw_padding(3, setting[1] ** 2) if has_padding else None
    assert_as_defined(draw(*setting, batch=3), setting, is_padding)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("gap", [100.0, 500.0, 5000.0])
def test_windows_with_scores_far_below_others_stay_exact(gap: float) -> None:
    setting = ([0, 1, 2], 6)
    query, key, value, weights = draw(*setting, batch=2)
    query[..., 0] = 2.0  # scale 1/2: the score gains what is added to the key
    far = torch.arange(36) >= 24
    key[:, :, far, 0] += gap
    key[:, :, :6, 0] -= gap
    assert_as_defined([query, key, value, weights], setting, None)


@pytest.mark.usefixtures("way")
def test_extreme_span_weights_stay_exact() -> None:
    setting = ([0, 1, 2], 4)
    *heads, _ = draw(*setting, batch=4)
    weights = torch.tensor([[0.0, 1.0, 0.0], [1e-30, 0.5, 0.5], [0.0, 0.0, 1e-30], [0.0, 0.0, 0.0]])
    assert_as_defined([*heads, weights], setting, None)
    assert_as_defined([10.0 * heads[0], 10.0 * heads[1], heads[2], weights], setting, draw_padding(4, 16))


def test_single_example_and_single_cell() -> None:
    assert_as_defined(draw([0, 1], 1, batch=1), ([0, 1], 1), None)
    assert_as_defined(draw([0, 1], 1, batch=1), ([0, 1], 1), torch.tensor([[True]]))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("setting", [([0, 1, 2], 3), ([1, 1], 3)], ids=str)
def test_gradients_hold_with_dropout_and_padding(setting: Setting) -> None:
    spans = Spans(*setting)
    is_padding = draw_padding(2, 9)

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(4)
        return routed_attention(*tensors, spans, is_padding=is_padding, dropout=0.3)

    inputs = [tensor.detach().requires_grad_() for tensor in draw(*setting, batch=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.usefixtures("way")
def test_plain_attention_has_its_own_lengths_and_hides_padding() -> None:
    query, key, value = (torch.randn(3, HEADS, length, WIDTH, dtype=torch.float64) for length in (5, 7, 7))
    is_padding = draw_padding(3, 7)

    def defined(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = (query @ key.mT / WIDTH**0.5).masked_fill(is_padding[:, None, None], -1e9)
        return scores.softmax(dim=-1) @ value

    exact = run(defined, [query, key, value], torch.float64)
    for dropout in (0.0, 1e-9):  # torch's kernel and ours
        ours = run(
            lambda *heads: attention(*heads, is_padding=is_padding, dropout=dropout),  # noqa: B023
            [query, key, value],
            torch.float64,
        )
        for mine, wanted in zip(ours, exact, strict=True):
            torch.testing.assert_close(mine, wanted)
    assert attention(query, key, value, is_padding=None).shape == query.shape


def test_plain_attention_gradients_hold_with_dropout() -> None:
    def attend(*heads: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attention(*heads, is_padding=torch.tensor([[False, True, False]]), dropout=0.4)

    inputs = [torch.randn(1, HEADS, 3, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(attend, inputs)


def test_global_spans_only_are_plain_attention() -> None:
    query, key, value, _ = draw([0], 4, batch=2)
    one = torch.ones(2, 1)
    routed = routed_attention(query, key, value, one, Spans([0], 4), is_padding=None)
    torch.testing.assert_close(routed, attention(query, key, value, is_padding=None), rtol=0.0, atol=0.0)
    assert_as_defined([query, key, value, torch.tensor([[0.2, 0.3], [0.5, 0.7]])], ([0, 3], 4), None)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_chosen_span_is_that_span_alone(setting: Setting, has_padding: bool) -> None:
    query, key, value, _ = draw(*setting, batch=4)
    is_padding = draw_padding(4, setting[1] ** 2) if has_padding else None
    chosen = torch.randint(len(setting[0]), (4,))
    one_hot = torch.nn.functional.one_hot(chosen, len(setting[0])).double()
    defined = reference.routed_attention(
        query.double(), key.double(), value.double(), one_hot, *setting, is_padding=is_padding
    )
    ours = chosen_span_attention(query, key, value, chosen, Spans(*setting), is_padding=is_padding)
    torch.testing.assert_close(ours.double(), defined, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_map_is_the_blend_and_sums_to_one(setting: Setting) -> None:
    query, key, _, weights = draw(*setting, batch=3)
    is_padding = draw_padding(3, setting[1] ** 2)
    seen = routed_attention_map(query.requires_grad_(), key, weights, Spans(*setting), is_padding=is_padding)
    maps = reference.span_maps(query.double(), key.double(), *setting, is_padding)
    torch.testing.assert_close(
        seen.double(), (weights.double()[:, :, None, None, None] * maps).sum(dim=1), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(seen.sum(dim=-1), torch.ones(seen.shape[:3]))
    assert seen.dtype == torch.float32
    assert not seen.requires_grad


def test_dropout_drops_the_given_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    setting = ([0, 1, 2], 8)
    query, key, _, weights = draw(*setting, batch=16)
    identity = torch.eye(64).expand(16, HEADS, 64, 64)
    spans = Spans(*setting)
    whole = routed_attention(query, key, identity, weights, spans, is_padding=None)
    dropped = routed_attention(query, key, identity, weights, spans, is_padding=None, dropout=0.25)
    is_kept = dropped != 0.0
    assert float(is_kept.float().mean()) == pytest.approx(0.75, abs=0.01)
    torch.testing.assert_close(dropped[is_kept], whole[is_kept] / 0.75, rtol=1e-5, atol=0.0)
    for axis in (0, 2, 3):
        rates = is_kept.float().transpose(0, axis).flatten(1).mean(dim=1)
        five_deviations = 5 * (0.75 * 0.25 / (is_kept.numel() / len(rates))) ** 0.5
        assert float((rates - 0.75).abs().max()) < five_deviations


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_dropout_follows_the_seed(dropout: float) -> None:
    inputs = draw([0, 1], 4, batch=2)
    spans = Spans([0, 1], 4)

    def attend(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return routed_attention(*inputs, spans, is_padding=None, dropout=dropout)

    assert torch.equal(attend(1), attend(1))
    assert torch.equal(attend(1), attend(2)) is (dropout != 0.5)
    assert (float(attend(1).abs().max()) == 0.0) is (dropout == 1.0)


def test_without_dropout_no_random_number_is_drawn() -> None:
    inputs, spans = draw([0, 1], 3, batch=1), Spans([0, 1], 3)
    state = torch.get_rng_state()
    routed_attention(*inputs, spans, is_padding=None)
    assert torch.equal(state, torch.get_rng_state())


def test_bfloat16_under_autocast_keeps_statistics_in_float32() -> None:
    setting = ([0, 1, 2], 6)
    query, key, value, weights = draw(*setting, batch=2)
    low = [tensor.bfloat16() for tensor in (query, key, value)]
    exact = run(lambda *tensors: reference.routed_attention(*tensors, *setting), [*low, weights], torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [tensor.detach().requires_grad_() for tensor in (*low, weights)]
        result = routed_attention(*leaves, Spans(*setting), is_padding=None)
    assert result.dtype == torch.bfloat16
    signs = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).sin().view(result.shape)
    gradients = torch.autograd.grad((result.double() * signs).sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, wanted in zip((result, *gradients), exact, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=2e-2, atol=2e-2)


def test_shifting_in_float32_equals_not_shifting() -> None:
    windows = attention_windows.RowWindows(Spans([1, 2, 3], 5).pair_class, Spans([1, 2, 3], 5).contains, torch.float32)
    scores = torch.randn(3, 25, 25) * 5
    is_hidden = torch.rand(3, 1, 25) < 0.8
    weights = torch.rand(3, 3)
    blends = []
    for is_safe in (True, False):
        exponentials = scores.clone()
        shares = attention_windows.exponentiate_(exponentials, windows, is_hidden, is_safe=is_safe)
        assert shares.is_empty is not None
        assert shares.is_empty.any()
        blends.append(exponentials * shares.blend(weights))
    torch.testing.assert_close(blends[0], blends[1], rtol=1e-5, atol=1e-6)


class Largest(TorchDispatchMode):
    """Watches the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_memory_grows_with_the_cells_not_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention_blocks.BLOCK_NUMBERS, "cpu", 2**13)
    tensors, spans = draw([0, 1, 2], 24, batch=2), Spans([0, 1, 2], 24)
    inputs = attention_blocks.Inputs(*tensors, spans.pair_class, spans.contains, None, 0.1)
    with Largest() as largest:
        attention_kernel.forward_pass(inputs, torch.tensor(3), None)
        attention_kernel.backward_pass(inputs, torch.tensor(3), None, torch.ones_like(tensors[0]))
    assert largest.numbers < 2**15  # one example's map has 2 * 24**4 numbers, twenty times as many

    saved = []
    leaves = [tensor.requires_grad_() for tensor in tensors]
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda kept: kept):
        routed_attention(*leaves, spans, is_padding=None, dropout=0.1)
    kept = {tensor.data_ptr(): tensor.numel() for tensor in saved if tensor.data_ptr() != spans.pair_class.data_ptr()}
    assert 0 < sum(kept.values()) < 2**15


@pytest.mark.parametrize(
    ("gap", "dtype"), [(1.0, torch.float32), (90.0, torch.float32), (1.0, torch.float64), (3e3, torch.float64)]
)
def test_exponentials_are_kept_where_they_are_few(
    gap: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans([0, 1], 3)
    tensors = [*torch.randn(3, 3, HEADS, 9, 16, dtype=dtype), torch.rand(3, 2, dtype=dtype)]
    tensors[0][1] *= gap  # the scores of one example are beyond the reach of their exponentials
    leaves = [tensor.requires_grad_() for tensor in tensors]
    saved: list[tuple[int, ...]] = []

    def gradients() -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        with torch.autograd.graph.saved_tensors_hooks(lambda it: saved.append(it.shape) or it, lambda it: it):
            attended = routed_attention(*leaves, spans, is_padding=None, dropout=0.3)
        return torch.autograd.grad(attended.square().sum(), leaves)

    monkeypatch.setitem(attention_blocks.BLOCK_NUMBERS, "cpu", HEADS * 9 * 9)
    found = gradients()
    assert (3, HEADS, 9, 9) in saved
    saved.clear()
    monkeypatch.setattr(attention_kernel, "keeps_exponentials", lambda _: False)
    torch.testing.assert_close(found, gradients())
    assert (3, HEADS, 9, 9) not in saved


def test_nothing_is_kept_without_a_backward_pass() -> None:
    spans, tensors = Spans([0, 1], 2), draw([0, 1], 2, batch=1)  # as many cells as a head is wide
    arguments = (*tensors, spans.pair_class, spans.contains, None, 0.0, torch.tensor(1))
    assert torch.ops.trarctl.blended_attention(*arguments, True)[1].shape == (1, HEADS, 4, 4)
    assert torch.ops.trarctl.blended_attention(*arguments, False)[1].numel() == 0


@pytest.mark.usefixtures("way")
def test_registered_with_torch_as_its_checks_want() -> None:
    spans = Spans([0, 1], 3)
    arguments = [
        *(tensor.requires_grad_() for tensor in draw([0, 1], 3, batch=2)),
        *(spans.pair_class, spans.contains, draw_padding(2, 9), 0.2, torch.tensor(5), True),
    ]
    torch.library.opcheck(torch.ops.trarctl.blended_attention.default, tuple(arguments))


def test_compiles() -> None:
    spans = Spans([0, 1, 2], 4)
    inputs = draw([0, 1, 2], 4, batch=2)

    def attend(*tensors: Tensor) -> Tensor:
        return routed_attention(*tensors, spans, is_padding=None) * 2.0

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(run(compiled, inputs, torch.float32), run(attend, inputs, torch.float32), strict=True):
        torch.testing.assert_close(ours, eager)
