// 5 words for 16 values: their scale (f32), 16 signed bytes.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let run = row * p.words + column / 16u * 5u;
    return signed_bytes(w[run + 1u + column % 16u / 4u]) * bitcast<f32>(w[run]);
}
