// b = W^T: rows of the weight are columns of b. `weight(row, column)` expands four neighbours of a row of W: [n,k].

@group(0) @binding(3) var<storage, read_write> w: array<u32>;

fn load_b(k0: u32, column0: u32, t: u32) {
    let row = t / 4u;
    let k = 4u * (t % 4u);
    var values = vec4(0.0);
    if column0 + row < p.n && k0 + k < p.k { values = weight(column0 + row, k0 + k, p.k); }
    for (var i = 0u; i < 4u; i++) { b_tile[(k + i) * 16u + row / 4u][row % 4u] = values[i]; }
}
