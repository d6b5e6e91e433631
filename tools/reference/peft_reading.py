"""Write adapter folders that need PEFT's rules of reading, and the logits that transformers + PEFT give with them.

The base is the fixture `llama_gqa_tied`. Each case of `crates/lowrank/tests/fixtures/peft_reading` is an adapter folder;
`expected.safetensors` has `ids` and for each case the logits of the last positions.

    python peft_reading.py
"""

import json
import shutil
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llama_tiny import FIXTURES, forward, load

BASE = FIXTURES / "llama_gqa_tied"
OUT = FIXTURES / "peft_reading"
POSITIONS = 3

# What LoraConfig is given.
CASES = {
    "look_ahead": {"target_modules": r".*layers\.(?!0\.)\d+\..*(q|v)_proj"},
    "look_behind": {"target_modules": r".*_proj(?<!mlp\..._proj)(?<!gate_proj)(?<!down_proj)"},
    "backreference": {"target_modules": r".*self_a(t)\1n\.[qv]_proj"},
    "exclude": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "exclude_modules": r".*layers\.(\d)\.(?!mlp).*(?<=q)_proj",
    },
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {r"(?<=layers\.0\.self_attn\.)q_proj": 3, r"layers\.(?!0)\d\.mlp\.up_proj": 1},
        "alpha_pattern": {r"self_a(t)\3n\.v_proj": 5, "q_proj": 3},
    },
    "layers_of_any_pattern": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": ""},
    "layers_of_a_pattern": {
        "target_modules": ["q_proj", "model.layers.0.self_attn.v_proj"],
        "layers_to_transform": 1,
        "layers_pattern": ["blocks", "layers"],
    },
    "tables_saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "head_saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tied_table_saved": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "tied_table_adapted": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "tied_head_adapted": {"target_modules": r".*(q_proj|lm_head)", "ensure_weight_tying": True},
    "tied_nothing": {"target_modules": ["q_proj"], "ensure_weight_tying": True},
    "tied_tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [7, 3], "lm_head": [7, 3]},
    },
}


def nulls(config, tensors):
    """Null wherever PEFT takes it."""
    kept = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "init_lora_weights"}
    for field in config.keys() - kept - {"rank_pattern", "alpha_pattern"}:
        config[field] = None


def other_fields(config, tensors):
    config |= {"use_foresight": True, "foresight_config": {"depth": 2}, "peft_version": "9.0.0"}


def no_targets(config, tensors):
    """PEFT takes those of the model's type."""
    config["target_modules"] = None


def layers_beside(config, tensors):
    """Whole layers that no field names, as long as the model has them, and tensors that it does not have."""
    generator = torch.Generator().manual_seed(11)
    tensors["base_model.model.model.norm.weight"] = 1 + 0.3 * torch.randn(64, generator=generator)
    tensors["base_model.model.model.layers.1.mlp.up_proj.weight"] = 0.2 * torch.randn(96, 64, generator=generator)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 64)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight"] = torch.ones(64, 2)
    tensors["base_model.model.rotary_emb.inv_freq"] = torch.ones(8)


def base_beside(config, tensors):
    """The whole state dict; the base is stored in bfloat16."""
    base = load(BASE).state_dict()
    adapted = {name.rsplit(".lora_", 1)[0] for name in tensors}
    for name, tensor in base.items():
        module, end = f"base_model.model.{name}".rsplit(".", 1)
        tensors[f"{module}.base_layer.{end}" if module in adapted else f"{module}.{end}"] = tensor.bfloat16()


# Cases that another hand changed after PEFT saved them: what is given, and what is changed.
CHANGED = {
    "nulls": ({"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16}, nulls),
    "other_fields": ({"target_modules": ["q_proj"]}, other_fields),
    "no_targets": ({"target_modules": ["q_proj", "v_proj"]}, no_targets),
    "layers_beside": ({"target_modules": ["q_proj"]}, layers_beside),
    "base_beside": ({"target_modules": ["q_proj"]}, base_beside),
}


def save(case, lora, change, generator):
    folder = OUT / case
    lora = {"r": 2, "lora_alpha": 4} | lora
    model = get_peft_model(load(BASE), LoraConfig(task_type="CAUSAL_LM", **lora))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = "llama_gqa_tied"
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config, tensors = json.loads(path.read_text()), load_file(file)
    for field in ("target_modules", "modules_to_save"):
        if isinstance(config[field], list):
            config[field].sort()
    if change:
        change(config, tensors)
        save_file(tensors, file, metadata={"format": "pt"})
    path.write_text(json.dumps(config, indent=1) + "\n")


def main():
    warnings.simplefilter("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 96, (9,), generator=generator)
    out = {"ids": ids}
    cases = {case: (lora, None) for case, lora in CASES.items()} | CHANGED
    for case, (lora, change) in cases.items():
        save(case, lora, change, generator)
        model = PeftModel.from_pretrained(load(BASE), OUT / case).eval()
        with torch.no_grad():
            out[case] = forward(model, ids)[-POSITIONS:].clone()
            adapted = sorted(n for n, p in model.named_parameters() if "lora_A" in n or "lora_embedding_A" in n)
        print(case, len(adapted))
    save_file(out, OUT / "expected.safetensors")


if __name__ == "__main__":
    main()
