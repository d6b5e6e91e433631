"""A matrix as bitsandbytes quantises it to NF4 with double quantisation.

Writes crates/lowrank-kernels/tests/fixtures/nf4.json: shape, `packed` (two numbers a byte, the first in the high
half), `absmax` (a code for each 64 numbers), `nested_absmax`, `offset` (hex of little-endian f32), and the first and
last 256 of the numbers that come back. The matrix itself is a formula (`matrix`, also in tests/nf4.rs).

Usage: nf4.py [output file]
"""

import json
import pathlib
import sys

import numpy as np
import torch
from bitsandbytes import functional

ROWS, COLS = 70, 320


def matrix():
    i = np.arange(ROWS * COLS, dtype=np.uint64)
    noise = ((i * 2654435761) % 2**32 >> 8).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)
    block = i // 64
    scale = (1 + (block * 37 % 64).astype(np.float32) / np.float32(64)) * np.exp2(-(block % 5).astype(np.float32))
    return (noise * scale).astype(np.float32).reshape(ROWS, COLS)


def hexed(tensor):
    return tensor.numpy().astype("<f4").tobytes().hex()


def main():
    default = pathlib.Path(__file__).parents[2] / "crates/lowrank-kernels/tests/fixtures/nf4.json"
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    packed, state = functional.quantize_4bit(
        torch.from_numpy(matrix()), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    back = functional.dequantize_4bit(packed, state).reshape(-1)
    out = {
        "rows": ROWS,
        "cols": COLS,
        "packed": packed.numpy().tobytes().hex(),
        "absmax": state.absmax.numpy().tobytes().hex(),
        "nested_absmax": hexed(state.state2.absmax),
        "offset": hexed(state.offset.reshape(1)),
        "first": hexed(back[:256]),
        "last": hexed(back[-256:]),
    }
    target.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
