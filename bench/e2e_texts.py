"""Continue E2E's meaning representations with transformers + PEFT, the way `lowrank eval --predictions` does.

    python bench/e2e_texts.py --base FILE.gguf --adapter DIR --data testset_w_refs.csv --out texts.txt [--prompts N]
        [--num-beams 1] [--length-penalty 1.0] [--no-repeat-ngram-size 0]

Writes one text a line, for `lowrank eval --score texts.txt`. The base is dequantised to float32. Prompts are `mr` and a
line end; distinct ones in the order of the file.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/reference"))
from base import load_base, load_tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--length-penalty", type=float, default=1.0)
    parser.add_argument("--no-repeat-ngram-size", type=int, default=0)
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.base)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(load_base(args.base), args.adapter).eval()
    with open(args.data, encoding="utf-8") as file:
        prompts = list(dict.fromkeys(row["mr"] + "\n" for row in csv.DictReader(file)))[: args.prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    started = time.time()
    for at in range(0, len(order), args.batch_size):
        part = order[at : at + args.batch_size]
        batch = tokenizer([prompts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            out = model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=args.max_new_tokens,
                num_beams=args.num_beams,
                length_penalty=args.length_penalty,
                no_repeat_ngram_size=args.no_repeat_ngram_size,
                pad_token_id=tokenizer.pad_token_id,
            )
        for i, ids in zip(part, out[:, batch.input_ids.shape[1] :]):
            texts[i] = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    print(f"{len(prompts)} texts in {time.time() - started:.1f} s", file=sys.stderr)
    args.out.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
