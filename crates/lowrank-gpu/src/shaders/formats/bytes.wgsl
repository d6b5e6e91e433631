// Bytes of words, without the instructions that need a feature.
fn bytes(word: u32) -> vec4<u32> { return (vec4(word) >> vec4(0u, 8u, 16u, 24u)) & vec4(255u); }

fn signed_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>((bitcast<vec4<i32>>(vec4(word) << vec4(24u, 16u, 8u, 0u))) >> vec4(24u));
}

fn byte(at: u32, i: u32) -> u32 { return (w[at + i / 4u] >> (i % 4u * 8u)) & 255u; }
