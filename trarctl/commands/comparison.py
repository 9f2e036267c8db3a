"""What commands share that compare runs: scoring or reusing, and the tables of runs and of groups of seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from trarctl.commands.console import (
    add_row,
    compact_bytes,
    make_table,
    note,
    open_console,
    say,
    show_table,
    warn,
    write_json,
)

if TYPE_CHECKING:
    from pathlib import Path

    from trarctl.config import EvaluatorName
    from trarctl.config.settings import Settings
    from trarctl.data.prepared import PreparedData, PreparedSplit
    from trarctl.engine.evaluations import Answered, Evaluation
    from trarctl.engine.evaluator import Chosen, Request, Scores
    from trarctl.engine.launch import Watch
    from trarctl.engine.run import RunFolder
    from trarctl.report.comparison import Comparison, Row
    from trarctl.report.history import RunOverview

WIDE, VERY_WIDE = 100, 140  # columns of a terminal that has room for the model, and for many settings
SOME, MANY = 4, 8  # settings that are shown as columns there


def choose_split(request: Request, evaluator: EvaluatorName) -> tuple[Chosen, PreparedData, PreparedSplit]:
    """What a request means, refused before the work if its split cannot be measured."""
    from trarctl.data.metrics import refuse_unmeasurable
    from trarctl.engine.evaluator import choose

    chosen = choose(request)
    opened = chosen.open_data()
    part = opened.split(request.split)
    refuse_unmeasurable(opened, part, evaluator)
    return chosen, opened, part


def measured_and_kept(
    scores: Scores, chosen: Chosen, data: PreparedData, split: PreparedSplit, evaluator: EvaluatorName
) -> Answered:
    """Measure, and keep that in the checkpoint's run; warn if a checkpoint fits the data no better than one answer."""
    from trarctl.data.metrics import commonest_answer, measure
    from trarctl.engine.checkpoint import is_ours
    from trarctl.engine.evaluations import Answered, keep

    predictions = scores.predictions()
    answered = Answered(measure(predictions, data, split, evaluator), predictions)
    if not is_ours(chosen.checkpoint):
        guess = measure(commonest_answer(data, split), data, split, evaluator).overall
        overall = answered.accuracy.overall
        if overall <= guess:
            warn(
                f"{overall:.2f} % is no better than the commonest answer to every question, {guess:.2f} %: "
                f"words, answers or features of {data.path} may be others than {chosen.checkpoint} was trained on"
            )
    elif chosen.request.is_as_trained:
        text = keep(chosen.checkpoint, answered, data, split)
        note(*([text] if text else []))
    return answered


def gather(requests: Sequence[Request], evaluator: EvaluatorName, watch: Watch) -> list[Row]:
    """Score checkpoints, or take what their runs keep; all are looked at before the first is scored."""
    from trarctl.engine.checkpoint import is_ours
    from trarctl.engine.evaluations import find
    from trarctl.engine.evaluator import score_chosen
    from trarctl.report.comparison import Row

    rows, kept = [], []
    for chosen, data, part in [choose_split(request, evaluator) for request in requests]:
        name = chosen.request.ckpt or chosen.settings.run.name or chosen.checkpoint.stem
        answered = find(chosen.checkpoint, data, part, evaluator) if chosen.request.is_as_trained else None
        if answered is None:
            answered = measured_and_kept(score_chosen(chosen, watch), chosen, data, part, evaluator)
        else:
            kept.append(name)
        settings = chosen.settings if is_ours(chosen.checkpoint) else None
        rows.append(Row(name, chosen, data, part, answered, settings))
    if kept:
        from trarctl.errors import listed

        note(f"evaluated before, and not scored again: {listed(kept, most=4)}; trarctl eval --ckpt RUN scores again")
    return rows


def columns_of(settings: Sequence[Settings | None], *, few: int) -> tuple[list[str], dict[str, str]]:
    """The settings that differ between runs as far as there is room, with their headings; the rest in a note.

    ``few`` of them have room in a narrow terminal.
    """
    from trarctl.config.settings import short_names
    from trarctl.errors import listed
    from trarctl.report.comparison import SEED_KEY, differing

    keys = differing(settings)
    # Data has a column of its own; the seed comes last.
    keys = [key for key in keys if not key.startswith("data.") and key != SEED_KEY] + [SEED_KEY] * (SEED_KEY in keys)
    width = open_console().width
    room = MANY if width >= VERY_WIDE else SOME if width >= WIDE else few
    if len(keys) > room:
        note(f"also different: {listed(keys[room - 1 : -1])}; --json - has all of them")
        keys = [*keys[: room - 1], keys[-1]]
    return keys, short_names(keys)


def show_groups(found: Comparison, title: str) -> None:
    """Print groups of seeds with mean, spread, and the paired difference from the best; then what follows from it."""
    from trarctl.config.settings import short_names
    from trarctl.report.comparison import NUM_RESAMPLES, SEED

    short = short_names(found.groups[0].values)
    # One column for each setting that differs, unless these do not tell the groups apart.
    differs = [*short.values()] if found.is_by_setting else ["runs"]
    numbers = ["n", "mean ± sd, %", "from the best"]
    columns = [*numbers, "verdict"] if found.contrasts else numbers[:-1]
    table = make_table(*differs, *columns, title=title, numbers=[*numbers, *short.values()])
    for place, (group, label) in enumerate(zip(found.groups, found.labels, strict=True)):
        first = [*group.values.values()] if found.is_by_setting else [label]
        spread = "" if group.spread is None else f" ± {group.spread:.2f}"
        cells = [*first, len(group.members), f"{group.mean:.2f}{spread}"]
        if found.contrasts:
            contrast = found.contrasts[place]
            cells += ["" if contrast.overall is None else str(contrast.overall), contrast.verdict.value]
        add_row(table, *cells)
    show_table(table)
    if found.contrasts:
        say(found.conclusion)
        first_averaged = (
            "; a question's accuracy is first averaged over the seeds of a group" if found.has_seeds else ""
        )
        note(
            f"from the best: paired difference in points with its 95 % interval, by {NUM_RESAMPLES:,} bootstrap "
            f"resamples (seed {SEED}) of the {found.num_questions or 0:,} questions{first_averaged}"
        )


def show_runs(runs: Sequence[RunFolder], where: str, json: str | None, *, has_groups: bool) -> None:
    """List runs in a table and as JSON; ``has_groups``: and what their groups of seeds come to."""
    from trarctl.engine.run import read_settings
    from trarctl.errors import CheckpointError
    from trarctl.report.comparison import differing, value_of
    from trarctl.report.history import look_at

    found = look_at(runs)
    settings: list[Settings | None] = []
    for run in runs:
        try:
            settings.append(read_settings(run))
        except CheckpointError:
            settings.append(None)
    if unreadable := [f"{run.num_unreadable} of {run.name}" for run in found if run.num_unreadable]:
        note(f"unreadable lines of metrics.jsonl, which are left out: {', '.join(unreadable)}")
    if damaged := [f"{run.num_damaged_evaluations} of {run.name}" for run in found if run.num_damaged_evaluations]:
        note(f"damaged evaluations, which are left out: {', '.join(damaged)}; trarctl eval makes them again")
    keys = differing(settings)
    documents = [
        {**asdict(run), "differs": {key: value_of(one, key) for key in keys if one is not None}}
        for run, one in zip(found, settings, strict=True)
    ]
    document: dict[str, object] = {"folder": where, "runs": documents}
    comparison = _compared(runs, found, settings) if has_groups else None
    if comparison is not None:
        document |= comparison.document()
    if json is not None:
        write_json(document, json)
    if json == "-":
        return
    _show_overviews(found, settings)
    if comparison is not None and (len(comparison.groups) > 1 or comparison.has_seeds):
        say("")
        show_groups(comparison, "best accuracy on val")
        if not comparison.contrasts and len(comparison.groups) > 1:
            note("paired differences need an evaluation of each run: trarctl eval --compare makes and keeps them")


def _compared(
    runs: Sequence[RunFolder], found: Sequence[RunOverview], settings: Sequence[Settings | None]
) -> Comparison:
    """Compare runs by what they keep, question by question if that is of the same ones."""
    from trarctl.engine.evaluations import load
    from trarctl.report.comparison import compare

    best = [_of_best(run, one.evaluations) for run, one in zip(runs, found, strict=True)]
    known = [one for one in best if one is not None]
    answered: list[Answered] = []
    if len(known) == len(found) and len({one.data_digest for one in known}) == 1:
        loaded = [load(run, one) for run, one in zip(runs, known, strict=True)]
        answered = [one for one in loaded if one is not None]
    is_whole = len(answered) == len(found)
    overall = [one.overall for one in known] if is_whole else [one.best for one in found]
    return compare([run.name for run in found], settings, overall, answered if is_whole else None)


def _of_best(run: RunFolder, evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The kept evaluation on val of the checkpoint that the run's name means."""
    from trarctl.engine.run import find_checkpoint
    from trarctl.errors import CheckpointError

    try:
        checkpoint, _ = find_checkpoint(str(run.path), run.path.parent)
    except CheckpointError:
        return None
    wanted = (checkpoint.name, "val", "official")
    return next((one for one in evaluations if (one.checkpoint, one.split, one.evaluator) == wanted), None)


def _show_overviews(found: Sequence[RunOverview], settings: Sequence[Settings | None]) -> None:
    from trarctl.report.comparison import value_of

    keys, headings = columns_of(settings, few=3)
    is_wide = open_console().width >= WIDE
    model = ["model"] if is_wide and not keys else []
    has_evaluations = is_wide and any(run.evaluations for run in found)
    differs = [headings[key] for key in keys]
    # What differs comes first: a narrow terminal has no room for more.
    is_brief = bool(keys) and not is_wide
    data = [] if keys and len({(run.dataset, run.split) for run in found}) == 1 else ["data"]
    numbers = ["best, %"] if is_brief else ["epochs", "best, %", "size"]
    evaluated = ["evaluated, %"] if has_evaluations else []
    columns = [*data, *model, *differs, *numbers, *evaluated, "state"]
    table = make_table("run", *columns, numbers=[*numbers, *differs])
    for run, one in zip(found, settings, strict=True):
        best = "" if run.best is None else f"{run.best_weights} {run.best:.2f}".lstrip()
        trained_on = run.dataset if run.split in ("", "train") else f"{run.dataset}, {run.split}"
        epochs = f"{run.epochs_done}/{run.epochs}" if run.epochs else ""
        cells = [*([trained_on] if data else []), *([run.model] if model else [])]
        cells += [value_of(one, key) for key in keys]
        cells += [best] if is_brief else [epochs, best, compact_bytes(run.num_bytes)]
        add_row(table, run.name, *cells, *([_evaluated(run)] if evaluated else []), run.state_text)
    show_table(table)


def _evaluated(run: RunOverview) -> str:
    """Kept evaluations, of each split and evaluator the best: ``val 81.20, test 80.95 (upstream)``."""
    best: dict[tuple[str, str], float] = {}
    for one in run.evaluations:
        key = one.split, one.evaluator
        best[key] = max(best.get(key, 0.0), one.overall)
    rows = ((split, value, "" if by == "official" else f" ({by})") for (split, by), value in best.items())
    return ", ".join(f"{split} {value:.2f}{by}" for split, value, by in rows)


def summarize_sweep(runs: Sequence[RunFolder], folder: Path, gpus: str | None, *, is_quiet: bool) -> None:
    """Evaluate the best epoch of each run of a sweep, which keeps that, and show what came out."""
    from trarctl.commands.progress import watch
    from trarctl.engine.evaluator import Request
    from trarctl.errors import DataError

    validated = [run for run in runs if run.read_metrics().best_epoch(run.saved_epochs()) is not None]
    requests = [Request(str(run.path), None, "val", gpus=gpus) for run in validated]
    try:
        gather(requests, "official", functools.partial(watch, is_quiet=is_quiet))
    except DataError as error:
        note(f"the runs are not compared question by question: {error.what}")
    show_runs(runs, str(folder), None, has_groups=True)
