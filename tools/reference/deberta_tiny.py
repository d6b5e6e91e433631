"""Write the tiny reference models of DeBERTa-v2 and the numbers transformers + PEFT give for them.

One folder per case: config.json, model.safetensors (a sequence classifier of three classes), adapter/ (as PEFT saves
it, LoRA alone) and expected.safetensors.

    python deberta_tiny.py [--out DIR] [--only CASE ...]
"""

import argparse
import json
import shutil

import torch
import torch.nn.functional as F
from llama_tiny import ADAMW, ADAMW_STEPS, FIXTURES, trainable
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

BASE = {
    "model_type": "deberta-v2",
    "architectures": ["DebertaV2ForSequenceClassification"],
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-7,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pooler_dropout": 0.0,
    "relative_attention": True,
    "pad_token_id": 0,
    "num_labels": 3,
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
}

CASES = {
    # As v3-base and v2: shared projections, buckets, normed table; texts longer than a bucket is wide.
    "deberta_v3": {
        "config": BASE
        | {
            "position_buckets": 8,
            "max_relative_positions": -1,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "attention_head_size": 16,
            "pooler_hidden_act": "gelu",
        },
        "targets": ["query_proj", "key_proj", "value_proj"],
    },
    # The convolution of the XL models, and everything of the embeddings that v3 has not.
    "deberta_conv": {
        "config": BASE
        | {
            "num_attention_heads": 4,
            "attention_head_size": 8,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": "p2c|c2p",
            "position_biased_input": True,
            "type_vocab_size": 2,
            "embedding_size": 20,
            "conv_kernel_size": 3,
            "conv_groups": 2,
            "conv_act": "gelu",
            "pooler_hidden_act": "tanh",
        },
        # embed_proj lies before the convolution: its gradient comes through it.
        "targets": ["embed_proj", "query_proj", "dense"],
    },
    # Projections of distances of their own, distances without buckets that end at 16.
    "deberta_apart": {
        "config": BASE
        | {
            "position_buckets": -1,
            "max_relative_positions": 16,
            "pos_att_type": ["c2p", "p2c"],
            "type_vocab_size": 0,
            "position_biased_input": False,
        },
        "targets": ["pos_key_proj", "pos_query_proj", "value_proj"],
    },
    "deberta_c2p": {
        "config": BASE | {"position_buckets": 8, "share_att_key": True, "pos_att_type": ["c2p"]},
        "targets": ["key_proj"],
    },
}
LENGTHS = [11, 23, 37]


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, item):
    types = {"token_type_ids": item["types"][None]} if "types" in item else {}
    return model(input_ids=item["ids"][None], **types).logits[0]


def batch_loss(model, batch):
    rows = torch.stack([logits(model, item) for item in batch])
    return F.cross_entropy(rows, torch.cat([item["label"] for item in batch]))


def padded_loss(model, batch):
    """The same as Trainer sees it: one right-padded batch."""
    longest = max(LENGTHS)
    pad = lambda t: F.pad(t, (0, longest - len(t)))
    types = {"token_type_ids": torch.stack([pad(i["types"]) for i in batch])} if "types" in batch[0] else {}
    return model(
        input_ids=torch.stack([pad(i["ids"]) for i in batch]),
        attention_mask=torch.stack([pad(torch.ones_like(i["ids"])) for i in batch]),
        labels=torch.cat([i["label"] for i in batch]),
        **types,
    ).loss


def train(model, batch):
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


def write_case(root, case, spec):
    folder = root / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    (folder / "config.json").write_text(json.dumps(spec["config"] | {"torch_dtype": "bfloat16"}, indent=2) + "\n")
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    weights = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        norm = "LayerNorm" in name and name.endswith("weight")
        weights[name] = ((1.0 if norm else 0.0) + 0.25 * noise).to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    lora = LoraConfig(r=4, lora_alpha=8, target_modules=spec["targets"])
    model = get_peft_model(load(folder), lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_((0.15 if "lora_A" in name else 0.1) * torch.randn(p.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = case
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter/README.md").unlink()
    path = folder / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_modules": sorted(config["target_modules"])}, indent=2) + "\n")

    batch, out = [], {}
    for i, length in enumerate(LENGTHS):
        item = {
            "ids": torch.randint(3, spec["config"]["vocab_size"], (length,), generator=generator),
            "label": torch.randint(0, 3, (1,), generator=generator),
        }
        if spec["config"].get("type_vocab_size"):
            item["types"] = (torch.arange(length) >= length // 2).long()
        batch.append(item)
        out |= {f"{name}_{i}": value for name, value in item.items()}
    base = load(folder)
    model = PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).eval()
    with torch.no_grad():
        for i, item in enumerate(batch):
            out[f"base_logits_{i}"] = logits(base, item)
            out[f"logits_{i}"] = logits(model, item)
    padded, alone = padded_loss(model, batch).item(), batch_loss(model, batch).item()
    assert abs(padded - alone) < 1e-5 * abs(alone), (case, padded, alone)
    losses, first = train(model, batch)
    out["losses"] = torch.tensor(losses)
    out["grad_norm"] = torch.stack([g.norm() for g in first.values()]).norm().reshape(1)
    out |= {f"grad.{n}": g for n, g in first.items()}
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors")

    double = PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).eval().double()
    losses64, first64 = train(double, batch)
    noise_loss = max(abs(a - b) / abs(b) for a, b in zip(losses, losses64))
    noise_grad = max(((g - first64[n]).abs().max() / first64[n].abs().max()).item() for n, g in first.items())
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(
        f"{case:16} {size / 1024:5.0f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}  |g| {out['grad_norm'].item():.3f}"
        f"  f32 against f64: losses {noise_loss:.1e}, gradients {noise_grad:.1e}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=type(FIXTURES), default=FIXTURES)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for case in args.only:
        write_case(args.out, case, CASES[case])


if __name__ == "__main__":
    main()
