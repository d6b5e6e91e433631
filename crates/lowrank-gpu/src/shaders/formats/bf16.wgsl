// Rows are whole words; what lies beyond their end meets zeros.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let at = row * p.words + column / 2u;
    var values = vec4(bitcast<f32>(w[at] << 16u), bitcast<f32>(w[at] & 0xffff0000u), 0.0, 0.0);
    if column + 2u < columns {
        values.z = bitcast<f32>(w[at + 1u] << 16u);
        values.w = bitcast<f32>(w[at + 1u] & 0xffff0000u);
    }
    return values;
}
