"""How a run of several machines scales: measured compute and message times put into a model, drawn as an SVG.

    python3 bench/scaling.py bench/results/scaling.json docs/scaling.svg

The model: a step of `shards` parts takes `fixed_s` on every rank and the time of its parts on the rank with the most. The gradients go
through two exchanges, all-to-all and all-gather, each of `(n - 1) / n` of their bytes over the network; with the losses and the request to
stop, four exchanges wait for the latency, and each message takes a microsecond. The tree's nodes of a rank are sent one by one (see `crates/lowrank-comm/src/reduce.rs`).
"""

import json
import math
import sys

NETWORKS = [("1 Gbit/s", 1e9 / 8, 100e-6), ("10 Gbit/s", 10e9 / 8, 30e-6), ("100 Gbit/s", 100e9 / 8, 5e-6)]
COLOURS = ["#c0392b", "#2471a3", "#1e8449"]
RANKS = [1, 2, 4, 8, 16, 32, 64]


def nodes(first, last, share):
    """How many nodes of the tree over [first, last) lie within `share`."""
    if share[0] <= first and last <= share[1]:
        return 1
    if last <= share[0] or share[1] <= first:
        return 0
    middle = first + (1 << (last - first - 1).bit_length()) // 2
    return nodes(first, middle, share) + nodes(middle, last, share)


def step_seconds(run, ranks, bandwidth, latency):
    """Seconds of a step on `ranks` machines."""
    shards = run["shards"]
    shares = [(shards * r // ranks, shards * (r + 1) // ranks) for r in range(ranks)]
    most = max(end - begin for begin, end in shares)
    compute = run["fixed_s"] + most * run["shard_s"]
    if ranks == 1:
        return compute
    sent = max(nodes(0, shards, share) for share in shares)
    part = run["gradient_bytes"] * (ranks - 1) / ranks
    work = run["gradient_bytes"] * run["sum_s_per_byte"]
    return compute + (sent + 1) * part / bandwidth + 4 * latency + 4 * (ranks - 1) * 1e-6 + work


def chart(run, x0, measured):
    """The lines of one run, with its frame at `x0`."""
    width, height, top = 300, 240, 50

    # Both axes in powers of two.
    def place(ranks, speed):
        return x0 + width * math.log2(ranks) / 6, top + height - height * math.log2(speed) / 6

    out = [f'<text x="{x0}" y="{top - 14}" font-weight="bold">{run["name"]}</text>']
    out.append(f'<rect x="{x0}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
    for ranks in RANKS:
        x, y = place(ranks, ranks)
        out.append(f'<text x="{x:.0f}" y="{top + height + 16}" text-anchor="middle">{ranks}</text>')
        out.append(f'<text x="{x0 - 6}" y="{y + 4:.0f}" text-anchor="end">{ranks}</text>')
    (xa, ya), (xb, yb) = place(1, 1), place(64, 64)
    out.append(f'<line x1="{xa}" y1="{ya}" x2="{xb}" y2="{yb}" stroke="#bbb" stroke-dasharray="4 4"/>')
    for (name, bandwidth, latency), colour in zip(NETWORKS, COLOURS):
        alone = step_seconds(run, 1, bandwidth, latency)
        speeds = [(r, alone / step_seconds(run, r, bandwidth, latency)) for r in RANKS]
        points = " ".join("{:.1f},{:.1f}".format(*place(r, max(s, 1))) for r, s in speeds)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        print(run["name"], name, " ".join(f"{r}:{s:.1f}" for r, s in speeds))
    for ranks, speed in measured:
        x, y = place(ranks, max(speed, 1))
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#000"/>')
    return out


def main(source, target):
    data = json.load(open(source))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="370" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="760" height="370" fill="#fff"/>')
    for i, run in enumerate(data["runs"]):
        parts += chart(run, 50 + 370 * i, run.get("measured", []))
    for i, ((name, _, _), colour) in enumerate(zip(NETWORKS, COLOURS)):
        parts.append(f'<line x1="{60 + 130 * i}" y1="342" x2="{84 + 130 * i}" y2="342" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{90 + 130 * i}" y="346">{name}</text>')
    parts.append('<circle cx="460" cy="342" r="4"/><text x="470" y="346">measured, one machine</text>')
    parts.append('<text x="225" y="326" text-anchor="middle">machines; upwards: speed as a multiple of one</text>')
    parts.append("</svg>")
    open(target, "w").write("\n".join(parts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
