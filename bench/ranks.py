"""Scaling of `lowrank train` over ranks: measured for 1 and 2 on this machine, and what that means for more machines.

    python3 bench/ranks.py --bin target/release/lowrank --model MODEL.gguf --data rows.jsonl --svg docs/scaling.svg

One rank of one thread takes steps of several batch sizes; least squares give `step = fixed + tokens / rate`. Two ranks of one
thread each take the same steps, in turns. With `N` machines of `N` equal shares of the batch, a step is predicted as

    fixed + tokens / (N rate) + 2 (N - 1) / N x 4 P / bandwidth + 2 (N - 1) latency

for `P` trained parameters: each rank sends its gradient in slices to the others and gets their sums back, in f32. Bandwidth and
latency are those of the network (1, 10, 100 Gbit/s; 50, 20, 5 microseconds). Nothing but Python's standard library is needed.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

NETWORKS = {"1 Gbit/s": (1e9 / 8, 50e-6), "10 Gbit/s": (1e10 / 8, 20e-6), "100 Gbit/s": (1e11 / 8, 5e-6)}
MACHINES = [1, 2, 4, 8, 16, 32, 64]


def steps(args, folder, batch, ranks, shards):
    """Median seconds of a step, its median tokens, and the trained parameters."""
    out = folder / "out"
    command = [args.bin, "train", "--model", args.model, "--data", args.data, "--out", out, "--force", "--seed", "1", "--threads", "1"]
    command += ["--batch-size", batch, "--max-steps", args.steps, "--shards", shards, "--processes", ranks]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    records = [record for record in records if "step_s" in record][1:]
    weights = (out / "adapter_model.safetensors").read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    sizes = [t["data_offsets"][1] - t["data_offsets"][0] for name, t in header.items() if name != "__metadata__"]
    return statistics.median(r["step_s"] for r in records), statistics.median(r["tokens"] for r in records), sum(sizes) // 4


def fit(points):
    """`fixed` and `rate` of `seconds = fixed + tokens / rate`, by least squares."""
    n, x, y = len(points), sum(p[0] for p in points), sum(p[1] for p in points)
    xx, xy = sum(p[0] ** 2 for p in points), sum(p[0] * p[1] for p in points)
    slope = (n * xy - x * y) / (n * xx - x * x)
    return max((y - slope * x) / n, 0.0), 1 / slope


def predicted(machines, tokens, fixed, rate, parameters, bandwidth, latency):
    message = 2 * (machines - 1) / machines * 4 * parameters / bandwidth + 2 * (machines - 1) * latency
    return fixed + tokens / (machines * rate) + message


def draw(curves, measured, path):
    """Speed-ups over machines, both axes logarithmic."""
    import math

    width, height, left, bottom, top, right = 640, 400, 60, 340, 30, 520
    x = lambda n: left + (right - left) * math.log2(n) / 6
    y = lambda s: bottom - (bottom - top) * math.log2(s) / 6
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for n in MACHINES:
        svg.append(f'<path d="M{x(n):.1f} {top}V{bottom}M{left} {y(n):.1f}H{right}" stroke="#ddd"/>')
        svg.append(f'<text x="{x(n):.1f}" y="{bottom + 20}" text-anchor="middle">{n}</text>')
        svg.append(f'<text x="{left - 8}" y="{y(n) + 4:.1f}" text-anchor="end">{n}x</text>')
    svg.append(f'<path d="M{x(1):.1f} {y(1):.1f}L{x(64):.1f} {y(64):.1f}" stroke="#999" stroke-dasharray="4 4"/>')
    svg.append(f'<text x="{right + 6}" y="{y(64) + 4:.1f}" fill="#666">ideal</text>')
    ends = []
    for (name, curve), colour in zip(curves.items(), ["#b2182b", "#2166ac", "#1b7837"]):
        points = " ".join(f"{x(n):.1f},{y(s):.1f}" for n, s in curve)
        svg.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        place = y(curve[-1][1]) + 4
        while any(abs(place - other) < 15 for other in [*ends, y(64) + 4]):
            place += 3
        ends.append(place)
        svg.append(f'<text x="{right + 6}" y="{place:.1f}" fill="{colour}">{name}</text>')
    for n, s in measured:
        svg.append(f'<circle cx="{x(n):.1f}" cy="{y(s):.1f}" r="5" fill="#000"/>')
    svg.append(f'<circle cx="{left + 20}" cy="{top + 14}" r="5" fill="#000"/><text x="{left + 32}" y="{top + 18}">measured, ranks of one thread</text>')
    svg.append(f'<text x="{(left + right) / 2}" y="{bottom + 44}" text-anchor="middle">machines</text></svg>')
    Path(path).write_text("\n".join(svg) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=32768, help="of a predicted step, on all machines together")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--svg")
    args = parser.parse_args()
    one, two = {b: [] for b in args.batches}, []
    largest = max(args.batches)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            for batch in args.batches:
                one[batch].append(steps(args, Path(folder), batch, 1, 8))
            two.append(steps(args, Path(folder), largest, 2, 8))
    points = [(statistics.median(t for _, t, _ in runs), statistics.median(s for s, _, _ in runs)) for runs in one.values()]
    fixed, rate = fit(points)
    parameters = two[0][2]
    tokens, alone = points[-1]
    together = statistics.median(s for s, _, _ in two)
    print(f"one rank: {fixed * 1e3:.0f} ms a step and {rate:.0f} tokens/s; " + ", ".join(f"{t:.0f} tokens {s:.2f} s" for t, s in points))
    print(f"two ranks, {tokens:.0f} tokens: {together:.2f} s, {alone / together:.2f} times one rank; {parameters} parameters")
    curves = {}
    for name, (bandwidth, latency) in NETWORKS.items():
        seconds = [predicted(n, args.tokens, fixed, rate, parameters, bandwidth, latency) for n in MACHINES]
        curves[name] = [(n, seconds[0] / s) for n, s in zip(MACHINES, seconds)]
        print(f"{name:10} " + "  ".join(f"{n}: {s:.1f}x" for n, s in curves[name]))
    if args.svg:
        draw(curves, [(1, 1.0), (2, alone / together)], args.svg)


if __name__ == "__main__":
    main()
