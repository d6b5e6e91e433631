// The 6-bit scale and minimum of sub-block j (of 8) in a Q4_K or Q5_K block, whose 12 bytes begin at word `at`.
fn k_scale(at: u32, j: u32) -> vec2<f32> {
    if j < 4u { return vec2(f32(byte(at, j) & 63u), f32(byte(at, j + 4u) & 63u)); }
    let both = byte(at, j + 4u);
    return vec2(
        f32((both & 15u) | ((byte(at, j - 4u) >> 6u) << 4u)),
        f32((both >> 4u) | ((byte(at, j) >> 6u) << 4u)),
    );
}
