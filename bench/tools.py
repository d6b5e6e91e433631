"""Times extract, resize and merge of adapter files against PyTorch scripts that do the same.

    python3 bench/tools.py --lowrank target/release/lowrank --peer-python venv/bin/python [--shapes smollm2|7b]

The models are random matrices of the shapes asked for: `smollm2` has 2 layers of SmolLM2-135M, `7b` one layer of Llama
2 7B. Both sides start as processes, read the same files and write the same kind of adapter. The peer's `extract` is a
full `torch.linalg.svd` of each difference, as the usual scripts do, and with `--lowrank-svd` `torch.svd_lowrank`; its
`resize` forms `B A` and decomposes it. Writes `bench/results/tools-SHAPES.json`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "smollm2": dict(layers=2, hidden=576, inner=1536, heads=9, kv=3, vocab=256),
    "7b": dict(layers=1, hidden=4096, inner=11008, heads=32, kv=32, vocab=256),
}
HERE = Path(__file__).parent


def linears(s):
    kv = s["hidden"] // s["heads"] * s["kv"]
    d, f = s["hidden"], s["inner"]
    return {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}


def make(folder, shapes, rank):
    """A base, an adapter of this rank, and the base with the adapter merged and a little noise: a fine-tune."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    s = SHAPES[shapes]
    config = dict(model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=s["hidden"],
                  intermediate_size=s["inner"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
                  num_key_value_heads=s["kv"], vocab_size=s["vocab"], max_position_embeddings=64, rms_norm_eps=1e-5,
                  rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=True)
    base, tuned, adapter = {}, {}, {}
    base["model.embed_tokens.weight"] = torch.randn(s["vocab"], s["hidden"]) * 0.02
    base["model.norm.weight"] = torch.ones(s["hidden"])
    for i in range(s["layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            base[f"model.layers.{i}.{norm}.weight"] = torch.ones(s["hidden"])
        for name, (o, k) in linears(s).items():
            path = f"model.layers.{i}.{name}"
            base[f"{path}.weight"] = torch.randn(o, k) * 0.02
            a, b = torch.randn(rank, k) * 0.02, torch.randn(o, rank) * 0.02
            adapter[f"base_model.model.{path}.lora_A.weight"] = a
            adapter[f"base_model.model.{path}.lora_B.weight"] = b
            noise = torch.randn(o, k) * 1e-5
            tuned[f"{path}.weight"] = base[f"{path}.weight"] + b @ a + noise
    for name, tensors in (("base", base), ("tuned", {**base, **tuned})):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter/adapter_config.json").write_text(json.dumps(dict(
        peft_type="LORA", r=rank, lora_alpha=rank, target_modules=list({n.split(".")[-1] for n in linears(s)}),
        bias="none", task_type="CAUSAL_LM")))


def peer(work, folder, rank, lowrank_svd):
    """The same in PyTorch."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_grad_enabled(False)
    out = {}
    if work == "extract":
        base, tuned = (load_file(folder / n / "model.safetensors") for n in ("base", "tuned"))
        for name, w in base.items():
            if "_proj" not in name:
                continue
            delta = tuned[name] - w
            if lowrank_svd:
                u, s, v = torch.svd_lowrank(delta, q=rank + 10, niter=4)
                u, s, vt = u[:, :rank], s[:rank], v.T[:rank]
            else:
                u, s, vt = torch.linalg.svd(delta, full_matrices=False)
                u, s, vt = u[:, :rank], s[:rank], vt[:rank]
            path = "base_model.model." + name.removesuffix(".weight")
            out[f"{path}.lora_A.weight"], out[f"{path}.lora_B.weight"] = vt.contiguous(), (u * s).contiguous()
    elif work == "resize":
        adapter = load_file(folder / "adapter/adapter_model.safetensors")
        for name, a in adapter.items():
            if ".lora_A." not in name:
                continue
            b = adapter[name.replace("lora_A", "lora_B")]
            u, s, vt = torch.linalg.svd(b @ a, full_matrices=False)
            out[name] = vt[:rank].contiguous()
            out[name.replace("lora_A", "lora_B")] = (u[:, :rank] * s[:rank]).contiguous()
    elif work == "merge":
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        model.save_pretrained(folder / "peer-merge")
        return
    save_file(out, folder / f"peer-{work}.safetensors")


def timed(command):
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"failed: {command}")
    return dict(seconds=round(time.perf_counter() - started, 3), peak_mb=round(usage.ru_maxrss / 1024))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowrank", default="target/release/lowrank")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--shapes", choices=SHAPES, default="smollm2")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--works", default="extract,resize")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lowrank-svd", action="store_true", help="the peer's extract by torch.svd_lowrank")
    parser.add_argument("--folder", type=Path, help="keep the models here; made where it does not exist")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(args.folder, args.shapes, 2 * args.rank)
    if args.peer:
        return peer(args.peer, args.folder, args.rank, args.lowrank_svd)
    folder = args.folder or Path(tempfile.mkdtemp())
    me = [args.peer_python, __file__, "--folder", str(folder), "--shapes", args.shapes, "--rank", str(args.rank)]
    if args.lowrank_svd:
        me.append("--lowrank-svd")
    if not (folder / "adapter").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([*me, "--make"], check=True)
    at = lambda name: str(folder / name)
    ours = {
        "extract": ["extract", "--model", at("base"), "--tuned", at("tuned"), "--rank", str(args.rank)],
        "resize": ["resize", at("adapter"), "--rank", str(args.rank)],
        "merge": ["merge", "--model", at("base"), "--adapter", at("adapter"), "--dtype", "f32"],
    }
    results = {}
    for work in args.works.split(","):
        rounds = []
        for _ in range(args.rounds):
            mine = timed([args.lowrank, *ours[work], "--out", at(f"ours-{work}"), "--force"])
            theirs = timed([*me, "--peer", work])
            rounds.append(dict(ours=mine, peer=theirs, ratio=round(theirs["seconds"] / mine["seconds"], 2)))
        best = sorted(rounds, key=lambda r: r["ratio"])[len(rounds) // 2]
        results[work] = dict(rounds=rounds, median=best)
        print(f"| {work} | {best['peer']['seconds']} s | {best['ours']['seconds']} s | **{best['ratio']}x** | "
              f"{best['ours']['peak_mb']} MB, {best['peer']['peak_mb']} MB |", flush=True)
    kind = args.shapes + ("-svd_lowrank" if args.lowrank_svd else "")
    out = HERE / "results" / f"tools-{kind}.json"
    out.write_text(json.dumps(dict(shapes=SHAPES[args.shapes], rank=args.rank, works=results), indent=1) + "\n")


if __name__ == "__main__":
    main()
