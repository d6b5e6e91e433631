// Rows are whole words; what lies beyond their end meets zeros.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let at = row * p.words + column / 2u;
    var values = vec4(unpack2x16float(w[at]), 0.0, 0.0);
    if column + 2u < columns {
        let more = unpack2x16float(w[at + 1u]);
        values.z = more.x;
        values.w = more.y;
    }
    return values;
}
