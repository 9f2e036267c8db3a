"""Names and shapes of the original program's checkpoints, and how they map to this model.

Source: TRAR-VQA (2021); its state dicts hold tensors only, so names and shapes say everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# (the original's name, ours): applied in this order to every parameter name
RENAMES = (
    (r"^lstm\.", "reader."),
    (r"^adapter\.(frcn|grid)_linear\.", "adapter."),
    (r"^backbone\.enc_list\.(\d+)\.mhatt\.", r"language_layers.\1.attend."),
    (r"^backbone\.dec_list\.(\d+)\.mhatt1\.", r"visual_layers.\1.route."),
    (r"^backbone\.dec_list\.(\d+)\.mhatt2\.", r"visual_layers.\1.guide."),
    (r"^backbone\.enc_list\.(\d+)\.ffn\.", r"language_layers.\1.feed."),
    (r"^backbone\.dec_list\.(\d+)\.ffn\.", r"visual_layers.\1.feed."),
    (r"^backbone\.enc_list\.(\d+)\.norm1\.", r"language_layers.\1.attend_norm."),
    (r"^backbone\.enc_list\.(\d+)\.norm2\.", r"language_layers.\1.feed_norm."),
    (r"^backbone\.dec_list\.(\d+)\.norm1\.", r"visual_layers.\1.route_norm."),
    (r"^backbone\.dec_list\.(\d+)\.norm2\.", r"visual_layers.\1.guide_norm."),
    (r"^backbone\.dec_list\.(\d+)\.norm3\.", r"visual_layers.\1.feed_norm."),
    (r"^attflat_img\.", "image_pool."),
    (r"^attflat_lang\.", "question_pool."),
    (r"^proj_norm\.", "head_norm."),
    (r"^proj\.", "head."),
    (r"\.routing_block\.mlp\.0\.", ".router.squeeze."),
    (r"\.routing_block\.mlp\.2\.", ".router.score."),
    (r"\.routing_block\.pool\.(mlp|linear_merge)\.", r".router.pool.flat.\1."),
    (r"\.routing_block\.pool\.norm\.", ".router.pool.norm."),
    (r"\.routing_block\.pool\.(weight|bias)$", r".router.pool.scorer.\1"),
    (r"^(image_pool|question_pool)\.mlp\.fc\.linear\.", r"\1.scorer.expand."),
    (r"^(image_pool|question_pool)\.mlp\.linear\.", r"\1.scorer.contract."),
    (r"\.pool\.flat\.mlp\.fc\.linear\.", ".pool.flat.scorer.expand."),
    (r"\.pool\.flat\.mlp\.linear\.", ".pool.flat.scorer.contract."),
    (r"\.mlp\.fc\.linear\.", ".expand."),
    (r"\.mlp\.linear\.", ".contract."),
    (r"\.linear_merge\.", ".merge."),
    (r"\.(route|guide|attend)\.merge\.", r".\1.output."),
    (r"\.linear_([qkv])\.", lambda match: {"q": ".query.", "k": ".key.", "v": ".value."}[match[1]]),
    (r"\.a_2$", ".gain"),
    (r"\.b_2$", ".bias"),
)


def translate_name(name: str) -> str:
    """Translate one parameter's name of the original."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def shape_settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the model settings that the shapes of a (translated) state fix.

    Returns:
        Keys of ``ModelSettings``, and ``num_spans``. Heads, dropout, spans, grid and routing leave no trace in shapes.

    Raises:
        KeyError: for a state that lacks a part of the model.
    """
    layers = {int(match[1]) for name in state if (match := re.match(r"visual_layers\.(\d+)\.", name))}
    router = "visual_layers.0.route.router."
    hidden_size = state["adapter.weight"].shape[0]
    if router + "pool.scorer.weight" in state:
        pooling = "fc"
    else:
        pooling = "attention" if router + "pool.norm.gain" in state else "avg"
    return {
        "num_layers": len(layers),
        "hidden_size": hidden_size,
        "feed_forward_size": state["visual_layers.0.feed.expand.weight"].shape[0],
        "word_embedding_size": state["embedding.weight"].shape[1],
        "flat_mlp_size": state["image_pool.scorer.expand.weight"].shape[0],
        "flat_glimpses": state["image_pool.scorer.contract.weight"].shape[0],
        "flat_out_size": state["head.weight"].shape[1],
        "pooling": pooling,
        "num_spans": state[router + "score.weight"].shape[0],
    }
