"""``trarctl settings``: what can be set, what it means, which values it takes, and what the recipes have."""

from __future__ import annotations

from typing import Annotated

import typer

from trarctl.commands.console import add_row, make_table, open_console, say, show_table, write_json
from trarctl.commands.options import OUTPUT_PANEL, JsonOption, check_targets, complete_setting, option

EPILOG = """Examples:
  trarctl settings train
  trarctl settings learning_rate"""

WIDE = 100  # columns of a terminal that has room for the values


def settings(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A setting, a table of settings, or a part of their names; by default all.",
            autocompletion=complete_setting,
            show_default=False,
        ),
    ] = None,
    is_markdown: Annotated[
        bool, option("--markdown", OUTPUT_PANEL, "Write the page of all settings, docs/settings.md, to stdout.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Explain the settings: meaning, values, limits, and the default of each recipe."""
    from trarctl.config.reference import as_markdown, by_recipe, defaults_text, find_keys, meaning, values_text
    from trarctl.config.resolve import PREFIX
    from trarctl.config.settings import FIELDS
    from trarctl.errors import SettingsError

    if is_markdown and (key is not None or json is not None):
        raise SettingsError("--markdown writes the page of all settings", "leave out KEY and --json")
    check_targets({"--json": json}, [])
    options = flags()
    if is_markdown:
        typer.echo(as_markdown(options), nl=False)
        return
    keys = list(FIELDS) if key is None else find_keys(key)
    if json is not None:
        rows = [
            {"key": one, "meaning": meaning(one), "values": values_text(one), "recipes": by_recipe(one)}
            | {"option": options.get(one)}
            for one in keys
        ]
        write_json({"settings": rows}, json)
        if json == "-":
            return
    if len(keys) > 1:
        is_wide = open_console().width >= WIDE
        table = make_table("setting", "default", *(["values"] if is_wide else []), "meaning")
        for one in keys:
            cells = [one, defaults_text(one), values_text(one), meaning(one)]
            add_row(table, *(cells if is_wide else [*cells[:2], cells[3]]))
        show_table(table)
        return
    (one,) = keys
    flag = [f"{options[one]} VALUE"] if one in options else []
    say(f"{one}: {meaning(one)}.")
    say(f"  values   {values_text(one)}")
    say(f"  default  {defaults_text(one)}")
    say(f"  set by   {', '.join([*flag, f'--set {one}=VALUE', PREFIX + one.upper().replace('.', '_') + '=VALUE'])}")


def flags() -> dict[str, str]:
    """Give the options of ``train`` that stand for settings, by key."""
    from trarctl.commands.train import train

    return {option.key: option.flag for option in train.__dict__["setting_options"]}
