"""``trarctl eval --compare``: several checkpoints side by side, and how far they are from the published results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from trarctl.data.datasets.base import Published
    from trarctl.data.metrics import Accuracy, EvaluatorName
    from trarctl.engine.callbacks import Callback
    from trarctl.engine.evaluator import Chosen

    Row = tuple[str, Accuracy, Published | None]


def compare_checkpoints(
    ckpts: Sequence[str],
    *,
    data: Path | None,
    split: str,
    config: Path | None,
    sets: Sequence[str],
    gpus: str | None,
    evaluator: EvaluatorName,
    watch: Callable[[], AbstractContextManager[Callback]],
    is_silent: bool = False,
) -> list[dict[str, object]]:
    """Score each checkpoint on a split and print one table.

    Args:
        ckpts: ``RUN``, ``RUN@EPOCH`` or ``FILE``, each.
        data: prepared folder; None for the one that each was trained on.
        split: of the data.
        config: settings of checkpoints of the original program.
        sets: ``KEY=VALUE`` settings.
        gpus: devices.
        evaluator: whose rules.
        watch: shows how far it is.
        is_silent: print no table.

    Returns:
        What the table shows, for ``--json``.

    Raises:
        TrarError: if one of them cannot be scored.
    """
    from trarctl.data.metrics import measure
    from trarctl.data.prepared import open_prepared
    from trarctl.engine.evaluator import Request, score_split

    rows: list[Row] = []
    for ckpt in ckpts:
        own_config = config if ckpt.endswith(".pkl") else None
        scores, chosen = score_split(Request(ckpt, data, split, own_config, tuple(sets), gpus), watch)
        opened = open_prepared(chosen.data)
        measured = measure(scores.predictions(), opened, opened.split(split), evaluator)
        rows.append((ckpt, measured, _nearest_published(chosen, opened.spec.published_on(split))))
    if not is_silent:
        _show(rows, split, evaluator)
    return [_document(*row) for row in rows]


def _nearest_published(chosen: Chosen, candidates: Sequence[Published]) -> Published | None:
    """The published row with the same kind of routing; the first one if none has it."""
    same = [row for row in candidates if row.name.startswith(chosen.settings.model.routing)]
    return next(iter(same or candidates), None)


def _document(name: str, measured: Accuracy, published: Published | None) -> dict[str, object]:
    document: dict[str, object] = {
        "checkpoint": name,
        "overall": measured.overall,
        "per_type": measured.per_type,
        "questions": measured.questions,
        "evaluator": measured.evaluator,
    }
    if published is not None:
        document["published"] = {"name": published.name, "overall": published.overall, "per_type": published.per_type}
        document["difference"] = round(measured.overall - published.overall, 2)
    return document


def _show(rows: Sequence[Row], split: str, evaluator: EvaluatorName) -> None:
    from trarctl.commands.console import add_row, make_table, note, show_table

    types = sorted({name for _, measured, _ in rows for name in measured.per_type})
    table = make_table("checkpoint", "overall, %", *types, title=f"accuracy on {split}", numbers=["overall, %", *types])
    for name, measured, published in rows:
        values = [measured.per_type.get(kind) for kind in types]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        add_row(table, name, f"{measured.overall:.2f}", *cells)
        if published is not None:
            differences = [
                "-" if value is None or kind not in published.per_type else f"{value - published.per_type[kind]:+.2f}"
                for kind, value in zip(types, values, strict=True)
            ]
            label = f"  against published ({published.name})"
            add_row(table, label, f"{measured.overall - published.overall:+.2f}", *differences, style="dim")
    show_table(table)
    if evaluator != "upstream" and any(published is not None for _, _, published in rows):
        note("published results are by the older rules: --evaluator upstream compares like with like")
