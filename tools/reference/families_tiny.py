"""Write the tiny reference models of Llama's near kin and the numbers transformers + PEFT give for them.

The same folders and keys as llama_tiny.py, which does the work.

    python families_tiny.py [--out DIR] [--only CASE ...]
"""

import torch
from llama_tiny import main

BASE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ALL = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}
ATTENTION = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def case(kind, name, lora=ALL, without=("rms_norm_eps",), names=None, **config):
    """A model of `kind`, of class `name`, with these fields and without others."""
    fields = BASE | {"model_type": kind, "architectures": [name]} | config
    keep = {k: v for k, v in fields.items() if k not in without or k in config}
    return {"config": keep, "store": torch.bfloat16, "lora": lora, "names": names or {}}


def rms(kind, name, lora=ALL, **config):
    return case(kind, name, lora, without=(), **config)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = ["sliding_attention", "full_attention"]
OPT = {
    "ffn_dim": 40,
    "activation_function": "relu",
    "without": ("rms_norm_eps", "intermediate_size", "hidden_act", "num_key_value_heads"),
}

CASES = {
    # Layers without rotation by number, and by list with a window.
    "smollm3_every": rms("smollm3", "SmolLM3ForCausalLM", num_hidden_layers=4, rope_theta=5000000.0),
    "smollm3_list": rms(
        "smollm3", "SmolLM3ForCausalLM", ATTENTION,
        no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=8, tie_word_embeddings=False,
        attention_bias=True, mlp_bias=True,
    ),
    "olmo2_norms": rms("olmo2", "Olmo2ForCausalLM", rope_theta=500000.0),
    "olmo2_bias": rms("olmo2", "Olmo2ForCausalLM", attention_bias=True, tie_word_embeddings=True),
    "olmo3_windows": rms(
        "olmo3", "Olmo3ForCausalLM", ATTENTION, num_hidden_layers=4, sliding_window=8,
        rope_theta=500000.0, rope_scaling=YARN,
    ),
    "granite_scales": rms(
        "granite", "GraniteForCausalLM", embedding_multiplier=6.0, logits_scaling=4.0, residual_multiplier=0.22,
        attention_multiplier=0.2, tie_word_embeddings=True,
    ),
    "granite_bias": rms(
        "granite", "GraniteForCausalLM",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj", "down_proj", "lm_head"]},
        embedding_multiplier=1.5, logits_scaling=0.5, residual_multiplier=0.7, attention_multiplier=0.5,
        attention_bias=True, mlp_bias=True,
    ),
    "granite4_dense": rms(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", num_local_experts=0, num_experts_per_tok=0,
        shared_intermediate_size=40, layer_types=["attention", "attention"], position_embedding_type="rope",
        embedding_multiplier=6.0, logits_scaling=4.0, residual_multiplier=0.22, attention_multiplier=0.2,
        mamba_n_heads=8, mamba_d_head=8, tie_word_embeddings=True,
    ),
    # Two of the three sequences are longer than the trained length, where queries grow.
    "ministral3_yarn": rms(
        "ministral3", "Ministral3ForCausalLM", ATTENTION, head_dim=12,
        rope_parameters=YARN | {
            "rope_theta": 1000000.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    ),
    "glm_partial": rms("glm", "GlmForCausalLM", head_dim=16, attention_bias=True),
    "glm4_norms": rms("glm4", "Glm4ForCausalLM", head_dim=12, attention_bias=False, partial_rotary_factor=0.5),
    "glm4_bias": rms("glm4", "Glm4ForCausalLM", head_dim=8, attention_bias=True, tie_word_embeddings=True),
    "stablelm_before": case("stablelm", "StableLmForCausalLM", layer_norm_eps=1e-5, partial_rotary_factor=0.25),
    "stablelm_parallel": case(
        "stablelm", "StableLmForCausalLM", layer_norm_eps=1e-5, partial_rotary_factor=0.5, use_qkv_bias=True,
        use_parallel_residual=True, tie_word_embeddings=True,
    ),
    "starcoder2_window": case(
        "starcoder2", "Starcoder2ForCausalLM", norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", sliding_window=8,
    ),
    "starcoder2_plain": case(
        "starcoder2", "Starcoder2ForCausalLM", norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh", use_bias=False,
        tie_word_embeddings=False,
    ),
    "cohere_parallel": case("cohere", "CohereForCausalLM", layer_norm_eps=1e-5, logit_scale=0.25),
    "cohere_bias": case(
        "cohere", "CohereForCausalLM", ATTENTION, layer_norm_eps=1e-5, logit_scale=0.5, attention_bias=True,
        tie_word_embeddings=False,
    ),
    "cohere2_windows": case(
        "cohere2", "Cohere2ForCausalLM", layer_norm_eps=1e-5, logit_scale=0.5, num_hidden_layers=4, sliding_window=8,
    ),
    "gpt_neox_parallel": case(
        "gpt_neox", "GPTNeoXForCausalLM", without=("rms_norm_eps", "num_key_value_heads"), layer_norm_eps=1e-5,
        hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000, names={"lm_head.": "embed_out."},
    ),
    "gpt_neox_serial": case(
        "gpt_neox", "GPTNeoXForCausalLM", without=("rms_norm_eps", "num_key_value_heads"), layer_norm_eps=1e-5,
        hidden_act="gelu", rotary_pct=1.0, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
    ),
    "opt_before": case("opt", "OPTForCausalLM", word_embed_proj_dim=32, **OPT),
    "opt_sum": case("opt", "OPTForCausalLM", word_embed_proj_dim=16, do_layer_norm_before=False, **OPT),
    "opt_plain": case("opt", "OPTForCausalLM", enable_bias=False, tie_word_embeddings=False, **OPT),
    "phi_parallel": case(
        "phi", "PhiForCausalLM", layer_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.5,
        num_key_value_heads=None,
    ),
    "phi_head": case(
        "phi", "PhiForCausalLM", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "dense", "fc2", "lm_head"]},
        layer_norm_eps=1e-5, hidden_act="gelu_new", partial_rotary_factor=0.75, hidden_size=64,
    ),
    "exaone4_windows": rms(
        "exaone4", "Exaone4ForCausalLM", num_hidden_layers=4, sliding_window=8, sliding_window_pattern=4,
        rope_theta=1000000.0,
    ),
    "exaone4_whole": rms(
        "exaone4", "Exaone4ForCausalLM", ATTENTION, sliding_window=None, sliding_window_pattern=None,
        layer_types=["full_attention"] * 2, tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "seed_oss_bias": rms("seed_oss", "SeedOssForCausalLM", head_dim=12, attention_bias=True),
    "seed_oss_out_bias": rms(
        "seed_oss", "SeedOssForCausalLM", head_dim=8, attention_bias=False, attention_out_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "nemotron_relu2": case("nemotron", "NemotronForCausalLM", norm_eps=1e-5, hidden_act="relu2"),
    "nemotron_bias": case(
        "nemotron", "NemotronForCausalLM", ATTENTION, norm_eps=1e-5, hidden_act="relu2", head_dim=12,
        partial_rotary_factor=1.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
    ),
}

if __name__ == "__main__":
    main(CASES)
