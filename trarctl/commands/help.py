"""Help as plain text, the options grouped by panel.

Typer's own panels take Rich's whole Markdown machinery to draw; this answers in half the time, fits any width and is
the same in a pipe. Headings are bold on a terminal.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from trarctl.commands.options import PANELS, SettingOption, build_parameters

GENERAL_PANEL = "General"


class _Formatter(Protocol):
    """What Typer lets a command write its help to."""

    def section(self, name: str) -> Any: ...

    def write_dl(self, rows: list[tuple[str, str]]) -> None: ...


def _write_options(parameters: list[Any], context: Any, formatter: _Formatter) -> None:
    """Write arguments first, then each panel in order of appearance, what belongs to none last."""
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    general: list[tuple[str, str]] = []
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is None:
            continue
        if parameter.param_type_name == "argument":
            panels["Arguments"].append(record)
        elif parameter.rich_help_panel:
            panels.setdefault(parameter.rich_help_panel, []).append(record)
        else:
            general.append(record)
    for name, rows in [*panels.items(), (GENERAL_PANEL, general)]:
        if rows:
            with formatter.section(heading(name)):
                formatter.write_dl(rows)


def heading(text: str) -> str:
    """A heading; Typer strips the style where no terminal is."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, bold=True)


class Command(TyperCommand):
    """A command with grouped options, those of its settings included."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters by panel; options of settings are made when they are first needed."""
        if self._setting_options and not self._are_built:
            self._are_built = True
            parameters = [*build_parameters(self._setting_options), *self.params]
            panels = [None, *PANELS]
            self.params = sorted(parameters, key=lambda one: panels.index(getattr(one, "rich_help_panel", None)))
        return super().get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what was given for settings is in ``ctx.obj``."""
        if self._setting_options:
            ctx.obj = {option.key: (ctx.params.pop(option.name), option.flag) for option in self._setting_options}
        return super().invoke(ctx)

    _are_built = False

    @property
    def _setting_options(self) -> tuple[SettingOption, ...]:
        return getattr(self.callback, "setting_options", ())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """The program: commands first, then the few options that it has itself."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write commands and options."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(limit=100)))
        with formatter.section(heading("Commands")):
            formatter.write_dl(rows)
        _write_options(self.get_params(ctx), ctx, formatter)
