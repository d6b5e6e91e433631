"""Write the tiny reference models of Phi-3 and the numbers transformers + PEFT give for them.

The same folders and keys as llama_tiny.py, which does the work.

    python phi3_tiny.py [--out DIR] [--only CASE ...]
"""

import torch
from llama_tiny import main

BASE = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PAIRS = 8

CASES = {
    # Two of the three sequences are longer than the 16 trained positions and have the long factors.
    "phi3_longrope": {
        "config": BASE
        | {
            "original_max_position_embeddings": 16,
            "sliding_window": 8,
            "rope_scaling": {
                "type": "longrope",
                "rope_type": "longrope",
                "short_factor": [1.0 + 0.125 * i for i in range(PAIRS)],
                "long_factor": [1.0 + 0.75 * i for i in range(PAIRS)],
            },
        },
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["qkv_proj", "gate_up_proj"]},
    },
    "phi3_partial": {
        "config": BASE | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    },
}

if __name__ == "__main__":
    main(CASES)
