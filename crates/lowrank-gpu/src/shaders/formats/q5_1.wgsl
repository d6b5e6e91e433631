// 6 words: scale and minimum (f16), the fifth bits, 16 bytes of nibbles.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 32u * 6u;
    let c = column % 32u;
    let d = unpack2x16float(w[block]);
    let high = ((vec4(w[block + 1u] >> c) >> vec4(0u, 1u, 2u, 3u)) & vec4(1u)) << vec4(4u);
    let q = (w[block + 2u + c % 16u / 4u] >> select(4u, 0u, c < 16u)) & 0x0f0f0f0fu;
    return vec4<f32>(bytes(q) | high) * d.x + d.y;
}
