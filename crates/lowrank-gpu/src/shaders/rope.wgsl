// Rotary positions: pairs of the first 2 * pairs values of each head, `pairs` apart. n: pairs of all heads of all rows.

struct Params { n: u32, heads: u32, head_dim: u32, pairs: u32, sign: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> cosines: array<f32>;
@group(0) @binding(3) var<storage, read_write> sines: array<f32>;

fn rope(i: u32) {
    let pair = i % p.pairs;
    let head = i / p.pairs;
    let at = head / p.heads * p.pairs + pair;
    let left = head * p.head_dim + pair;
    let a = x[left];
    let b = x[left + p.pairs];
    let c = cosines[at];
    let s = sines[at] * p.sign;
    x[left] = a * c - b * s;
    x[left + p.pairs] = b * c + a * s;
}
