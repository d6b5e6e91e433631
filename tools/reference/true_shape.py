"""One forward and backward pass of a model in its true shape, with random weights, by transformers + PEFT.

Writes what crates/lowrank/examples/true_shape.rs compares with: config.json, model.safetensors, adapter/ and
expected.safetensors. Takes a minute and gigabytes, so it is no test.

    python true_shape.py SHAPE DIR
    cargo run --release -p lowrank --example true_shape -- DIR
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

SHAPES = {
    "gpt2-medium": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": 1024,
        "n_head": 16,
        "n_layer": 24,
        "n_positions": 1024,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "deberta-v3-base": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "hidden_act": "gelu",
        "relative_attention": True,
        "position_buckets": 256,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    },
}
TARGETS = {
    "gpt2": ["c_attn"],
    "roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj"],
}
LENGTHS = [128, 301]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dir", type=Path)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.shape]
    kind = shape["model_type"]
    language = kind == "gpt2"
    more = {} if language else {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (args.dir / "config.json").write_text(json.dumps(shape | more | {"torch_dtype": "float32"}, indent=2))
    torch.manual_seed(0)
    cls = AutoModelForCausalLM if language else AutoModelForSequenceClassification
    model = cls.from_config(AutoConfig.from_pretrained(args.dir), attn_implementation="eager").eval()
    # Larger than at the start of training, so that attention and norms are far from trivial.
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = 0.04 * torch.randn(p.shape)
            is_norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
            p.copy_(1.0 + 5 * noise if is_norm else noise)
    weights = {n: t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(weights, args.dir / "model.safetensors", metadata={"format": "pt"})
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS[kind], fan_in_fan_out=language)
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_(0.05 * torch.randn(p.shape))
    model.save_pretrained(args.dir / "adapter", save_embedding_layers=False)

    texts = [torch.randint(3, shape["vocab_size"], (length,)) for length in LENGTHS]
    started = time.perf_counter()
    plain = run(model, texts, language)
    seconds = time.perf_counter() - started
    # What is expected is computed in double precision: how far single precision is from it says what to ask for.
    model.zero_grad()
    out = run(model.double(), texts, language)
    apart = {n: ((plain[n] - t).abs().max() / t.abs().max()).item() for n, t in out.items() if n.startswith("grad.")}
    name = max(apart, key=apart.get)
    out = {n: t.float().contiguous() for n, t in out.items()}
    save_file(out | {f"ids_{i}": ids for i, ids in enumerate(texts)}, args.dir / "expected.safetensors")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{args.shape}: loss {out['loss'].item():.6f}, {seconds:.1f} s, peak {peak:.0f} MiB (float64 included)")
    print(f"gradients in float32 at most {apart[name]:.1e} of the largest number apart ({name})")


def run(model, texts, language):
    """Logits, loss and gradients, by name."""
    out, total, count = {}, 0.0, 0
    for i, ids in enumerate(texts):
        logits = model(input_ids=ids[None]).logits[0]
        if language:
            total = total + F.cross_entropy(logits[:-1], ids[1:], reduction="sum")
            count += len(ids) - 1
            out[f"logits_{i}"] = logits[-1].detach().clone()
        else:
            total = total + F.cross_entropy(logits[None], torch.tensor([i % 3]))
            count += 1
            out[f"logits_{i}"] = logits.detach().clone()
    loss = total / count
    loss.backward()
    out["loss"] = loss.detach().reshape(1)
    for name, p in model.named_parameters():
        if p.requires_grad:
            out[f"grad.{name.replace('.default.', '.')}"] = p.grad.clone()
    return out


if __name__ == "__main__":
    main()
