"""Write what loralib's MergedLinear gives in GPT-2's c_attn: crates/lowrank/tests/fixtures/merged_linear/.

The base is gpt2_c_attn's (made by gpt2_tiny.py), with LoRA on queries and values as the paper has it. The adapter is
saved as PEFT would save the same change: A as it is, B with its groups on the diagonal, rank and alpha times the number
of groups, and the field `enable_lora`.

    python merged_linear.py [--fixtures DIR]
"""

import argparse
import json
from pathlib import Path

import loralib
import torch
from llama_tiny import FIXTURES, forward, load, train
from safetensors.torch import load_file, save_file

R, ALPHA, ENABLE = 4, 8, [True, False, True]


def attach(model):
    for block in model.transformer.h:
        base = block.attn.c_attn
        k, o = base.weight.shape
        layer = loralib.MergedLinear(k, o, r=R, lora_alpha=ALPHA, enable_lora=ENABLE, fan_in_fan_out=True)
        layer.weight.data, layer.bias.data = base.weight.data, base.bias.data
        block.attn.c_attn = layer
    loralib.mark_only_lora_as_trainable(model)
    return model


def dense(b):
    """B [parts * P, R] of the enabled parts as one [O, parts * R]."""
    groups, rows = sum(ENABLE), b.shape[0] // sum(ENABLE)
    out = torch.zeros(rows * len(ENABLE), R * groups)
    for g, part in enumerate(i for i, on in enumerate(ENABLE) if on):
        out[part * rows : (part + 1) * rows, g * R : (g + 1) * R] = b[g * rows : (g + 1) * rows]
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fixtures", type=Path, default=FIXTURES)
    root = parser.parse_args().fixtures
    torch.set_num_threads(1)
    out = root / "merged_linear"
    out.mkdir(exist_ok=True)
    data = load_file(root / "gpt2_c_attn/expected.safetensors")
    batch = [(data[f"ids_{i}"], data[f"labels_{i}"]) for i in range(3)]
    generator = torch.Generator().manual_seed(7)
    model = attach(load(root / "gpt2_c_attn")).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_((0.15 if "lora_A" in name else 0.1) * torch.randn(p.shape, generator=generator))
                value = p.detach().clone() if "lora_A" in name else dense(p.detach())
                adapter[f"base_model.model.{name}.weight"] = value.contiguous()
    save_file(adapter, out / "adapter_model.safetensors", metadata={"format": "pt"})
    groups = sum(ENABLE)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "gpt2_c_attn",
        "r": R * groups,
        "lora_alpha": ALPHA * groups,
        "target_modules": ["c_attn"],
        "fan_in_fan_out": True,
        "enable_lora": ENABLE,
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    expected = {}
    with torch.no_grad():
        expected["logits_1"] = forward(model, batch[1][0])
        expected["merged_logits_1"] = forward(model.eval(), batch[1][0])
        model.train()
    losses, first = train(model, batch)
    expected["losses"] = torch.tensor(losses)
    for name, gradient in first.items():
        value = gradient if "lora_A" in name else dense(gradient)
        expected[f"grad.base_model.model.{name}.weight"] = value
    for name, p in model.named_parameters():
        if p.requires_grad:
            value = p.detach() if "lora_A" in name else dense(p.detach())
            expected[f"last.base_model.model.{name}.weight"] = value
    save_file({k: v.contiguous().clone() for k, v in expected.items()}, out / "expected.safetensors")
    print(losses[0], losses[-1])


if __name__ == "__main__":
    main()
