"""The peer: LoRA training with PyTorch + transformers + PEFT, as its users write it, timed step by step.

    python bench/peft_train.py --model FOLDER --data devset.csv --batch 16 --steps 12
    python bench/peft_train.py --model gpt2-small --synthetic 8x128 --targets c_attn

Rows are padded to the longest of their batch; the loss is transformers' own. Only the adapter is optimised, with
AdamW. Prints one line of JSON; the first --warmup steps are not counted.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/reference"))
from base import load_base, load_tokenizer
from shapes import SHAPES

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def rows(args):
    """Examples as (prompt, completion), in file order."""
    with open(args.data, newline="", encoding="utf-8") as f:
        if args.data.suffix == ".jsonl":
            for line in f:
                row = json.loads(line)
                columns = (args.prompt_column, args.completion_column) if args.classify else ("prompt", "completion")
                yield row[columns[0]], row[columns[1]]
        else:
            delimiter = "\t" if args.data.suffix == ".tsv" else ","
            for row in csv.DictReader(f, delimiter=delimiter):
                prompt = args.prompt_template.replace("{prompt}", row[args.prompt_column])
                yield prompt, row[args.completion_column]


def examples(args, vocab, tokenizer):
    if args.synthetic:
        batch, length = map(int, args.synthetic.split("x"))
        generator = torch.Generator().manual_seed(0)
        for ids in torch.randint(3, vocab, (batch * args.steps, length), generator=generator).tolist():
            label = ids[0] % 2 if args.classify else list(ids)
            yield {"input_ids": ids, "attention_mask": [1] * length, "labels": label}
        return
    for (prompt, completion), _ in zip(rows(args), range(args.batch * args.steps)):
        if args.classify:
            yield dict(tokenizer(prompt)) | {"labels": int(completion)}
            continue
        p = tokenizer(prompt, add_special_tokens=False).input_ids
        c = tokenizer(completion, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        yield {"input_ids": p + c, "attention_mask": [1] * len(p + c), "labels": [-100] * len(p) + c}


def build(args):
    """The base, without dropout: our side has none in the base."""
    model = load(args)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def load(args):
    if args.model in SHAPES:
        torch.manual_seed(0)
        kind = AutoModelForSequenceClassification if args.classify else AutoModelForCausalLM
        return kind.from_config(SHAPES[args.model]()).to(DTYPES[args.dtype])
    if args.classify:
        return AutoModelForSequenceClassification.from_pretrained(args.model, dtype=DTYPES[args.dtype])
    return load_base(args.model, DTYPES[args.dtype])


def attach(args, model):
    """A new adapter, or the one in --init-adapter, which is written first if it is not there."""
    if not args.init_adapter or not args.init_adapter.exists():
        torch.manual_seed(1)
        config = LoraConfig(
            task_type="SEQ_CLS" if args.classify else "CAUSAL_LM",
            r=args.r, lora_alpha=2 * args.r, lora_dropout=0.0, target_modules=args.targets.split(","),
        )
        model = get_peft_model(model, config)
        if not args.init_adapter:
            return model
        model.save_pretrained(args.init_adapter, save_embedding_layers=False)
        model = model.unload()
    return PeftModel.from_pretrained(model, args.init_adapter, is_trainable=True)


def reset_peak():
    """From here on the kernel's high-water mark is the training's, not the loading's (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes():
    """The high-water mark since `reset_peak`, or of the whole process where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file, Hugging Face folder, or " + ", ".join(SHAPES))
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help=".jsonl with prompt and completion, .csv or .tsv")
    source.add_argument("--synthetic", metavar="BxT", help="random rows; all positions carry loss")
    parser.add_argument("--tokenizer", help="where --model has none")
    parser.add_argument("--prompt-column", default="mr")
    parser.add_argument("--completion-column", default="ref")
    parser.add_argument("--prompt-template", default="{prompt}\n")
    parser.add_argument("--classify", action="store_true", help="the completion is the number of a class")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--targets", default="q_proj,v_proj")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--init-adapter", type=Path)
    parser.add_argument("--out", type=Path, help="write the trained adapter here")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.prompt_template = args.prompt_template.replace("\\n", "\n")
    if args.synthetic:
        args.batch = int(args.synthetic.split("x")[0])

    torch.set_num_threads(args.threads)
    model = build(args)
    model.config.use_cache = False
    model = attach(args, model).train()
    if args.checkpoint_activations:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokenizer = None if args.synthetic else load_tokenizer(args.tokenizer or args.model)
    data = list(examples(args, model.config.vocab_size, tokenizer))
    if len(data) < args.batch * args.steps:
        parser.error(f"{args.data} has {len(data)} rows, {args.batch * args.steps} are needed")
    if tokenizer is None:
        collate = lambda batch: {k: torch.tensor([row[k] for row in batch]) for k in batch[0]}
    elif args.classify:
        collate = DataCollatorWithPadding(tokenizer)
    else:
        collate = DataCollatorForSeq2Seq(tokenizer)

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, weight_decay=0.0)
    reset_peak()
    steps = []
    for step in range(args.steps):
        batch = data[step * args.batch : (step + 1) * args.batch]
        start = time.perf_counter()
        loss = model(**collate(batch)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        steps.append({
            "step": step + 1,
            "loss": value,
            "step_s": time.perf_counter() - start,
            "tokens": sum(len(row["input_ids"]) for row in batch),
            "examples": len(batch),
        })
    if args.out:
        model.save_pretrained(args.out, save_embedding_layers=False)
    counted = steps[args.warmup :] or steps
    seconds = sum(s["step_s"] for s in counted)
    print(json.dumps({
        "model": args.model,
        "dtype": args.dtype,
        "threads": args.threads,
        "torch": torch.__version__,
        "trainable": sum(p.numel() for p in parameters),
        "median_step_s": statistics.median(s["step_s"] for s in counted),
        "tokens_per_s": sum(s["tokens"] for s in counted) / seconds,
        "examples_per_s": sum(s["examples"] for s in counted) / seconds,
        "peak_rss_training_bytes": peak_bytes(),
        "steps": steps,
    }))


if __name__ == "__main__":
    main()
