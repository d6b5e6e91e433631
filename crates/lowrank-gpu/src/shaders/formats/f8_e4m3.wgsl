// 17 words: the scale (f32), 64 bytes of E4M3.
fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 64u * 17u;
    let b = bytes(w[block + 1u + column % 64u / 4u]);
    // An f16 with the same exponent bits is 256 times smaller.
    let h = ((b & vec4(128u)) << vec4(8u)) | ((b & vec4(127u)) << vec4(7u));
    let values = vec4(unpack2x16float(h.x | (h.y << 16u)), unpack2x16float(h.z | (h.w << 16u)));
    return values * (256.0 * bitcast<f32>(w[block]));
}
