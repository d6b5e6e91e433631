"""Write tiny models that read images too, whose text model is trained, and the numbers transformers + PEFT give for them.

The same folders and keys as llama_tiny.py, which does the work. The files of `_old` cases have the names that such models
had before transformers 4.52 and still have on the hub.

    python wrapped_tiny.py [--out DIR] [--only CASE ...]
"""

import torch
from llama_tiny import main

TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
OLD = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
OLD |= {f"model.{part}.": f"{part}." for part in ("vision_tower", "multi_modal_projector")}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def case(kind, name, text, vision, names=None, module="language_model", targets="q_proj|v_proj|down_proj", **fields):
    config = {"model_type": kind, "architectures": [name], "text_config": text, "vision_config": vision} | TOKENS | fields
    lora = {"r": 2, "lora_alpha": 4, "target_modules": rf".*\.{module}\..*\.({targets})"}
    return {"config": config, "store": torch.bfloat16, "lora": lora, "names": names or {}}


GEMMA3 = TEXT | TOKENS | {
    "model_type": "gemma3_text", "head_dim": 12, "num_hidden_layers": 3, "sliding_window": 8, "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 20, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
PIXTRAL = VISION | {"model_type": "pixtral", "head_dim": 4}
MINISTRAL3 = TEXT | TOKENS | {
    "model_type": "ministral3", "head_dim": 12, "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000000.0,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
    },
}
MISTRAL = TEXT | TOKENS | {"model_type": "mistral", "head_dim": 12, "sliding_window": None, "rms_norm_eps": 1e-5}
QWEN_VISION = {
    "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
    "fullatt_block_indexes": [0],
}

CASES = {
    "gemma3_old": case(
        "gemma3", "Gemma3ForConditionalGeneration", GEMMA3, SIGLIP, OLD, mm_tokens_per_image=4, image_token_index=2,
    ),
    "gemma3_new": case(
        "gemma3", "Gemma3ForConditionalGeneration", GEMMA3, SIGLIP, mm_tokens_per_image=4, image_token_index=2,
        targets="q_proj|k_proj|gate_proj",
    ),
    "mistral3_old": case(
        "mistral3", "Mistral3ForConditionalGeneration", MISTRAL, PIXTRAL, OLD, image_token_index=2,
        tie_word_embeddings=False,
    ),
    "mistral3_new": case(
        "mistral3", "Mistral3ForConditionalGeneration", MINISTRAL3, PIXTRAL, image_token_index=2,
        tie_word_embeddings=True,
    ),
    "llava_old": case(
        "llava", "LlavaForConditionalGeneration", TEXT | TOKENS | {"model_type": "llama"},
        VISION | {"model_type": "clip_vision_model"}, OLD, image_token_index=2, vision_feature_layer=-1,
    ),
    # As on the hub: the text model's fields stand beside the others, and its layers have a language model's names.
    "qwen2_5_vl_hub": {
        "config": TEXT | TOKENS | {
            "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "vision_config": QWEN_VISION, "image_token_id": 2, "video_token_id": 2, "vision_start_token_id": 2,
            "vision_end_token_id": 2, "vision_token_id": 2, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "tie_word_embeddings": True,
            "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2,
        },
        "store": torch.bfloat16,
        "lora": {"r": 2, "lora_alpha": 4, "target_modules": r".*\.language_model\..*\.(q_proj|k_proj)"},
        "names": {"model.language_model.": "model.", "model.visual.": "visual."},
    },
    "qwen3_vl_new": case(
        "qwen3_vl", "Qwen3VLForConditionalGeneration",
        TEXT | {
            "model_type": "qwen3_vl_text", "head_dim": 12, "rms_norm_eps": 1e-6, "rope_theta": 5000000.0,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [2, 2, 2]},
        },
        {
            "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 4,
        },
        image_token_id=2, video_token_id=2, vision_start_token_id=2, vision_end_token_id=2, targets="k_proj|o_proj",
    ),
    "smolvlm_new": case(
        "smolvlm", "SmolVLMForConditionalGeneration",
        TEXT | TOKENS | {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 100000.0},
        VISION | {"model_type": "smolvlm_vision"}, module="text_model", image_token_id=2, scale_factor=2,
    ),
}

if __name__ == "__main__":
    main(CASES)
