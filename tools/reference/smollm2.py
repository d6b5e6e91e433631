"""Write what transformers + PEFT compute for the real SmolLM2-135M-Instruct on rows.jsonl of its fixture.

The base is read from its GGUF file, dequantised to float32 (and checked against the gguf package). The rows are those
that `cargo run --release -p lowrank --example restaurants -- --train 200 --eval 1 --seed 3` writes. The keys are listed
in README.md next to this file.

    python smollm2.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf [--out DIR]
"""

import argparse
import copy
import json
import shutil
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from base import load_base, load_tokenizer

FIXTURES = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures"

STEPS, BATCH = 50, 4
ADAMW = {"lr": 5e-4, "weight_decay": 0.0}
GRADIENT_LAYERS = (0, 14, 29)
SAMPLE = 200
GENERATED = 40
# Prompts whose best word is always clear of the second, so that rounding cannot change the text.
RAW_PROMPTS = [
    "The capital of France is",
    "Once upon a time there was",
    "The first 10 prime numbers are 2, 3, 5, 7,",
]
CHAT_PROMPTS = [
    "Name three fruits.",
    "Write one sentence about a cat.",
    "name[The Copper Kettle], eatType[coffee shop], priceRange[cheap]\n",
]
TEXTS = [
    "name[The Copper Kettle], eatType[coffee shop], priceRange[£20-25]\n",
    "Call 0123456789  or 42,  then wait 3.14 s",
    "  two spaces,\ttab,\r\n\n  new lines \n",
    "don't, we'll, I'M, naïve café, straße, 日本語, 😀",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "",
]


def check_dequantised(path, model):
    """Every weight equals the gguf package's own dequantisation, q and k with their rows put back in
    Hugging Face's order for rope."""
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    state = model.state_dict()
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if h := heads.get(parts[-1]):
            value = value.reshape(h, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        if not torch.equal(value, state[f"{prefix}{names[parts[-1]]}.weight"]):
            raise SystemExit(f"{tensor.name} is not what transformers loaded")


def encode(tokenizer, prompt, completion):
    """Token ids and the number of them that carry no loss."""
    p = tokenizer(prompt, add_special_tokens=False).input_ids
    c = tokenizer(completion, add_special_tokens=False).input_ids
    return p + c + [tokenizer.eos_token_id], len(p)


def read_rows(path, count):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count, path
    return [(row["prompt"] + "\n", row["completion"]) for row in rows]


def start_adapter(folder, model, rank=4, base="HuggingFaceTB/SmolLM2-135M-Instruct"):
    """A seeded adapter. B is small but not zero, so that A has a gradient too; both are stored as f16,
    which keeps the file small and still gives every reader the same numbers."""
    generator = torch.Generator().manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                if "lora_A" in name:
                    bound = p.shape[1] ** -0.5  # kaiming_uniform_(a = sqrt 5)
                    p.uniform_(-bound, bound, generator=generator)
                else:
                    p.normal_(0.0, 0.02, generator=generator)
    model.peft_config["default"].base_model_name_or_path = base
    model.peft_config["default"].target_modules = ["q_proj", "v_proj"]
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    file = folder / "adapter_model.safetensors"
    save_file({n: t.half() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    return model.unload()


def logits_of(model, rows, prefix, positions, sample):
    out = {}
    for i, at in enumerate(positions):
        ids = torch.tensor(rows[i][0])
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        top = logits[-1].topk(20)
        out[f"{prefix}top_ids_{i}"] = top.indices
        out[f"{prefix}top_logits_{i}"] = top.values
        out[f"{prefix}sample_logits_{i}"] = logits[at][:, sample]
    return out


def step_loss(model, rows):
    """Mean over the labelled tokens of the batch, each row on its own (no padding)."""
    total, count = 0.0, 0
    for ids, prompt in rows:
        ids = torch.tensor(ids)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, prompt - 1 : -1]
        total = total + F.cross_entropy(logits, ids[prompt:], reduction="sum")
        count += len(ids) - prompt
    return total / count


def first_gradients(model, rows, out):
    """Those of the first step, in float64: in float32 some are 5e-4 of their size away from it."""
    model = copy.deepcopy(model).double()
    step_loss(model, rows[:BATCH]).backward()
    for name, p in model.named_parameters():
        if p.requires_grad and any(f".layers.{n}." in name for n in GRADIENT_LAYERS):
            out[f"grad.{name.replace('.default.', '.')}"] = p.grad.float()


def train(model, rows, out):
    parameters = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = step_loss(model, rows[step * BATCH : (step + 1) * BATCH])
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.stack([p.grad.norm() for p in parameters.values()]).norm().item())
        optimizer.step()
        print(f"step {step + 1:2}  loss {losses[-1]:.6f}  grad norm {norms[-1]:.4f}", flush=True)
    out["losses"], out["grad_norms"] = torch.tensor(losses), torch.tensor(norms)


def generate(model, tokenizer, prompt, chat):
    text = prompt
    if chat:
        message = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    result = model.generate(
        **ids, max_new_tokens=GENERATED, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    new = result.sequences[0, ids.input_ids.shape[1] :].tolist()
    pairs = torch.stack([step[0].topk(2).values for step in result.logits])
    return {
        "prompt": prompt,
        "chat": chat,
        "text_in": text,
        "prompt_ids": ids.input_ids[0].tolist(),
        "ids": new,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        # Where the two best words are this close, another order of sums may choose the other one.
        "smallest_margin": round((pairs[:, 0] - pairs[:, 1]).min().item(), 4),
    }


def write_json(path, entries):
    """One entry a line, so that a change shows as such."""
    lines = ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FIXTURES / "smollm2")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shutil.rmtree(args.out / "start_adapter", ignore_errors=True)

    model, tokenizer = load_base(args.gguf, attn_implementation="eager"), load_tokenizer(args.gguf)
    check_dequantised(args.gguf, model)

    tokens = [{"text": t, "ids": tokenizer(t, add_special_tokens=False).input_ids} for t in TEXTS]
    write_json(args.out / "tokens.json", tokens)
    generations = [generate(model, tokenizer, p, False) for p in RAW_PROMPTS]
    generations += [generate(model, tokenizer, p, True) for p in CHAT_PROMPTS]
    write_json(args.out / "generations.json", generations)
    for g in generations:
        print(f"chat={g['chat']} margin {g['smallest_margin']}: {g['prompt']!r} -> {g['text']!r}")

    rows = [encode(tokenizer, *row) for row in read_rows(args.out / "rows.jsonl", STEPS * BATCH)]
    out = {
        "row_lengths": torch.tensor([len(ids) for ids, _ in rows]),
        "prompt_lengths": torch.tensor([prompt for _, prompt in rows]),
        "row_checksums": torch.tensor([sum((i + 1) * t for i, t in enumerate(ids)) for ids, _ in rows]),
    }
    for i in range(BATCH):
        out[f"ids_{i}"] = torch.tensor(rows[i][0])

    sample = torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(2))[:SAMPLE]
    positions = [torch.linspace(0, len(rows[i][0]) - 1, 6).long() for i in range(2)]
    out["sample_ids"] = sample
    for i, at in enumerate(positions):
        out[f"positions_{i}"] = at
    with torch.no_grad():
        out |= logits_of(model, rows, "base_", positions, sample)
        model = start_adapter(args.out / "start_adapter", model)
        model = PeftModel.from_pretrained(model, args.out / "start_adapter", is_trainable=True).eval()
        for p in model.parameters():
            assert p.dtype == torch.float32
        out |= logits_of(model, rows, "", positions, sample)
    moved = (out["sample_logits_0"] - out["base_sample_logits_0"]).abs().max()
    print(f"the start adapter moves logits by at most {moved:.3f} of {out['base_sample_logits_0'].abs().max():.1f}")

    first_gradients(model, rows, out)
    train(model, rows, out)
    save_file({k: v.contiguous() for k, v in out.items()}, args.out / "expected.safetensors")


if __name__ == "__main__":
    main()
