"""The grids of GGUF's IQ1, IQ2 and IQ3 formats, from the `gguf` package.

Writes crates/lowrank-kernels/src/quant/grids.rs: for each grid its entries, packed as indices into the grid's levels.

Usage: grids.py [output file]
"""

import pathlib
import sys

import numpy as np
from gguf import quants

GRIDS = ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
HEAD = '''//! The grids of the IQ formats: the vectors of 8 (IQ3: 4) values that an index stands for. Made by
//! `tools/reference/grids.py`.

/// Unpacks a grid: entry `i` has `N` values, each an index of `BITS` bits into `levels`.
const fn unpack<const BITS: usize, const LEN: usize, const N: usize>(
    packed: &[u16; LEN],
    levels: &[i8],
) -> [[i8; N]; LEN] {
    let mut grid = [[0; N]; LEN];
    let mut i = 0;
    while i < LEN * N {
        let index = packed[i / N] >> (BITS * (i % N)) & ((1 << BITS) - 1);
        grid[i / N][i % N] = levels[index as usize];
        i += 1;
    }
    grid
}
'''


def main():
    default = pathlib.Path(__file__).parents[2] / "crates/lowrank-kernels/src/quant/grids.rs"
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    out = HEAD
    for name in GRIDS:
        kind = getattr(quants, name)
        kind.init_grid()
        levels = [int(x) for x in kind.grid_map]
        grid = kind.grid.reshape(kind.grid_shape).astype(int)
        count, width = grid.shape
        bits = 16 // width
        packed = [sum(levels.index(x) << bits * i for i, x in enumerate(row)) for row in grid.tolist()]
        assert np.all(np.array(packed) < 1 << 16)
        out += f"\npub(super) static {name}: [[i8; {width}]; {count}] = unpack::<{bits}, {count}, {width}>(&{name}_PACKED, &{levels});\n\n"
        out += f"#[rustfmt::skip]\nconst {name}_PACKED: [u16; {count}] = [\n"
        for i in range(0, count, 13):
            out += "    " + " ".join(f"0x{x:04x}," for x in packed[i : i + 13]) + "\n"
        out += "];\n"
    target.write_text(out)


if __name__ == "__main__":
    main()
