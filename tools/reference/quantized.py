"""Weights of quantized Hugging Face folders with the values that they stand for.

Writes crates/lowrank-files/tests/fixtures/quantized/NAME: config.json with its quantization_config, model.safetensors with a
matrix (or two) in that form, and expected.safetensors with the values in float32. bitsandbytes and compressed-tensors quantize and
pack by their own code; FP8, GPTQ and AWQ are packed here as their checkpoints are, and unpacked by the documented formulas:
  FP8   W = weight * scale, a scale for a block, a row or all
  GPTQ  W[o, i] = scales[g[i], o] * (q[i, o] - z[g[i], o]), z = stored + 1 (gptq) or stored (gptq_v2)
  AWQ   W[o, i] = scales[i / group, o] * (q[i, o] - z[i / group, o]), outputs of a word in the order 0 2 4 6 1 3 5 7

Usage: quantized.py [output folder]
"""

import json
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/lowrank-files/tests/fixtures/quantized"
torch.manual_seed(3)


def save(name, settings, tensors, expected):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}, indent=1) + "\n")
    norm = torch.arange(4, dtype=torch.bfloat16)
    save_file({k: v.contiguous() for k, v in tensors.items()} | {"model.norm.weight": norm}, folder / "model.safetensors")
    expected = {k: v.float().contiguous() for k, v in expected.items()} | {"model.norm.weight": norm.float()}
    save_file(expected, folder / "expected.safetensors")


def weight(rows, cols):
    return torch.randn(rows, cols) * torch.exp(torch.randn(rows, 1)) * 0.05


def fp8():
    def quantize(w, scale):
        return (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn)

    # Blocks of 16 x 64; the last ones are cut.
    w = weight(40, 192)
    scale = torch.stack([torch.stack([b.abs().amax() / 448 for b in rows.split(64, 1)]) for rows in w.split(16)])
    full = scale.repeat_interleave(16, 0)[:40].repeat_interleave(64, 1)
    q = quantize(w, full)
    save("fp8_blocks", {"quant_method": "fp8", "weight_block_size": [16, 64], "activation_scheme": "dynamic"},
         {"a.weight": q, "a.weight_scale_inv": scale}, {"a.weight": q.float() * full})
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}
    scale = (w.abs().amax(1, keepdim=True) / 448).bfloat16()
    q = quantize(w, scale.float())
    one = torch.tensor([0.01])
    q_one = quantize(w[:, :48], one)
    save("fp8_rows", {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups},
         {"a.weight": q, "a.weight_scale": scale, "a.input_scale": one.clone(), "b.weight": q_one, "b.weight_scale": one},
         # 48 columns are no whole blocks: they become F16.
         {"a.weight": q.float() * scale.float(), "b.weight": (q_one.float() * one).half()})
    power = torch.tensor([[120], [127]], dtype=torch.uint8)
    full = torch.pow(2.0, power.float() - 127).repeat_interleave(32, 0)
    w = torch.randn(64, 64) * 100 * full
    q = quantize(w, full)
    save("fp8_powers", {"quant_method": "fp8", "weight_block_size": [32, 64]},
         {"a.weight": q, "a.weight_scale_inv": power.view(torch.float8_e8m0fnu)}, {"a.weight": q.float() * full})


def pack(q, bits, dim):
    """Integers along `dim` into words, the first in the lowest bits."""
    per = 32 // bits
    q = q.to(torch.int64).unflatten(dim, (-1, per))
    word = sum(q.select(dim + 1, i) << (bits * i) for i in range(per))
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def grouped(rows, cols, group, bits, zero=None):
    """Integers [in, out], scales and zeros [groups, out]."""
    top = 2**bits - 1
    q = torch.randint(0, top + 1, (cols, rows))
    scales = (torch.rand(cols // group, rows) * 0.02 + 0.001).half()
    z = torch.full((cols // group, rows), zero) if zero is not None else torch.randint(1, top + 1, (cols // group, rows))
    return q, scales, z


def gptq():
    def one(name, bits, group, zero=None, v2=False, order=None):
        rows, cols = 24 if bits != 2 else 32, 128
        q, scales, z = grouped(rows, cols, group, bits, zero)
        g = torch.arange(cols) // group
        if order == "random":
            g = g[torch.randperm(cols)]
        if zero is None and not v2:
            z[0, 0] = 2**bits  # What is stored is its largest.
        expected = (scales.float()[g] * (q - z[g]).float()).T
        tensors = {"a.qweight": pack(q, bits, 0), "a.qzeros": pack(z if v2 else z - 1, bits, 1), "a.scales": scales}
        if order:
            tensors["a.g_idx"] = g.to(torch.int32)
        tensors["a.bias"] = torch.ones(rows, dtype=torch.float16)
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order == "random", "sym": zero is not None}
        if v2:
            settings["checkpoint_format"] = "gptq_v2"
        expected = expected.half() if order == "random" else expected
        save(name, settings, tensors, {"a.weight": expected, "a.bias": tensors["a.bias"]})

    one("gptq", 4, 32, order="plain")
    one("gptq_v2", 4, 64, v2=True)
    one("gptq_act_order", 4, 32, order="random")
    one("gptq_8bit", 8, 128, zero=128)
    one("gptq_2bit", 2, 64)


def awq():
    rows, cols, group = 24, 128, 32
    q, scales, z = grouped(rows, cols, group, 4)
    z[0] = 0
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    shuffled = lambda x: pack(x.unflatten(1, (-1, 8))[:, :, order].flatten(1), 4, 1)
    tensors = {"a.qweight": shuffled(q), "a.qzeros": shuffled(z), "a.scales": scales}
    expected = (scales.float().repeat_interleave(group, 0) * (q - z.repeat_interleave(group, 0)).float()).T
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    save("awq", settings, tensors, {"a.weight": expected})


def bitsandbytes():
    def one(name, rows, cols, blocksize, nested):
        w = weight(rows, cols)
        packed, state = bnb.quantize_4bit(w, blocksize=blocksize, compress_statistics=nested, quant_type="nf4")
        parts = {f"a.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        expected = bnb.dequantize_4bit(packed, state)
        save(name, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
             {"a.weight": packed, **parts}, {"a.weight": expected})

    one("nf4_nested", 40, 512, 64, True)
    one("nf4", 6, 192, 64, False)
    one("nf4_blocks_of_128", 4, 256, 128, True)
    w = weight(6, 192).half()
    scale = w.float().abs().amax(1)
    q = (w.float() * 127 / scale[:, None]).round().to(torch.int8)
    save("int8", {"quant_method": "bitsandbytes", "load_in_8bit": True},
         {"a.weight": q, "a.SCB": scale, "a.weight_format": torch.tensor(0, dtype=torch.uint8)},
         {"a.weight": bnb.int8_vectorwise_dequant(q, scale)})


def compressed_tensors():
    groups = lambda **weights: {"group_0": {"targets": ["Linear"], "weights": {"type": "int", **weights}}}
    settings = lambda format, **weights: {"quant_method": "compressed-tensors", "format": format, "config_groups": groups(**weights)}
    w = weight(24, 128)
    scale = (w.unflatten(1, (-1, 32)).abs().amax(2) / 7).bfloat16()
    full = scale.float().repeat_interleave(32, 1)
    q = (w / full).round().clamp(-8, 7).to(torch.int8)
    words = pack_to_int32(q, 4)
    assert torch.equal(unpack_from_int32(words, 4, q.shape), q)
    save("int4_words", settings("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=True),
         {"a.weight_packed": words, "a.weight_scale": scale, "a.weight_shape": torch.tensor(q.shape)},
         {"a.weight": q.float() * full})
    z = torch.randint(-8, 8, (24, 4)).to(torch.int8)
    q = torch.randint(-8, 8, (24, 128)).to(torch.int8)
    expected = (q.float() - z.float().repeat_interleave(32, 1)) * full
    save("int4_words_with_zeros", settings("pack-quantized", num_bits=4, strategy="group", group_size=32, symmetric=False),
         {"a.weight_packed": pack_to_int32(q, 4), "a.weight_scale": scale, "a.weight_shape": torch.tensor(q.shape),
          "a.weight_zero_point": pack_to_int32(z, 4, packed_dim=0)},
         {"a.weight": expected})
    scale = w.abs().amax(1, keepdim=True) / 127
    q = (w / scale).round().to(torch.int8)
    save("int8_rows", settings("int-quantized", num_bits=8, strategy="channel", symmetric=True),
         {"a.weight": q, "a.weight_scale": scale}, {"a.weight": q.float() * scale})
    save("int8_words", settings("pack-quantized", num_bits=8, strategy="channel", symmetric=True),
         {"a.weight_packed": pack_to_int32(q, 8), "a.weight_scale": scale, "a.weight_shape": torch.tensor(q.shape)},
         {"a.weight": q.float() * scale})


def main():
    global OUT
    OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    for scheme in (fp8, gptq, awq, bitsandbytes, compressed_tensors):
        scheme()


if __name__ == "__main__":
    main()
