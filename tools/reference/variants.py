"""Write the numbers PEFT gives for every variant of LoRA, on two tiny base models.

`variants/<base>/` holds config.json, model.safetensors and batch.safetensors; `variants/<case>/` holds adapter/ as
PEFT saves it and expected.safetensors. The keys are listed in README.md next to this file.

    python variants.py [--out DIR] [--only CASE ...]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import (
    AdaLoraConfig,
    EvaConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig

from llama_tiny import ADAMW, ADAMW_STEPS, FIXTURES, batch_loss, forward, load, random_weights, save_weights

BASES = {
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 64,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

LLAMA = ["q_proj", "v_proj", "down_proj"]
GPT2 = ["c_attn", "mlp.c_proj"]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": LLAMA}

# What is said of a case: its base, PEFT's configuration, and where `fresh`, that it starts as PEFT starts it (with
# random numbers in it otherwise, so that every gradient says something).
CASES = {
    "dora": {"base": "llama", "config": LoraConfig(use_dora=True, **LORA)},
    "dora_gpt2": {"base": "gpt2", "config": LoraConfig(use_dora=True, **(LORA | {"target_modules": GPT2}))},
    "loraplus": {"base": "llama", "config": LoraConfig(**LORA), "lr_ratio": 4.0},
    "lora_fa": {"base": "llama", "config": LoraConfig(**LORA), "frozen": "lora_A"},
    "pissa": {"base": "llama", "config": LoraConfig(init_lora_weights="pissa", **LORA), "fresh": True},
    "pissa_gpt2": {
        "base": "gpt2",
        "config": LoraConfig(init_lora_weights="pissa", **(LORA | {"target_modules": GPT2})),
        "fresh": True,
    },
    "olora": {"base": "llama", "config": LoraConfig(init_lora_weights="olora", **LORA), "fresh": True},
    # Twice rank times rho directions are all there are of 32 inputs, so PEFT's random decomposition is the exact one.
    "eva": {
        "base": "llama",
        "config": LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "v_proj", "o_proj", "gate_proj"],
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=2.0, tau=0.99),
        ),
        "fresh": True,
        "data": True,
    },
    "eva_whiten": {
        "base": "llama",
        "config": LoraConfig(
            r=4,
            lora_alpha=8,
            # No two of one input: PEFT divides what they share once for each.
            target_modules=["q_proj", "o_proj", "gate_proj"],
            init_lora_weights="eva",
            eva_config=EvaConfig(
                rho=4.0, tau=0.95, use_label_mask=False, whiten=True, adjust_scaling_factors=False
            ),
        ),
        "fresh": True,
        "data": True,
    },
    "corda": {
        "base": "llama",
        "config": LoraConfig(init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm"), **LORA),
        "fresh": True,
        "data": True,
    },
    "corda_kpm": {
        "base": "gpt2",
        "config": LoraConfig(
            init_lora_weights="corda",
            corda_config=CordaConfig(corda_method="kpm"),
            **(LORA | {"target_modules": GPT2}),
        ),
        "fresh": True,
        "data": True,
    },
    "ia3": {
        "base": "llama",
        "config": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    },
    "ia3_gpt2": {"base": "gpt2", "config": IA3Config(target_modules=GPT2, feedforward_modules=["mlp.c_proj"])},
    "vera": {"base": "llama", "config": VeraConfig(r=6, projection_prng_key=7, target_modules=LLAMA)},
    "vera_unsaved": {
        "base": "llama",
        "config": VeraConfig(r=6, projection_prng_key=7, save_projection=False, target_modules=LLAMA),
    },
    "loha": {
        "base": "llama",
        "config": LoHaConfig(r=3, alpha=5, target_modules=LLAMA, rank_pattern={"down_proj": 2}),
    },
    "lokr": {"base": "llama", "config": LoKrConfig(r=2, alpha=3, target_modules=LLAMA, decompose_both=True)},
    "lokr_factor": {
        "base": "llama",
        "config": LoKrConfig(r=8, alpha=3, target_modules=LLAMA, decompose_factor=4),
    },
    "adalora": {
        "base": "llama",
        "config": AdaLoraConfig(
            init_r=4,
            target_r=2,
            tinit=3,
            tfinal=5,
            deltaT=2,
            total_step=ADAMW_STEPS,
            orth_reg_weight=0.1,
            lora_alpha=8,
            target_modules=LLAMA,
        ),
    },
}

# Data to look at before training: examples of this many tokens, the first few of each a prompt.
DATA = [(30, 2), (26, 0), (34, 4), (28, 1), (32, 0), (27, 3)]
DATA_BATCH = 2

SEQUENCES = [(7, [range(0, 3)]), (13, []), (19, [range(0, 5), range(10, 13)])]


def write_base(root, name, config):
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}, indent=2) + "\n")
    save_weights(folder, random_weights(AutoConfig.from_pretrained(folder), generator, torch.float32), 1)
    out = {}
    for i, (length, holes) in enumerate(SEQUENCES):
        ids = torch.randint(3, config["vocab_size"], (length,), generator=generator)
        labels = ids.clone()
        for hole in holes:
            labels[hole.start : hole.stop] = -100
        out[f"ids_{i}"], out[f"labels_{i}"] = ids, labels
    save_file(out, folder / "batch.safetensors")
    write_data(folder, config)


def write_data(folder, config):
    """Words come in runs, so that some directions of the inputs matter more than others."""
    generator, out = torch.Generator().manual_seed(5), {}
    for i, (length, prompt) in enumerate(DATA):
        ids = torch.randint(3, config["vocab_size"], (length // 4 + 1,), generator=generator).repeat_interleave(4)[:length]
        ids[::3] = torch.randint(3, config["vocab_size"], ids[::3].shape, generator=generator)
        labels = ids.clone()
        labels[:prompt] = -100
        out[f"ids_{i}"], out[f"labels_{i}"] = ids, labels
    save_file(out, folder / "data.safetensors")


def data_of(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "data.safetensors")
    return [(tensors[f"ids_{i}"], tensors[f"labels_{i}"]) for i in range(len(DATA))]


def padded(examples):
    longest = max(len(ids) for ids, _ in examples)
    fill = lambda t, value: torch.nn.functional.pad(t, (0, longest - len(t)), value=value)
    return {
        "input_ids": torch.stack([fill(ids, 0) for ids, _ in examples]),
        "attention_mask": torch.stack([fill(torch.ones_like(ids), 0) for ids, _ in examples]),
        "labels": torch.stack([fill(labels, -100) for _, labels in examples]),
    }


def fresh_model(base, spec):
    """PEFT's model as training starts, after it looked at the data where it does."""
    model, config = load(base), spec["config"]
    data = data_of(base) if spec.get("data") else []
    if config.init_lora_weights == "corda":
        preprocess_corda(model, config, run_model=lambda: [model(input_ids=ids[None]) for ids, _ in data])
    model = get_peft_model(model, config)
    if config.init_lora_weights == "eva":
        batches = [padded(data[at : at + DATA_BATCH]) for at in range(0, len(data), DATA_BATCH)]
        initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    return model.eval()


def batch_of(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "batch.safetensors")
    return [(tensors[f"ids_{i}"], tensors[f"labels_{i}"]) for i in range(len(SEQUENCES))]


def randomise(model, generator):
    """Numbers around what each tensor starts from."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=generator)
            if "magnitude" in name or "ia3_l" in name:
                p.mul_(1.0 + 0.2 * noise)
            elif "lora_E" in name or "hada_" in name or "lokr_" in name:
                p.copy_(0.4 * noise)
            else:
                p.copy_(0.15 * noise)


def names(model):
    """The trained parameters by the names they have in adapter_model.safetensors."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            name = name.replace(".default", "")
            found[name.removesuffix(".weight") if "magnitude" in name else name] = p
    return found


def train(model, spec, batch):
    """ADAMW_STEPS steps: the loss before each, and the gradients of the first."""
    if spec.get("frozen"):
        for name, p in model.named_parameters():
            if spec["frozen"] in name:
                p.requires_grad_(False)
    parameters = names(model)
    if "lr_ratio" in spec:
        optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=ADAMW["lr"],
            loraplus_lr_ratio=spec["lr_ratio"],
            loraplus_weight_decay=ADAMW["weight_decay"],
        )
    else:
        optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    adalora = model.peft_config["default"].peft_type == "ADALORA"
    losses, first = [], {}
    for step in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss = batch_loss(model, batch)
        if adalora:
            loss = loss + orthogonality(model)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            first = {n: p.grad.clone() for n, p in parameters.items()}
        optimizer.step()
        if adalora:
            model.base_model.update_and_allocate(step + 1)
    return losses, first


def orthogonality(model):
    """What AdaLoraModel.forward adds to a loss that the model computes itself."""
    total, count = 0.0, 0
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = p @ p.T if "lora_A" in name else p.T @ p
            total = total + torch.norm(product - torch.eye(product.shape[0]), p="fro")
            count += 1
    return model.peft_config["default"].orth_reg_weight * total / count


def save(model, folder, base):
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2) + "\n")


def changes(model):
    """`scaling * B A` at every site of a LoRA."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            change = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
            yield name.removeprefix("base_model.model."), change.detach()


def starts(model):
    """`A` at every site."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            yield name.removeprefix("base_model.model."), module.lora_A["default"].weight.detach().clone()


def plain(value):
    return sorted(value) if isinstance(value, set) else vars(value)


def write_older(root):
    """An adapter as PEFT kept it before safetensors: the tensors in PyTorch's file."""
    from safetensors.torch import load_file

    source, folder = root / "lora_fa" / "adapter", root / "older"
    folder.mkdir(exist_ok=True)
    shutil.copy(source / "adapter_config.json", folder)
    torch.save(load_file(source / "adapter_model.safetensors"), folder / "adapter_model.bin")


def write_case(root, case, spec):
    folder, base = root / case, root / spec["base"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    batch, out = batch_of(base), {}
    torch.manual_seed(1)
    spec["config"].task_type = "CAUSAL_LM"
    asked = json.loads(json.dumps(spec["config"].to_dict(), default=plain))
    model = fresh_model(base, spec) if spec.get("fresh") else get_peft_model(load(base), spec["config"]).eval()
    if asked.get("init_lora_weights") == "eva":
        out |= {f"a.{name}": a for name, a in starts(model)}
        save(model, folder / "adapter", spec["base"])
    elif spec.get("fresh"):
        out |= {f"change.{name}": change for name, change in changes(model)}
    if spec.get("fresh"):
        asked["base_model_name_or_path"] = spec["base"]
        (folder / "config.json").write_text(json.dumps(asked, indent=2) + "\n")
    else:
        randomise(model, generator)
        save(model, folder / "adapter", spec["base"])
        model = PeftModel.from_pretrained(load(base), folder / "adapter", is_trainable=True).eval()
        assert set(names(model)) <= set(get_peft_model_state_dict(model)), case
    with torch.no_grad():
        out["logits_1"] = forward(model, batch[1][0])
    losses, first = train(model, spec, batch)
    out["losses"] = torch.tensor(losses)
    out |= {f"grad.{n}": g for n, g in first.items()}
    with torch.no_grad():
        out["trained_logits_1"] = forward(model, batch[1][0])
    if spec["config"].peft_type == "ADALORA":
        save(model, folder / "trained", spec["base"])
    if not spec.get("fresh"):
        with torch.no_grad():
            merged = PeftModel.from_pretrained(load(base), folder / "adapter").merge_and_unload().eval()
            out["merged_logits_1"] = forward(merged, batch[1][0])
    save_file({n: t.contiguous() for n, t in out.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{case}: {losses[0]:.4f} -> {losses[-1]:.4f}, {size // 1024} KB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "variants")
    parser.add_argument("--only", nargs="+", choices=CASES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.only:
        for name, config in BASES.items():
            write_base(args.out, name, config)
    for case in args.only or CASES:
        write_case(args.out, case, CASES[case])
    write_older(args.out)


if __name__ == "__main__":
    main()
