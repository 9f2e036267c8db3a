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

NUM_SHAPES = int(os.environ.get("TRITON_SHAPES", "8"))  # random ones; ``make triton-shapes`` takes 200
NUM_SAMPLES = 1000 if NUM_SHAPES >= 200 else 4  # of each golden case

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
    monkeypatch.setattr(triton, "BLOCKS", dict.fromkeys(triton.BLOCKS, (128, 128, 4)))  # time goes with their number
    monkeypatch.setattr(triton, "LARGEST_WIDTH", 512)  # so that an identity is one value
    with np.errstate(all="ignore"):  # what numpy says of numbers that a mask leaves out
        yield "triton"


def mask_of(query: Tensor, num_keys: int, dropout: float) -> Tensor:
    """What dropout multiplies the map by, [B, H, T, M]: read off a uniform map, with an identity as values."""
    identity = torch.eye(num_keys).expand(*query.shape[:2], num_keys, num_keys)
    flat = [torch.zeros(*query.shape[:2], length, num_keys) for length in (query.shape[2], num_keys)]
    torch.manual_seed(4)
    return attend([*flat, identity], None, dropout=dropout, kernel="triton") * num_keys


def assert_as_defined(
    inputs: list[Tensor],
    setting: test_attention.Setting,
    **arguments: object,
) -> None:
    """Compare result and gradients with the definition in float64, under the mask that dropout draws."""
    spans, is_padding, dropout = Spans(*setting), arguments["is_padding"], arguments["dropout"]
    mask = mask_of(inputs[0], inputs[1].shape[2], dropout).double() if dropout else None
    if mask is not None:
        error = (dropout * (1 - dropout) / mask.numel()) ** 0.5
        assert abs(float((mask == 0).double().mean()) - dropout) < 4 * error

    def routed(*given: Tensor) -> Tensor:
        torch.manual_seed(4)
        return attend([*given], spans, kernel="triton", **arguments)

    ours = run(routed, inputs, torch.float32)
    exact = run(defined(setting, is_padding, mask), inputs, torch.float64)
    for part, tolerance in ((slice(1), 1e-5), (slice(1, None), 1e-4)):
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
    batch = 2 if grid_size < 9 else 1
    inputs = draw(setting, batch)
    cells = torch.arange(grid_size**2)
    if number % 3 == 0:
        # Scores gain -500, 0 or 500. A float32 there is up to 1.5e-5 off, which no kernel could make up for; so these
        # have few digits, and what is off is what the kernel does with them.
        for states in inputs[:2]:
            states.mul_(16.0).round_().div_(16.0)
        inputs[0][..., 0] = 2.0
        inputs[1][..., 0] = 500.0 * torch.randint(-1, 2, cells.shape, generator=generator)
    middle = len(cells) // 2
    hidden = (cells >= 0, cells > middle, cells != middle, torch.rand(batch, len(cells), generator=generator) < 0.7)
    is_padding = hidden[number % 5 - 1].expand(batch, -1) if number % 5 else None
    assert_as_defined(inputs, setting, is_padding=is_padding, dropout=(0.0, 0.1)[number % 2])


@pytest.mark.parametrize("setting", [([0, 1, 2], 4), (["cross:1", "ring:2"], 3), ([0], 7)], ids=str)
@pytest.mark.parametrize("has_padding", [False, True])
def test_dropout_has_one_mask_in_both_passes(setting: test_attention.Setting, has_padding: bool) -> None:
    is_padding = draw_padding(3, setting[1] ** 2) if has_padding else None
    assert_as_defined(draw(setting, batch=3), setting, is_padding=is_padding, dropout=0.3)


@pytest.mark.parametrize("blocks", [*triton.BLOCKS.values(), (32, 64, 4)], ids=str)
def test_blocks_of_any_size(blocks: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "BLOCKS", dict.fromkeys(triton.BLOCKS, blocks))
    setting: test_attention.Setting = ([0, 1, 2, 3], 9 if max(blocks) == 64 else 6)  # several blocks, the last cut off
    is_padding = torch.rand(1, setting[1] ** 2) < 0.7
    assert_as_defined(draw(setting, batch=1), setting, is_padding=is_padding, dropout=0.1)


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
    chosen = np.arange(min(NUM_SAMPLES, len(samples)))
    batch = samples.batch(chosen)
    with np.load(file.with_suffix(".npz")) as theirs, torch.no_grad():
        ours = model(batch.question_tokens, batch.cells(), temperature=TEMPERATURE)
        for mine, name in zip(ours, ("scores", "alphas"), strict=True):
            assert np.abs(mine.numpy() - theirs[name][chosen]).max() < 1e-4
