"""Write what NumPy gives for the numbers of a study's adapters: subspace similarity and amplification.

    python subspace.py [--out FILE]
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parents[2] / "crates/lowrank-study/tests/fixtures/subspace.safetensors"


def phi(a, b, rows, cols):
    """`||U_i^T V_j||_F^2 / min(i, j)` over right-singular vectors, as the paper writes it (equation 4)."""
    u = np.linalg.svd(a, full_matrices=False)[2]
    v = np.linalg.svd(b, full_matrices=False)[2]
    out = np.empty((rows, cols))
    for i in range(1, rows + 1):
        for j in range(1, cols + 1):
            out[i - 1, j - 1] = np.linalg.norm(u[:i] @ v[:j].T) ** 2 / min(i, j)
    return out


def projected(u, vt, w, r):
    return np.linalg.norm(u[:, :r].T @ w @ vt[:r].T)


def amplification(a, b, scaling, w):
    """Table 7: `||U^T W V^T||` for the directions of delta W and of W, both norms, and the factor."""
    r, delta = a.shape[0], scaling * b @ a
    by_delta = projected(*np.linalg.svd(delta, full_matrices=False)[::2], w, r)
    by_w = projected(*np.linalg.svd(w, full_matrices=False)[::2], w, r)
    norms = np.linalg.norm(w), np.linalg.norm(delta)
    return np.array([by_delta, by_w, *norms, norms[1] / by_delta])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(17)
    f32 = lambda x: x.astype(np.float32).astype(np.float64)
    shared = rng.standard_normal((2, 40))
    few = f32(np.concatenate([3.0 * shared, rng.standard_normal((4, 40))]))
    many = f32(np.concatenate([2.0 * shared, rng.standard_normal((10, 40))]))
    # A weight with large and small directions, and an adapter that follows some of them.
    w = f32(rng.standard_normal((24, 8)) @ rng.standard_normal((8, 40)) + 0.3 * rng.standard_normal((24, 40)))
    a = f32(rng.standard_normal((4, 24)) @ w * 0.1 + rng.standard_normal((4, 40)))
    b = f32(0.2 * rng.standard_normal((24, 4)))
    out = {
        "few": few,
        "many": many,
        "phi": phi(few, many, 6, 12),
        "phi_self": phi(many, many, 12, 12),
        "w": w,
        "a": a,
        "b": b,
        "amplification": amplification(a, b, 1.5, w),
    }
    save_file({name: x.astype(np.float32) for name, x in out.items()}, args.out)
    print(args.out, args.out.stat().st_size, "bytes;", out["amplification"])


if __name__ == "__main__":
    main()
