"""The documentation says what is: its commands can be typed, its tables are complete.

Commands that start with ``trarctl train`` are run with ``--dry-run``; the others need data, real data as a rule, and
are parsed to the last option.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from trarctl import cli
from trarctl.config.original_yaml import KNOWN
from trarctl.config.settings import FIELDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
UPSTREAM_FLAGS = [
    *("--RUN", "--MODEL", "--DATASET", "--SPLIT", "--EVAL_EE", "--SAVE_PRED", "--BS", "--GPU", "--SEED", "--VERSION"),
    *("--RESUME", "--CKPT_V", "--CKPT_E", "--CKPT_PATH", "--ACCU", "--NW", "--PINM", "--VERB"),
]


def commands() -> list[list[str]]:
    """What stands behind ``trarctl`` in every line of every shell block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "trarctl" in words:
                    words = words[words.index("trarctl") + 1 :]
                    found.append(words[: words.index(">")] if ">" in words else words)
    return found


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_can_be_typed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text('[model]\nrouting = "soft"\n')
    (tmp_path / "data/birds/prepared").mkdir(parents=True)
    (tmp_path / "data/birds/prepared/manifest.json").touch()
    if words[0] == "train":
        assert cli.run([*words, "--dry-run"]) == 0, capsys.readouterr().err
        return
    group = typer.main.get_command(cli.app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:])


def test_there_are_commands_to_check() -> None:
    assert {words[0] for words in commands()} == {str(command.name) for command in cli.app.registered_commands}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link).exists()]
    assert missing == []


def test_the_site_has_every_page() -> None:
    listed = re.findall(r"[\w-]+\.md\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == [page.name for page in PAGES if page.parent.name == "docs"]


def test_every_flag_and_key_of_the_original_is_in_the_table() -> None:
    text = (ROOT / "docs" / "from-the-original.md").read_text(encoding="utf-8")
    assert [flag for flag in UPSTREAM_FLAGS if f"{flag} " not in text and f"{flag}`" not in text] == []
    assert [key for key in sorted(KNOWN) if f"`{key}`" not in text] == []


def test_keys_in_the_docs_exist() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:data|model|train|run)\.[a-z_]+)`", page.read_text(encoding="utf-8"))
        assert [key for key in named if key not in FIELDS] == [], page.name


def test_exit_codes_are_those_of_the_program() -> None:
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    for code, meaning in cli.EXIT_CODES:
        assert f"| {code} | {meaning} |" in text


def test_the_tests_that_hold_a_promise_exist() -> None:
    named = set(
        re.findall(r"`(?:tests/)?(?:\w+/)*(test_\w+(?:\.py)?)`", (ROOT / "docs/trust.md").read_text(encoding="utf-8"))
    )
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = set[str]().union(*(re.findall(r"^ *def (test_\w+)", file.read_text(), re.MULTILINE) for file in files))
    assert len(named) > 30
    assert named <= functions | {file.name for file in files}
