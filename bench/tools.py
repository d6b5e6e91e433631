"""Merge, extract and resize of `lowrank` next to PEFT and scripts as kohya's, in turns.

    cargo build --release
    python3 bench/tools.py --lowrank target/release/lowrank --peer-python venv/bin/python [--models smollm2 7b] [--rounds 3]

The models have random weights: `smollm2` is SmolLM2-135M's shape in float32, `7b` three layers of Llama-7B's (4096 x
4096, 4096 x 11008) in bfloat16. Each task runs as a process of its own on either side; the peer's time begins after its
imports. Writes bench/results/tools.json and prints a Markdown table.

- merge: the peer is `PeftModel.merge_and_unload()` and `save_pretrained`, ours `lowrank merge --no-verify`.
- extract: rank 16 of each layer's difference. The peer forms the difference and takes `torch.linalg.svd` of it, as kohya's
  `extract_lora_from_models.py` does (of the large model only on `--svd-layers` matrices, the rest scaled up by their
  number of operations), or `torch.svd_lowrank` (16 + 10 directions, 4 iterations, as ours).
- resize: rank 16 to 4. The peer forms `B A` and takes `torch.linalg.svd` of it, as kohya's `resize_lora.py` does, or
  `torch.svd_lowrank`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 3,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEERS = {"": "torch.linalg.svd", "-svd_lowrank": "torch.svd_lowrank"}
RANK, SMALLER, OVERSAMPLING, ITERATIONS = 16, 4, 10, 4


def make(folder, shape):
    """A base, an adapter for it and the model with another adapter's change in it, which is to be extracted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    dtype = getattr(torch, shape["torch_dtype"])
    words = {k: v for k, v in shape.items() if k != "torch_dtype"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **words), dtype=dtype)
    model.save_pretrained(folder / "base")
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "tuned")


def peer(task, folder, svd_layers):
    """One task in PyTorch; prints its seconds, and what of the work was done."""
    import torch
    from safetensors.torch import load_file, save_file

    if task == "merge":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    low = task.endswith("svd_lowrank")
    start = time.perf_counter()
    done = total = 1.0

    def decompose(matrix, rank):
        if low:
            u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=ITERATIONS)
            return u[:, :rank] * s[:rank], v[:, :rank].T
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank] * s[:rank], vh[:rank]

    if task == "merge":
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
        model = PeftModel.from_pretrained(model, folder / "adapter")
        model.merge_and_unload().save_pretrained(folder / "merged")
    elif task.startswith("extract"):
        from safetensors import safe_open

        out, work = {}, []
        base, tuned = (safe_open(folder / name / "model.safetensors", "pt") for name in ("base", "tuned"))
        names = [name for name in base.keys() if any(f".{target}.weight" in name for target in TARGETS)]
        operations = lambda name: (lambda s: s[0] * s[1] * min(s))(base.get_slice(name).get_shape())
        if not low and svd_layers:
            total = sum(map(operations, names))
            names = names[:svd_layers]
            done = sum(map(operations, names))
        for name in names:
            change = tuned.get_tensor(name).float() - base.get_tensor(name).float()
            b, a = decompose(change, RANK)
            out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"] = a.contiguous(), b.contiguous()
        save_file(out, folder / "extracted.safetensors")
    else:
        pairs = load_file(folder / "adapter" / "adapter_model.safetensors")
        names, out = [n for n in pairs if "lora_A" in n], {}
        operations = lambda n: (lambda o, k: o * k * min(o, k))(pairs[n.replace("lora_A", "lora_B")].shape[0], pairs[n].shape[1])
        if not low and svd_layers:
            total = sum(map(operations, names))
            names = names[:svd_layers]
            done = sum(map(operations, names))
        for name in names:
            a, b = pairs[name], pairs[name.replace("lora_A", "lora_B")]
            b, a = decompose(b.float() @ a.float(), SMALLER)
            out[name], out[name.replace("lora_A", "lora_B")] = a.contiguous(), b.contiguous()
        save_file(out, folder / "resized.safetensors")
    print(json.dumps({"seconds": time.perf_counter() - start, "share": done / total}))


def run(command):
    """Seconds and peak memory of a process, and what it printed."""
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(map(str, command))}: {err}")
    return seconds, usage.ru_maxrss * 1024 // (1024 if sys.platform == "darwin" else 1), out


def ours(lowrank, task, folder):
    base, out = folder / "base", folder / "out"
    if task == "merge":
        return [lowrank, "merge", "--model", base, "--adapter", folder / "adapter", "--out", out, "--no-verify", "--force"]
    if task == "extract":
        return [lowrank, "extract", "--model", base, "--tuned", folder / "tuned", "--rank", RANK, "--out", out, "--force"]
    return [lowrank, "resize", folder / "adapter", "--rank", SMALLER, "--out", out, "--force"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowrank", type=Path, default=ROOT / "target/release/lowrank")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tasks", nargs="+", default=["merge", "extract", "resize"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svd-layers", type=int, default=1, help="matrices of 7b that torch.linalg.svd is run on; 0 all")
    parser.add_argument("--work", type=Path, default=ROOT / "target/bench/tools")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results/tools.json")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        task, folder, layers = args.peer
        make(Path(folder), SHAPES[layers]) if task == "make" else peer(task, Path(folder), int(layers))
        return

    def theirs(task, folder, extra):
        seconds, peak, out = run([args.peer_python, __file__, "--peer", task, folder, extra])
        return json.loads(out.splitlines()[-1]) if task != "make" else {}, peak

    table = []
    for model in args.models:
        folder = args.work / model
        if not (folder / "tuned").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            theirs("make", folder, model)
        svd_layers = args.svd_layers if model == "7b" else 0
        for task in args.tasks:
            peers = {"merge": ["merge"]}.get(task, [task, f"{task}-svd_lowrank"])
            rounds = []
            for number in range(args.rounds):
                seconds, peak, _ = run(ours(args.lowrank, task, folder))
                entry = {"ours": {"seconds": seconds, "peak_bytes": peak}}
                for name in peers:
                    # The exact decomposition of large matrices takes minutes: once is enough.
                    if svd_layers and name == task != "merge" and number > 0:
                        continue
                    found, peak = theirs(name, folder, svd_layers)
                    entry[name] = {"seconds": found["seconds"] / found["share"], "peak_bytes": peak, "share": found["share"]}
                rounds.append(entry)
                print(model, json.dumps(entry), file=sys.stderr)
            for name in peers:
                both = [entry for entry in rounds if name in entry]
                table.append({
                    "model": model,
                    "task": task,
                    "peer": PEERS[name.removeprefix(task)] if task != "merge" else "PEFT",
                    "seconds": statistics.median(e["ours"]["seconds"] for e in rounds),
                    "peer_seconds": statistics.median(e[name]["seconds"] for e in both),
                    "ratio": statistics.median(e[name]["seconds"] / e["ours"]["seconds"] for e in both),
                    "peak_bytes": max(e["ours"]["peak_bytes"] for e in rounds),
                    "peer_peak_bytes": max(e[name]["peak_bytes"] for e in both),
                    "peer_share_run": both[0][name]["share"],
                    "rounds": rounds,
                })
    args.results.parent.mkdir(exist_ok=True)
    args.results.write_text(json.dumps({"cores": os.cpu_count(), "table": table}, indent=1) + "\n")
    print("| model | task | peer | its time | Lowrank | ratio | its peak | Lowrank's |\n|---|---|---|---|---|---|---|---|")
    for row in table:
        megabytes = lambda key: f"{row[key] / 1e6:.0f} MB"
        print(
            f"| {row['model']} | {row['task']} | {row['peer']} | {row['peer_seconds']:.2f} s | {row['seconds']:.2f} s "
            f"| **{row['ratio']:.1f}x** | {megabytes('peer_peak_bytes')} | {megabytes('peak_bytes')} |"
        )


if __name__ == "__main__":
    main()
