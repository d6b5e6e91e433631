// b = W: [k,n]. `weight(row, column)` expands four neighbours of a row of W.

@group(0) @binding(3) var<storage, read_write> w: array<u32>;

fn load_b(k0: u32, column0: u32, t: u32) {
    let k = t / 16u;
    let column = column0 + 4u * (t % 16u);
    var values = vec4(0.0);
    if k0 + k < p.k && column < p.n { values = weight(k0 + k, column, p.n); }
    b_tile[t] = values;
}
