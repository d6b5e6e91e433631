"""Write the tiny reference models of the Gemma family and the numbers transformers + PEFT give for them.

The same folders and keys as llama_tiny.py, which does the work. Caps and windows are small, so that they show.

The cases of Gemma 2 and 3 named in GGUF have the base as a GGUF file too, with the names and numbers that llama.cpp
gives them (norms as 1 + w) and without tokenizer.

    python gemma_tiny.py [--out DIR] [--only CASE ...]
"""

import json

import gguf
import numpy as np
import torch
from llama_tiny import main
from safetensors.torch import load_file

BASE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GEMMA2 = BASE | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 20,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "rope_theta": 10000.0,
}
GEMMA3 = BASE | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 3,
    "query_pre_attn_scalar": 20,
    "sliding_window": 8,
}

CASES = {
    # `gelu` in its files is the tanh form all the same; one kv head as in the 2B model.
    "gemma_mqa": {
        "config": BASE
        | {
            "model_type": "gemma",
            "architectures": ["GemmaForCausalLM"],
            "hidden_act": "gelu",
            "num_key_value_heads": 1,
            "rope_theta": 10000.0,
        },
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    },
    "gemma2_caps": {
        "config": GEMMA2,
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"]},
    },
    # The cap after an adapted head; no cap of scores.
    "gemma2_head": {
        "config": GEMMA2 | {"tie_word_embeddings": False, "attn_logit_softcapping": None},
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "lm_head"]},
    },
    # As on the hub.
    "gemma3_hub": {
        "config": GEMMA3
        | {
            "sliding_window_pattern": 2,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "final_logit_softcapping": None,
        },
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "o_proj", "down_proj"]},
    },
    # As transformers 5 writes it.
    "gemma3_parameters": {
        "config": GEMMA3
        | {
            "final_logit_softcapping": 4.0,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4},
    },
}

GGUF = {"gemma2_caps": gguf.MODEL_ARCH.GEMMA2, "gemma3_hub": gguf.MODEL_ARCH.GEMMA3}


def write_gguf(folder, arch):
    """The base as `model.gguf`: matrices BF16, vectors F32."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if scaling := config.get("rope_scaling"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 1:
            writer.add_tensor(new, tensor.float().numpy() + np.float32(1))
        else:
            bits = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(new, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    args = main(CASES)
    for case in set(args.only) & set(GGUF):
        write_gguf(args.out / case, GGUF[case])
