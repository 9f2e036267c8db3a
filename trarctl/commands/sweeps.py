"""What ``train`` and ``resume`` share of sweeps: planning all runs before the first begins, and carrying them out."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from trarctl.commands.comparison import summarize_sweep
from trarctl.commands.console import add_row, make_table, note, say, show_error, show_table

if TYPE_CHECKING:
    from trarctl.config.resolve import Options, Resolved
    from trarctl.engine.sweep import Sweep


def plan_sweep(
    resolving: Callable[..., Resolved],
    options: Options,
    seeds: str | None,
    grids: Sequence[str],
    init: str | None,
    *,
    shows_only: bool,
) -> Sweep | None:
    """Check every run of a sweep against settings, data and devices, and write the sweep's description.

    ``resolving`` finds the settings for options. ``shows_only``: the runs are listed, checked against settings alone.
    """
    from trarctl.config.resolve import Source
    from trarctl.config.settings import to_text
    from trarctl.engine.jobs import fit_start
    from trarctl.engine.sweep import SEED, Member, Sweep, combinations, names_of, read_axes, refuse_taken
    from trarctl.errors import SettingsError

    _refuse_group(options["run.gpus"][0])
    axes = read_axes(seeds, grids)
    flag_of = {key: "--seeds" if key == SEED and seeds is not None else f"--grid {key}" for key in axes}
    base = resolving(options=options)
    for key in axes:
        origin = base.origins[key]
        if origin.source in (Source.OPTION, Source.SET):
            what = f"{origin.text} and {flag_of[key]} both say what {key} is"
            raise SettingsError(what, "leave out one of them")
    wanted = base.settings.data
    name = base.settings.run.name or f"{wanted.name or wanted.dataset}-sweep"
    chosen = combinations(axes)
    named = names_of(name, chosen)
    notes: dict[str, None] = {}
    jobs = []
    for values, run_name in zip(chosen, named, strict=True):
        varied = {key: (value, flag_of[key]) for key, value in values.items()}
        resolved = resolving(options={**options, **varied, "run.name": (run_name, "--name")})
        notes |= dict.fromkeys(resolved.notes)
        if not shows_only:
            job, found = fit_start(resolved.settings, resolved.origins, init=init)
            notes |= dict.fromkeys(found)
            jobs.append(job)
    note(*notes)
    if shows_only:
        table = make_table("run", *axes, title=f"{len(chosen)} runs of sweep {name}")
        for values, run_name in zip(chosen, named, strict=True):
            add_row(table, run_name, *map(to_text, values.values()))
        show_table(table)
        return None
    first = jobs[0]
    members = tuple(Member(one.settings, values) for one, values in zip(jobs, chosen, strict=True))
    sweep = Sweep(name, first.settings.run.folder, first.data, first.init, members)
    refuse_taken(sweep)
    sweep.write()
    return sweep


def _refuse_group(gpus: Any) -> None:
    """Refuse a group of processes that another program started: all but one of them end with their first run."""
    from trarctl.engine.distributed import plan_placement
    from trarctl.errors import SettingsError

    group = plan_placement(gpus, os.environ).group
    if group is not None and group.size > 1:
        raise SettingsError(
            "a sweep starts its processes itself, and cannot work in those that torchrun or Slurm has started",
            "start it without them, such as --gpus 0,1; or train the runs that --dry-run lists one by one",
        )


def amended(sweep: Sweep, options: Mapping[str, tuple[object, str]]) -> Sweep:
    """The same sweep on other devices, or where its data is now."""
    from trarctl.config.resolve import amend

    members = []
    for member in sweep.members:
        settings = amend(member.settings, f"sweep {sweep.name}", options=options).settings
        members.append(dataclasses.replace(member, settings=settings))
    return dataclasses.replace(sweep, data=members[0].settings.data.path or sweep.data, members=tuple(members))


def carry_out(sweep: Sweep, *, is_quiet: bool) -> None:
    """Train what is left of a sweep, one run after another, and show what all of them come to.

    A run whose loss is no longer finite does not keep the others from being trained; its error comes at the end.
    ``run.max_time`` is that of all runs together.
    """
    from trarctl.commands.progress import watch
    from trarctl.config.settings import seconds_of
    from trarctl.engine.jobs import plan_member
    from trarctl.engine.launch import run_job
    from trarctl.errors import DivergenceError, Stopped

    _refuse_group(sweep.members[0].settings.run.gpus)
    again = f"trarctl resume {sweep.reference} goes on with the sweep"
    failures: list[DivergenceError] = []
    most, started = sweep.members[0].settings.run.max_time, time.monotonic()
    with nullcontext() if all(member.is_trained for member in sweep.members) else sweep.claimed():
        for number, member in enumerate(sweep.members, start=1):
            job, notes = plan_member(sweep, member)
            where = f"run {number} of {len(sweep.members)}, {member.run.name}"
            note(f"{where}{': finished' if job is None else ''}", *notes)
            if job is None:
                continue
            if most is not None:
                left = seconds_of(most) - (time.monotonic() - started)
                if left <= 0:
                    what = f"sweep {sweep.name} stopped by run.max_time = {most} before {where}"
                    raise Stopped(what, signal.SIGALRM, again)
                job = dataclasses.replace(job, seconds_left=left)
            try:
                run_job(job, functools.partial(watch, is_quiet=is_quiet))
            except Stopped as stopped:
                what = f"sweep {sweep.name}, {where}: {stopped.what}"
                raise Stopped(what, stopped.signal_number, again) from stopped
            except DivergenceError as error:
                show_error(error.what, f"the sweep goes on without it; {error.hint}", label="warning")
                failures.append(error)
    runs = [member.run for member in sweep.members if member.run.exists()]
    say("")
    summarize_sweep(runs, sweep.folder, sweep.members[0].settings.run.gpus, is_quiet=is_quiet)
    say(f"next: trarctl eval --compare {sweep.reference} --report DIR")
    if failures:
        what = f"{len(failures)} of {len(sweep.members)} runs could not be finished: {failures[0].what}"
        raise DivergenceError(what, failures[0].hint)
