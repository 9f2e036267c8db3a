"""Registries: names without imports, built-in modules on demand, plugins from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trarctl.errors import SettingsError
from trarctl.registry import DATASETS, SPAN_SHAPES, Registry, load_plugins


@pytest.fixture(autouse=True)
def fresh_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SPAN_SHAPES, "_items", dict(SPAN_SHAPES._items))
    load_plugins.cache_clear()
    yield
    load_plugins.cache_clear()


def test_a_registered_item_is_found_beside_the_built_in_ones() -> None:
    registry: Registry[int] = Registry("number", {"pi": "math"})
    assert registry.register("two")(2) == 2
    assert registry.names() == ("pi", "two")
    assert registry["two"] == 2
    assert "pi" in registry
    assert "three" not in registry


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="unknown data set 'birds'") as caught:
        DATASETS["birds"]
    assert caught.value.hint == f"use one of {', '.join(DATASETS.built_in)}"
    assert DATASETS.built_in[:3] == ("vqa", "clevr", "easy-vqa")


def test_a_plugin_is_imported_once_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(
        "from trarctl.registry import SPAN_SHAPES\nSPAN_SHAPES.register('plugin_test')('here')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRARCTL_PLUGINS", " plugin_of_a_test, ")
    assert SPAN_SHAPES["plugin_test"] == "here"


def test_a_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TRARCTL_PLUGINS", "broken_plugin")
    with pytest.raises(SettingsError, match="cannot import the plugin broken_plugin: ModuleNotFoundError"):
        DATASETS.names()
