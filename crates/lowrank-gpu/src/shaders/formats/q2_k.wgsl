// 21 words: 16 bytes of sub-block scales and minima (nibbles), 64 bytes of quants (two bits), scale and minimum (f16).
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 256u * 21u;
    let c = column % 256u;
    let d = unpack2x16float(w[block + 20u]);
    let s = byte(block, c / 16u);
    let q = (w[block + 4u + (c / 128u * 32u + c % 32u) / 4u] >> (c % 128u / 32u * 2u)) & 0x03030303u;
    return vec4<f32>(bytes(q)) * (d.x * f32(s & 15u)) - d.y * f32(s >> 4u);
}
