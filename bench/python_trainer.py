"""A transformers.Trainer LoRA step with `lowrank.torch.accelerate_peft` and without, and the engine from Python next to
the command: each pair in turns, each side in a process of its own.

    python bench/python_trainer.py trainer              # GPT-2-small shape, random weights, 8x128, r=8 on c_attn
    python bench/python_trainer.py engine --model SmolLM2-135M-Instruct.Q4_1.gguf

Needs bench/requirements.txt and the lowrank wheel. Writes bench/results/python-<pair>.json and prints a table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WARMUP = 2
SIDES = {
    # Plain PEFT; only its LoRA layers; what accelerate_peft swaps by default; dropout too.
    "trainer": ("peft", "lora", "default", "dropout"),
    "engine": ("command", "python"),
}


def reset_peak():
    """From here on the kernel's high-water mark is the training's (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def trainer_child(args):
    """One side of the first pair: a Trainer run on random tokens."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(args.threads)
    batch, length = map(int, args.shape.split("x"))
    torch.manual_seed(0)
    # lora_dropout 0 and the model's own dropouts, 0.1 as GPT-2 comes.
    drop = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), args.base_dropout)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False, **drop))
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(model, config)
    if args.side != "peft":
        import lowrank.torch

        from lowrank.torch._peft import LAYERS, SAME

        lowrank.torch.accelerate_peft(model, {"lora": ["lora"], "default": SAME, "dropout": LAYERS}[args.side])

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return batch * (args.steps + WARMUP)

        def __getitem__(self, i):
            ids = torch.randint(3, 50257, (length,), generator=torch.Generator().manual_seed(i))
            return {"input_ids": ids, "labels": ids.clone()}

    times, losses = [], []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter() - self.start)

        def on_log(self, _, state, control, logs=None, **__):
            if "loss" in (logs or {}):
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch, max_steps=args.steps + WARMUP, learning_rate=2e-4,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()])
        reset_peak()
        trainer.train()
    print(json.dumps({
        "times": times, "losses": losses, "tokens": batch * length, "peak_rss_bytes": peak_bytes(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }))


def engine_rows(args, path):
    """Rows of equal length, so that every step is the same work."""
    batch = int(args.shape.split("x")[0])
    words = "the river runs by the old mill and the road goes over the hill to the sea ".split()
    with open(path, "w", encoding="utf-8") as file:
        for i in range(batch * (args.steps + WARMUP)):
            text = " ".join(words[(i + j) % len(words)] for j in range(int(args.shape.split("x")[1]) - 1))
            file.write(json.dumps({"text": text}) + "\n")


def engine_child(args):
    """One side of the second pair: the same run by the command or from Python."""
    with tempfile.TemporaryDirectory() as folder:
        rows, out, log = (os.path.join(folder, name) for name in ("rows.jsonl", "out", "log.jsonl"))
        engine_rows(args, rows)
        options = {
            "r": 8, "batch_size": int(args.shape.split("x")[0]), "max_steps": args.steps + WARMUP, "threads": args.threads,
            "log_json": log, "target_modules": "q_proj,v_proj", "seed": 1,
        }
        if args.side == "python":
            import lowrank

            model = lowrank.Model.from_pretrained(args.model)
            reset_peak()
            model.train(rows, options, out=out, progress=False, callback=lambda record: None)
            peak = peak_bytes()
        else:
            flags = [word for key, value in options.items() for word in ("--" + key.replace("_", "-"), str(value))]
            command = [args.command, "train", "--model", args.model, "--data", rows, "--out", out, *flags]
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(child.pid, 0)
            if status:
                raise SystemExit(f"failed: {command}")
            peak = usage.ru_maxrss * 1024
        records = [json.loads(line) for line in Path(log).read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    print(json.dumps({
        "times": [r["step_s"] for r in steps], "losses": [r["loss"] for r in steps], "tokens": steps[0]["tokens"],
        "peak_rss_bytes": peak,
    }))


def machine(args):
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return {"cpu": model, "cores": os.cpu_count(), "threads": args.threads, "load_before": os.getloadavg()[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=SIDES)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="for the engine: GGUF file or Hugging Face folder")
    parser.add_argument("--command", default=str(HERE.parent / "target/release/lowrank"))
    parser.add_argument("--shape", default="8x128", help="examples x tokens")
    parser.add_argument("--base-dropout", type=float, default=0.1, help="of the base in the trainer's runs")
    parser.add_argument("--name", help="name of the result, if not the pair's")
    parser.add_argument("--steps", type=int, default=4, help=f"counted steps, after {WARMUP} to warm up")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.pair == "engine" and not args.model:
        parser.error("--model is needed for the engine")
    if args.side:
        return (trainer_child if args.pair == "trainer" else engine_child)(args)

    sides, rounds, versions = SIDES[args.pair], [], {}
    for number in range(args.rounds):
        found = {}
        for side in sides if number % 2 == 0 else sides[::-1]:
            out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(f"{side} failed:\n{out.stderr[-3000:]}")
            found[side] = json.loads(out.stdout.splitlines()[-1])
            versions |= found[side].pop("versions", {})
            times = found[side]["times"][WARMUP:]
            found[side]["median_step_s"] = statistics.median(times)
            found[side]["fastest_step_s"] = min(times)
            print(f"round {number + 1} {side}: {statistics.median(times):.2f} s a step", file=sys.stderr, flush=True)
        rounds.append(found)

    first, summary = sides[0], {}
    for side in sides:
        ratios = [r[first]["median_step_s"] / r[side]["median_step_s"] for r in rounds]
        summary[side] = {
            "median_step_s": statistics.median(r[side]["median_step_s"] for r in rounds),
            "fastest_step_s": min(r[side]["fastest_step_s"] for r in rounds),
            "peak_rss_bytes": statistics.median(r[side]["peak_rss_bytes"] for r in rounds),
            "speed_ratio": statistics.median(ratios),
            "speed_ratio_range": [min(ratios), max(ratios)],
            "largest_loss_difference": max(
                abs(a - b) / b for r in rounds for a, b in zip(r[side]["losses"], r[first]["losses"], strict=True)),
        }
    result = {"pair": args.pair, "shape": args.shape, "base_dropout": args.base_dropout, "steps": args.steps, "machine": machine(args),
              "versions": versions, "summary": summary, "rounds": rounds}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"python-{args.name or args.pair}.json").write_text(json.dumps(result, indent=1) + "\n")
    print("| | s/step | fastest | ratio (range) | peak memory | loss differs by |\n|---|---|---|---|---|---|")
    for side, s in summary.items():
        low, high = s["speed_ratio_range"]
        print(f"| {side} | {s['median_step_s']:.2f} | {s['fastest_step_s']:.2f} | {s['speed_ratio']:.2f}x ({low:.2f} to {high:.2f}) "
              f"| {s['peak_rss_bytes'] / 1e6:.0f} MB | {s['largest_loss_difference']:.0e} |")


if __name__ == "__main__":
    main()
