// 9 words: the scale (f16, padded), 32 signed bytes.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 32u * 9u;
    let d = unpack2x16float(w[block]).x;
    return signed_bytes(w[block + 1u + column % 32u / 4u]) * d;
}
