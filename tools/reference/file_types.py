"""The format that llama.cpp gives each tensor of a model, for every file type of K-quants.

Writes crates/lowrank-models/tests/fixtures/file_types.json: models of no values in several shapes, and what
`llama_model_quantize` makes of their tensors. LIBS is a folder with the libraries of llama.cpp, such as bins/linux-x64 of the
npm package @node-llama-cpp/linux-x64.

Usage: file_types.py LIBS [output file]
"""

import collections
import ctypes
import glob
import json
import pathlib
import sys
import tempfile

import gguf
import numpy as np

TYPES = {"q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}
# Name: architecture, blocks, width, width of the feed-forward, heads, kv heads, whether the output is a table of its own.
MODELS = {
    "nine blocks, own output": ("llama", 9, 256, 512, 4, 2, True),
    "thirty blocks, narrow": ("llama", 30, 64, 256, 2, 1, False),
    "eighteen blocks, tied": ("gemma3", 18, 320, 512, 4, 1, False),
    "three blocks, odd": ("qwen2", 3, 80, 48, 2, 1, True),
    "as 70B": ("llama", 80, 256, 256, 8, 2, True),
    "as 65B": ("llama", 80, 256, 256, 4, 4, True),
}


class Params(ctypes.Structure):
    """llama_model_quantize_params as far as we know it, and room for the rest."""

    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("rest", ctypes.c_uint8 * 248)]


def tensors(blocks, width, wide, heads, kv_heads, output):
    kv = width // heads * kv_heads
    yield "token_embd.weight", (32, width)
    yield "output_norm.weight", (width,)
    if output:
        yield "output.weight", (32, width)
    for i in range(blocks):
        for part, shape in {
            "attn_norm": (width,), "ffn_norm": (width,), "attn_q": (width, width), "attn_k": (kv, width),
            "attn_v": (kv, width), "attn_output": (width, width), "ffn_gate": (wide, width),
            "ffn_up": (wide, width), "ffn_down": (width, wide),
        }.items():
            yield f"blk.{i}.{part}.weight", shape


def write(path, arch, blocks, width, wide, heads, kv_heads, output):
    out = gguf.GGUFWriter(path, arch)
    out.add_block_count(blocks)
    out.add_context_length(128)
    out.add_embedding_length(width)
    out.add_feed_forward_length(wide)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(32)
    out.add_rope_freq_base(10000.0)
    if arch == "gemma3":
        out.add_sliding_window(64)
    for name, shape in tensors(blocks, width, wide, heads, kv_heads, output):
        out.add_tensor(name, np.zeros(shape, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    folder = pathlib.Path(sys.argv[1])
    default = pathlib.Path(__file__).parents[2] / "crates/lowrank-models/tests/fixtures/file_types.json"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else default
    for name in ["libggml-base.so", "libggml.*so", "libllama.*so"]:
        library = ctypes.CDLL(glob.glob(str(folder / name))[0], mode=ctypes.RTLD_GLOBAL)
    library.llama_model_quantize_default_params.restype = Params
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
    library.llama_backend_init()
    models = []
    for title, (arch, blocks, width, wide, heads, kv_heads, output) in MODELS.items():
        shapes = {name: list(shape[::-1]) for name, shape in tensors(blocks, width, wide, heads, kv_heads, output)}
        types = {}
        with tempfile.TemporaryDirectory() as place:
            source, made = f"{place}/source.gguf", f"{place}/made.gguf"
            write(source, arch, blocks, width, wide, heads, kv_heads, output)
            for name, number in TYPES.items():
                params = library.llama_model_quantize_default_params()
                params.threads, params.file_type = 1, number
                failed = library.llama_model_quantize(source.encode(), made.encode(), ctypes.byref(params))
                assert failed == 0, (title, name)
                reader = gguf.GGUFReader(made)
                got = {t.name: t.tensor_type.name for t in reader.tensors}
                assert got.keys() == shapes.keys(), (title, name)
                # The number in the file is that of the file type.
                assert reader.fields["general.file_type"].contents() == number
                # Matrices only: the most common format, and the tensors of others.
                got = {tensor: kind for tensor, kind in got.items() if len(shapes[tensor]) > 1}
                most = collections.Counter(got.values()).most_common(1)[0][0]
                others = collections.defaultdict(list)
                for tensor, kind in sorted(got.items()):
                    if kind != most:
                        others[kind].append(tensor)
                types[name] = {"most": most, "others": others}
        models.append({
            "title": title, "blocks": blocks, "tied": not output, "grouped": heads != kv_heads,
            "cols": {part: shapes[part][0] for part in shapes if part.startswith("blk.0") or "." not in part[:-7]},
            "types": types,
        })
    target.write_text(json.dumps(models, indent=1) + "\n")


if __name__ == "__main__":
    main()
