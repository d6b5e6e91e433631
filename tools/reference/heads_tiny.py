"""Write the tiny reference encoders, and for each head the numbers transformers + PEFT give.

One folder per base model under fixtures/heads: config.json, model.safetensors (the files of a masked language model
with BERT's pooler), and one folder per case: adapter/ as PEFT saves it, with the head in `modules_to_save`, and
expected.safetensors. Decoders take the base of a fixture that is there already.

    python heads_tiny.py [--out DIR] [--only CASE ...]
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from llama_tiny import ADAMW, ADAMW_STEPS, trainable
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

FIXTURES = Path(__file__).resolve().parents[2] / "crates/lowrank/tests/fixtures"

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "tie_word_embeddings": True,
}
BASES = {
    "bert": SIZES
    | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
    "roberta": SIZES
    | {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "max_position_embeddings": 42,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "pad_token_id": 1,
    },
    "distilbert": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": 64,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 40,
        "activation": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "pad_token_id": 0,
    },
}

SEQUENCE, TOKEN = AutoModelForSequenceClassification, AutoModelForTokenClassification
# base, model class, labels, PEFT's task, target modules, and `bias` where it is not "none"; a case that ends in
# "multi_label" or "values" has that `problem_type`
CASES = {
    "bert/pair": ("bert", SEQUENCE, 3, "SEQ_CLS", ["query", "value", "dense"]),
    "bert/token": ("bert", TOKEN, 5, "TOKEN_CLS", ["query", "key"]),
    "bert/mlm": ("bert", AutoModelForMaskedLM, None, None, ["query", "value", "dense"]),
    "bert/embedding": ("bert", AutoModel, None, "FEATURE_EXTRACTION", ["query", "value"]),
    "roberta/regression": ("roberta", SEQUENCE, 1, "SEQ_CLS", "all-linear"),
    "roberta/mlm": ("roberta", AutoModelForMaskedLM, None, None, ["query", "value"]),
    "distilbert/classes": ("distilbert", SEQUENCE, 2, "SEQ_CLS", ["q_lin", "v_lin"]),
    "distilbert/mlm": ("distilbert", AutoModelForMaskedLM, None, None, ["q_lin", "v_lin"]),
    "gpt2/classes": ("../gpt2_c_attn", SEQUENCE, 3, "SEQ_CLS", ["c_attn"]),
    "llama/classes": ("../llama_gqa_tied", SEQUENCE, 3, "SEQ_CLS", ["q_proj", "v_proj"]),
    "roberta/bias_all": ("roberta", SEQUENCE, 3, "SEQ_CLS", ["query", "value"], "all"),
    "bert/bias_lora": ("bert", TOKEN, 3, "TOKEN_CLS", ["query", "dense"], "lora_only"),
    "gpt2/bias_all": ("../gpt2_c_attn", SEQUENCE, 3, "SEQ_CLS", ["c_attn"], "all"),
    "deberta/bias_all": ("../deberta_conv", SEQUENCE, 3, "SEQ_CLS", ["query_proj", "value_proj"], "all"),
    "bert/multi_label": ("bert", SEQUENCE, 5, "SEQ_CLS", ["query", "value"]),
    "roberta/multi_label": ("roberta", SEQUENCE, 4, "SEQ_CLS", ["query", "value"]),
    "llama/multi_label": ("../llama_gqa_tied", SEQUENCE, 3, "SEQ_CLS", ["q_proj", "v_proj"]),
    "bert/values": ("bert", SEQUENCE, 3, "SEQ_CLS", ["query", "value"]),
    "roberta/values": ("roberta", SEQUENCE, 3, "SEQ_CLS", ["query", "value"]),
    "llama/values": ("../llama_gqa_tied", SEQUENCE, 3, "SEQ_CLS", ["q_proj", "v_proj"]),
    "llama/token": ("../llama_gqa_tied", TOKEN, 3, "TOKEN_CLS", ["q_proj", "v_proj"]),
}
LENGTHS = [7, 19, 30]


def problem_of(case):
    problems = {"multi_label": "multi_label_classification", "values": "regression", "regression": "regression"}
    return problems.get(case.split("/")[1])


def random_weights(model, generator):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            value = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        else:
            value = 0.2 * noise
        p.data.copy_(value.to(torch.bfloat16))


def write_base(root, name, config, generator):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_config(config)
    random_weights(model, generator)
    skip = {"cls.predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight"}
    skip |= {"cls.predictions.decoder.bias", "lm_head.decoder.bias"}
    weights = {n: t for n, t in model.state_dict().items() if n not in skip and "position_ids" not in n}
    if name == "bert":
        pooler = {"weight": (32, 32), "bias": (32,)}
        for part, shape in pooler.items():
            weights[f"bert.pooler.dense.{part}"] = 0.2 * torch.randn(shape, generator=generator)
    weights = {n: t.to(torch.bfloat16).contiguous().clone() for n, t in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder, cls, labels, problem):
    more = {} if labels is None else {"num_labels": labels}
    if folder.name.startswith(("gpt2", "llama")):
        more["pad_token_id"] = 0
    if problem:
        more["problem_type"] = problem
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **more)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def run(model, item):
    more = {"token_type_ids": item["types"][None]} if "types" in item else {}
    return model(input_ids=item["ids"][None], **more)


def loss_of(model, cls, batch):
    """Mean over the targets of the batch, each text alone: nothing is padded."""
    if cls is AutoModel:
        def embed(ids):
            hidden = model(input_ids=ids[None]).last_hidden_state[0]
            return F.normalize(hidden.mean(0), dim=0)

        a = torch.stack([embed(item["ids"]) for item in batch])
        b = torch.stack([embed(item["second"]) for item in batch])
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(batch)))
    total, count = 0.0, 0
    for item in batch:
        logits, labels = run(model, item).logits, item["labels"]
        if labels.dtype == torch.float32:
            multi_label = model.config.problem_type == "multi_label_classification"
            loss = F.binary_cross_entropy_with_logits if multi_label else F.mse_loss
            total = total + loss(logits.view(-1), labels.to(logits.dtype), reduction="sum")
        else:
            flat = logits.view(-1, logits.shape[-1])
            total = total + F.cross_entropy(flat, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def train(model, cls, batch):
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    losses, first = [], {}
    for step in range(ADAMW_STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, cls, batch)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            # With bias="all" PEFT also marks biases that nothing is computed with.
            first = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        optimizer.step()
    return losses, first


def make_batch(cls, labels, problem, base, words, generator):
    batch = []
    for n in LENGTHS:
        draw = lambda n: torch.randint(3, words, (n,), generator=generator)
        item = {"ids": draw(n)}
        if base == "bert" and cls is SEQUENCE:
            item["types"] = (torch.arange(n) >= n // 2).long()
        if cls is AutoModel:
            item["second"] = draw(n // 2 + 1)
        elif cls is AutoModelForMaskedLM:
            item["labels"] = torch.where(torch.arange(n) % 4 == 1, draw(n), -100)
        elif cls is TOKEN:
            tags = torch.randint(0, labels, (n,), generator=generator)
            item["labels"] = torch.where(torch.arange(n) % 3 == 0, -100, tags)
        elif problem == "regression":
            item["labels"] = 3 * torch.randn(labels, generator=generator)
        elif problem:
            # The last text is of no class.
            draws = torch.randint(0, 2, (labels,), generator=generator).float()
            item["labels"] = draws if n < LENGTHS[-1] else torch.zeros(labels)
        else:
            item["labels"] = torch.randint(0, labels, (1,), generator=generator)
        batch.append(item)
    return batch


def padded_loss(model, cls, batch):
    """The loss transformers itself computes, over one padded batch."""
    longest, pad = max(LENGTHS), model.config.pad_token_id
    fill = lambda t, v: F.pad(t, (0, longest - len(t)), value=v)
    more = {"token_type_ids": torch.stack([fill(i["types"], 0) for i in batch])} if "types" in batch[0] else {}
    labels = [item["labels"] for item in batch]
    if cls is not SEQUENCE:
        labels = torch.stack([fill(one, -100) for one in labels])
    else:
        labels = torch.stack(labels) if len(labels[0]) > 1 else torch.cat(labels)
    return model(
        input_ids=torch.stack([fill(i["ids"], pad) for i in batch]),
        attention_mask=torch.stack([fill(torch.ones_like(i["ids"]), 0) for i in batch]),
        labels=labels,
        **more,
    ).loss


def write_case(root, case):
    base, cls, labels, task, targets, *bias = CASES[case]
    source, folder, problem = (root / base).resolve(), root / case, problem_of(case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    config = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=targets, bias=(bias or ["none"])[0])
    model = get_peft_model(load(source, cls, labels, problem), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.copy_((0.15 if "lora_B" not in name else 0.1) * torch.randn(p.shape, generator=generator))
    model.peft_config["default"].base_model_name_or_path = case
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    (folder / "adapter/README.md").unlink()
    path = folder / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    if targets == "all-linear":
        config["target_modules"] = "all-linear"
    else:
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2) + "\n")

    words = min(64, AutoConfig.from_pretrained(source).vocab_size)
    batch, out = make_batch(cls, labels, problem, base, words, generator), {}
    for i, item in enumerate(batch):
        out |= {f"{name}_{i}": value for name, value in item.items()}
    model = PeftModel.from_pretrained(load(source, cls, labels, problem), folder / "adapter", is_trainable=True).eval()
    with torch.no_grad():
        for i, item in enumerate(batch):
            if cls is AutoModel:
                hidden = model(input_ids=item["ids"][None]).last_hidden_state[0]
                out[f"outputs_{i}"] = F.normalize(hidden.mean(0), dim=0)
            elif cls is SEQUENCE:
                out[f"outputs_{i}"] = run(model, item).logits[0]
            else:
                out[f"outputs_{i}"] = run(model, item).logits[0][item["labels"] != -100]
    losses, first = train(model, cls, batch)
    out["losses"] = torch.tensor(losses)
    out["grad_norm"] = torch.stack([g.norm() for g in first.values()]).norm().reshape(1)
    out |= {f"grad.{n.replace('.modules_to_save', '')}": g for n, g in first.items()}
    fresh = PeftModel.from_pretrained(load(source, cls, labels, problem), folder / "adapter", is_trainable=True).eval()
    if cls is not AutoModel:
        padded = padded_loss(fresh, cls, batch).item()
        assert abs(padded - losses[0]) < 1e-5 * abs(padded), (case, padded, losses[0])
    noise = abs(loss_of(fresh.double(), cls, batch).item() - losses[0]) / abs(losses[0])
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{case:20} {size / 1024:5.0f} KiB  loss {losses[0]:.4f} -> {losses[-1]:.4f}  f32 against f64 {noise:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIXTURES / "heads")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in BASES.items():
        write_base(args.out, name, config, torch.Generator().manual_seed(sum(map(ord, name))))
    for case in args.only:
        write_case(args.out, case)


if __name__ == "__main__":
    main()
