"""Train one adapter on E2E twice, with PEFT and with lowrank, and score what both then say of unseen restaurants.

    venv/bin/python bench/e2e_bleu.py --gguf FILE.gguf --data DIR [--rows 1600] [--prompts 160]

DIR holds E2E's devset.csv, whose rows are shuffled once and learned from, and testset_w_refs.csv, whose first distinct
prompts are continued greedily. Both sides have the same float32 base, starting adapter, rows in the same order, AdamW
with a constant learning rate, and no dropout. The scores are `lowrank eval`'s for both. What is there already in --work
is not made again.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
METRICS = "bleu,bleu-e2e,nist,meteor,rouge-l,cider"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lowrank", type=Path, default=HERE.parent / "target/release/lowrank")
    parser.add_argument("--base", type=Path, help="the float32 folder that prepare.py makes of the GGUF file")
    parser.add_argument("--work", type=Path, default=HERE.parent / "target/bench/e2e-bleu")
    parser.add_argument("--results", type=Path, default=HERE / "results/e2e-bleu.json")
    args = parser.parse_args()
    work, steps = args.work, args.rows // args.batch
    work.mkdir(parents=True, exist_ok=True)
    base = args.base or work / "base"

    def made(path, *command):
        if not path.exists():
            print(*command, file=sys.stderr)
            subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)

    def python(script, *more):
        return [sys.executable, HERE / script, *more]

    made(base, *python("prepare.py", "model", "--gguf", args.gguf, "--out", base))
    train = work / "train.csv"
    if not train.exists():
        with open(args.data / "devset.csv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        random.Random(0).shuffle(rows)
        with open(train, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows[: steps * args.batch]])
    same = ["--model", base, "--data", train, "--learning-rate", args.learning_rate, "--threads", args.threads]
    start, test = work / "start", args.data / "testset_w_refs.csv"
    peft = ["--batch", args.batch, "--steps", steps, "--r", args.r, "--init-adapter", start, "--out", work / "peft"]
    made(work / "peft", *python("peft_train.py", *same, *peft))
    ours = ["--batch-size", args.batch, "--max-steps", steps, "--init-adapter", start, "--out", work / "ours"]
    columns = ["--prompt-column", "mr", "--completion-column", "ref", "--prompt-template", "{prompt}\\n"]
    ours += [*columns, "--no-shuffle", "--lr-scheduler", "constant", "--max-grad-norm", 0, "--save-steps", 0]
    made(work / "ours", args.lowrank, "train", *same, *ours)

    results = {}
    score = [args.lowrank, "eval", "--data", test, *columns, "--max-prompts", args.prompts, "--metrics", METRICS, "--json"]
    for name in ("peft", "ours"):
        texts = work / f"{name}-{args.prompts}.txt"
        if name == "peft":
            said = ["--base", base, "--adapter", work / name, "--data", test, "--out", texts, "--prompts", args.prompts]
            made(texts, *python("e2e_texts.py", *said))
        else:
            made(texts, *score, "--model", base, "--adapter", work / name, "--batch-size", 16, "--predictions", texts)
        command = [*score, "--model", base, "--score", texts]
        results[name] = json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)
    lines = [(work / f"{name}-{args.prompts}.txt").read_text(encoding="utf-8").splitlines() for name in ("peft", "ours")]
    results["same texts"] = sum(a.split() == b.split() for a, b in zip(*lines, strict=True))
    results["settings"] = {k: getattr(args, k) for k in ("rows", "prompts", "batch", "learning_rate", "r")}
    args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
