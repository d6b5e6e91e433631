"""Greedy decoding of one GGUF file by `lowrank generate` and by llama.cpp (node-llama-cpp), in turns.

    npm install --prefix target/bench/node node-llama-cpp
    python3 bench/decode.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

Tokens per second after the first token; loading and the prompt do not count. Writes bench/results/decode.json.
"""

import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from run import HERE, machine

PROMPT = "Once upon a time, in a small village by the sea, there lived"


def ours(args):
    command = [
        args.ours, "generate", "--model", args.gguf, "--prompt", PROMPT, "--max-new-tokens", str(args.tokens),
        "--threads", str(args.threads), "--timings", *args.ours_args.split(),
    ]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(ran.stderr.splitlines()[-1])


def peer(args):
    command = ["node", HERE / "decode.mjs", args.gguf, str(args.threads), str(args.tokens), PROMPT]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=args.node)
    return json.loads(ran.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--ours", type=Path, default=HERE.parent / "target/release/lowrank")
    parser.add_argument("--ours-args", default="", help="more arguments for our side")
    parser.add_argument("--node", type=Path, default=HERE.parent / "target/bench/node", help="where the package is")
    parser.add_argument("--tokens", type=int, default=129)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()

    result = {"table": "decode", "model": args.gguf.name, "machine": machine(args.threads), "rounds": []}
    for number in range(args.rounds):
        found = {}
        for side in (ours, peer) if number % 2 == 0 else (peer, ours):
            found[side.__name__] = side(args)
        result["rounds"].append(found)
    rate = lambda side: [r[side]["tokens"] / r[side]["decode_s"] for r in result["rounds"]]
    ratios = [a / b for a, b in zip(rate("ours"), rate("peer"))]
    result["summary"] = {
        "ours_tokens_per_s": statistics.median(rate("ours")),
        "peer_tokens_per_s": statistics.median(rate("peer")),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "decode.json").write_text(json.dumps(result, indent=1) + "\n")
    s = result["summary"]
    print("| decode | tokens/s |\n|---|---|")
    print(f"| lowrank generate | {s['ours_tokens_per_s']:.0f} |\n| llama.cpp | {s['peer_tokens_per_s']:.0f} |")
    print(f"| ratio | **{s['ratio']:.2f}x** ({ratios and min(ratios):.2f} to {max(ratios):.2f}) |")


if __name__ == "__main__":
    main()
