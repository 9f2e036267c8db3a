"""Every network through the commands, with made-up weights: ``make test-extractors``, about five minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.features.plain_networks import PLAIN
from tests.data.features.tours import from_a_network_to_an_answer

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("name", PLAIN)
def test_from_a_network_to_an_answer(name: str, tmp_path: Path, trarctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from_a_network_to_an_answer(tmp_path, trarctl, name, [(1000, 20), (20, 1000), (800, 600)])
