// Losses over rows, one workgroup a row. data: classes, or targets; then weights, from `weights` on.

struct Params { rows: u32, d: u32, cap: f32, gradient: u32, weights: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;
@group(0) @binding(3) var<storage, read_write> data: array<u32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

fn capped(x: f32) -> f32 {
    if p.cap > 0.0 { return p.cap * tanh(clamp(x / p.cap, -15.0, 15.0)); }
    return x;
}

fn log_sum_exp(at: u32, t: u32) -> f32 {
    var most = -3.4e38;
    for (var j = t; j < p.d; j += THREADS) { most = max(most, x[at + j]); }
    // Capping keeps the order.
    most = capped(max_all(t, most));
    var sum = 0.0;
    for (var j = t; j < p.d; j += THREADS) { sum += exp(capped(x[at + j]) - most); }
    return most + log(sum_all(t, sum));
}

fn cross_entropy(row: u32, t: u32) {
    let at = row * p.d;
    let class_ = data[row];
    let z = capped(x[at + class_]);
    let total = log_sum_exp(at, t);
    if t == 0u { losses[row] = total - z; }
    if p.gradient == 1u {
        let weight = bitcast<f32>(data[p.weights + row]);
        for (var j = t; j < p.d; j += THREADS) {
            let value = capped(x[at + j]);
            var g = exp(value - total);
            if j == class_ { g -= 1.0; }
            if p.cap > 0.0 { g *= 1.0 - value / p.cap * (value / p.cap); }
            x[at + j] = weight * g;
        }
    }
    workgroupBarrier();
}

fn log_softmax(row: u32, t: u32) {
    let at = row * p.d;
    let total = log_sum_exp(at, t);
    for (var j = t; j < p.d; j += THREADS) { x[at + j] -= total; }
}

// losses[row]: the first column of the largest value, in u32's bits.
fn argmax(row: u32, t: u32) {
    let at = row * p.d;
    var most = -3.4e38;
    for (var j = t; j < p.d; j += THREADS) { most = max(most, x[at + j]); }
    most = max_all(t, most);
    // f32 holds columns below 2^24 exactly.
    var first = -16777216.0;
    for (var j = t; j < p.d; j += THREADS) {
        if x[at + j] == most {
            first = -f32(j);
            break;
        }
    }
    first = max_all(t, first);
    if t == 0u { losses[row] = bitcast<f32>(select(u32(-first), 0u, first == -16777216.0)); }
}

fn squared_error(row: u32, t: u32) {
    let at = row * p.d;
    let weight = 2.0 * bitcast<f32>(data[p.weights + row]) / f32(p.d);
    var sum = 0.0;
    for (var j = t; j < p.d; j += THREADS) {
        let difference = x[at + j] - bitcast<f32>(data[at + j]);
        sum += difference * difference;
        dx[at + j] = weight * difference;
    }
    let total = sum_all(t, sum);
    if t == 0u { losses[row] = total / f32(p.d); }
}

fn binary_cross_entropy(row: u32, t: u32) {
    let at = row * p.d;
    let weight = bitcast<f32>(data[p.weights + row]) / f32(p.d);
    var sum = 0.0;
    for (var j = t; j < p.d; j += THREADS) {
        let value = x[at + j];
        let target_ = bitcast<f32>(data[at + j]);
        let e = exp(-abs(value));
        // log(1 + e) without the cancellation of a small e.
        let u = 1.0 + e;
        var log1p = e;
        if u != 1.0 { log1p = log(u) * e / (u - 1.0); }
        sum += max(value, 0.0) - value * target_ + log1p;
        let sigmoid = select(1.0, e, value < 0.0) / (1.0 + e);
        dx[at + j] = weight * (sigmoid - target_);
    }
    let total = sum_all(t, sum);
    if t == 0u { losses[row] = total / f32(p.d); }
}
