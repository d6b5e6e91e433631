"""Rows as ggml's own quantisers write and read them, for the formats that the `gguf` package cannot write or read.

Writes crates/lowrank-kernels/tests/fixtures/ggml_quants.json: rows of 256 numbers (hex of little-endian f32), and the blocks
(hex) that `ggml_quantize_chunk` makes of them in each format; and random blocks with the numbers that `dequantize_row_*`
reads in them. LIB is a libggml-base of llama.cpp, such as the one in the npm package @node-llama-cpp/linux-x64, or the
library of the Python package xllamacpp.

Usage: ggml_quants.py LIB [output file]
"""

import ctypes
import json
import pathlib
import sys

import numpy as np

# Number of the type and bytes of 256 values.
FORMATS = {"Q4_0": (2, 144), "Q4_1": (3, 160), "Q5_0": (6, 176), "Q5_1": (7, 192), "Q8_0": (8, 272)}
FORMATS |= {"Q4_K": (12, 144), "Q5_K": (13, 176), "Q6_K": (14, 210)}
# Bytes and values of a block.
READ = {"Q8_K": (292, 256), "Q1_0": (18, 128), "Q2_0": (18, 64)}


def rows():
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((22, 256)) * 10.0 ** rng.uniform(-3, 2, (22, 1))
    rows[0] = 0.0
    rows[1] = 0.37
    rows[2] = -2.5
    rows[3] = np.arange(256) - 100.5
    rows[4] = np.abs(rows[4])
    rows[5] = -np.abs(rows[5])
    rows[6, ::40] *= 50.0
    # Sub-blocks of zeros, of one value, and of sizes far apart.
    rows[7, 64:160] = 0.0
    rows[8, 32:64] = rows[8, 0]
    rows[9] *= np.repeat(10.0 ** rng.uniform(-4, 2, 16), 16)
    # Scales that f16 holds with few bits, or as zero.
    rows[10] = rng.standard_normal(256) * 1e-5
    rows[11] = rng.standard_normal(256) * 1e-8
    rows[12] = rng.standard_normal(256) * 1e-16
    rows[13] = np.round(rows[13] * 4.0) / 4.0
    rows[14] = rng.standard_t(2, 256) * 0.02
    rows[15] = rng.standard_normal(256) * 0.02
    return rows.astype(np.float32)


def main():
    default = pathlib.Path(__file__).parents[2] / "crates/lowrank-kernels/tests/fixtures/ggml_quants.json"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else default
    library = ctypes.CDLL(sys.argv[1])
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    number = ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, number, number, number, ctypes.c_void_p]
    values = rows()
    blocks = {}
    for name, (kind, size) in FORMATS.items():
        out = np.zeros((len(values), size), np.uint8)
        wrote = quantize(kind, values.ctypes.data, out.ctypes.data, 0, len(values), 256, None)
        assert wrote == out.nbytes, (name, wrote)
        blocks[name] = out.tobytes().hex()
    read = {}
    rng = np.random.default_rng(12)
    for name, (size, length) in READ.items():
        dequantize = getattr(library, f"dequantize_row_{name.lower().replace('k', 'K')}")
        dequantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, number]
        count = 4
        data = rng.integers(0, 256, (count, size), dtype=np.uint8)
        scale = rng.standard_normal(count).astype(np.float32 if name == "Q8_K" else np.float16)
        data[:, : scale.itemsize] = scale.view(np.uint8).reshape(count, -1)
        out = np.zeros(count * length, np.float32)
        dequantize(data.ctypes.data, out.ctypes.data, len(out))
        read[name] = {"blocks": data.tobytes().hex(), "numbers": out.tobytes().hex()}
    out = {"rows": values.astype("<f4").tobytes().hex(), "blocks": blocks, "read": read}
    target.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
