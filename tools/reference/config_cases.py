"""What transformers makes of configurations: crates/lowrank/tests/fixtures/configs/*.json."""

import json
import os
import sys

from configs import FAMILIES, AutoConfig, Cases, shapes_of
from transformers.activations import ACT2CLS

# The weight of the output layer, and that of the embedding.
OUTPUTS = {
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "xlm-roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "distilbert": ("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "deberta-v2": ("cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
}
DECODER = ("lm_head.weight", "model.embed_tokens.weight")


def tied():
    """`tie_word_embeddings`, against what the files hold."""
    cases = Cases()
    for family in FAMILIES:
        output, table = OUTPUTS.get(family, DECODER)
        for tie in (True, False, None):
            files = {
                "both": {},
                "equal": {"same": {output: table}},
                "output": {"without": [table]},
                "table": {"without": [output]},
                "neither": {"without": [output, table]},
            }
            for name, changes in files.items():
                field = {} if tie is None else {"tie_word_embeddings": tie}
                cases.add(family, f"{family}: {tie}, {name}", **changes, **field)
        cases.add(family, f"{family}: null", **{"tie_word_embeddings": None})
    for family, bias, shared in (
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
        ("deberta-v2", "cls.predictions.decoder.bias", "cls.predictions.bias"),
    ):
        output = OUTPUTS[family][0]
        for name, without in (("own bias", [shared]), ("shared bias", [bias]), ("neither bias", [bias, shared])):
            cases.add(family, f"{family}: tied, {name}", without=[output, *without])
            cases.add(family, f"{family}: untied, {name}", without=without)
            # What is untied has no use for a shared bias, though transformers misses it.
            if bias in without:
                cases.add(family, f"{family}: false, {name}", without=without, tie_word_embeddings=False)
    cases.write("tied")


# The families with ropes.
ROPES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
LINEAR = {"rope_type": "linear", "factor": 3.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SHORT, LONG = [1.0, 1.25, 1.5, 2.0], [1.5, 3.0, 4.0, 8.0]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
ORIGINAL = "original_max_position_embeddings"


def rope():
    """Ropes in old and new spellings, alone and against each other."""
    cases = Cases()
    variants = {
        "theta": {"rope_theta": 500.0},
        "theta in parameters": {"rope_parameters": {"rope_theta": 500.0}},
        "theta in both": {"rope_theta": 90.0, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        "theta in scaling too": {"rope_theta": 90.0, "rope_scaling": {**LINEAR, "rope_theta": 500.0}},
        "theta null": {"rope_theta": None},
        "theta null, and in parameters": {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0}},
        "theta 0": {"rope_theta": 0},
        "theta a word": {"rope_theta": "10000"},
        "parameters null": {"rope_parameters": None},
        "parameters empty": {"rope_parameters": {}},
        "parameters a word": {"rope_parameters": "linear"},
        "scaling a word": {"rope_scaling": "linear"},
        "scaling null": {"rope_scaling": None, "rope_parameters": LINEAR},
        "scaling empty": {"rope_scaling": {}, "rope_parameters": LINEAR},
        "scaling before parameters": {"rope_scaling": LINEAR, "rope_parameters": {**LINEAR, "factor": 9.0, "rope_theta": 500.0}},
        "type": {"rope_scaling": {"type": "linear", "factor": 3.0}},
        "type in parameters": {"rope_parameters": {"type": "linear", "factor": 3.0}},
        "rope_type before type": {"rope_scaling": {**LINEAR, "type": "dynamic"}},
        "rope_type default before type": {"rope_scaling": {**LINEAR, "rope_type": "default", "type": "linear"}},
        "rope_type null": {"rope_scaling": {**LINEAR, "rope_type": None}},
        "rope_type unknown": {"rope_scaling": {**LINEAR, "rope_type": "mrope"}},
        "no type": {"rope_scaling": {"factor": 3.0}},
        "linear": {"rope_parameters": LINEAR},
        "linear, no factor": {"rope_parameters": {"rope_type": "linear"}},
        "linear, factor null": {"rope_parameters": {**LINEAR, "factor": None}},
        "linear, half": {"rope_parameters": {**LINEAR, "factor": 0.5}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
        "dynamic, theta": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
                           "max_position_embeddings": 16, "rope_theta": 90.0},
        "dynamic, beside": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16, ORIGINAL: 8},
        "yarn": {"rope_scaling": {**YARN, ORIGINAL: 16}},
        "yarn, beside": {"rope_scaling": YARN, ORIGINAL: 16},
        "yarn, in and beside": {"rope_scaling": {**YARN, ORIGINAL: 32}, ORIGINAL: 16},
        "yarn, beside null": {"rope_scaling": {**YARN, ORIGINAL: 32}, ORIGINAL: None},
        "yarn, neither": {"rope_parameters": YARN},
        "yarn, factor null": {"rope_parameters": {**YARN, "factor": None, ORIGINAL: 16}},
        "yarn, no factor": {"rope_parameters": {"rope_type": "yarn", ORIGINAL: 16}},
        "yarn, options": {"rope_parameters": {**YARN, ORIGINAL: 16, "beta_fast": 8, "beta_slow": 0, "mscale": 0.5,
                                              "mscale_all_dim": 0.25, "truncate": False}},
        "yarn, mscale alone": {"rope_parameters": {**YARN, ORIGINAL: 16, "mscale": 0.5}},
        "yarn, truncate null": {"rope_parameters": {**YARN, ORIGINAL: 16, "truncate": None}},
        "yarn, attention": {"rope_parameters": {**YARN, ORIGINAL: 16, "attention_factor": 0.75, "mscale": 2.0, "mscale_all_dim": 1.0}},
        "llama3": {"rope_scaling": {**LLAMA3, ORIGINAL: 16}},
        "llama3, in and beside": {"rope_scaling": {**LLAMA3, ORIGINAL: 32}, ORIGINAL: 16},
        "llama3, neither": {"rope_scaling": LLAMA3},
        "llama3, no low": {"rope_scaling": {name: x for name, x in LLAMA3.items() if name != "low_freq_factor"}},
        "longrope": {"rope_scaling": {**LONGROPE, ORIGINAL: 16}},
        "longrope, in and beside": {"rope_scaling": {**LONGROPE, ORIGINAL: 48}, ORIGINAL: 16},
        "longrope, beside 48": {"rope_scaling": {**LONGROPE, ORIGINAL: 16}, ORIGINAL: 48},
        "longrope, neither": {"rope_parameters": LONGROPE},
        "longrope, factor": {"rope_parameters": {**LONGROPE, ORIGINAL: 16, "factor": 2.0}},
        "longrope, attention": {"rope_parameters": {**LONGROPE, ORIGINAL: 16, "factor": 2.0, "attention_factor": 1.5}},
        "longrope, no short": {"rope_parameters": {"rope_type": "longrope", "long_factor": LONG, ORIGINAL: 16}},
        "longrope, short lists": {"rope_parameters": {**LONGROPE, "short_factor": [1.0, 2.0], ORIGINAL: 16}},
        "proportional": {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}},
        "proportional, whole": {"rope_parameters": {"rope_type": "proportional"}},
        "partial": {"partial_rotary_factor": 0.5},
        "partial in parameters": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial in both": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.75},
        "partial null": {"partial_rotary_factor": None},
        "partial, odd": {"partial_rotary_factor": 0.7},
        "partial, none": {"partial_rotary_factor": 0.0},
        "partial, more than all": {"partial_rotary_factor": 1.5},
        "linear, partial": {"rope_parameters": LINEAR, "partial_rotary_factor": 0.5},
        "linear, whole": {"rope_parameters": LINEAR, "partial_rotary_factor": 1.0},
        "nested": {"rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 500.0},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 90.0}}},
        "nested, theta beside": {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}},
                                 "rope_theta": 500.0, "rope_local_base_freq": 90.0},
        "local": {"rope_theta": 500.0, "rope_local_base_freq": 90.0},
    }
    for family in ROPES:
        for name, changes in variants.items():
            cases.add(family, f"{family}: {name}", **changes)
    both = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": {"rope_theta": 90.0}}
    gemma3 = {
        "flat": {"rope_parameters": {"rope_theta": 500.0}},
        "full alone": {"rope_parameters": {"full_attention": {"rope_theta": 500.0}}},
        "sliding alone": {"rope_parameters": {"sliding_attention": {"rope_theta": 90.0}}},
        "full null": {"rope_parameters": {"full_attention": None, "sliding_attention": {"rope_theta": 90.0}}},
        "sliding null": {"rope_parameters": {**both, "sliding_attention": None}, "rope_local_base_freq": 200.0},
        "all beside": {"rope_parameters": both, "rope_theta": 7.0, "rope_local_base_freq": 9.0},
        "scaling into full": {"rope_parameters": both, "rope_scaling": {**LINEAR, "rope_theta": 70.0}},
        "scaling without full": {"rope_parameters": {"sliding_attention": {"rope_theta": 90.0}}, "rope_scaling": LINEAR},
        "scaling empty without full": {"rope_parameters": {"sliding_attention": {"rope_theta": 90.0}}, "rope_scaling": {}},
        "type": {"rope_parameters": {**both, "sliding_attention": {"type": "linear", "factor": 2.0}}},
        "sliding linear": {"rope_parameters": {**both, "sliding_attention": {**LINEAR, "rope_theta": 90.0}}},
        "sliding yarn": {"rope_parameters": {**both, "sliding_attention": {**YARN, ORIGINAL: 16}}},
        "yarn, beside": {"rope_parameters": {**both, "full_attention": {**YARN, ORIGINAL: 32}}, ORIGINAL: 16},
        "yarn, neither": {"rope_parameters": {**both, "full_attention": YARN}, ORIGINAL: 16},
        "yarn, truncate within": {"rope_parameters": {**both, "full_attention": {**YARN, ORIGINAL: 16, "truncate": False}}},
        "yarn, truncate outside": {"rope_parameters": {**both, "full_attention": {**YARN, ORIGINAL: 16}, "truncate": False}},
        "llama3": {"rope_parameters": {**both, "full_attention": {**LLAMA3, ORIGINAL: 16}}},
        "dynamic": {"rope_parameters": {**both, "sliding_attention": {"rope_type": "dynamic", "factor": 2.0}}, "max_position_embeddings": 16},
        "unknown where unused": {"rope_parameters": {**both, "sliding_attention": {"rope_type": "none"}}, "layer_types": ["full_attention"] * 2},
        "unknown": {"rope_parameters": {**both, "sliding_attention": {"rope_type": "none"}}},
        "partial, linear": {"rope_parameters": {**both, "full_attention": LINEAR}, "partial_rotary_factor": 0.5},
        "theta null": {"rope_theta": None, "rope_local_base_freq": None},
        "theta null, unused": {"rope_theta": None, "rope_parameters": both},
    }
    for name, changes in gemma3.items():
        cases.add("gemma3_text", f"gemma3_text: own, {name}", **changes)
    phi3 = {
        "default, original": {ORIGINAL: 8},
        "su": {"rope_scaling": {**LONGROPE, "rope_type": "su"}},
        "su, original within": {"rope_scaling": {**LONGROPE, "rope_type": "su", ORIGINAL: 8}},
        "yarn": {"rope_scaling": {**LONGROPE, "rope_type": "yarn"}},
        "type": {"rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}},
        "original": {"rope_scaling": LONGROPE, ORIGINAL: 48},
        "partial": {"rope_scaling": {**LONGROPE, "short_factor": SHORT[:2], "long_factor": LONG[:2]}, "partial_rotary_factor": 0.5},
        "partial, odd": {"rope_scaling": {**LONGROPE, "short_factor": SHORT[:2], "long_factor": LONG[:2]}, "partial_rotary_factor": 0.7},
        "partial within": {"rope_parameters": {**LONGROPE, "short_factor": SHORT[:2], "long_factor": LONG[:2], "partial_rotary_factor": 0.5}},
        "partial within and beside": {"rope_parameters": {**LONGROPE, "short_factor": SHORT[:2], "long_factor": LONG[:2],
                                                          "partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.75},
        "default, lists": {"rope_parameters": {"rope_type": "default", "short_factor": SHORT[:2]}},
        "partial null within": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": None}},
    }
    for name, changes in phi3.items():
        cases.add("phi3", f"phi3: own, {name}", **changes)
    cases.add("phi3", "phi3: own, original missing", drop=[ORIGINAL], rope_scaling=LONGROPE, max_position_embeddings=8192)
    cases.write("rope")


# Fields whose default makes no small model.
LARGE = {"vocab_size", "hidden_size", "num_hidden_layers", "n_embd", "n_layer", "dim", "n_layers"}


def fields():
    """Fields absent, null, and with values of every kind that matters."""
    cases = Cases()

    def add(family, name, **changes):
        """With the tensors that the configuration asks for, where it loads."""
        drop = changes.pop("drop", ())
        config = {field: x for field, x in {**FAMILIES[family], **changes}.items() if field not in drop}
        try:
            shapes_of({"model_type": family, **config})
            files = {**config, **{field: ... for field in drop}}
        except Exception:
            files = None
        cases.add(family, f"{family}: {name}", drop=drop, files=files, **changes)

    for family, fields in FAMILIES.items():
        for field in fields:
            if field not in LARGE:
                add(family, f"no {field}", drop=[field])
            add(family, f"{field} null", **{field: None})
            if isinstance(fields[field], (int, float)):
                add(family, f"{field} a word", **{field: "8"})
    windows = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
    types = {"layer_types": ["sliding_attention", "full_attention"]}
    for family in ROPES:
        for name, changes in {
            "head_dim": {"head_dim": 12},
            "head_dim odd": {"head_dim": 7},
            "head_dim null": {"head_dim": None},
            "width": {"hidden_size": 18, "num_attention_heads": 4, "head_dim": 8, "num_key_value_heads": 2},
            "kv heads": {"num_key_value_heads": 2},
            "kv heads do not divide": {"num_attention_heads": 3, "head_dim": 8, "num_key_value_heads": 2},
            "attention_bias": {"attention_bias": True},
            "attention_bias null": {"attention_bias": None},
            "mlp_bias": {"mlp_bias": True},
            "mlp_bias null": {"mlp_bias": None},
            "window": {"sliding_window": 8},
            "window null": {"sliding_window": None},
            "window 0": {"sliding_window": 0},
            "window 0 and used": {"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 0},
            "window and use": windows,
            "window, no use": {**windows, "use_sliding_window": False},
            "types": {**types, "sliding_window": 8},
            "types, head_dim": {**types, "sliding_window": 8, "head_dim": 8},
            "types null, head_dim": {"layer_types": None, "sliding_window": 8, "head_dim": 8},
            "types, no window, head_dim": {**types, "sliding_window": None, "head_dim": 8},
            "types and use": {**types, **windows},
            "types, no window": types,
            "types null": {"layer_types": None},
            "types too few": {"layer_types": ["full_attention"]},
            "types old": {"layer_types": ["attention", "attention"]},
            "types unknown": {"layer_types": ["full_attention", "some_attention"]},
            "pattern": {"sliding_window_pattern": 1, "sliding_window": 8},
            "pattern 0": {"sliding_window_pattern": 0, "sliding_window": 8},
            "scalar": {"query_pre_attn_scalar": 20},
            "scalar null": {"query_pre_attn_scalar": None},
            "scalar half": {"query_pre_attn_scalar": 20.5},
            "caps": {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
            "caps null": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            "bidirectional null": {"use_bidirectional_attention": None},
            "eps": {"rms_norm_eps": 0.1},
            "hidden_activation": {"hidden_activation": "relu"},
            "hidden_act": {"hidden_act": "relu"},
        }.items():
            add(family, name, **changes)
    for family, alias, field in (
        ("gpt2", "hidden_size", "n_embd"), ("gpt2", "num_attention_heads", "n_head"),
        ("gpt2", "num_hidden_layers", "n_layer"), ("gpt2", "max_position_embeddings", "n_positions"),
        ("distilbert", "hidden_size", "dim"), ("distilbert", "num_attention_heads", "n_heads"),
        ("distilbert", "num_hidden_layers", "n_layers"),
    ):
        value = FAMILIES[family][field]
        add(family, f"{alias}", drop=[field], **{alias: value})
        add(family, f"{alias} before {field}", **{alias: value, field: 2 * value})
        add(family, f"{alias} null", **{alias: None})
    for family, changes in {
        "gpt2": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 20,
                 "layer_norm_epsilon": 0.1, "add_cross_attention": True},
        "bert": {"layer_norm_eps": 0.1, "type_vocab_size": 1, "add_cross_attention": True},
        "roberta": {"layer_norm_eps": 0.1, "type_vocab_size": 2, "pad_token_id": 5},
        "xlm-roberta": {"pad_token_id": 40},
        "distilbert": {"hidden_dim": 20, "sinusoidal_pos_embds": True},
        "deberta-v2": {"layer_norm_eps": 0.1, "type_vocab_size": 2, "position_biased_input": False, "share_att_key": False,
                       "position_buckets": -1, "max_relative_positions": 30, "pos_att_type": "p2c|c2p",
                       "norm_rel_ebd": "none", "relative_attention": False, "conv_kernel_size": 3,
                       "attention_head_size": 6},
    }.items():
        for field, value in changes.items():
            add(family, f"{field} {value}", **{field: value})
    add("deberta-v2", "convolution in groups", conv_kernel_size=3, conv_groups=2, conv_act="gelu")
    add("deberta-v2", "c2p", pos_att_type=["c2p"])
    add("deberta-v2", "unknown", pos_att_type=["c2p", "p2p"])
    cases.write("fields")


def activations():
    """Every activation of transformers, in every family."""
    cases = Cases()
    fields = {"gemma2": "hidden_activation", "gemma3_text": "hidden_activation", "gpt2": "activation_function",
              "distilbert": "activation"}
    for family in FAMILIES:
        field = fields.get(family, "hidden_act")
        for name in [*ACT2CLS, "relu_squared"]:
            cases.add(family, f"{family}: {field} {name}", **{field: name})
    cases.write("activations")


def classifiers():
    """Scores of texts with padding tokens at their end and inside."""
    cases = Cases()
    labels = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    texts = {"plain": [3, 17, 5, 11, 8], "ending": [3, 17, 5, 11, 0, 0], "inside": [3, 0, 17, 0, 5], "all": [0, 0, 0],
             "first": [0, 3, 5], "eos": [3, 17, 5, 2], "ones": [3, 1, 17, 1, 5, 1]}
    for family in FAMILIES:
        for text, ids in texts.items():
            for pad in (..., None, 0, 2) if family not in ("roberta", "xlm-roberta") else (..., 0):
                field, drop = ({}, ["pad_token_id"]) if pad is ... else ({"pad_token_id": pad}, [])
                if family == "phi3" and pad is ...:
                    continue
                name = f"{family}: {text}, {'no' if pad is ... else pad}"
                cases.add(family, name, drop=drop, files=labels, ids=ids, task="sequence", **labels, **field)
    cases.write("classifiers")


# Llama's near kin, whose numbers families_tiny.py compares.
KIN = (
    "cohere", "cohere2", "exaone4", "glm", "glm4", "gpt_neox", "granite", "granitemoehybrid", "ministral3", "nemotron",
    "olmo2", "olmo3", "opt", "phi", "seed_oss", "smollm3", "stablelm", "starcoder2",
)


def defaults():
    """The defaults of every family's fields."""
    folder = os.path.join(os.path.dirname(__file__), "../../crates/lowrank-models/tests/fixtures")
    known = {family: plain(AutoConfig.for_model(family)) for family in (*FAMILIES, *KIN)}
    with open(os.path.join(folder, "config_defaults.json"), "w") as file:
        file.write(json.dumps(known, indent=1, sort_keys=True) + "\n")


def plain(config):
    """The fields of a configuration as its class declares them."""
    declared = {name: config.__class__.__dataclass_fields__[name].default for name in config.__class__.__dataclass_fields__}
    return {name: value for name, value in declared.items() if isinstance(value, (int, float, str, type(None)))}


ALL = {"tied": tied, "rope": rope, "fields": fields, "activations": activations, "classifiers": classifiers, "defaults": defaults}

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        ALL[name]()
