"""Validated settings, where each value came from, and the recipes; here the choices that other code names as types."""

from typing import Literal

Cache = Literal["none", "ram", "device"]
Compile = Literal["auto", "on", "off"]
EvaluatorName = Literal["official", "upstream"]
Loss = Literal["bce", "kld", "ce"]
Precision = Literal["fp32", "tf32", "bf16"]
WantedCache = Literal["auto", "none", "ram", "device"]
WantedPrecision = Literal["auto", "fp32", "tf32", "bf16"]

# Environment variables that are no settings of a run: nothing of a checkpoint depends on them.
MOST_PIXELS_VARIABLE = "TRARCTL_MAX_PIXELS"
