"""Blocks of every GGUF format with the numbers the `gguf` package gives for them.

Writes crates/lowrank-kernels/tests/fixtures/quant.json:
  decode: for each format, blocks (hex) and the numbers they expand to (hex of little-endian f32);
  encode: for each format the package can write, numbers (hex of f32) and the blocks they become.

Usage: quant.py [output file]
"""

import json
import pathlib
import sys

import gguf
import numpy as np

DECODE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
# Read only, and added later: their blocks come from a generator of their own.
DECODE_MORE = ["Q2_K", "Q3_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"]
DECODE_MORE += ["TQ1_0", "TQ2_0", "MXFP4", "NVFP4"]
ENCODE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]
# Where the f16 scales of a block lie.
SCALES = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q6_K": [208], "Q2_K": [80, 82], "Q3_K": [108]}
SCALES |= {name: [0] for name in DECODE_MORE if name.startswith("IQ")}
SCALES |= {"IQ1_M": [], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": []}


def random_blocks(rng, name, count):
    kind = gguf.GGMLQuantizationType[name]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if name in ("F16", "BF16"):
        halves = blocks.view(np.uint16)
        # No NaNs: their payloads are not worth comparing.
        top = 0x7C00 if name == "F16" else 0x7F80
        halves[(halves & top) == top] = 0x3C01
        return kind, blocks
    for at in SCALES.get(name, [0, 2]):
        # Of every size, subnormal ones and zero included.
        scale = (rng.standard_normal(count) * 10.0 ** rng.uniform(-7, 2, count)).astype(np.float16)
        scale[0] = 0.0
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
    if name == "IQ1_M":
        # The exponent of the scale, which lies in four places: no infinity.
        blocks[:, 55] = blocks[:, 55] & 0x8F | 0x20
    if name == "MXFP4":
        # The smallest scales, and the others up to those that overflow.
        blocks[:, 0] = np.resize([0, 1, 2, 120, 127, 250], count)
    if name == "NVFP4":
        blocks[:3, :4] = [[0, 1, 7, 8], [0x7F, 0x7E, 0x38, 0x39], [0x10, 0x20, 0x30, 0x40]]
    return kind, blocks


def rows_to_encode(rng):
    rows = rng.standard_normal((24, 32)) * 10.0 ** rng.uniform(-3, 2, (24, 1))
    rows[0] = 0.0
    rows[1] = 0.37
    rows[2] = -2.5
    rows[3] = np.arange(32) - 15.5
    rows[4] = np.arange(32) / 127.0
    rows[5, 7] = 1000.0
    return rows.astype(np.float32)


def main():
    default = pathlib.Path(__file__).parents[2] / "crates/lowrank-kernels/tests/fixtures/quant.json"
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    rng = np.random.default_rng(7)
    decode, encode = {}, {}
    for name in DECODE:
        kind, blocks = random_blocks(rng, name, 64 if name in ("F16", "BF16") else 6)
        numbers = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        decode[name] = {"blocks": blocks.tobytes().hex(), "numbers": numbers.tobytes().hex()}
    more = np.random.default_rng(8)
    for name in DECODE_MORE:
        kind, blocks = random_blocks(more, name, 6 if gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0] < 256 else 3)
        numbers = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        decode[name] = {"blocks": blocks.tobytes().hex(), "numbers": numbers.tobytes().hex()}
    rows = rows_to_encode(rng)
    for name in ENCODE:
        kind = gguf.GGMLQuantizationType[name]
        blocks = np.ascontiguousarray(gguf.quants.quantize(rows, kind))
        encode[name] = blocks.tobytes().hex()
    out = {"decode": decode, "rows": rows.astype("<f4").tobytes().hex(), "encode": encode}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
