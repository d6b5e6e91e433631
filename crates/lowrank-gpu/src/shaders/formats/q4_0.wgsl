// 5 words: the scale (f16, padded), 16 bytes of nibbles.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 32u * 5u;
    let c = column % 32u;
    let d = unpack2x16float(w[block]).x;
    let q = (w[block + 1u + c % 16u / 4u] >> select(4u, 0u, c < 16u)) & 0x0f0f0f0fu;
    return (vec4<f32>(bytes(q)) - 8.0) * d;
}
