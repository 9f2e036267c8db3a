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

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {"pair_class": "*i16", "contains": "*i1", "is_padding": "*i1", "seed": "*i64"}
STATES = ("query", "key", "value", "gradient", "out", "of_query", "of_key", "of_value")


def compile_kernel(kernel: Any, capability: int, dtype: torch.dtype, *, allow_tf32: bool) -> dict[str, int]:
    """Registers, bytes of stack (of spilled registers) a thread, and bytes of shared memory a block."""
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    query = torch.empty(64, 64, 8, 64, dtype=dtype, device="meta")  # as at 8x8, with 4 spans
    given = host._arguments(query, query, torch.ones(4, 4), 0.1) | {"NUM_SPANS": 4, "BLOCK_CLASSES": 4}
    options = {name: given.pop(name) for name in ("num_warps", "num_stages")}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name.isupper():
            signature[name], constants[name] = "constexpr", given[name]
        elif name in given:
            signature[name] = "i32" if isinstance(given[name], int) else "fp32"
        else:
            states = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
            signature[name] = states if name in STATES else TYPES.get(name, "*fp32")
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


def main() -> None:
    """Compile all for the capability that is given, such as 90."""
    found = {}
    for kernel in (triton_device.forward, triton_device.backward_queries, triton_device.backward_keys):
        for dtype, allow_tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
            name = f"{kernel.__name__} {dtype} tf32={allow_tf32}"
            found[name] = compile_kernel(kernel, int(sys.argv[1]), dtype, allow_tf32=allow_tf32)
    sys.stdout.write(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
