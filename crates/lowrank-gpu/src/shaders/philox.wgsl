// Philox4x32-10 (Salmon et al. 2011): the random bits of the CPU's masks.

// The 64 bits of a product, low and high.
fn wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + (a0 * b0 >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2(a * b, a1 * b1 + (middle >> 16u) + (other >> 16u));
}

fn philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let a = wide(c.x, 0xD2511F53u);
        let b = wide(c.z, 0xCD9E8D57u);
        c = vec4(b.y ^ c.y ^ key.x, b.x, a.y ^ c.w ^ key.y, a.x);
        key += vec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}
