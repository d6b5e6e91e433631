// LoHa's factors. a, b: [O,R] of the left one, [R,K] of the right one; d = K. P, Q: the Hadamard products' factors.

struct Params { n: u32, r: u32, d: u32, own: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> a: array<f32>;
@group(0) @binding(3) var<storage, read_write> b: array<f32>;

fn loha_left(i: u32) {
    let o = i / (p.r * p.r);
    y[i] = a[o * p.r + i / p.r % p.r] * b[o * p.r + i % p.r];
}

fn loha_right(i: u32) {
    let ij = i / p.d;
    y[i] = a[ij / p.r * p.d + i % p.d] * b[ij % p.r * p.d + i % p.d];
}

// y: the gradient of one factor, a: that of the product, b: the other factor. own 0: y is the first factor, 1: the second.
fn loha_left_backward(i: u32) {
    let o = i / p.r;
    let own = i % p.r;
    var sum = y[i];
    for (var other = 0u; other < p.r; other++) {
        let at = select(own * p.r + other, other * p.r + own, p.own == 1u);
        sum += a[o * p.r * p.r + at] * b[o * p.r + other];
    }
    y[i] = sum;
}

fn loha_right_backward(i: u32) {
    let own = i / p.d;
    let k = i % p.d;
    var sum = y[i];
    for (var other = 0u; other < p.r; other++) {
        let ij = select(own * p.r + other, other * p.r + own, p.own == 1u);
        sum += a[ij * p.d + k] * b[other * p.d + k];
    }
    y[i] = sum;
}
