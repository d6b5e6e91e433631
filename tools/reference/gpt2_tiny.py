"""Write the tiny reference models of GPT-2 and GPT-3 and the numbers transformers + PEFT give for them.

The same folders and keys as llama_tiny.py, which does the work.

    python gpt2_tiny.py [--out DIR] [--only CASE ...]
"""

import gpt3  # noqa: F401 - makes the model type known
import torch
from llama_tiny import main

BASE = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 96,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CASES = {
    # Names without `transformer.`, as in the files on the hub; PEFT's own choice of modules.
    "gpt2_c_attn": {
        "config": BASE,
        "store": torch.float32,
        "without": "transformer.",
        "lora": {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True},
    },
    "gpt2_all": {
        "config": BASE | {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        "store": torch.bfloat16,
        "lora": {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": "all-linear"},
    },
    # One layer of each kind and one more; what the paper of LoRA adapts.
    "gpt3_banded": {
        "config": BASE
        | {
            "model_type": "gpt3",
            "architectures": ["GPT3LMHeadModel"],
            "vocab_size": 40,
            "n_embd": 32,
            "n_layer": 3,
            "window_size": 8,
        },
        "store": torch.float16,
        "lora": {"r": 4, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["q_proj", "v_proj"]},
    },
}

if __name__ == "__main__":
    main(CASES)
