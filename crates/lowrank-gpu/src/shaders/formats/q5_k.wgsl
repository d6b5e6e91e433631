// 44 words: scale and minimum (f16), 12 bytes of sub-block scales, 32 bytes of fifth bits, 128 bytes of nibbles.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 256u * 44u;
    let c = column % 256u;
    let d = unpack2x16float(w[block]);
    let s = k_scale(block + 1u, c / 32u);
    let high = ((w[block + 4u + c % 32u / 4u] >> (c / 32u)) & 0x01010101u) << 4u;
    let q = (w[block + 12u + (c / 64u * 32u + c % 32u) / 4u] >> (c % 64u / 32u * 4u)) & 0x0f0f0f0fu;
    return vec4<f32>(bytes(q | high)) * (d.x * s.x) - d.y * s.y;
}
