// 9 words: the scale (f32), 32 bytes of nibbles.
const LEVELS = array<f32, 16>(
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
);

fn weight(row: u32, column: u32, columns: u32) -> vec4<f32> {
    let block = row * p.words + column / 64u * 9u;
    let c = column % 64u;
    let q = bytes((w[block + 1u + c % 32u / 4u] >> (c / 32u * 4u)) & 0x0f0f0f0fu);
    var levels = LEVELS;
    return vec4(levels[q.x], levels[q.y], levels[q.z], levels[q.w]) * bitcast<f32>(w[block]);
}
