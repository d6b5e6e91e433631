"""Write the tiny reference models of the Llama family and the numbers transformers + PEFT give for them.

One folder per case: config.json, model*.safetensors, adapter/ (as PEFT saves it) and expected.safetensors.
The keys of expected.safetensors are listed in README.md next to this file.

    python llama_tiny.py [--out DIR] [--only CASE ...]
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

FIXTURES = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures"

BASE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = BASE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
Q_AND_V = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def rope_case(scaling, **config):
    """A Llama with one rope scaling; attention alone is adapted, because only it sees the rope."""
    return {
        "config": LLAMA | {"intermediate_size": 48, "rope_scaling": scaling} | config,
        "store": torch.bfloat16,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"]},
    }


# Every config.json is written in the words of the files on the hub: most with `rope_theta` and
# `rope_scaling`, `rope_yarn` and `qwen2_bias` with the newer `rope_parameters`.
CASES = {
    "llama_mha": {
        "config": LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": False},
        "store": torch.float32,
        "shards": 2,
        "lora": Q_AND_V,
    },
    "llama_gqa_tied": {
        "config": LLAMA,
        "store": torch.bfloat16,
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"},
    },
    "llama_embedding": {
        "config": LLAMA | {"tie_word_embeddings": False, "intermediate_size": 48},
        "store": torch.bfloat16,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj"]},
    },
    "llama_tokens": {
        "config": LLAMA | {"intermediate_size": 48},
        "store": torch.bfloat16,
        "lora": Q_AND_V | {"trainable_token_indices": [7, 3, 95]},
    },
    "llama_bias": {
        "config": LLAMA | {"attention_bias": True, "mlp_bias": True},
        "store": torch.float16,
        "lora": {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": r".*layers\.\d+\.(self_attn\.(q|o)_proj|mlp\.(gate|down)_proj)",
        },
    },
    "qwen2_bias": {
        "config": {k: v for k, v in BASE.items() if k != "rope_theta"}
        | {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 0,
        },
        "store": torch.float16,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    },
    "qwen3_qk_norm": {
        "config": BASE
        | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "head_dim": 24,
            "num_hidden_layers": 3,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
        },
        "store": torch.bfloat16,
        "lora": {
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
            "layers_to_transform": [0, 2],
            "rank_pattern": {"q_proj": 6, "layers.2.mlp.up_proj": 2},
            "alpha_pattern": {"v_proj": 3, "layers.2.mlp.up_proj": 5},
        },
    },
    "mistral_window": {
        "config": BASE
        | {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": 8,
            "tie_word_embeddings": False,
        },
        "store": torch.bfloat16,
        "lora": Q_AND_V,
    },
    "rope_linear": rope_case({"type": "linear", "factor": 3.0}),
    "rope_dynamic": rope_case({"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=16),
    "rope_yarn": {
        "config": {k: v for k, v in LLAMA.items() if k != "rope_theta"}
        | {
            "intermediate_size": 48,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
        "store": torch.bfloat16,
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"]},
    },
    "rope_yarn_options": rope_case(
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
            "attention_factor": 1.3,
        },
        max_position_embeddings=512,
    ),
    "rope_llama3": rope_case(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        max_position_embeddings=256,
    ),
}

# (length, positions without a label): a prompt, no prompt at all, a conversation with a gap.
SEQUENCES = [(11, [range(0, 5)]), (23, []), (37, [range(0, 9), range(20, 26)])]
ADAMW_STEPS = 20
ADAMW = {"lr": 3e-3, "weight_decay": 0.01}


def random_weights(config, generator, store):
    """Weights large enough that attention is far from uniform and norms and biases matter,
    rounded to the stored type so that reading them as f32 is exact."""
    model = model_class(config).from_config(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")):
            # Gemma and Nemotron add the 1 themselves.
            value = (0.0 if config.model_type.startswith(("gemma", "nemotron")) else 1.0) + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif any(table in name for table in ("embed_tokens", "embed_positions", "embed_in", "wte", "wpe")):
            value = 0.25 * noise
        else:
            value = 0.15 * noise
        weights[name] = value.to(store).contiguous()
    return weights


def save_weights(folder, weights, shards):
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(weights)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def model_class(config):
    """Models that read images too are whole ones."""
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def load(folder):
    return model_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def save_adapter(folder, lora, generator, case):
    """A random adapter with both factors non-zero, so that every gradient says something."""
    model = get_peft_model(load(folder), LoraConfig(task_type="CAUSAL_LM", **lora))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                scale = 0.15 if "lora_A" in name else 0.1
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = case
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter/README.md").unlink()
    path = folder / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    # PEFT expands "all-linear" to the names it found and saves sets in any order.
    targets = config["target_modules"]
    config["target_modules"] = "all-linear" if lora.get("target_modules") == "all-linear" else (
        targets if isinstance(targets, str) else sorted(targets)
    )
    path.write_text(json.dumps(config, indent=2) + "\n")


def forward(model, ids):
    """Logits [T, V] of one sequence alone. Dynamic rope remembers the longest sequence it saw;
    the reference is each sequence seen first, so that the order of a batch does not matter."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.inv_freq = module.original_inv_freq
            module.max_seq_len_cached = module.original_max_seq_len
    return model(input_ids=ids[None], use_cache=False).logits[0]


def batch_loss(model, batch):
    """Mean over all labelled tokens of the batch; position t predicts label t + 1."""
    total, count = 0.0, 0
    for ids, labels in batch:
        total = total + F.cross_entropy(forward(model, ids)[:-1], labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels[1:] != -100).sum())
    return total / count


def padded_loss(model, batch):
    """The same loss as Trainer sees it: one right-padded batch."""
    longest = max(len(ids) for ids, _ in batch)
    pad = lambda t, v: F.pad(t, (0, longest - len(t)), value=v)
    return model(
        input_ids=torch.stack([pad(ids, 0) for ids, _ in batch]),
        attention_mask=torch.stack([pad(torch.ones_like(ids), 0) for ids, _ in batch]),
        labels=torch.stack([pad(labels, -100) for _, labels in batch]),
    ).loss


def train(model, batch):
    """ADAMW_STEPS steps on the same batch: the losses before each step, and the first step's gradients."""
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    losses, first = [], {}
    for step in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss = batch_loss(model, batch)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            first = {n: p.grad.clone() for n, p in parameters.items()}
        optimizer.step()
    return losses, first


def trainable(model):
    """The adapter's parameters by the names they have in adapter_model.safetensors."""
    return {n.replace(".default.", ".").removesuffix(".default"): p for n, p in model.named_parameters() if p.requires_grad}


def write_case(root, case, spec):
    folder = root / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, case)))

    stored = str(spec["store"]).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(spec["config"] | {"torch_dtype": stored}, indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    weights = random_weights(config, generator, spec["store"])
    # The files of a model without head have names without the prefix, and older ones other names.
    weights = {name.removeprefix(spec.get("without", "")): w for name, w in weights.items()}
    for new, old in spec.get("names", {}).items():
        weights = {re.sub("^" + re.escape(new), old, name): w for name, w in weights.items()}
    save_weights(folder, weights, spec.get("shards", 1))
    save_adapter(folder, spec["lora"], generator, case)

    batch, out = [], {}
    for i, (length, holes) in enumerate(SEQUENCES):
        ids = torch.randint(3, config.get_text_config().vocab_size, (length,), generator=generator)
        labels = ids.clone()
        for hole in holes:
            labels[hole.start : hole.stop] = -100
        batch.append((ids, labels))
        out[f"ids_{i}"], out[f"labels_{i}"] = ids, labels

    base = load(folder)
    with torch.no_grad():
        for i, (ids, _) in enumerate(batch):
            out[f"base_logits_{i}"] = forward(base, ids)

    model = PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).eval()
    with torch.no_grad():
        for i, (ids, _) in enumerate(batch):
            out[f"logits_{i}"] = forward(model, ids)
        merged = PeftModel.from_pretrained(load(folder), folder / "adapter").merge_and_unload().eval()
        out["merged_logits_1"] = forward(merged, batch[1][0])

    assert set(trainable(model)) == set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if spec["config"].get("rope_scaling", {}).get("rope_type") not in ("dynamic", "longrope"):
        padded = padded_loss(model, batch).item()
        assert abs(padded - batch_loss(model, batch).item()) < 2e-6 * padded, case

    losses, first = train(model, batch)
    out["losses"] = torch.tensor(losses)
    out["loss"] = out["losses"][:1].clone()
    out["grad_norm"] = torch.stack([g.norm() for g in first.values()]).norm().reshape(1)
    out |= {f"grad.{n}": g for n, g in first.items()}

    # The same in float64 shows how far rounding alone moves these numbers, i.e. what a test may ask for.
    double = PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).eval().double()
    losses64, first64 = train(double, batch)
    noise_loss = max(abs(a - b) / b for a, b in zip(losses, losses64))
    noise_grad = max(((g - first64[n]).abs().max() / first64[n].abs().max()).item() for n, g in first.items())

    save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors")
    shown = (out["logits_2"] - out["base_logits_2"]).abs().max() / out["base_logits_2"].abs().max()
    merge = (out["logits_1"] - out["merged_logits_1"]).abs().max()
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(
        f"{case:18} {size / 1024:6.0f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}  |g| {out['grad_norm'].item():.3f}"
        f"  adapter moves logits by {shown:.2f}  merged differs {merge:.1e}"
        f"  f32 against f64: losses {noise_loss:.1e}, gradients {noise_grad:.1e}"
    )


def main(cases):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    parser.add_argument("--only", nargs="*", choices=cases, default=list(cases))
    args = parser.parse_args()
    torch.set_num_threads(1)  # tiny products; one thread also fixes the order of every sum
    for case in args.only:
        write_case(args.out, case, cases[case])
    return args


if __name__ == "__main__":
    main(CASES)
