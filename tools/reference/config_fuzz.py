"""Random configurations of every family, beside what transformers makes of them.

    python config_fuzz.py NAME SEED COUNT

writes crates/lowrank/tests/fixtures/configs/NAME.json, COUNT cases in turn over the families. The committed `random.json` is
`random 1 300`. For a longer run write another NAME and give it to the test:

    LOWRANK_CONFIG_CASES=NAME cargo test --release -p lowrank --test configs random -- --nocapture
"""

import random
import sys

from config_cases import LINEAR, LLAMA3, LONG, LONGROPE, ROPES, SHORT, YARN
from configs import ENCODERS, FAMILIES, Cases, shapes_of

SIZES = [0, 1, 2, 3, 4, 6, 8, 16, 24, 64]
ODD = [None, True, False, -1, 0, 1.5, "8", "", [], {}]
LAYERS = [1, 2, 2, 3, 3, *ODD]
FLAGS = [True, False, True, False, None, 0, "yes"]
ACTIVATIONS = ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "quick_gelu", "relu2", "tanh", "unknown", None]
TYPES = ["full_attention", "sliding_attention"]


def rope(r):
    """A rope's section, whole or with something wrong."""
    section = dict(r.choice([
        {}, {"rope_type": "default"}, LINEAR, YARN, {**LLAMA3, "original_max_position_embeddings": 32}, LLAMA3, LONGROPE,
        {"rope_type": "dynamic", "factor": 2.0}, {"type": "linear", "factor": 2}, {"type": "yarn", "factor": 2.0},
    ]))
    for field, values in {
        "rope_theta": [500.0, 1e6, None, "10000"], "partial_rotary_factor": [0.5, 1.0, 0.75, None],
        "original_max_position_embeddings": [16, 32, 64, None], "factor": [1.0, 2, 0.5, None, "2"],
        "attention_factor": [0.7, None], "beta_fast": [16, None], "beta_slow": [2.0], "mscale": [0.8], "mscale_all_dim": [0.9],
        "truncate": [False], "short_factor": [SHORT, SHORT[:2]], "long_factor": [LONG, None], "type": ["yarn", "default"],
    }.items():
        if r.random() < 0.12:
            section[field] = r.choice(values)
    return r.choice([section, section, section, section, None, {"full_attention": section, "sliding_attention": {}},
                     {"full_attention": section, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}])


def pool(family):
    """Fields of the family and values to try."""
    size = lambda *good: list(good) * 4 + SIZES + ODD
    common = {"tie_word_embeddings": FLAGS, "pad_token_id": [None, 0, 1, 5, 30, -1], "eos_token_id": [None, 2, [2, 3], "2"],
              "torch_dtype": ["float16", "bfloat16", "float32"], "unknown_field": ODD, "architectures": [None, [], ["X"]]}
    if family in ENCODERS or family == "gpt2":
        own = {"layer_norm_eps": [1e-12, 0.1, 0, "1e-5", None], "type_vocab_size": size(1, 2),
               "max_position_embeddings": size(64), "hidden_act": ACTIVATIONS, "num_hidden_layers": LAYERS,
               "num_attention_heads": size(1, 2, 4), "intermediate_size": size(24, 16),
               "position_embedding_type": ["absolute", "relative_key"], "is_decoder": FLAGS}
        own |= {
            "gpt2": {"activation_function": ACTIVATIONS, "n_inner": size(20), "scale_attn_weights": FLAGS, "n_layer": LAYERS,
                     "scale_attn_by_inverse_layer_idx": FLAGS, "n_head": size(1, 2), "layer_norm_epsilon": [0.1, None, 0],
                     "reorder_and_upcast_attn": FLAGS},
            "distilbert": {"activation": ACTIVATIONS, "n_layers": LAYERS, "n_heads": size(2), "hidden_dim": size(20),
                           "sinusoidal_pos_embds": FLAGS},
            "deberta-v2": {"relative_attention": FLAGS, "position_biased_input": FLAGS, "share_att_key": FLAGS,
                           "position_buckets": [-1, 4, 8, 16], "max_relative_positions": [-1, 8, 30],
                           "pos_att_type": [["c2p"], ["p2c"], [], "c2p|p2c", ["c2p", "p2c"], None],
                           "norm_rel_ebd": ["layer_norm", "none"], "conv_kernel_size": [0, 1, 3], "conv_groups": [1, 2],
                           "attention_head_size": [6, 8]},
        }.get(family, {})
        return common | own
    own = {"rope_theta": [500.0, 1e6, 10000, None, 0, "1e4"], "rope_scaling": rope, "rope_parameters": rope,
           "partial_rotary_factor": [0.5, 1.0, None], "original_max_position_embeddings": [16, 32, None],
           "hidden_act": ACTIVATIONS, "hidden_activation": ACTIVATIONS, "rms_norm_eps": [1e-6, 0.1, 0, None, "1e-5"],
           "head_dim": size(8, 4, 16), "num_attention_heads": size(2, 4), "num_key_value_heads": size(1, 2),
           "num_hidden_layers": LAYERS, "intermediate_size": size(24, 8), "attention_bias": FLAGS, "mlp_bias": FLAGS,
           "sliding_window": size(4, 8), "use_sliding_window": FLAGS, "max_window_layers": size(0, 1, 2),
           "layer_types": lambda r: r.choice([None, [r.choice(TYPES) for _ in range(r.choice([2, 2, 2, 3]))], "full_attention"]),
           "sliding_window_pattern": size(1, 2, 3), "query_pre_attn_scalar": size(8, 16), "max_position_embeddings": size(64, 16),
           "final_logit_softcapping": [None, 5.0, 30.0, 0, 0.0], "attn_logit_softcapping": [None, 2.0, 50.0],
           "rope_local_base_freq": [100.0, 10000, None], "attention_dropout": [0.0, 0.1], "use_cache": FLAGS,
           "pretraining_tp": [1, 2], "use_bidirectional_attention": FLAGS}
    return common | own


def main():
    name, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    r, cases, families = random.Random(seed), Cases(), list(FAMILIES)
    for number in range(count):
        family = families[number % len(families)]
        fields = pool(family)
        changes = {}
        for field in r.sample(sorted(fields), r.choice([1, 1, 2, 2, 3, 4])):
            values = fields[field]
            changes[field] = values(r) if callable(values) else r.choice(values)
        # Not the width and the depth: with the usual ones the order of sums shows, also between transformers' f32 and f64.
        keep = {*changes, "hidden_size", "n_embd", "dim", "num_hidden_layers", "n_layer", "n_layers"}
        drop = [field for field in FAMILIES[family] if field not in keep and r.random() < 0.03]
        # Files as this configuration has them where it is one at all.
        config = {k: v for k, v in {"model_type": family, **FAMILIES[family], **changes}.items() if k not in drop}
        files = {k: v for k, v in changes.items()} | {k: ... for k in drop}
        try:
            shapes_of(config)
        except Exception:
            files = None
        try:
            cases.add(family, f"{family}: {number}", drop=drop, files=files, **changes)
        except Exception as error:  # sizes that even the files cannot have
            print(f"left out {number}: {type(error).__name__}")
    cases.write(name)


if __name__ == "__main__":
    main()
