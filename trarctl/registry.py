"""What can be added from outside: data sets, extractors, router poolings, span shapes and attention kernels.

A registry maps a name to the thing itself. Built-in modules are imported when their name is first asked for, so that
asking which names there are costs nothing. A plugin is any module that registers something when it is imported:
``TRARCTL_PLUGINS=my_birds`` makes every command, and every process that it starts, import ``my_birds`` first.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from trarctl.errors import SettingsError

PLUGINS_VARIABLE = "TRARCTL_PLUGINS"

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Things of one kind by name.

    Args:
        kind: what they are, for messages: ``data set``.
        built_in: the names that come with trarctl, each with the module that registers it.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str]) -> None:
        self._kind = kind
        self._built_in = dict(built_in)
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """Add what is decorated under a name; a later registration of the same name replaces an earlier one."""

        def add(item: Item) -> Item:
            self._items[name] = item
            return item

        return add

    @property
    def built_in(self) -> tuple[str, ...]:
        """The names that come with trarctl; no plugin is loaded to tell."""
        return tuple(self._built_in)

    def names(self) -> tuple[str, ...]:
        """Every name, the built-in ones first."""
        load_plugins()
        return tuple(dict.fromkeys([*self._built_in, *self._items]))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self.names()

    def __getitem__(self, name: str) -> Item:
        """Get what was registered under a name.

        Raises:
            SettingsError: for an unknown name; the message lists the known ones.
        """
        if name not in self._items and name in self._built_in:
            importlib.import_module(self._built_in[name])
        if name not in self._items and name not in self.names():
            raise SettingsError(f"unknown {self._kind} {name!r}", f"use one of {', '.join(self.names())}")
        return self._items[name]


@functools.cache
def load_plugins() -> None:
    """Import the modules that ``TRARCTL_PLUGINS`` names, joined by commas; they may lie in the working directory.

    Raises:
        SettingsError: if one cannot be imported.
    """
    names = [name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip()]
    if names and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever somebody else's module raises
            raise SettingsError(
                f"cannot import the plugin {name}: {type(error).__name__}: {error}",
                f"correct the module, or leave it out of {PLUGINS_VARIABLE}",
            ) from error


# The modules that fill a registry define what it holds.
DATASETS: Registry[Any] = Registry(
    "data set",
    {
        "vqa": "trarctl.data.datasets.vqa",
        "clevr": "trarctl.data.datasets.clevr",
        "easy-vqa": "trarctl.data.datasets.easy_vqa",
        "vqa-cp": "trarctl.data.datasets.vqa_cp",
        "okvqa": "trarctl.data.datasets.okvqa",
        "aokvqa": "trarctl.data.datasets.aokvqa",
        "vizwiz": "trarctl.data.datasets.vizwiz",
        "table": "trarctl.data.datasets.table",
        "clevr-cogent": "trarctl.data.datasets.clevr_cogent",
        "gqa": "trarctl.data.datasets.gqa",
        "vqa-rad": "trarctl.data.datasets.vqa_rad",
        "vqa-rad-frames": "trarctl.data.datasets.vqa_rad",
        "slake": "trarctl.data.datasets.slake",
    },
)
EXTRACTORS: Registry[Any] = Registry(
    "extractor",
    {
        "patches": "trarctl.data.features.patches",
        **dict.fromkeys(("resnet101", "r50", "x101", "x152", "x152pp"), "trarctl.data.features.resnet"),
        **dict.fromkeys(("clip-rn50", "clip-rn101", "clip-rn50x4"), "trarctl.data.features.clip"),
        "timm": "trarctl.data.features.timm_models",
        "maps": "trarctl.data.features.maps",
    },
)
POOLINGS: Registry[Any] = Registry("pooling", dict.fromkeys(("avg", "attention", "fc"), "trarctl.model.routing"))
SPAN_SHAPES: Registry[Any] = Registry("span shape", {"window": "trarctl.model.spans"})
KERNELS: Registry[Any] = Registry(
    "attention kernel",
    {
        "reference": "trarctl.model.attention",
        "cpu": "trarctl.model.kernels.cpu",
        "triton": "trarctl.model.kernels.triton",
    },
)
