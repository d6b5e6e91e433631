"""Throughput and endurance of `lowrank serve`, with nothing but Python's standard library.

    python3 bench/serve.py throughput --bin target/release/lowrank --model MODEL.gguf
    python3 bench/serve.py peer --bin target/release/lowrank --model MODEL.gguf --peer-python VENV/bin/python
    python3 bench/serve.py load --bin target/release/lowrank --model MODEL.gguf --streams 500 --seconds 300

`throughput` decodes 16 streams at once on the base alone, then shared out over 1, 4, 16 and 64 adapters of rank 16, in turns;
it prints tokens/s as shares of the base's, time to first token, and the time from loading an adapter to its first token.
`peer` gives the same streams to `lowrank serve` and to llama.cpp's server in turns, one running at a time; the latter comes from
the Python package xllamacpp, installed where `--peer-python` is.
`load` keeps many streams open while adapters come and go, clients vanish, read slowly or send nonsense. It checks that every
error is the client's, that every answer is the one its adapter gives alone, and that memory stays flat.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

RANK = 16
BATCH = 16


def train(args, folder, name, seed):
    """An adapter of rank 16 on all linear layers, a few steps of random text old."""
    data = folder / f"{name}.jsonl"
    rows = random.Random(seed)
    words = [rows.choice(["red", "blue", "stone", "river", "seven", "night", "paper"]) for _ in range(64)]
    data.write_text("".join(json.dumps({"prompt": words[i], "completion": f" {words[i + 1]} {name}."}) + "\n" for i in range(16)))
    command = [args.bin, "train", "--model", args.model, "--data", data, "--out", folder / name, "--seed", str(seed)]
    command += ["--target-modules", args.modules, "--r", str(RANK), "--max-steps", "2", "--batch-size", "4", "--learning-rate", "1e-2", "--force"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder / name


class Server:
    def __init__(self, args, *more, command=None):
        command = command or [args.bin, "serve", "--model", args.model, "--served-model-name", "base", "--port", "0", *more]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.log)
        self.address = None
        while self.address is None:
            time.sleep(0.05)
            self.log.seek(0)
            said = self.log.read()
            assert self.process.poll() is None, f"the server ended: {said}"
            for line in said.splitlines():
                if "http://" in line:
                    host, port = line.split("http://")[1].split(":")
                    self.address = host, int(port)

    def resident(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:",)):
                return int(line.split()[1]) * 1024
        return 0

    async def open(self, method, path, body=None):
        reader, writer = await asyncio.open_connection(*self.address)
        body = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        return status, reader, writer

    async def call(self, method, path, body=None):
        status, reader, writer = await self.open(method, path, body)
        text = await reader.read()
        writer.close()
        return status, text

    async def stream(self, model, prompt, tokens, slow=0.0, vanish=None, **more):
        """(status, text, tokens, seconds to the first token)"""
        begin, first, count, text = time.perf_counter(), None, 0, ""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **more}
        body["stream_options"] = {"include_usage": True}
        status, reader, writer = await self.open("POST", "/v1/completions", body)
        try:
            async for line in reader:
                if line.startswith(b"data: [DONE]"):
                    break
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return 500, json.dumps(event), count, first
                if event["choices"]:
                    text += event["choices"][0]["text"]
                    first = first or time.perf_counter() - begin
                if event.get("usage"):
                    count = event["usage"]["completion_tokens"]
                if slow:
                    await asyncio.sleep(slow)
                if vanish is not None and len(text) > vanish:
                    break
        finally:
            writer.close()
        return status, text, count, first


PROMPTS = ["The river", "Once upon a time", "In the year", "A stone is", "My favourite food is", "The capital of France"]


async def throughput(args, folder):
    count = max(args.adapters)
    dirs = [train(args, folder, f"a{i}", i) for i in range(count)]
    flags = [flag for i, path in enumerate(dirs) for flag in ("--adapter", f"a{i}={path}")]
    server = Server(args, *flags, "--max-batch", BATCH, "--max-new-tokens", args.tokens, "--cache-mb", 2048, "--adapter-mb", 8192)

    async def once(adapters):
        names = [f"a{i % adapters}" if adapters else "base" for i in range(BATCH)]
        if adapters > BATCH:
            shift = random.randrange(adapters)
            names = [f"a{(i * (adapters // BATCH) + shift) % adapters}" for i in range(BATCH)]
        begin = time.perf_counter()
        streams = [
            server.stream(name, f"{PROMPTS[i % 6]} {i} {time.time_ns()}", args.tokens, ignore_eos=True) for i, name in enumerate(names)
        ]
        done = await asyncio.gather(*streams)
        seconds = time.perf_counter() - begin
        assert all(status == 200 for status, *_ in done), done
        return sum(tokens for _, _, tokens, _ in done) / seconds, statistics.median(first for *_, first in done)

    kinds = [0, *args.adapters]
    rates, firsts = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    await once(0)
    for _ in range(args.rounds):
        for kind in kinds:
            rate, first = await once(kind)
            rates[kind].append(rate)
            firsts[kind].append(first)
    base = statistics.median(rates[0])
    print(f"{BATCH} streams of {args.tokens} tokens, medians of {args.rounds} rounds in turns")
    for kind in kinds:
        shares = [rate / base for rate, base in zip(rates[kind], rates[0])]
        name = f"{kind} adapters" if kind else "base alone"
        print(
            f"{name:12} {statistics.median(rates[kind]):7.1f} tokens/s  {statistics.median(shares):.3f} of the base"
            f"  first token {1e3 * statistics.median(firsts[kind]):.0f} ms"
        )
    times = []
    for _ in range(10):
        await server.call("POST", "/v1/unload_lora_adapter", {"lora_name": "a0"})
        begin = time.perf_counter()
        status, text = await server.call("POST", "/v1/load_lora_adapter", {"lora_name": "a0", "lora_path": str(dirs[0])})
        assert status == 200, text
        loaded = time.perf_counter() - begin
        _, _, _, first = await server.stream("a0", "The", 2, ignore_eos=True)
        times.append(loaded + first)
    print(f"load of an adapter to its first token: median {1e3 * statistics.median(times):.0f} ms")
    server.process.terminate()
    server.process.wait()


LLAMA_SERVER = """
import sys, time
import xllamacpp

model, threads, streams, *adapters = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = model
params.port = 0
params.n_parallel = int(streams)
params.n_ctx = 512 * int(streams)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
params.warmup = True
loras = []
for path in adapters:
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = path, 0.0
    loras.append(lora)
params.lora_adapters = loras
server = xllamacpp.Server(params)
print("listening on", server.listening_address, file=sys.stderr, flush=True)
while True:
    time.sleep(1)
"""


async def peer(args, folder):
    count = max(args.adapters)
    dirs = [train(args, folder, f"a{i}", i) for i in range(count)]
    files = []
    for path in dirs:
        files.append(path.with_suffix(".gguf"))
        subprocess.run([args.bin, "convert", path, "--base", args.model, "--to", "gguf", "--out", files[-1]], check=True, capture_output=True)

    def start(engine):
        if engine == "lowrank":
            flags = [flag for i, path in enumerate(dirs) for flag in ("--adapter", f"a{i}={path}")]
            return Server(args, *flags, "--max-batch", BATCH, "--max-new-tokens", args.tokens, "--cache-mb", 2048, "--adapter-mb", 8192)
        return Server(args, command=[args.peer_python, "-c", LLAMA_SERVER, args.model, args.threads, BATCH, *files])

    async def once(server, engine, adapters):
        def stream(i):
            prompt = f"{PROMPTS[i % 6]} {i} {time.time_ns()}"
            if engine == "lowrank":
                return server.stream(f"a{i % adapters}" if adapters else "base", prompt, args.tokens, ignore_eos=True)
            lora = [{"id": i % adapters, "scale": 1.0}] if adapters else []
            return server.stream("base", prompt, args.tokens, ignore_eos=True, lora=lora)

        begin = time.perf_counter()
        done = await asyncio.gather(*(stream(i) for i in range(BATCH)))
        seconds = time.perf_counter() - begin
        assert all(status == 200 for status, *_ in done), done
        assert all(tokens == args.tokens for _, _, tokens, _ in done), done
        return sum(tokens for _, _, tokens, _ in done) / seconds, statistics.median(first for *_, first in done)

    kinds = [0, *args.adapters]
    rates = {(engine, kind): [] for engine in ("lowrank", "llama-server") for kind in kinds}
    firsts = {key: [] for key in rates}
    for _ in range(args.rounds):
        for engine in ("lowrank", "llama-server"):
            server = start(engine)
            try:
                await once(server, engine, 0)
                for kind in kinds:
                    rate, first = await once(server, engine, kind)
                    rates[engine, kind].append(rate)
                    firsts[engine, kind].append(first)
            finally:
                server.process.kill()
                server.process.wait()
    print(f"{BATCH} streams of {args.tokens} tokens, medians of {args.rounds} rounds in turns")
    for kind in kinds:
        ours, theirs = (statistics.median(rates[engine, kind]) for engine in ("lowrank", "llama-server"))
        first, other = (1e3 * statistics.median(firsts[engine, kind]) for engine in ("lowrank", "llama-server"))
        name = f"{kind} adapters" if kind else "base alone"
        print(f"{name:12} lowrank {ours:7.1f} tokens/s, first {first:.0f} ms; llama-server {theirs:7.1f}, {other:.0f} ms; {ours / theirs:.2f} times")


async def load(args, folder):
    dirs = {f"a{i}": train(args, folder, f"a{i}", i) for i in range(6)}
    fixed, moving = ["a0", "a1", "a2"], ["a3", "a4", "a5"]
    flags = [flag for name in fixed for flag in ("--adapter", f"{name}={dirs[name]}")]
    server = Server(args, *flags, "--max-queue", 4096, "--max-body-mb", 1, "--read-timeout", 10, "--cache-mb", 512)
    for name in moving:
        await server.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(dirs[name])})
    alone = {}
    for name in ["base", *dirs]:
        for prompt in PROMPTS:
            alone[name, prompt] = (await server.stream(name, prompt, args.tokens))[1]
    counts, wrong, memory = {}, [], []
    end = time.monotonic() + args.seconds

    def seen(kind):
        counts[kind] = counts.get(kind, 0) + 1

    async def client(number):
        rng = random.Random(number)
        while time.monotonic() < end:
            name, prompt, kind = rng.choice(["base", *dirs]), rng.choice(PROMPTS), rng.random()
            try:
                if kind < 0.06:
                    await server.stream(name, prompt, args.tokens, vanish=rng.randrange(20))
                    seen("vanished")
                elif kind < 0.1:
                    bad = rng.choice([{"model": name}, {"model": name, "prompt": prompt, "n": -1}, {"model": "x", "prompt": ""}, [1]])
                    status, _ = await server.call("POST", "/v1/completions", bad)
                    seen(f"malformed: {status}")
                    if not 400 <= status < 500:
                        wrong.append((status, bad))
                elif kind < 0.11:
                    try:
                        status, _ = await server.call("POST", "/v1/completions", {"model": name, "prompt": "x" * (2 << 20)})
                    except ConnectionError:
                        status = 413
                    seen(f"oversized: {status}")
                    if status != 413:
                        wrong.append((status, "oversized"))
                else:
                    slow = rng.choice([0, 0, 0, 0.05])
                    status, text, *_ = await server.stream(name, prompt, args.tokens, slow=slow)
                    seen(f"streams: {status}")
                    # An adapter that is not there at the moment is 404.
                    if status == 200 and text != alone[name, prompt]:
                        wrong.append((name, prompt, text, alone[name, prompt]))
                    elif status not in (200, 429) and not (status == 404 and name in moving):
                        wrong.append((status, name, text))
            except (ConnectionError, IndexError) as error:
                wrong.append(("connection", repr(error)))
                seen("connection errors")

    async def adapters():
        rng = random.Random(0)
        while time.monotonic() < end:
            name = rng.choice(moving)
            status, text = await server.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
            seen(f"unload: {status}")
            status, text = await server.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(dirs[name])})
            seen(f"load: {status}")
            if status != 200:
                wrong.append((status, text))
            await asyncio.sleep(0.2)

    async def watch():
        while time.monotonic() < end:
            memory.append(server.resident())
            await asyncio.sleep(max(1, args.seconds / 60))

    await asyncio.gather(adapters(), watch(), *(client(number) for number in range(args.streams)))
    status, text = await server.call("GET", "/metrics")
    print(f"{args.streams} clients for {args.seconds} s: {json.dumps(dict(sorted(counts.items())))}")
    third = len(memory) // 3
    print(f"anonymous memory: median of the second third {statistics.median(memory[third:2 * third]) / 1e6:.0f} MB, "
          f"of the last {statistics.median(memory[2 * third:]) / 1e6:.0f} MB, peak {max(memory) / 1e6:.0f} MB")
    print(next(line for line in text.decode().splitlines() if line.startswith("lowrank_generated_tokens_total ")))
    print(f"wrong: {len(wrong)} {wrong[:5]}")
    server.process.terminate()
    print(f"exit code {server.process.wait()}")
    raise SystemExit(bool(wrong))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "peer", "load"])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--modules", default="all-linear", help="what the adapters adapt")
    parser.add_argument("--peer-python", help="a Python with xllamacpp")
    parser.add_argument("--threads", type=int, default=2, help="of the peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapters", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=300)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run({"throughput": throughput, "peer": peer, "load": load}[args.what](args, Path(folder)))


if __name__ == "__main__":
    main()
