"""Greedy texts of llama.cpp and of `lowrank generate` on one GGUF file, with an adapter or without.

    pip install xllamacpp
    python llama_greedy.py --bin target/release/lowrank --model merged.gguf [--adapter DIR] [--tokens 32]

llama.cpp runs as its server, from the package xllamacpp. With `--adapter` it takes the adapter that `lowrank convert --to gguf`
writes. Both get the same tokens: those of `/tokenize` with special tokens, which are compared too.
"""

import argparse
import json
import subprocess
import tempfile
import urllib.request

import xllamacpp

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small town by the sea,",
    "def fibonacci(n):\n    ",
    "In 1969, three astronauts",
]


def ask(address, path, body):
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.n_ctx, params.n_parallel = args.model, 0, 2048, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    more = []
    with tempfile.TemporaryDirectory() as folder:
        if args.adapter:
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = f"{folder}/adapter.gguf", 1.0
            command = [args.bin, "convert", args.adapter, "--to", "gguf", "--base", args.model, "--out", lora.path]
            subprocess.run(command, check=True, capture_output=True)
            params.lora_adapters = [lora]
            more = ["--adapter", args.adapter]
        server = xllamacpp.Server(params)
        same = 0
        for prompt in PROMPTS:
            body = {"prompt": prompt, "n_predict": args.tokens, "temperature": 0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
            theirs = ask(server.listening_address, "/completion", body)["content"]
            command = [args.bin, "generate", "--model", args.model, *more, "--prompt", prompt, "--max-new-tokens", str(args.tokens)]
            ours = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            ours = ours.removeprefix(prompt)
            equal = ours.strip() == theirs.strip()
            same += equal
            print(f"{'same' if equal else 'differs'}: {prompt!r}\n    {ours.strip()!r}" + ("" if equal else f"\n    {theirs.strip()!r}"))
        print(f"{same} of {len(PROMPTS)} the same")
    raise SystemExit(same < len(PROMPTS))


if __name__ == "__main__":
    main()
