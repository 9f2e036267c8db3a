"""Attention kernels against the plain definition: one map a span, in float64, and torch's own gradients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.model import reference
from trarctl.model import kernels
from trarctl.model.attention import blended_map
from trarctl.model.kernels import cpu
from trarctl.model.spans import Spans
from trarctl.registry import SPAN_SHAPES

HEADS, WIDTH = 2, 4
Setting = tuple[list[int | str], int]  # spans and grid size
SETTINGS: list[Setting] = [
    ([0, 1, 2, 3], 8),
    ([0, 1, 3], 5),
    ([2, 1, 1], 5),
    ([1], 4),
    ([0, 9], 3),
    ([0, 0], 17),
    ([0, 1], 1),
    (["cross:2", 0], 4),
    (["cross:3", "ring:2", 1], 6),
    (["ring:2"], 3),
    (["dilated:2", "diagonal:3", "ring:1", "cross:1", 2], 7),
    (["diagonal:1", "dilated:3"], 9),
]


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of the definition, registered as a plugin does."""
    monkeypatch.setattr(SPAN_SHAPES, "_items", dict(SPAN_SHAPES._items))
    for name, shape in reference.SHAPES.items():
        if name != "window":
            SPAN_SHAPES.register(name)(shape)


@pytest.fixture(params=["reference", "cpu", "cpu, small blocks", "cpu, every block through autograd"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every kernel, and every way through it."""
    if request.param == "cpu, small blocks":
        monkeypatch.setattr(cpu, "BLOCK_NUMBERS", 80)
    if request.param == "cpu, every block through autograd":
        monkeypatch.setattr(cpu, "SAFE_SCORE", -1.0)
    return str(request.param).split(",")[0]


def draw(setting: Setting, batch: int, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value as the model makes them (views of [B, N, H * d]), and span weights."""
    num_cells = setting[1] ** 2
    flat = torch.randn(3, batch, num_cells, HEADS * WIDTH, dtype=dtype)
    heads = [states.view(batch, num_cells, HEADS, WIDTH).transpose(1, 2) for states in flat]
    return [*heads, torch.randn(batch, len(setting[0]), dtype=dtype).softmax(dim=-1)]


def draw_padding(batch: int, num_cells: int) -> Tensor:
    """Padding in patches, so that small windows see nothing; the first example is all padding, the last has none."""
    is_padding = torch.rand(batch, num_cells) < 0.7
    is_padding[0], is_padding[-1] = True, False
    return is_padding


def attend(tensors: list[Tensor], spans: Spans | None, **arguments: Any) -> Tensor:
    query, key, value, *weights = tensors
    return kernels.attend(
        query, key, value, span_weights=weights[0] if weights else None, spans=spans, **{"is_padding": None} | arguments
    )


def run(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of all inputs for a fixed gradient of the result."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    result = function(*leaves)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).sin().view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)]


def defined(setting: Setting, is_padding: Tensor | None, mask: Tensor | None = None) -> Callable[..., Tensor]:
    """The attention by its definition; its map is multiplied by a mask, if there is one."""

    def attend(query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> Tensor:
        blended = reference.blended_map(query, key, weights, *setting, is_padding)
        return (blended if mask is None else blended * mask) @ value

    return attend


def assert_near(ours: list[Tensor], exact: list[Tensor], tolerance: float = 1e-5) -> None:
    for mine, wanted in zip(ours, exact, strict=True):
        largest = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(mine.double(), wanted.double(), rtol=tolerance, atol=tolerance * largest)


def assert_as_defined(kernel: str, inputs: list[Tensor], setting: Setting, is_padding: Tensor | None) -> None:
    spans = Spans(*setting)
    ours = run(lambda *given: attend([*given], spans, is_padding=is_padding, kernel=kernel), inputs, torch.float32)
    assert_near(ours, run(defined(setting, is_padding), inputs, torch.float64))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_is_the_blend_of_k_maps(kernel: str, setting: Setting, has_padding: bool) -> None:
    is_padding = draw_padding(3, setting[1] ** 2) if has_padding else None
    assert_as_defined(kernel, draw(setting, batch=3), setting, is_padding)


@pytest.mark.parametrize("number", range(12))
def test_random_spans_of_any_shape(kernel: str, number: int) -> None:
    generator = torch.Generator().manual_seed(number)

    def choose(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    grid_size, num_spans = choose(1, 7), choose(1, 5)
    spans: list[int | str] = []
    for _ in range(num_spans):
        table = torch.rand(2 * grid_size - 1, 2 * grid_size - 1, generator=generator) < 0.4
        table |= table.flip(0, 1)
        table[grid_size - 1, grid_size - 1] = True
        name = f"random{len(spans)}"

        def shape(down: int, right: int, _size: int, table: Tensor = table, middle: int = grid_size - 1) -> bool:
            return bool(table[down + middle, right + middle])

        SPAN_SHAPES.register(name)(shape)
        reference.SHAPES[name] = shape
        spans.append(f"{name}:1")
    setting = spans, grid_size
    is_padding = draw_padding(3, grid_size**2) if number % 2 else None
    assert_as_defined(kernel, draw(setting, batch=3), setting, is_padding)


@pytest.mark.parametrize("gap", [100.0, 500.0, 5000.0])
@pytest.mark.parametrize("spans", [[0, 1, 2], ["cross:2", "dilated:2", "ring:3"]], ids=str)
def test_spans_with_scores_far_below_others_stay_exact(kernel: str, gap: float, spans: list[int | str]) -> None:
    setting = (spans, 6)
    query, key, value, weights = draw(setting, batch=2)
    query[..., 0] = 2.0  # scale 1/2: the score gains what is added to the key
    far = torch.arange(36) >= 24
    key[:, :, far, 0] += gap
    key[:, :, :6, 0] -= gap
    # At scores of 5000, those of float32 themselves are 5e-4 off.
    ours = run(
        lambda *given: attend([*given], Spans(*setting), kernel=kernel), [query, key, value, weights], torch.float32
    )
    exact = run(defined(setting, None), [query, key, value, weights], torch.float64)
    assert_near(ours, exact, tolerance=max(1e-5, gap * 1e-6))


def test_extreme_span_weights_stay_exact(kernel: str) -> None:
    setting: Setting = ([0, 1, 2], 4)
    *heads, _ = draw(setting, batch=4)
    weights = torch.tensor([[0.0, 1.0, 0.0], [1e-30, 0.5, 0.5], [0.0, 0.0, 1e-30], [0.0, 0.0, 0.0]])
    assert_as_defined(kernel, [*heads, weights], setting, None)
    assert_as_defined(kernel, [3.0 * heads[0], 3.0 * heads[1], heads[2], weights], setting, draw_padding(4, 16))


def test_a_single_example_of_a_single_cell(kernel: str) -> None:
    setting: Setting = ([0, 1], 1)
    assert_as_defined(kernel, draw(setting, batch=1), setting, None)
    assert_as_defined(kernel, draw(setting, batch=1), setting, torch.tensor([[True]]))


def test_plain_attention_is_torchs_own(kernel: str) -> None:
    query, key, value = (torch.randn(3, HEADS, length, WIDTH, dtype=torch.float64) for length in (5, 7, 7))
    is_padding = draw_padding(3, 7)
    is_padding[:, 2] = False  # torch gives no number where all is hidden
    exact = run(
        lambda *heads: functional.scaled_dot_product_attention(*heads, attn_mask=~is_padding[:, None, None]),
        [query, key, value],
        torch.float64,
    )
    ours = run(
        lambda *heads: attend([*heads], None, is_padding=is_padding, kernel=kernel), [query, key, value], torch.float64
    )
    assert_near(ours, exact, tolerance=1e-9)
    nothing = attend([query, key, value], None, is_padding=torch.ones(3, 7, dtype=torch.bool), kernel=kernel)
    torch.testing.assert_close(nothing, value.mean(dim=2, keepdim=True).expand(nothing.shape))


def test_spans_that_see_everything_are_plain_attention(kernel: str) -> None:
    query, key, value, weights = draw(([0, 3], 4), batch=2)
    routed = attend([query, key, value, weights], Spans([0, 3], 4), kernel=kernel)
    torch.testing.assert_close(routed, functional.scaled_dot_product_attention(query, key, value))
    assert_as_defined(kernel, [query, key, value, torch.tensor([[0.2, 0.3], [0.5, 0.7]])], ([0, 3], 4), None)


def mask_of(kernel: str, tensors: list[Tensor], spans: Spans, is_padding: Tensor | None, dropout: float) -> Tensor:
    """What dropout multiplies the map by: read off a map that is nowhere 0, with the identity as values."""
    batch, heads, num_cells, _ = tensors[0].shape
    identity = torch.eye(num_cells, dtype=torch.float64).expand(batch, heads, num_cells, num_cells)
    tensors = [tensors[0].double() * 0, tensors[1].double(), identity, torch.ones_like(tensors[3]).double()]
    torch.manual_seed(4)
    whole = Spans([0] * tensors[3].shape[1], int(num_cells**0.5))
    whole.pair_class = None if spans.pair_class is None else torch.zeros_like(spans.pair_class)
    found = attend(tensors, whole, is_padding=is_padding, dropout=dropout, kernel=kernel)
    plain = attend(tensors, whole, is_padding=is_padding, kernel=kernel)
    return torch.where(plain == 0.0, 0.0, found / plain)


@pytest.mark.parametrize("setting", [([0, 1, 2], 4), ([1, 1], 3), (["cross:1", "ring:2"], 3), ([0], 4)], ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_dropout_has_one_mask_in_both_passes(kernel: str, setting: Setting, has_padding: bool) -> None:
    inputs, spans = draw(setting, batch=3), Spans(*setting)
    is_padding = draw_padding(3, setting[1] ** 2) if has_padding else None
    mask = mask_of(kernel, inputs, spans, None, 0.3)
    assert 0.1 < float((mask == 0).double().mean()) < 0.5

    def dropped(*given: Tensor) -> Tensor:
        torch.manual_seed(4)
        return attend([*given], spans, is_padding=is_padding, dropout=0.3, kernel=kernel)

    assert_near(
        run(dropped, inputs, torch.float64), run(defined(setting, is_padding, mask), inputs, torch.float64), 1e-9
    )


def test_gradients_hold_with_dropout_and_padding(kernel: str) -> None:
    setting: Setting = ([0, "cross:1", 1], 3)
    spans, is_padding = Spans(*setting), draw_padding(2, 9)

    def dropped(*given: Tensor) -> Tensor:
        torch.manual_seed(4)
        return attend([*given], spans, is_padding=is_padding, dropout=0.3, kernel=kernel)

    inputs = [tensor.detach().requires_grad_() for tensor in draw(setting, batch=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(dropped, inputs)


def test_dropout_drops_the_given_share_independently(kernel: str) -> None:
    torch.manual_seed(0)
    setting: Setting = ([0, 1, 2], 8)
    inputs = draw(setting, batch=16)
    mask = mask_of(kernel, inputs, Spans(*setting), None, 0.1)
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / 0.9), rtol=1e-4, atol=0.0)
    assert_a_tenth_is_dropped_independently(mask)


def assert_a_tenth_is_dropped_independently(mask: Tensor) -> None:
    """By rate, along each axis [B, H, T, M], and between elements that lie near or a block apart."""
    is_kept = (mask != 0).double()
    assert float((is_kept.mean() - 0.9).abs()) < 4 * (0.09 / is_kept.numel()) ** 0.5
    for axis in range(4):
        rates = is_kept.transpose(0, axis).flatten(1).mean(dim=1)
        assert float((rates - 0.9).abs().max()) < 5 * (0.09 * len(rates) / is_kept.numel()) ** 0.5
    flat = is_kept.flatten() - 0.9
    for lag in (1, 2, 3, 4, 8, 64, 4096, 8192):
        correlation = float((flat[lag:] * flat[:-lag]).mean()) / 0.09
        assert abs(correlation) < 5 / len(flat) ** 0.5, lag


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_dropout_follows_the_seed(kernel: str, dropout: float) -> None:
    inputs, spans = draw(([0, 1], 4), batch=2), Spans([0, 1], 4)

    def dropped(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return attend(inputs, spans, dropout=dropout, kernel=kernel)

    assert torch.equal(dropped(1), dropped(1))
    assert torch.equal(dropped(1), dropped(2)) is (dropout != 0.5)
    assert (float(dropped(1).abs().max()) == 0.0) is (dropout == 1.0)


def test_without_dropout_no_random_number_is_drawn(kernel: str) -> None:
    inputs = draw(([0, 1], 3), batch=1)
    state = torch.get_rng_state()
    attend(inputs, Spans([0, 1], 3), kernel=kernel)
    assert torch.equal(state, torch.get_rng_state())


def test_bfloat16_under_autocast_keeps_statistics_in_float32(kernel: str) -> None:
    setting: Setting = ([0, 1, 2], 6)
    query, key, value, weights = draw(setting, batch=2)
    low = [tensor.bfloat16() for tensor in (query, key, value)]
    exact = run(defined(setting, None), [*low, weights], torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [tensor.detach().requires_grad_() for tensor in (*low, weights)]
        result = attend(leaves, Spans(*setting), kernel=kernel)
    assert result.dtype == torch.bfloat16
    signs = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).sin().view(result.shape)
    gradients = torch.autograd.grad((result.double() * signs).sum(), leaves)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3 + [torch.float32]
    for mine, wanted in zip((result, *gradients), exact, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=2e-2, atol=2e-2)


def test_memory_of_the_cpu_kernel_grows_with_the_cells_not_their_square() -> None:
    setting: Setting = ([0, 1, 2], 24)
    tensors, spans = [tensor.requires_grad_() for tensor in draw(setting, batch=2)], Spans(*setting)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda kept: kept):
        attend(tensors, spans, dropout=0.1, kernel="cpu")
    assert spans.pair_class is not None
    kept = {tensor.data_ptr(): tensor.numel() for tensor in saved if tensor.data_ptr() != spans.pair_class.data_ptr()}
    assert 0 < sum(kept.values()) < 2**15  # one example's map has 2 * 24**4 numbers, twenty times as many


def test_a_second_backward_pass_finds_the_same(kernel: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in draw(([0, 1], 2), batch=2)]  # as many cells as a head is wide
    total = attend(tensors, Spans([0, 1], 2), kernel=kernel).square().sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(first, torch.autograd.grad(total, tensors), strict=True))


@pytest.fixture
def meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("meta")
def test_the_reference_reads_no_number_off_the_device() -> None:
    setting: Setting = (["cross:1", 0, 2], 4)
    inputs = [tensor.requires_grad_() for tensor in draw(setting, batch=2)]
    is_padding = torch.zeros(2, 16, dtype=torch.bool)
    attended = attend(inputs, Spans(*setting), is_padding=is_padding, dropout=0.1, kernel="auto")
    assert attended.device.type == "meta"
    attended.sum().backward()
    assert blended_map(*inputs[:2], inputs[3], None, torch.ones(3, 1, dtype=torch.bool), None).shape == (
        2,
        HEADS,
        16,
        16,
    )


@pytest.mark.parametrize("has_padding", [False, True])
def test_the_reference_compiles_in_one_piece(has_padding: bool) -> None:
    setting: Setting = ([0, 1, "cross:2"], 4)
    inputs, spans = draw(setting, batch=2), Spans(*setting)
    is_padding = draw_padding(2, 16) if has_padding else None

    def doubled(*given: Tensor) -> Tensor:
        return attend([*given], spans, is_padding=is_padding) * 2.0

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    exact = run(lambda *given: 2.0 * defined(setting, is_padding)(*given), inputs, torch.float64)
    assert_near(run(compiled, inputs, torch.float32), exact)
