"""Fine-tune an encoder on a part of a GLUE task three ways: lowrank, PEFT's LoRA, and all weights with PyTorch.

    venv/bin/python bench/glue.py sst2 --model MINILM --data DIR --train 4000
    venv/bin/python bench/glue.py cola --model MINILM --data DIR --train 4000

All see the same rows in the same order, batches of the same size, AdamW with the same linear schedule, no dropout and
gradients clipped at 1. lowrank starts from the adapter and head that PEFT made, so the losses of each step can be
compared. DIR holds sst2/{train,test}.tsv or cola/{train,dev}.tsv.
"""

import argparse
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

ROOT = Path(__file__).resolve().parents[1]
# Where the rows come from, whether there is a header, and the columns of sentence and label.
TASKS = {"sst2": ("train.tsv", "test.tsv", True, 0, 1), "cola": ("train.tsv", "dev.tsv", False, 3, 1)}


def subset(path, header, count, seed):
    """Header lines and `count` rows at random (all where it is 0)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head, rows = (lines[:1], lines[1:]) if header else ([], lines)
    if count:
        random.Random(seed).shuffle(rows)
        rows = rows[:count]
    return head, rows


def parsed(rows, sentence, label):
    fields = [row.split("\t") for row in rows]
    return [f[sentence] for f in fields], [int(f[label]) for f in fields]


def fresh(args):
    torch.manual_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batches(tokenizer, texts, labels, size):
    for at in range(0, len(texts), size):
        batch = tokenizer(texts[at : at + size], padding=True, truncation=True, max_length=128, return_tensors="pt")
        yield batch, torch.tensor(labels[at : at + size])


def evaluate(model, tokenizer, texts, labels):
    model.eval()
    with torch.no_grad():
        predicted = [model(**batch).logits.argmax(-1) for batch, _ in batches(tokenizer, texts, labels, 32)]
    return scores(labels, torch.cat(predicted).numpy())


def scores(gold, predicted):
    return {
        "accuracy": accuracy_score(gold, predicted),
        "f1": f1_score(gold, predicted),
        "matthews_correlation": matthews_corrcoef(gold, predicted),
    }


def train(model, tokenizer, train, test, args, lr):
    """Trains and evaluates; returns the scores, the loss of every step, and the seconds of training."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    steps = args.epochs * -(-len(train[0]) // args.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    losses, start = [], time.perf_counter()
    model.train()
    for _ in range(args.epochs):
        for batch, labels in batches(tokenizer, *train, args.batch):
            optimizer.zero_grad()
            loss = model(**batch, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    seconds = time.perf_counter() - start
    return evaluate(model, tokenizer, *test) | {"seconds": seconds}, losses


def ours(args, work, adapter):
    """The same with `lowrank train` and `lowrank eval`."""
    command = [args.lowrank, "train", "--task", "classification", "--model", args.model]
    command += ["--data", work / "train.tsv", "--out", work / "ours", "--init-adapter", adapter, "--no-shuffle"]
    command += ["--data-format", f"glue:{args.task}", "--max-seq-len", "128", "--threads", str(args.threads)]
    command += ["--learning-rate", str(args.lr), "--batch-size", str(args.batch), "--epochs", str(args.epochs)]
    command += ["--log-json", work / "ours.jsonl", "--force", "--save-steps", "0"]
    subprocess.run(list(map(str, command)), check=True)
    steps = [json.loads(line) for line in (work / "ours.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "loss" in step]
    command = [args.lowrank, "eval", "--model", args.model, "--adapter", work / "ours", "--data", work / "test.tsv"]
    command += ["--data-format", f"glue:{args.task}", "--max-seq-len", "128", "--batch-size", "32", "--json"]
    result = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)
    return result | {"seconds": sum(s["step_s"] for s in steps)}, [s["loss"] for s in steps]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the task's folder")
    parser.add_argument("--train", type=int, default=4000, help="training rows, drawn with --seed; 0 for all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3, help="of both LoRAs")
    parser.add_argument("--full-lr", type=float, default=5e-5, help="of full fine-tuning")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--targets", default="query,value")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lowrank", type=Path, default=ROOT / "target/release/lowrank")
    parser.add_argument("--work", type=Path, default=ROOT / "target/bench")
    parser.add_argument("--only", default="peft,full,ours")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = args.work / f"glue-{args.task}"
    work.mkdir(parents=True, exist_ok=True)

    train_file, test_file, header, sentence, label = TASKS[args.task]
    data = {}
    for name, file, count in (("train", train_file, args.train), ("test", test_file, 0)):
        head, rows = subset(args.data / args.task / file, header, count, args.seed)
        (work / f"{name}.tsv").write_text("\n".join(head + rows) + "\n", encoding="utf-8")
        data[name] = parsed(rows, sentence, label)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    results, losses = {}, {}
    adapter = work / "start"
    lora = LoraConfig(task_type="SEQ_CLS", r=args.r, lora_alpha=2 * args.r, target_modules=args.targets.split(","))
    model = get_peft_model(fresh(args), lora)
    shutil.rmtree(adapter, ignore_errors=True)
    model.save_pretrained(adapter)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if "peft" in args.only:
        results["PEFT LoRA"], losses["peft"] = train(model, tokenizer, data["train"], data["test"], args, args.lr)
        model.save_pretrained(work / "peft")
    if "ours" in args.only:
        results["lowrank LoRA"], losses["ours"] = ours(args, work, adapter)
    if "full" in args.only:
        full = fresh(args)
        results["PyTorch, all weights"], _ = train(full, tokenizer, data["train"], data["test"], args, args.full_lr)
    print(f"{args.task}: {len(data['train'][0])} rows, {args.epochs} epochs, {trained} trainable numbers in LoRA")
    print("| | accuracy | F1 | Matthews | seconds of training |\n|---|---|---|---|---|")
    for name, r in results.items():
        print(f"| {name} | {r['accuracy']:.4f} | {r['f1']:.4f} | {r['matthews_correlation']:.4f} | {r['seconds']:.0f} |")
    if {"peft", "ours"} <= losses.keys():
        pairs = np.array([losses["peft"], losses["ours"]])
        first = np.abs(pairs[0] - pairs[1])[:50].max()
        print(f"losses differ by at most {first:.1e} in the first 50 steps, {np.abs(pairs[0] - pairs[1]).max():.1e} in all")
    (work / "result.json").write_text(json.dumps({"results": results, "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    main()
