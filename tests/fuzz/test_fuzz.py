"""A minute of fuzzing with a fixed seed; ``make fuzz`` goes on for longer."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.harness import Effect, Fault, Mutation, Ran, Surface, call, campaign, captured
from tests.fuzz.surfaces import SURFACES


@pytest.mark.parametrize("name", SURFACES)
def test_mutated_input(name: str, tmp_path: Path) -> None:
    surface = SURFACES[name](tmp_path)
    surface.prepare()
    tally = campaign(surface, 0, iter(range(surface.in_minute)))
    faults = [(fault, outcomes[0].index, outcomes[0].mutation.what) for fault, outcomes in tally.faults.items()]
    assert not faults, "\n".join(f"--index {index}: {fault}: {what}" for fault, index, what in faults)


class Toy(Surface):
    """A program that does what a test wants it to."""

    name = "toy"
    effect = Effect.ANY
    answer = Ran(0, "sound")

    def build(self) -> None:
        (self.base / "in").mkdir()
        (self.base / "in/a.txt").write_text("sound")

    @property
    def mutators(self):  # type: ignore[no-untyped-def]
        return (self._mutate,)

    def _mutate(self, random: Random, folder: Path) -> Mutation:
        (folder / "a.txt").write_text("changed")
        return Mutation("changed", self.effect)

    def run(self, work: Path, random: Random) -> Ran:
        return self.answer if (work / "in/a.txt").read_text() == "changed" else Ran(0, "sound")

    def expected(self, work: Path) -> object:
        return "sound" if (work / "in/a.txt").read_text() == "sound" else "right"


def judged(folder: Path, effect: Effect, answer: Ran) -> str | None:
    toy = Toy(folder)
    toy.effect, toy.answer = effect, answer
    toy.prepare()
    fault = toy.attempt(0, 0).fault
    return None if fault is None else fault.kind


WARNED = "warning: 3 rows are odd\n"
REFUSED = Ran(4, "", "error: no\nhint:  yes\n")


@pytest.mark.parametrize(
    ("effect", "answer", "kind"),
    [
        (Effect.ANY, Ran(0, "right"), None),
        (Effect.ANY, Ran(0, "sound"), "wrong value"),
        (Effect.ANY, Ran(0, "other", WARNED), None),
        (Effect.ANY, REFUSED, None),
        (Effect.NONE, Ran(0, "sound"), None),
        (Effect.NONE, Ran(0, "right"), "other value"),
        (Effect.NONE, Ran(0, "sound", WARNED), "warning about sound input"),
        (Effect.NONE, REFUSED, "sound input refused"),
        (Effect.SAME, Ran(0, "sound", WARNED), None),
        (Effect.SAME, Ran(0, "right", WARNED), "other value"),
        (Effect.SAME, REFUSED, "sound input refused"),
        (Effect.DAMAGE, REFUSED, None),
        (Effect.DAMAGE, Ran(0, "other", WARNED), None),
        (Effect.DAMAGE, Ran(0, "right"), "silent"),
        (Effect.REFUSED, REFUSED, None),
        (Effect.REFUSED, Ran(0, "right"), "accepted"),
        (Effect.ANY, Ran(1, "", "error: no\n"), "exit code"),
        (Effect.ANY, Ran(4), "message"),
        (Effect.ANY, Ran(4, "", "error: no\nerror: no\n"), "message"),
        (Effect.ANY, Ran(0, "right", "error: no\n"), "message"),
        (Effect.ANY, Ran(4, "", 'error: no\n  File "x.py", line 3, in f\n'), "raw output"),
        (Effect.ANY, Ran(0, "right", "x.py:3: UserWarning: odd\n"), "raw output"),
        (Effect.ANY, Ran(0, "right", warned=("UserWarning: odd",)), "raw warning"),
        (Effect.ANY, Ran(0, "right", raised=KeyError("x")), "traceback"),
        (Effect.ANY, Ran(0, "right", "".join(f"warning: row {row} is odd\n" for row in range(9))), "message"),
    ],
)
def test_judgment(effect: Effect, answer: Ran, kind: str | None, tmp_path: Path) -> None:
    assert judged(tmp_path, effect, answer) == kind


def test_changed_input_is_seen(tmp_path: Path) -> None:
    class Careless(Toy):
        def run(self, work: Path, random: Random) -> Ran:
            if (work / "in/a.txt").read_text() == "changed":
                (work / "in/b.txt").write_text("mine")
            return Ran(0, "sound")

    toy = Careless(tmp_path)
    toy.prepare()
    assert toy.attempt(0, 0).fault == Fault("changed input", "b.txt", "b.txt")


def test_hang_is_seen_and_the_same_number_gives_the_same_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.SECONDS_BEFORE_IT_HANGS", 0.2)

    class Endless(Toy):
        def run(self, work: Path, random: Random) -> Ran:
            def wait() -> int:
                while (work / "in/a.txt").read_text() == "changed":
                    pass
                return 0

            return captured(wait)

        def expected(self, work: Path) -> object:
            return ""

    toy = Endless(tmp_path)
    toy.prepare()
    fault = toy.attempt(0, 0).fault
    assert fault is not None
    assert fault.kind == "hang"


def test_the_same_numbers_give_the_same_input(tmp_path: Path) -> None:
    texts = []
    for number in (1, 2):
        surface = SURFACES["clevr-questions"](tmp_path / str(number))
        surface.prepare()
        outcomes = [surface.attempt(5, index) for index in range(8)]
        texts.append([(one.mutation, one.ending, one.message) for one in outcomes])
    assert texts[0] == texts[1]


def test_command_is_captured_whole() -> None:
    ran = call("eval", "--ckpt", "nothing")
    assert ran.code == 5
    assert "error: no run 'nothing'" in ran.err
    assert ran.raised is None
