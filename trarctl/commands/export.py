"""``trarctl export``: a checkpoint as a folder to hand on, and in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trarctl.commands.console import compact_bytes, note, say, warn
from trarctl.commands.options import (
    OUTPUT_PANEL,
    CkptOption,
    ConfigOption,
    OptionalDataOption,
    SetOption,
    option,
)

EPILOG = (
    "Example: trarctl export --ckpt RUN --out shared"
    "\n\nTo the hub, as it is: hf upload NAME/MODEL shared"
    "\n\nThe folder is a checkpoint like any other: trarctl predict --ckpt shared --image FILE --question TEXT"
    "\n\nA checkpoint of the original: trarctl export --ckpt epoch13.pkl --config trar.yml --data data/vqa/prepared"
    " --out shared"
)


def export(
    *,
    ckpt: CkptOption = None,
    data: OptionalDataOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    out: Annotated[
        Path,
        option("--out", OUTPUT_PANEL, "Folder to write: new, empty, or an earlier export.", metavar="DIR"),
    ],
    is_onnx: Annotated[bool, option("--onnx", OUTPUT_PANEL, "Also write model.onnx, and compare it.")] = False,
    is_pt2: Annotated[bool, option("--pt2", OUTPUT_PANEL, "Also write model.pt2 for torch.export.load.")] = False,
) -> None:
    """Write a checkpoint as a folder for others: weights, description, model card."""
    from trarctl.engine.evaluator import Request
    from trarctl.engine.export import export as write
    from trarctl.report.model_card import model_card

    request = Request(ckpt, data, "", config, tuple(sets or ()), "cpu")
    done = write(request, out, model_card, onnx=is_onnx, pt2=is_pt2)
    warn(*done.notes)
    note(f"checkpoint {done.chosen.checkpoint} ({done.chosen.how})")
    for name in sorted(done.names):
        say(f"{done.folder / name}  {compact_bytes((done.folder / name).stat().st_size)}")
    note("the license line at the head of README.md is for you to fill in")
