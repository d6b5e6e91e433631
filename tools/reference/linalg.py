"""SVD and QR of small matrices by NumPy: `crates/lowrank-adapters/tests/fixtures/linalg.safetensors`."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUT = Path(__file__).parents[2] / "crates/lowrank-adapters/tests/fixtures/linalg.safetensors"
SHAPES = {"tall": (37, 11), "wide": (9, 41), "square": (24, 24), "column": (13, 1), "row": (1, 7)}

random = np.random.default_rng(5)
tensors = {}
for name, (m, n) in SHAPES.items():
    # Singular values that fall by a factor, so that every vector is determined.
    k = min(m, n)
    left, _ = np.linalg.qr(random.standard_normal((m, k)))
    right, _ = np.linalg.qr(random.standard_normal((n, k)))
    matrix = ((left * 3.0 * 0.7 ** np.arange(k)) @ right.T).astype(np.float32)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    q, r = np.linalg.qr(matrix)
    for key, value in dict(a=matrix, u=u, s=s, vt=vt, q=q, r=r).items():
        tensors[f"{name}.{key}"] = np.ascontiguousarray(value)
save_file(tensors, OUT)
