"""Run `lowrank train` and PyTorch + PEFT alternately on the same rows, and print how they compare.

    python3 bench/run.py e2e --gguf FILE --data DIR --peer-python venv/bin/python
    python3 bench/run.py smollm2-8x128 --gguf FILE --peer-python venv/bin/python
    python3 bench/run.py gpt2-8x128 --gguf FILE --peer-python venv/bin/python
    python3 bench/run.py sst2 --gguf FILE --data GLUE_DIR --peer-python venv/bin/python

Both start from the same adapter and see the same rows in the same order, so their losses must agree; the largest
difference is printed. Writes bench/results/<table>.json. Only the standard library is used here: the memory that
the kernel reports for a child can never be less than its parent had.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# e2e: real rows, completion-only loss, about 42 tokens each. The others: equal rows, all positions carry loss.
# A "shape" of shapes.py has random weights: speed does not depend on them. "classify": a label for each row.
TABLES = {
    "e2e": {"batch": 16},
    "smollm2-8x128": {"batch": 8, "length": 128},
    "smollm2-2x512": {"batch": 2, "length": 512},
    "smollm2-1x2048": {"batch": 1, "length": 2048},
    "smollm2-1x8192": {"batch": 1, "length": 8192},
    "gpt2-8x128": {"batch": 8, "length": 128, "shape": "gpt2-small", "targets": "c_attn"},
    "roberta-16x64": {"batch": 16, "length": 64, "shape": "roberta-base", "targets": "query,value", "classify": True},
    "sst2": {"batch": 16, "shape": "roberta-base", "targets": "query,value", "classify": True},
}
SHARED = {"r": "8", "learning_rate": "2e-4"}


def run_child(command):
    """Run to the end: its standard output, the seconds it took and its own peak of resident bytes."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode != 0:
            message = err.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"failed ({child.returncode}): {shlex.join(map(str, command))}\n{message}")
        text = out.read().decode()
    unit = 1 if sys.platform == "darwin" else 1024
    return text, time.perf_counter() - start, usage.ru_maxrss * unit


def peer(args, paths, steps):
    command = [
        args.peer_python, HERE / "peft_train.py", "--model", paths["model"], "--data", paths["rows"],
        "--batch", str(args.batch), "--steps", str(steps), "--warmup", str(args.warmup), "--dtype", args.peer_dtype,
        "--r", SHARED["r"], "--targets", args.targets, "--learning-rate", SHARED["learning_rate"],
        "--init-adapter", paths["adapter"], "--threads", str(args.threads),
    ]
    if args.classify:
        columns = ["--prompt-column", "sentence", "--completion-column", "label", "--prompt-template", "{prompt}"]
        command += ["--classify", *columns]
    if args.checkpoint_activations:
        command.append("--checkpoint-activations")
    out, seconds, peak = run_child(command)
    result = json.loads(out.splitlines()[-1])
    # What loading needed is not held against the peer: a user could load more sparingly.
    return summary(args, result["steps"], seconds, min(peak, result["peak_rss_training_bytes"]))


def ours(args, paths, steps):
    log = paths["work"] / "log.jsonl"
    log.unlink(missing_ok=True)
    command = [
        args.ours, "train", "--model", args.ours_model or paths["model"], "--data", paths["rows"],
        "--out", paths["work"] / "out", "--force", "--init-adapter", paths["adapter"], "--no-shuffle",
        "--r", SHARED["r"], "--lora-alpha", str(2 * int(SHARED["r"])), "--target-modules", args.targets,
        "--batch-size", str(args.batch // args.ours_micro_batches), "--max-steps", str(steps),
        "--gradient-accumulation-steps", str(args.ours_micro_batches), "--learning-rate", SHARED["learning_rate"],
        "--lr-scheduler", "constant", "--weight-decay", "0", "--max-grad-norm", "0",
        "--threads", str(args.threads), "--log-json", log,
    ]
    if length := TABLES[args.table].get("length"):
        command += ["--max-seq-len", str(length)]
    if args.table == "e2e":
        command += ["--prompt-column", "mr", "--completion-column", "ref", "--prompt-template", "{prompt}\n"]
    if args.classify:
        command += ["--task", "classification", "--text-column", "sentence", "--label-column", "label"]
    if args.checkpoint_activations:
        command.append("--checkpoint-activations")
    command += shlex.split(args.ours_args)
    _, seconds, peak = run_child(command)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return summary(args, [line for line in lines if "step_s" in line and "loss" in line], seconds, peak)


def summary(args, steps, seconds, peak):
    counted = steps[args.warmup:]
    busy = sum(s["step_s"] for s in counted)
    return {
        "median_step_s": statistics.median(s["step_s"] for s in counted),
        "tokens_per_s": sum(s["tokens"] for s in counted) / busy,
        "examples_per_s": sum(s["examples"] for s in counted) / busy,
        "peak_rss_bytes": peak,
        "process_s": seconds,
        "losses": [s["loss"] for s in steps],
        "tokens": [s["tokens"] for s in steps],
    }


def machine(threads):
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    field = lambda name: next((l.split(":", 1)[1].strip() for l in info.splitlines() if l.startswith(name)), "")
    flags = field("flags").split() or field("Features").split()
    known = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm"]
    return {
        "cpu": field("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "features": [f for f in known if f in flags],
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }


def versions(args):
    code = "import json,torch,transformers as t,peft; print(json.dumps([torch.__version__,t.__version__,peft.__version__]))"
    python, _, _ = run_child([args.peer_python, "-c", code])
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    own, _, _ = run_child([args.ours, "--version"])
    return dict(zip(("torch", "transformers", "peft"), json.loads(python))) | {
        "lowrank": own.strip(), "commit": git.stdout.strip(),
    }


def prepare(args, steps):
    """What both sides read, kept between runs."""
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    tool = [args.peer_python, HERE / "prepare.py"]
    shape = TABLES[args.table].get("shape")
    model = args.model or work / (shape or "smollm2-f32")
    paths = {"work": work, "model": model, "adapter": work / f"{model.name}-start-adapter"}
    if not (paths["model"] / "config.json").exists():
        of_shape = ["--shape", shape] if shape else []
        of_shape += ["--classify"] if args.classify else []
        run_child([*tool, "model", "--gguf", args.gguf, *of_shape, "--out", paths["model"]])
    if length := TABLES[args.table].get("length"):
        paths["rows"] = work / f"{args.table}-{steps}.jsonl"
        if not paths["rows"].exists():
            shape = ["--batch", str(args.batch), "--length", str(length), "--steps", str(steps)]
            shape += ["--classify"] if args.classify else []
            run_child([*tool, "rows", "--model", paths["model"], *shape, "--out", paths["rows"]])
    else:
        paths["rows"] = args.data / ("sst2/train.tsv" if args.classify else "devset.csv")
    return paths


def compare(rounds):
    """Medians over the rounds, and the median of the rounds' own ratios (each pair ran side by side)."""
    def middle(side, key):
        return statistics.median(r[side][key] for r in rounds)

    keys = ("median_step_s", "tokens_per_s", "examples_per_s", "peak_rss_bytes", "process_s")
    result = {side: {k: middle(side, k) for k in keys} for side in ("ours", "peer")}
    speed = [r["ours"]["examples_per_s"] / r["peer"]["examples_per_s"] for r in rounds]
    result["speed_ratio"] = statistics.median(speed)
    result["speed_ratio_range"] = [min(speed), max(speed)]
    result["memory_ratio"] = result["ours"]["peak_rss_bytes"] / result["peer"]["peak_rss_bytes"]
    result["largest_loss_difference"] = max(
        abs(a - b) / abs(b) for r in rounds for a, b in zip(r["ours"]["losses"], r["peer"]["losses"], strict=True)
    )
    result["same_tokens"] = all(r["ours"]["tokens"] == r["peer"]["tokens"] for r in rounds)
    return result


def markdown(table, result, args):
    m, c = result["machine"], result["summary"]
    rows = [
        f"**{table}**, LoRA r={SHARED['r']} on {args.targets}, batch {args.batch}, {args.steps} steps counted, "
        f"{len(result['rounds'])} rounds; {m['cpu']}, {m['cores']} cores, {m['threads']} threads "
        f"({' '.join(m['features'])})",
        "",
        "| | tokens/s | examples/s | s/step | peak memory |",
        "|---|---|---|---|---|",
    ]
    v = result["versions"]
    names = {
        "ours": v["lowrank"] + (f" {args.ours_args}" if args.ours_args else ""),
        "peer": f"PyTorch {v['torch']} + PEFT {v['peft']} {args.peer_dtype}",
    }
    for side, name in names.items():
        s = c[side]
        rows.append(
            f"| {name} | {s['tokens_per_s']:.1f} | {s['examples_per_s']:.2f} | {s['median_step_s']:.2f} "
            f"| {s['peak_rss_bytes'] / 1e6:.0f} MB |"
        )
    low, high = c["speed_ratio_range"]
    rows.append(f"| ratio | **{c['speed_ratio']:.2f}x** ({low:.2f} to {high:.2f}) | | | {c['memory_ratio']:.2f}x |")
    rows += ["", f"Largest relative difference of a step's loss: {c['largest_loss_difference']:.1e}; "
             f"{'same' if c['same_tokens'] else 'DIFFERENT'} tokens in every step."]
    if m["load_before"] > 0.5:
        rows.append(f"The machine was not quiet: load {m['load_before']:.1f} before the run.")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--gguf", type=Path, help="SmolLM2's GGUF file, dequantised to a float32 folder for both")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder instead")
    parser.add_argument("--ours-model", type=Path, help="another form of the base for our side, such as the GGUF")
    parser.add_argument("--data", type=Path, help="folder with E2E's devset.csv, or with sst2/train.tsv")
    parser.add_argument("--ours", type=Path, default=HERE.parent / "target/release/lowrank")
    parser.add_argument("--ours-args", default="", help="more arguments for our side, such as '--precision bf16'")
    parser.add_argument("--ours-micro-batches", type=int, default=1, help="parts our side takes a batch in")
    parser.add_argument("--peer-python", default=sys.executable, help="python with bench/requirements.txt")
    parser.add_argument("--peer-dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="counted steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=HERE.parent / "target/bench")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--name", help="name of the result, if not the table's")
    args = parser.parse_args()
    if not args.gguf and not args.model:
        parser.error("--gguf or --model is needed")
    if "length" not in TABLES[args.table] and not args.data:
        parser.error(f"--data is needed for {args.table}")
    args.batch = TABLES[args.table]["batch"]
    if args.batch % args.ours_micro_batches:
        parser.error(f"{args.ours_micro_batches} micro-batches do not divide a batch of {args.batch}")
    args.classify = TABLES[args.table].get("classify", False)
    args.targets = TABLES[args.table].get("targets", "q_proj,v_proj")

    steps = args.steps + args.warmup
    paths = prepare(args, steps)
    result = {
        "table": args.table,
        "batch": args.batch,
        "steps": args.steps,
        "ours_args": args.ours_args,
        "ours_micro_batches": args.ours_micro_batches,
        "peer_dtype": args.peer_dtype,
        "machine": machine(args.threads),
        "versions": versions(args),
        "rounds": [],
    }
    for number in range(args.rounds):
        found = {}
        # The first round's peer writes the adapter both start from; after that the sides take turns at going first.
        for side in ("peer", "ours") if number % 2 == 0 else ("ours", "peer"):
            found[side] = ours(args, paths, steps) if side == "ours" else peer(args, paths, steps)
            print(f"round {number + 1} {side}: {found[side]['tokens_per_s']:.1f} tokens/s", file=sys.stderr, flush=True)
        result["rounds"].append(found)
    result["summary"] = compare(result["rounds"])

    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / f"{args.name or args.table}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(args.table, result, args))


if __name__ == "__main__":
    main()
