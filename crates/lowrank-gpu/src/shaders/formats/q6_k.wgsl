// 53 words: 128 bytes of low nibbles, 64 of the upper two bits, 16 signed scales, the scale (f16, padded).
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 256u * 53u;
    let part = column % 256u / 128u;
    let quarter = column % 128u / 32u;
    let i = column % 32u;
    let d = unpack2x16float(w[block + 52u]).x;
    let scale = signed_bytes(w[block + 48u + (8u * part + 2u * quarter + i / 16u) / 4u])[(2u * quarter + i / 16u) % 4u];
    let low = (w[block + (64u * part + quarter % 2u * 32u + i) / 4u] >> (quarter / 2u * 4u)) & 0x0f0f0f0fu;
    let high = ((w[block + 32u + (32u * part + i) / 4u] >> (2u * quarter)) & 0x03030303u) << 4u;
    return (vec4<f32>(bytes(low | high)) - 32.0) * (d * scale);
}
