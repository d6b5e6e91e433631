// Norms of rows, one workgroup a row.

struct Params { rows: u32, d: u32, eps: f32, offset: f32, mode: u32, keep: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> w: array<f32>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(5) var<storage, read_write> dy: array<f32>;
@group(0) @binding(6) var<storage, read_write> mean: array<f32>;
@group(0) @binding(7) var<storage, read_write> bias: array<f32>;

// keep 1: rstd is written.
fn rms_norm(row: u32, t: u32) {
    let at = row * p.d;
    var squares = 0.0;
    for (var j = t; j < p.d; j += THREADS) { squares += x[at + j] * x[at + j]; }
    let r = 1.0 / sqrt(sum_all(t, squares) / f32(p.d) + p.eps);
    for (var j = t; j < p.d; j += THREADS) { y[at + j] = x[at + j] * r * (w[j] + p.offset); }
    if p.keep == 1u && t == 0u { rstd[row] = r; }
}

// y: dx; mode 1: added.
fn rms_norm_backward(row: u32, t: u32) {
    let at = row * p.d;
    let r = rstd[row];
    var dot = 0.0;
    for (var j = t; j < p.d; j += THREADS) { dot += dy[at + j] * (w[j] + p.offset) * x[at + j]; }
    let mean_gu = sum_all(t, dot) * r / f32(p.d);
    for (var j = t; j < p.d; j += THREADS) {
        var value = r * (dy[at + j] * (w[j] + p.offset) - x[at + j] * r * mean_gu);
        if p.mode == 1u { value += y[at + j]; }
        y[at + j] = value;
    }
}

// keep 1: mean and rstd are written; mode 1: there is a bias.
fn layer_norm(row: u32, t: u32) {
    let at = row * p.d;
    var sum = 0.0;
    for (var j = t; j < p.d; j += THREADS) { sum += x[at + j]; }
    let m = sum_all(t, sum) / f32(p.d);
    var squares = 0.0;
    for (var j = t; j < p.d; j += THREADS) { squares += (x[at + j] - m) * (x[at + j] - m); }
    let r = 1.0 / sqrt(sum_all(t, squares) / f32(p.d) + p.eps);
    for (var j = t; j < p.d; j += THREADS) {
        var value = (x[at + j] - m) * r * (w[j] + p.offset);
        if p.mode == 1u { value += bias[j]; }
        y[at + j] = value;
    }
    if p.keep == 1u && t == 0u {
        mean[row] = m;
        rstd[row] = r;
    }
}

// y: dx; mode 1: what dy gives is added to it, else it holds dy itself.
fn layer_norm_backward(row: u32, t: u32) {
    let at = row * p.d;
    let m = mean[row];
    let r = rstd[row];
    var sum = 0.0;
    var dot = 0.0;
    for (var j = t; j < p.d; j += THREADS) {
        var d = 0.0;
        if p.mode == 1u { d = dy[at + j]; } else { d = y[at + j]; }
        sum += d * (w[j] + p.offset);
        dot += d * (w[j] + p.offset) * (x[at + j] - m) * r;
    }
    let mean_g = sum_all(t, sum) / f32(p.d);
    let mean_gu = sum_all(t, dot) / f32(p.d);
    for (var j = t; j < p.d; j += THREADS) {
        let u = (x[at + j] - m) * r;
        if p.mode == 1u {
            y[at + j] += (dy[at + j] * (w[j] + p.offset) - mean_g - u * mean_gu) * r;
        } else {
            y[at + j] = (y[at + j] * (w[j] + p.offset) - mean_g - u * mean_gu) * r;
        }
    }
}

// rstd: norms.
fn normalize_rows(row: u32, t: u32) {
    let at = row * p.d;
    var squares = 0.0;
    for (var j = t; j < p.d; j += THREADS) { squares += x[at + j] * x[at + j]; }
    let norm = max(sqrt(sum_all(t, squares)), 1e-12);
    for (var j = t; j < p.d; j += THREADS) { y[at + j] = x[at + j] / norm; }
    if t == 0u { rstd[row] = norm; }
}

// y: dx, x: the normalised rows, rstd: norms.
fn normalize_rows_backward(row: u32, t: u32) {
    let at = row * p.d;
    let norm = rstd[row];
    var dot = 0.0;
    for (var j = t; j < p.d; j += THREADS) { dot += dy[at + j] * x[at + j]; }
    var along = sum_all(t, dot);
    if norm <= 1e-12 { along = 0.0; }
    for (var j = t; j < p.d; j += THREADS) { y[at + j] = (dy[at + j] - x[at + j] * along) / norm; }
}

// y[row]: the sum of the squares of run `row` of d values, of `keep` values in all.
fn sum_squares(row: u32, t: u32) {
    let end = min((row + 1u) * p.d, p.keep);
    var squares = 0.0;
    for (var j = row * p.d + t; j < end; j += THREADS) { squares += x[j] * x[j]; }
    let total = sum_all(t, squares);
    if t == 0u { y[row] = total; }
}
