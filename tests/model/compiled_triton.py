"""Compile the Triton kernels for a device that need not be there; print what each takes of it, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
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


def compile_attention(capability: int) -> dict[str, dict[str, int]]:
    """What the kernels of attention take at 8x8 with 4 spans, by name and precision."""
    found = {}
    for kernel in (triton_device.forward, triton_device.backward_queries, triton_device.backward_keys):
        for dtype, allow_tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32
            query = torch.empty(64, 64, 8, 64, dtype=dtype, device="meta")
            given = host._arguments(query, query, torch.ones(4, 4), 0.1) | {"NUM_SPANS": 4, "BLOCK_CLASSES": 4}
            types = TYPES | dict.fromkeys(STATES, POINTERS[dtype])
            name = f"{kernel.__name__} {dtype} tf32={allow_tf32}"
            found[name] = compile_kernel(kernel, capability, given, types)
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
                name = f"{kernel.__name__} {width} {dtype}"
                found[name] = compile_kernel(kernel, capability, rows | layers._row(width), types)
        for kernel in others:
            types = TYPES | dict.fromkeys(("states", "out", "gradient", "result", "of_states"), pointer)
            found[f"{kernel.__name__} {dtype}"] = compile_kernel(kernel, capability, block, types)
    for kernel in norms:  # as behind the poolings, where nothing is added
        given = rows | layers._row(1024)
        missing = ("change", "of_change", "seed")
        found[f"{kernel.__name__} alone"] = compile_kernel(kernel, capability, given, TYPES, missing)
    return found


def main() -> None:
    """Compile all for the capability that is given, such as 90."""
    capability = int(sys.argv[1])
    found = compile_attention(capability) | compile_layers(capability)
    sys.stdout.write(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
