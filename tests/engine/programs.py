"""The program as processes of their own: started, watched, hit, and ended by their ids whatever happens."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.engine.running import sets
from trarctl.engine.run import RunFolder

LIMIT_SECONDS = 180
POLL_SECONDS = 0.01


class Program:
    """A started program with all that it starts itself.

    Args:
        command: arguments, the program first.
        folder: to work in.
    """

    def __init__(self, command: Sequence[object], folder: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("TRARCTL_", "SLURM_"))}
        self._errors = (folder / f"errors-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [str(argument) for argument in command],
            cwd=folder,
            env=environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        """Its exit code, as a shell has it."""
        code = self.process.wait(seconds)
        return code if code >= 0 else 128 - code

    def errors(self) -> str:
        """What it has said on stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def complaints(self) -> list[str]:
        """The lines of stderr that say what went wrong."""
        return [line for line in self.errors().splitlines() if re.match(r"error:|stopped:|Traceback|\[W|\[E", line)]

    def members(self) -> list[int]:
        """Ids of all its living processes, the first one included."""
        return [pid for pid, state in processes_of(self.process.pid).items() if state != "Z"]

    def workers(self) -> list[int]:
        """Ids of the processes that it has started to compute."""
        found = []
        for pid in self.members():
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if pid != self.process.pid and b"spawn_main" in command:
                    found.append(pid)
        return sorted(found)

    def end(self) -> None:
        """Kill what is left."""
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        self._errors.close()


def processes_of(session: int) -> dict[int, str]:
    """Id and state of every process of a session."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            state, _, _, member_of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(member_of) == session:
                found[int(stat.parent.name)] = state
    return found


@contextmanager
def program(command: Sequence[object], folder: Path) -> Iterator[Program]:
    """A program that is ended with the block."""
    started = Program(command, folder)
    try:
        yield started
    finally:
        started.end()


def train_command(data: Path, dataset: str = "vqa", *options: object, **changes: object) -> list[object]:
    """``trarctl train`` of a tiny run on prepared data."""
    chosen = [argument for text in sets(**changes) for argument in ("--set", text)]
    return [sys.executable, "-m", "trarctl", "train", dataset, "--data", data, *chosen, *options]


def resume_command(name: str, *options: object) -> list[object]:
    """``trarctl resume`` of a run in the folder that it works in."""
    return [sys.executable, "-m", "trarctl", "resume", name, *options]


def wait_for_step(started: Program, run: RunFolder, step: int) -> int:
    """Wait until a run has logged a step; the last one logged."""
    give_up = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < give_up and started.process.poll() is None:
        last = max((entry.get("step", 0) for entry in run.metrics()), default=0)
        if last >= step:
            return int(last)
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"step {step} never came: {started.errors()}")


def wait_until(is_so: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
    """Wait until something is so."""
    give_up = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    """A port on the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
