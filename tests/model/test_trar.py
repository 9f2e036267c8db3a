from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trarctl.config.settings import ModelSettings
from trarctl.model.trar import TRAR, ModelSizes, count_parameters

TINY: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "feed_forward_size": 24,
    "word_embedding_size": 6,
    "flat_mlp_size": 8,
    "flat_out_size": 12,
    "grid_size": 3,
    "spans": (0, 1),
}
SIZES = ModelSizes(vocabulary=11, answers=5, feature_width=7)


def tiny(**changes: Any) -> TRAR:
    torch.manual_seed(0)
    return TRAR(ModelSettings(**(TINY | changes)), SIZES)


def inputs(batch: int = 3, cells: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    tokens = torch.randint(1, 11, (batch, 4))
    tokens[0, 2:] = 0
    features = torch.randn(batch, cells, 7)
    features[-1, -2:] = 0
    return tokens, features


def test_published_size() -> None:
    with torch.device("meta"):
        model = TRAR(ModelSettings(), ModelSizes(vocabulary=20_573, answers=3_129, feature_width=2_048))
    assert round(count_parameters(model) / 1e6, 1) == 58.6


@pytest.mark.parametrize("routing", ["soft", "hard"])
@pytest.mark.parametrize("pooling", ["avg", "attention", "fc"])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_gradients(routing: str, pooling: str, batch: int) -> None:
    model = tiny(routing=routing, pooling=pooling)
    scores, routes = model(*inputs(batch), temperature=0.7)
    assert scores.shape == (batch, 5)
    assert routes.shape == (batch, 2, 2)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_bfloat16_stays_near_float32_forward_and_backward() -> None:
    model = tiny(dropout=0.0)
    exact, exact_routes = model(*inputs())
    expected = torch.autograd.grad(exact.square().sum(), tuple(model.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, routes = model(*inputs())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.05)
    torch.testing.assert_close(routes.float(), exact_routes, rtol=0.05, atol=0.05)
    found = torch.autograd.grad(scores.square().sum(), tuple(model.parameters()))
    ours, theirs = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_one_span_is_a_plain_transformer() -> None:
    plain = tiny(spans=(0,))
    routed = tiny(spans=(0, 0, 0))
    state = {name: tensor for name, tensor in plain.state_dict().items() if "router.score" not in name}
    routed.load_state_dict(state, strict=False)
    tokens, features = inputs()
    torch.testing.assert_close(plain.eval()(tokens, features)[0], routed.eval()(tokens, features)[0])


@pytest.mark.parametrize("spans", [(0, 9), (1,), (2, 1, 0, 1), (7, 3)])
def test_any_spans(spans: tuple[int, ...]) -> None:
    scores, routes = tiny(spans=spans)(*inputs())
    assert bool(scores.isfinite().all())
    assert routes.shape[-1] == len(spans)


def test_padding_cells_are_not_looked_at() -> None:
    # A padded cell's state is the adapter's bias: what it holds may not reach the answers. One span, since the average
    # pooling of routers looks at padding too, as published.
    model = tiny(spans=(0,)).eval()
    tokens, features = inputs(batch=1)
    short = model(tokens, features)[0]
    handle = model.adapter.register_forward_hook(
        lambda _module, arguments, cells: torch.where(arguments[0].any(dim=-1, keepdim=True), cells, cells + 50.0)
    )
    torch.testing.assert_close(model(tokens, features)[0], short)
    handle.remove()


def test_trailing_padding_words_do_not_matter() -> None:
    model = tiny().eval()
    tokens, features = inputs()
    longer = torch.nn.functional.pad(tokens, (0, 3))
    torch.testing.assert_close(model(longer, features)[0], model(tokens, features)[0])


def test_all_padding_stays_finite() -> None:
    model = tiny(routing="hard", pooling="attention")
    scores, routes = model(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 9, 7), temperature=0.1)
    scores.sum().backward()
    assert bool(scores.isfinite().all())
    assert bool(routes.isfinite().all())


def test_binarize_uses_the_heaviest_span_in_evaluation_only() -> None:
    soft, binary = tiny(routing="hard"), tiny(routing="hard", binarize=True)
    tokens, features = inputs()
    cold = soft.eval()(tokens, features, temperature=1e-4)[0]
    torch.testing.assert_close(binary.eval()(tokens, features, temperature=1.0)[0], cold, rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    trained = soft.train()(tokens, features, temperature=1.0)[0]
    torch.manual_seed(5)
    torch.testing.assert_close(binary.train()(tokens, features, temperature=1.0)[0], trained)


def test_word_vectors_are_the_start_of_the_embedding() -> None:
    vectors = torch.randn(11, 6)
    assert torch.equal(TRAR(ModelSettings(**TINY), SIZES, vectors).embedding.weight, vectors)
    with pytest.raises(ValueError, match=r"got word vectors \[11, 5\], expected \[11, 6\]"):
        TRAR(ModelSettings(**TINY), SIZES, vectors[:, :5])


class NoReadback(TorchDispatchMode):
    """Fail on whatever makes the host wait for numbers of the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "item", "_unique"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_a_training_step_reads_no_number_off_another_device(routing: str) -> None:
    with torch.device("meta"), NoReadback():
        scores, _ = tiny(routing=routing)(torch.ones(2, 4, dtype=torch.long), torch.ones(2, 9, 7))
        scores.sum().backward()
    assert scores.device.type == "meta"


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # those of torch's LSTM
def test_exports_with_any_batch_size() -> None:
    model, batch = tiny(num_layers=1, routing="hard", binarize=True).eval(), torch.export.Dim("batch", min=2, max=64)
    shapes = {"question_tokens": {0: batch}, "features": {0: batch}}
    exported = torch.export.export(model, inputs(3), dynamic_shapes=shapes).module()
    torch.testing.assert_close(exported(*inputs(5)), model(*inputs(5)))


def test_a_routed_layer_compiles_in_one_piece() -> None:
    layer = tiny(num_layers=1, dropout=0.0).visual_layers[0]
    torch.manual_seed(3)
    given = (torch.randn(3, 9, 16), torch.randn(3, 4, 16), torch.rand(3, 9) < 0.3, torch.rand(3, 4) < 0.3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, temperature=1.0), layer(*given, temperature=1.0))
