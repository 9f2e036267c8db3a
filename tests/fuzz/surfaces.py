"""All surfaces by name."""

from __future__ import annotations

from tests.fuzz import (
    array_surfaces,
    config_surfaces,
    picture_surfaces,
    public_surfaces,
    run_surfaces,
    shared_surfaces,
    text_surfaces,
)
from tests.fuzz.harness import Surface

SURFACES: dict[str, type[Surface]] = {
    one.name: one
    for one in (
        *text_surfaces.SURFACES,
        *public_surfaces.SURFACES,
        *array_surfaces.SURFACES,
        *run_surfaces.SURFACES,
        *shared_surfaces.SURFACES,
        *config_surfaces.SURFACES,
        *picture_surfaces.SURFACES,
    )
}
