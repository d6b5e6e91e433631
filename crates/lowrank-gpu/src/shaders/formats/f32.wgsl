// Four neighbours of a row, where it has them.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let at = row * p.words + column;
    var values = vec4(0.0);
    for (var i = 0u; i < min(4u, columns - column); i++) { values[i] = bitcast<f32>(w[at + i]); }
    return values;
}
