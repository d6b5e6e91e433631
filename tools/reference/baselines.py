"""Write what transformers and PEFT give for the LoRA paper's baselines, on the tiny models that are there already.

Full fine-tuning, its parts and BitFit train transformers' own models; adapter layers are hooks on them; prompt and
prefix tuning are PEFT's. One file per case under fixtures/baselines: the losses of 20 AdamW steps and, of each first
gradient, its norm and a weighted sum; what starts random is in the file, or in a PEFT folder.

    python baselines.py [--out DIR] [--only CASE ...]
"""

import argparse
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from heads_tiny import load as load_head
from heads_tiny import loss_of
from llama_tiny import ADAMW, ADAMW_STEPS, batch_loss, load
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

FIXTURES = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures"


def text_batch(folder):
    saved = load_file(FIXTURES / folder / "expected.safetensors")
    return [(saved[f"ids_{i}"], saved[f"labels_{i}"]) for i in range(3)]


def pair_batch():
    saved = load_file(FIXTURES / "heads/bert/pair/expected.safetensors")
    return [{name: saved[f"{name}_{i}"] for name in ("ids", "types", "labels")} for i in range(3)]


def summary(gradient):
    """The norm, and a sum in which every number has a weight of its own."""
    g = gradient.double().flatten()
    return torch.stack([g.norm(), (g * torch.cos(0.7 * torch.arange(len(g), dtype=torch.float64))).sum()]).float()


def train(parameters, loss_of_batch):
    """The losses before each of ADAMW_STEPS steps, and what there is to say of the first step's gradients."""
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    losses, out = [], {}
    for step in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss = loss_of_batch()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            out = {f"grad.{name}": summary(p.grad) for name, p in parameters.items()}
        optimizer.step()
    return out | {"losses": torch.tensor(losses)}


def freeze_but(model, wanted):
    """Named parameters that are trained; one that two modules share comes once, as in torch's own list."""
    chosen = {}
    for name, p in model.named_parameters():
        p.requires_grad = wanted(name)
        if p.requires_grad:
            chosen[name] = p
    return chosen


def language(folder, wanted):
    model, batch = load(FIXTURES / folder), text_batch(folder)
    return train(freeze_but(model, wanted), lambda: batch_loss(model, batch))


def classifier(wanted):
    model, batch = load_head(FIXTURES / "heads/bert", AutoModelForSequenceClassification, 3), pair_batch()
    generator = torch.Generator().manual_seed(5)
    head = {}
    for part in ("weight", "bias"):
        p = getattr(model.classifier, part)
        p.data.copy_(0.15 * torch.randn(p.shape, generator=generator))
        head[f"start.classifier.{part}"] = p.detach().clone()
    cls = AutoModelForSequenceClassification
    return head | train(freeze_but(model, wanted), lambda: loss_of(model, cls, batch))


class Bottleneck(torch.nn.Module):
    """`y + up(act(down(norm(y))))`; not every form has the norm."""

    def __init__(self, width, r, activation, norm, generator):
        super().__init__()
        self.adapter_down = torch.nn.Linear(width, r)
        self.adapter_up = torch.nn.Linear(r, width)
        self.adapter_norm = torch.nn.LayerNorm(width) if norm else None
        self.activation = activation
        for name, p in self.named_parameters():
            start = 1.0 if name == "adapter_norm.weight" else 0.0
            p.data.copy_(start + 0.2 * torch.randn(p.shape, generator=generator))

    def forward(self, y):
        x = y if self.adapter_norm is None else self.adapter_norm(y)
        return y + self.adapter_up(self.activation(self.adapter_down(x)))


def bottlenecks(folder, modules, activation, norm):
    model, batch = load(FIXTURES / folder), text_batch(folder)
    model.requires_grad_(False)
    generator, parameters = torch.Generator().manual_seed(7), {}
    for path, module in model.named_modules():
        if not path.endswith(modules):
            continue
        width = module.nf if hasattr(module, "nf") else module.out_features
        adapter = Bottleneck(width, 5, activation, norm, generator)
        module.register_forward_hook(lambda _, __, y, adapter=adapter: adapter(y))
        parameters |= {f"{path}.{name}": p for name, p in adapter.named_parameters()}
    start = {f"start.{name}": p.detach().clone() for name, p in parameters.items()}
    return start | train(parameters, lambda: batch_loss(model, batch))


def virtual(folder, config, out):
    """PEFT's prompt or prefix tuning, its folder in `out`."""
    model, batch = get_peft_model(load(FIXTURES / folder), config), text_batch(folder)
    encoder = model.prompt_encoder["default"]
    generator = torch.Generator().manual_seed(11)
    encoder.embedding.weight.data.copy_(0.3 * torch.randn(encoder.embedding.weight.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = folder
    model.peft_config["default"].tokenizer_name_or_path = None
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    n, prefix = config.num_virtual_tokens, isinstance(config, PrefixTuningConfig)

    def logits(ids):
        return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]

    def loss():
        total, count = 0.0, 0
        for ids, labels in batch:
            # Rows of a prompt are there like any other, and its last predicts the first token; a prefix has none.
            labels = labels if prefix else torch.cat([torch.full((n,), -100), labels])
            total = total + F.cross_entropy(logits(ids)[:-1], labels[1:], ignore_index=-100, reduction="sum")
            count += int((labels[1:] != -100).sum())
        return total / count

    model.eval()
    with torch.no_grad():
        shown = {f"logits_{i}": logits(ids)[-len(ids) :].contiguous() for i, (ids, _) in enumerate(batch)}
    return shown | train({"prompt_embeddings": encoder.embedding.weight}, loss)


def case(name, out):
    llama, gpt2 = "llama_gqa_tied", "gpt2_all"
    everything = lambda _: True
    match name:
        case "llama_full":
            return language(llama, everything)
        case "gpt2_full":
            return language(gpt2, everything)
        case "llama_top1":
            return language(llama, lambda n: ".layers.1." in n)
        case "gpt2_bitfit":
            return language(gpt2, lambda n: n.endswith(".bias"))
        case "bert_full":
            return classifier(everything)
        case "bert_bitfit":
            return classifier(lambda n: n.endswith(".bias") or n.startswith("classifier"))
        case "bert_probe":
            return classifier(lambda n: n.startswith(("classifier", "bert.pooler")))
        case "llama_houlsby":
            return bottlenecks(llama, ("self_attn.o_proj", "mlp.down_proj"), F.silu, False)
        case "gpt2_pfeiffer":
            return bottlenecks(gpt2, ("mlp.c_proj",), F.relu, False)
        case "llama_lin":
            return bottlenecks(llama, ("mlp.down_proj",), F.relu, True)
        case "llama_prompt":
            return virtual(llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), out / name)
        case "gpt2_prompt":
            return virtual(gpt2, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), out / name)
        case "llama_prefix":
            return virtual(llama, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), out / name)
        case "gpt2_prefix":
            return virtual(gpt2, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), out / name)


CASES = [
    "llama_full",
    "gpt2_full",
    "llama_top1",
    "gpt2_bitfit",
    "bert_full",
    "bert_bitfit",
    "bert_probe",
    "llama_houlsby",
    "gpt2_pfeiffer",
    "llama_lin",
    "llama_prompt",
    "gpt2_prompt",
    "llama_prefix",
    "gpt2_prefix",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "baselines")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.only:
        made = case(name, args.out)
        path = args.out / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in made.items()}, path)
        losses = made["losses"].tolist()
        print(f"{name:16} {path.stat().st_size / 1024:5.0f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
