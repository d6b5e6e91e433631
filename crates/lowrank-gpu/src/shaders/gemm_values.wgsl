// b: f32 with any strides.

@group(0) @binding(3) var<storage, read_write> b: array<f32>;

fn b_value(k: u32, column: u32) -> f32 {
    if k < p.k && column < p.n { return b[k * p.b_row + column * p.b_col]; }
    return 0.0;
}

fn load_b(k0: u32, column0: u32, t: u32) {
    let along_k = p.b_row == 1u;
    let k = select(t / 16u, t % 16u, along_k);
    let quad = select(t % 16u, t / 16u, along_k);
    let column = column0 + 4u * quad;
    b_tile[k * 16u + quad] =
        vec4(b_value(k0 + k, column), b_value(k0 + k, column + 1u), b_value(k0 + k, column + 2u), b_value(k0 + k, column + 3u));
}
