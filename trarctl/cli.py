"""The ``trarctl`` program: registers the commands, and turns an error into a message, a hint and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import Annotated

import typer

from trarctl import __version__, errors
from trarctl.commands import (
    download,
    export,
    extract,
    predict,
    prepare,
    resume,
    runs,
    serve,
    settings,
    show,
    submit,
    train,
)
from trarctl.commands import eval as evaluation
from trarctl.commands.console import shield_streams, show_error, warn
from trarctl.commands.options import Command, Group
from trarctl.errors import DataError, DeviceError, Stopped, TrarError, told_warnings
from trarctl.groups import LEFT_BEHIND
from trarctl.processors import prepare_environment

EXIT_CODES = (
    (0, "done"),
    (1, "a bug in trarctl"),
    (2, "usage"),
    (errors.SettingsError.exit_code, "settings"),
    (errors.DataError.exit_code, "data, or a folder that cannot be written"),
    (errors.CheckpointError.exit_code, "checkpoint or run"),
    (errors.DeviceError.exit_code, "device"),
    (errors.DivergenceError.exit_code, "the loss is not finite"),
)
STOPPED = ("128 + n", "stopped by signal n, after saving if training had begun; 142: --max-time is over")
# A line with \b tells Typer to keep the lines of the paragraph as they are.
EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<8}{meaning}" for code, meaning in (*EXIT_CODES, STOPPED))

app = typer.Typer(
    name="trarctl",
    epilog=EPILOG,
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"trarctl {__version__}")
        raise typer.Exit


@app.callback()
def trarctl(
    _version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and submit TRAR: visual question answering with routed attention spans."""


# In the order in which a newcomer needs them.
for name, command, epilog in (
    ("download", download.download, download.EPILOG),
    ("extract", extract.extract, extract.EPILOG),
    ("prepare", prepare.prepare, prepare.EPILOG),
    ("train", train.train, train.EPILOG),
    ("resume", resume.resume, resume.EPILOG),
    ("eval", evaluation.evaluate, evaluation.EPILOG),
    ("submit", submit.submit, submit.EPILOG),
    ("predict", predict.predict, predict.EPILOG),
    ("export", export.export, export.EPILOG),
    ("serve", serve.serve, serve.EPILOG),
    ("runs", runs.runs, runs.EPILOG),
    ("show", show.show, show.EPILOG),
    ("settings", settings.settings, settings.EPILOG),
):
    app.command(name, cls=Command, epilog=f"\b\n{epilog}")(command)


def _names() -> list[str]:
    return [one.name for one in app.registered_commands if one.name]


@app.command("version", cls=Command, epilog="Example: trarctl version")
def version() -> None:
    """Show the version."""
    typer.echo(f"trarctl {__version__}")


@app.command("help", cls=Command, epilog="Example: trarctl help train")
def show_help(
    command: Annotated[
        str | None,
        typer.Argument(metavar="COMMAND", help="By default all commands.", autocompletion=_names, show_default=False),
    ] = None,
) -> None:
    """Show what a command takes, as trarctl COMMAND --help does."""
    raise typer.Exit(_exit_code_of([*([command] if command else []), "--help"]))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command with the arguments after ``trarctl``, None for those of the process; return the exit code."""
    shield_streams()
    if warning := prepare_environment():
        warn(warning)
    try:
        with told_warnings(warn):
            return _exit_code_of(arguments)
    except TrarError as error:
        failure = error
    except KeyboardInterrupt:
        return 130
    except MemoryError as error:
        said = " ".join(str(error).split())
        failure = DeviceError(
            f"the computer has too little memory{f': {said}' if said else ''}", "close other programs, or ask for less"
        )
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        failure = _explained(error)
    show_error(failure.what, failure.hint, label="stopped" if isinstance(failure, Stopped) else "error")
    return failure.exit_code


def main() -> None:
    """Run the console script."""
    code = run()
    if any(thread.name == LEFT_BEHIND for thread in threading.enumerate()):
        # It is in a library that aborts where Python has ended by the time it returns.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _exit_code_of(arguments: Sequence[str] | None) -> int:
    """Typer ends every command, help and usage error with SystemExit."""
    try:
        app(args=arguments, prog_name="trarctl")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def _explained(error: OSError) -> TrarError:
    """Put a failure of the file system into words, where nothing below has."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        where = f"cannot write {error.filename}" if error.filename else "cannot write"
        return DataError(f"{where}: {reason}", "free some space there, or choose another folder")
    hint = "fix its permissions, or choose another path" if error.errno in _FORBIDDEN else "check the path"
    return DataError(f"cannot use {error.filename}: {reason}", hint)
