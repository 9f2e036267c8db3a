"""The Triton kernels as Python, by Triton's interpreter; ``test_triton.py`` runs this where TRITON_INTERPRET is set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.model import reference, test_attention
from tests.model.test_attention import assert_near, attend, defined, draw, draw_padding, run
from tests.model.test_golden_logits import CASES, TEMPERATURE
from trarctl.config.resolve import resolve
from trarctl.data.loader import scoring_samples
from trarctl.data.prepared import open_prepared
from trarctl.engine.checkpoint import load_upstream
from trarctl.model.kernels import triton
from trarctl.model.spans import Spans
from trarctl.model.trar import TRAR, ModelSizes
from trarctl.registry import SPAN_SHAPES

NUM_SHAPES = int(os.environ.get("TRITON_SHAPES", "12"))  # random ones; 200 take several minutes

# What is asked of every kernel, here of this one.
shapes = test_attention.shapes
test_is_the_blend_of_k_maps = test_attention.test_is_the_blend_of_k_maps
test_spans_with_scores_far_below_others_stay_exact = test_attention.test_spans_with_scores_far_below_others_stay_exact
test_extreme_span_weights_stay_exact = test_attention.test_extreme_span_weights_stay_exact
test_a_single_example_of_a_single_cell = test_attention.test_a_single_example_of_a_single_cell
test_spans_that_see_everything_are_plain_attention = test_attention.test_spans_that_see_everything_are_plain_attention
test_dropout_follows_the_seed = test_attention.test_dropout_follows_the_seed
test_without_dropout_no_random_number_is_drawn = test_attention.test_without_dropout_no_random_number_is_drawn
test_a_second_backward_pass_finds_the_same = test_attention.test_a_second_backward_pass_finds_the_same


def fail(*_: object) -> Tensor:
    raise AssertionError("the reference was called")


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the kernel, which must not leave anything to the reference."""
    assert triton.IS_INTERPRETED
    monkeypatch.setattr(triton, "reference_attention", fail)
    monkeypatch.setattr(triton, "BLOCKS", dict.fromkeys(triton.BLOCKS, (128, 128)))  # time goes with their number
    with np.errstate(all="ignore"):  # what numpy says of numbers that a mask leaves out
        yield "triton"


def mask_of(query: Tensor, num_keys: int, dropout: float) -> Tensor:
    """What dropout multiplies the map by, [B, H, T, M]: read off a uniform map, with an identity as values."""
    batch, heads, _, _ = query.shape
    parts = []
    for columns in torch.eye(num_keys).split(triton.LARGEST_WIDTH, dim=1):
        value = columns.expand(batch, heads, *columns.shape)
        flat = [torch.zeros(batch, heads, length, columns.shape[1]) for length in (query.shape[2], num_keys)]
        torch.manual_seed(4)
        parts.append(attend([*flat, value], None, dropout=dropout, kernel="triton"))
    return torch.cat(parts, dim=-1) * num_keys


def assert_as_defined(
    inputs: list[Tensor],
    setting: test_attention.Setting,
    *,
    tolerances: tuple[float, float] = (1e-5, 1e-4),
    **arguments: object,
) -> None:
    """Compare result and gradients with the definition in float64, under the mask that dropout draws."""
    spans, is_padding, dropout = Spans(*setting), arguments["is_padding"], arguments["dropout"]
    mask = mask_of(inputs[0], inputs[1].shape[2], dropout).double() if dropout else None

    def routed(*given: Tensor) -> Tensor:
        torch.manual_seed(4)
        return attend([*given], spans, kernel="triton", **arguments)

    ours = run(routed, inputs, torch.float32)
    exact = run(defined(setting, is_padding, mask), inputs, torch.float64)
    for part, tolerance in zip((slice(1), slice(1, None)), tolerances, strict=True):
        assert_near(ours[part], exact[part], tolerance)


@pytest.mark.parametrize("number", range(NUM_SHAPES))
def test_random_shapes(number: int) -> None:
    generator = torch.Generator().manual_seed(number)

    def choose(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    torch.manual_seed(number)
    grid_size, spans = choose(1, 17), []
    for index in range(choose(1, 5)):
        table = torch.rand(2 * grid_size - 1, 2 * grid_size - 1, generator=generator) < 0.1 * choose(1, 9)
        table |= table.flip(0, 1)
        table[grid_size - 1, grid_size - 1] |= not table.any()
        name = f"random{index}"

        def shape(down: int, right: int, _size: int, table: Tensor = table, middle: int = grid_size - 1) -> bool:
            return bool(table[down + middle, right + middle])

        SPAN_SHAPES.register(name)(shape)
        reference.SHAPES[name] = shape
        spans.append((choose(0, 9), f"{name}:1", "cross:3", "ring:2", "dilated:3")[choose(0, 4 if index < 3 else 0)])
    # A window and a shape may show a cell nothing at all; where a single cell has no neighbor, no span may be empty.
    setting = ([span for span in spans if reference.visible(span, grid_size).any()] or [0], grid_size)
    inputs = draw(setting, batch=2)
    has_gaps = number % 3 == 0
    if has_gaps:  # scores gain -500, 0 or 500, where those of float32 themselves are 3e-5 off
        inputs[0][..., 0] = 2.0
        inputs[1][..., 0] = 500.0 * torch.randint(-1, 2, (grid_size**2,), generator=generator)
    paddings = (None, draw_padding(2, grid_size**2), torch.ones(2, grid_size**2, dtype=torch.bool))
    assert_as_defined(
        inputs,
        setting,
        tolerances=(2e-4, 5e-4) if has_gaps else (1e-5, 1e-4),
        is_padding=paddings[number % 5 % 3],
        dropout=(0.0, 0.1)[number % 2],
    )


@pytest.mark.parametrize("setting", [([0, 1, 2], 4), (["cross:1", "ring:2"], 3), ([0], 7)], ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_dropout_has_one_mask_in_both_passes(setting: test_attention.Setting, has_padding: bool) -> None:
    is_padding = draw_padding(3, setting[1] ** 2) if has_padding else None
    assert_as_defined(draw(setting, batch=3), setting, is_padding=is_padding, dropout=0.3)


@pytest.mark.parametrize("blocks", [*triton.BLOCKS.values(), (16, 16), (32, 64)], ids=str)
def test_blocks_of_any_size(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "BLOCKS", {"ieee": blocks})
    setting: test_attention.Setting = ([0, 1, 2, 3], 9)
    assert_as_defined(draw(setting, batch=1), setting, is_padding=draw_padding(1, 81), dropout=0.1)


def test_dropout_drops_the_given_share_independently() -> None:
    mask = mask_of(torch.empty(16, 2, 64, 1), 64, 0.1)
    torch.testing.assert_close(mask[mask != 0], torch.full_like(mask[mask != 0], 1 / 0.9))
    test_attention.assert_a_tenth_is_dropped_independently(mask)


@pytest.mark.parametrize("lengths", [(5, 7), (64, 14), (14, 14), (1, 33), (70, 1)])
def test_plain_attention_is_torchs_own(lengths: tuple[int, int]) -> None:
    query, key, value = (torch.randn(2, 2, length, 24) for length in (lengths[0], lengths[1], lengths[1]))
    is_padding = torch.rand(2, lengths[1]) < 0.4
    is_padding[:, -1] = False  # torch gives no number where all is hidden
    exact = run(
        lambda *heads: functional.scaled_dot_product_attention(*heads, attn_mask=~is_padding[:, None, None]),
        [query, key, value],
        torch.float64,
    )
    ours = run(
        lambda *heads: attend([*heads], None, is_padding=is_padding, kernel="triton"),
        [query, key, value],
        torch.float32,
    )
    assert_near(ours, exact, 1e-5)


@pytest.mark.parametrize("width", [16, 128])
def test_states_of_16_bits(width: int) -> None:
    """In float16, since the interpreter has no products of bfloat16; the kernels do not tell the two apart."""
    heads = [torch.randn(2, 2, 25, width).half().requires_grad_() for _ in range(3)]
    weights = torch.rand(2, 3, requires_grad=True)
    setting: test_attention.Setting = ([0, 1, 2], 5)
    result = attend([*heads, weights], Spans(*setting), kernel="triton")
    assert result.dtype == torch.float16
    signs = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).sin().view(result.shape)
    gradients = torch.autograd.grad((result.double() * signs).sum(), [*heads, weights])
    exact = run(defined(setting, None), [*heads, weights], torch.float64)
    for mine, wanted in zip((result, *gradients), exact, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=2e-2, atol=4e-3)


def test_the_operator_keeps_what_torch_asks_of_one() -> None:
    spans, is_padding = Spans([0, 1], 3), draw_padding(2, 9)
    states = [torch.randn(2, 9, 2, 8, requires_grad=True) for _ in range(3)]
    weights = torch.rand(2, 2, requires_grad=True)
    seed = torch.tensor([3])
    for dropout, drawn in ((0.0, None), (0.2, seed)):
        arguments = (*states, weights, spans.pair_class, spans.contains, is_padding, drawn, dropout)
        torch.library.opcheck(triton._attention, arguments)


def test_a_compiler_sees_one_piece() -> None:
    setting: test_attention.Setting = ([0, 1, "cross:2"], 4)
    inputs, spans = draw(setting, batch=2), Spans(*setting)
    compiled = torch.compile(
        lambda *given: 2.0 * attend([*given], spans, dropout=0.0, kernel="triton"), backend="aot_eager", fullgraph=True
    )
    exact = run(lambda *given: 2.0 * defined(setting, None)(*given), inputs, torch.float64)
    assert_near(run(compiled, inputs, torch.float32), exact)


def test_memory_grows_with_the_cells_not_their_square() -> None:
    setting: test_attention.Setting = ([0, 1, 2], 12)
    tensors, spans = [tensor.requires_grad_() for tensor in draw(setting, batch=2)], Spans(*setting)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        attend(tensors, spans, dropout=0.1, kernel="triton")
    assert spans.pair_class is not None
    del saved[spans.pair_class.data_ptr()]
    assert 0 < sum(saved.values()) < 2**14  # the maps of one example have 2 * 12**4 numbers, and there are two


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_gives_the_originals_scores(file: Path, golden_data: dict[str, Path]) -> None:
    case = json.loads(file.read_text())
    data = open_prepared(golden_data[case["dataset"]])
    settings = resolve(dataset=case["dataset"], config=file.with_suffix(".yml"), environ={}).settings
    sizes = ModelSizes(len(data.vocabulary), len(data.answers), data.features.width)
    samples = scoring_samples(data, case["split"])
    model = TRAR(settings.model, sizes, attention="triton").eval()
    model.load_state_dict(load_upstream(file.with_suffix(".pkl"))[0])
    few = np.arange(min(8, len(samples)))
    batch = samples.batch(few)
    with np.load(file.with_suffix(".npz")) as theirs, torch.no_grad():
        scores, _ = model(batch.question_tokens, batch.cells(), temperature=TEMPERATURE)
        assert np.abs(scores.numpy() - theirs["scores"][few]).max() < 1e-4
