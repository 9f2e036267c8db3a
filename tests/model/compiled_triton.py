"""Compile the Triton kernels for a device that need not be there, and print what each takes of it.

``python -m tests.model.compiled_triton 90`` is a table of all variants, for a compute capability of 9.0; ``--json`` has
those that are tested each time: the widest heads, and those of TRAR with all that a kernel can have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trarctl.model.kernels import triton as host
from trarctl.model.kernels import triton_device
from trarctl.model.kernels import triton_layers as layers

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {"pair_class": "*i16", "contains": "*i1", "is_padding": "*i1", "seed": "*i64"}
STATES = ("query", "key", "value", "gradient", "out", "of_query", "of_key", "of_value")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
PRECISIONS = {"bf16": (torch.bfloat16, False), "tf32": (torch.float32, True), "fp32": (torch.float32, False)}


class Variant(NamedTuple):
    """What is compiled into a kernel of attention."""

    width: int = 64
    num_cells: int = 64
    num_spans: int = 4
    num_classes: int = 4
    missing: tuple[str, ...] = ()


TESTED = {"all": Variant(), "width 128": Variant(128)}
OTHERS = {
    "width 32, 14x14, 3 spans": Variant(32, 196, 3),
    "width 16": Variant(16),
    "5 spans, 12 classes": Variant(num_spans=5, num_classes=12),
    "no padding": Variant(missing=("is_padding",)),
    "no dropout": Variant(missing=("seed",)),
    "no padding, no dropout": Variant(missing=("is_padding", "seed")),
    "one class": Variant(num_spans=1, num_classes=1, missing=("pair_class",)),
    "one class, no padding": Variant(num_spans=1, num_classes=1, missing=("pair_class", "is_padding")),
}


def compile_kernel(
    kernel: Any, capability: int, given: dict[str, Any], types: dict[str, str], missing: tuple[str, ...] = ()
) -> dict[str, int]:
    """Registers, bytes of stack (of spilled registers) a thread, and bytes of shared memory a block.

    Args:
        kernel: of ``triton_device``.
        capability: 80 or 90.
        given: its arguments that are no tensors, and the options.
        types: of its tensors, unless they are float32.
        missing: its tensors that are None.
    """
    options = {name: given[name] for name in ("num_warps", "num_stages", "maxnreg") if given.get(name)}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.isupper() or name in missing:
            signature[name], constants[name] = "constexpr", given.get(name)
        elif name in given:
            signature[name] = "i32" if isinstance(given[name], int) else "fp32"
        else:
            signature[name] = types.get(name, "*fp32")
            attributes[(index,)] = [["tt.divisibility", 16]]  # as torch aligns them
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    use = {"shared": compiled.metadata.shared}
    if CUOBJDUMP.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [CUOBJDUMP, "--dump-resource-usage", file.name]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        words = next(line for line in lines if "REG:" in line).split()
        use |= {
            name: int(number) for name, _, number in (word.partition(":") for word in words) if name in ("REG", "STACK")
        }
    return use


def compile_attention(capability: int, variants: dict[str, Variant]) -> dict[str, dict[str, int]]:
    """What the kernels of attention take, by name, precision and variant."""
    host._capability = lambda _: capability // 10  # type: ignore[assignment]
    found = {}
    for kernel in (triton_device.forward, triton_device.backward_queries, triton_device.backward_keys):
        for precision, (dtype, allow_tf32) in PRECISIONS.items():
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32
            for name, variant in variants.items():
                query = torch.empty(64, variant.num_cells, 8, variant.width, dtype=dtype, device="meta")
                contains = torch.ones(variant.num_spans, variant.num_classes)
                given = host._arguments(query, query, contains, 0.1)
                given |= {"NUM_SPANS": variant.num_spans, "BLOCK_CLASSES": host._power_of_2(variant.num_classes)}
                types = TYPES | dict.fromkeys(STATES, POINTERS[dtype])
                use = compile_kernel(kernel, capability, given, types, variant.missing)
                found[f"{kernel.__name__}, {precision}, {name}"] = use
    return found


def compile_layers(capability: int) -> dict[str, dict[str, int]]:
    """What the kernels of the other layers take, by name, width and the type that autocast gives a layer's result."""
    found = {}
    rows = {"eps": 1e-6, "num_rows": 4096, "rows_each": 16} | layers._dropping(0.1)
    block = {"num_elements": 2**20, "BLOCK_WIDTH": layers.BLOCK} | layers._dropping(0.1)
    norms = (triton_device.norm, triton_device.norm_backward)
    others = (triton_device.relu_dropout, triton_device.relu_dropout_backward)
    for dtype, pointer in POINTERS.items():
        for kernel in norms:
            for width in (512, layers.LARGEST_WIDTH):
                types = TYPES | {"change": pointer, "of_change": pointer}
                name = f"{kernel.__name__}, {str(dtype)[6:]}, width {width}"
                found[name] = compile_kernel(kernel, capability, rows | layers._row(width), types)
        for kernel in others:
            types = TYPES | dict.fromkeys(("states", "out", "gradient", "result", "of_states"), pointer)
            found[f"{kernel.__name__}, {str(dtype)[6:]}"] = compile_kernel(kernel, capability, block, types)
    for kernel in norms:  # as behind the poolings, where nothing is added
        given = rows | layers._row(1024)
        missing = ("change", "of_change", "seed")
        found[f"{kernel.__name__}, width 1024, alone"] = compile_kernel(kernel, capability, given, TYPES, missing)
    return found


def main() -> None:
    """Compile for the capability that is given, and print JSON or a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = compile_attention(given.capability, TESTED if given.json else TESTED | OTHERS)
    found |= compile_layers(given.capability)
    if given.json:
        sys.stdout.write(json.dumps(found, indent=1))
        return
    sys.stdout.write(f"{f'kernel, sm_{given.capability}':52}{'registers':>10}{'stack':>7}{'shared KB':>11}\n")
    for name, use in found.items():
        numbers = f"{use.get('REG', 0):10}{use.get('STACK', 0):7}{use['shared'] / 1024:11.1f}"
        sys.stdout.write(f"{name:52}{numbers}\n")
    if any(use.get("STACK") for use in found.values()):
        sys.exit("error: a kernel spills registers")


if __name__ == "__main__":
    main()
