// Dropout with masks of Philox: thread i makes the four words of a counter, which lie 8 values apart.

struct Params {
    n: u32, len: u32, drop: u32, drop_all: u32, factor: f32, accumulate: u32,
    seed_low: u32, seed_high: u32, stream_low: u32, stream_high: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

fn dropout(i: u32) {
    let bits = philox(vec4(i, 0u, p.stream_low, p.stream_high), vec2(p.seed_low, p.seed_high));
    for (var word = 0u; word < 4u; word++) {
        let at = i / 8u * 32u + word * 8u + i % 8u;
        if at < p.len {
            var value = 0.0;
            if bits[word] >= p.drop && p.drop_all == 0u { value = x[at] * p.factor; }
            if p.accumulate == 1u { value += y[at]; }
            y[at] = value;
        }
    }
}
