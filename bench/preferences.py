"""Run `lowrank train --task preference` and TRL's DPOTrainer + PEFT alternately on the same pairs, and print how they compare.

    venv/bin/python bench/preferences.py --gguf FILE --data preferences.jsonl --ours target/release/lowrank

Both train a LoRA (r 8, q and v) with DPO on the same rows in the same order. Each draws its own A, so the losses agree roughly only; the
tests compare them exactly.
Writes bench/results/preferences.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).resolve().parent
RATE, R = 1e-4, 8


def peer(args):
    """In a process of its own: one line of JSON with the time and loss of each step, and the peak of memory."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(args.threads)
    rows = [json.loads(line) for line in open(args.data, encoding="utf-8")][: args.batch * args.steps]
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, per_device_train_batch_size=args.batch, max_steps=args.steps, learning_rate=RATE,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True, max_grad_norm=1.0,
        )
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
        trainer = DPOTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            peft_config=LoraConfig(r=R, lora_alpha=2 * R, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        trainer._get_train_sampler = lambda dataset=None: SequentialSampler(trainer.train_dataset)
        steps, losses = [], []
        whole, step = trainer.compute_loss, trainer.training_step

        def loss_of(*a, **k):
            loss = whole(*a, **k)
            losses.append(float(loss))
            return loss

        def timed(*a, **k):
            start = time.perf_counter()
            loss = step(*a, **k)
            steps.append(time.perf_counter() - start)
            return loss

        trainer.compute_loss, trainer.training_step = loss_of, timed
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"steps": steps, "losses": losses, "peak": peak}))


def run_peer(args, model):
    command = [sys.executable, __file__, "--peer", "--model", model, "--data", args.data]
    command += ["--batch", str(args.batch), "--steps", str(args.steps), "--threads", str(args.threads)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(out.stderr[-3000:])
    return json.loads(out.stdout.splitlines()[-1])


def run_ours(args, model, work):
    log = work / "log.jsonl"
    command = [
        args.ours, "train", "--model", model, "--task", "preference", "--data", args.data, "--out", work / "out", "--force",
        "--no-shuffle", "--r", str(R), "--lora-alpha", str(2 * R), "--target-modules", "q_proj,v_proj",
        "--batch-size", str(args.batch), "--max-steps", str(args.steps), "--learning-rate", str(RATE),
        "--lr-scheduler", "constant", "--threads", str(args.threads), "--log-json", log,
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    peak = max(line["peak_rss_bytes"] for line in lines)
    return {"steps": [line["step_s"] for line in lines], "losses": [line["loss"] for line in lines], "peak": peak, "process_s": seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf")
    parser.add_argument("--model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--ours", default=str(HERE.parent / "target/release/lowrank"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        model = args.model
        if not model:
            model = work / "model"
            subprocess.run(
                [sys.executable, HERE / "prepare.py", "model", "--gguf", args.gguf, "--out", model], check=True
            )
        sides = {"trl": [], "lowrank": [], "lowrank_gguf": []}
        for _ in range(args.rounds):
            sides["trl"].append(run_peer(args, model))
            sides["lowrank"].append(run_ours(args, model, work))
            if args.gguf:
                sides["lowrank_gguf"].append(run_ours(args, args.gguf, work))
    result = {"batch": args.batch, "threads": args.threads}
    for side, runs in sides.items():
        if runs:
            times = [t for run in runs for t in run["steps"][2:]]
            result[side] = {
                "median_step_s": statistics.median(times),
                "pairs_per_s": args.batch / statistics.median(times),
                "peak_bytes": max(run["peak"] for run in runs),
                "losses": runs[-1]["losses"],
            }
    pairs = zip(result["trl"]["losses"], result["lowrank"]["losses"])
    result["largest_loss_difference_of_first_step"] = abs(result["trl"]["losses"][0] - result["lowrank"]["losses"][0])
    result["largest_loss_difference"] = max(abs(a - b) for a, b in pairs)
    for side in ["lowrank", "lowrank_gguf"]:
        if side in result:
            result[side]["speed_of_trl"] = result[side]["pairs_per_s"] / result["trl"]["pairs_per_s"]
            result[side]["memory_of_trl"] = result[side]["peak_bytes"] / result["trl"]["peak_bytes"]
    (HERE / "results/preferences.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "losses"}, indent=1))


if __name__ == "__main__":
    main()
