// Saved activations: runs of 128 values as int16 with one scale each, word i of a run holding values i and i + 64.

struct Params { rows: u32, len: u32, scales: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

fn value(i: u32) -> f32 {
    if i < p.len { return x[i]; }
    return 0.0;
}

fn quantize_i16(row: u32, t: u32) {
    let a = value(row * 128u + t % 64u);
    let b = value(row * 128u + t % 64u + 64u);
    let most = max_all(t, max(abs(a), abs(b)));
    // An exponent of all ones: infinite or NaN. A run with such a value becomes NaN.
    let broken = (bitcast<u32>(a) & 0x7f800000u) == 0x7f800000u || (bitcast<u32>(b) & 0x7f800000u) == 0x7f800000u;
    let bad = max_all(t, select(0.0, 1.0, broken));
    var steps = 0.0;
    if most > 1e-30 { steps = 32767.0 / most; }
    if t < 64u {
        let low = u32(i32(round(a * steps))) & 0xffffu;
        let high = u32(i32(round(b * steps))) << 16u;
        words[row * 64u + t] = low | high;
    }
    if t == 0u { words[p.scales + row] = select(bitcast<u32>(most / 32767.0), 0x7fc00000u, bad > 0.0); }
}

fn dequantize_i16(row: u32, t: u32) {
    let scale = bitcast<f32>(words[p.scales + row]);
    if t < 64u {
        let word = words[row * 64u + t];
        let low = row * 128u + t;
        if low < p.len { x[low] = f32(i32(word << 16u) >> 16u) * scale; }
        if low + 64u < p.len { x[low + 64u] = f32(i32(word) >> 16u) * scale; }
    }
}
