"""Make what both sides of a benchmark read: a base model folder in float32 and rows of one exact length.

    python bench/prepare.py model --gguf FILE [--shape gpt2-small] --out FOLDER
    python bench/prepare.py rows --model FOLDER --batch 8 --length 128 --steps 12 --out rows.jsonl
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/reference"))
from base import load_base, load_tokenizer
from shapes import SHAPES


def write_model(args):
    """The GGUF model, dequantised, or random weights of a shape, as a Hugging Face folder with the GGUF file's
    tokenizer."""
    if args.shape:
        torch.manual_seed(0)
        kind = AutoModelForSequenceClassification if args.classify else AutoModelForCausalLM
        model = kind.from_config(SHAPES[args.shape]())
    else:
        model = load_base(args.gguf)
        # transformers notes that the weights came from GGUF; in the folder they are plain float32.
        del model.config.quantization_config
        model.hf_quantizer = None
    model.save_pretrained(args.out)
    load_tokenizer(args.gguf).save_pretrained(args.out)


def write_rows(args):
    """Rows of exactly `length` tokens with eos: one word of prompt, the rest completion. Every position but the
    first is predicted, so all of them carry loss. With --classify sentences of `length` tokens and a random label."""
    tokenizer = load_tokenizer(args.model)
    single = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids) == 1
    words = [
        word
        for token in sorted(tokenizer.get_vocab())
        if token.startswith("Ġ") and (word := token[1:]).isascii() and word.isalpha() and len(word) > 2
        if single(word) and single(" " + word)
    ]
    rng = random.Random(0)
    with open(args.out, "w", encoding="utf-8") as f:
        for _ in range(args.batch * args.steps):
            if args.classify:
                first, *rest = rng.choices(words, k=args.length)
                sentence = first + "".join(" " + word for word in rest)
                if len(tokenizer(sentence).input_ids) != args.length:
                    raise SystemExit(f"{sentence!r} does not have {args.length} tokens")
                f.write(json.dumps({"sentence": sentence, "label": rng.randrange(2)}) + "\n")
                continue
            prompt, *rest = rng.choices(words, k=args.length - 1)
            completion = "".join(" " + word for word in rest)
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
            ids += tokenizer(completion, add_special_tokens=False).input_ids
            if len(ids) != args.length - 1:
                raise SystemExit(f"{prompt + completion!r} has {len(ids)} tokens, not {args.length - 1}")
            f.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model")
    model.add_argument("--gguf", type=Path, required=True)
    model.add_argument("--shape", choices=SHAPES)
    model.add_argument("--classify", action="store_true", help="with a head for sequence classification")
    model.add_argument("--out", type=Path, required=True)
    model.set_defaults(run=write_model)
    rows = commands.add_parser("rows")
    rows.add_argument("--model", type=Path, required=True)
    rows.add_argument("--batch", type=int, required=True)
    rows.add_argument("--length", type=int, required=True)
    rows.add_argument("--steps", type=int, required=True)
    rows.add_argument("--classify", action="store_true", help="a sentence and a label each")
    rows.add_argument("--out", type=Path, required=True)
    rows.set_defaults(run=write_rows)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
