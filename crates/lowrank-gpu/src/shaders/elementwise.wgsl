// Element by element over whole tensors.

struct Params { n: u32, factor: f32, beta: f32, beta2: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;

fn fill(i: u32) { y[i] = p.factor; }
fn copy(i: u32) { y[i] = x[i]; }
fn add(i: u32) { y[i] += x[i]; }
fn sub(i: u32) { y[i] -= x[i]; }
fn mul(i: u32) { y[i] *= x[i]; }
fn div(i: u32) { y[i] /= x[i]; }
fn reciprocal(i: u32) { y[i] = 1.0 / x[i]; }
fn scale(i: u32) { y[i] *= p.factor; }
fn add_scaled_difference(i: u32) { y[i] += p.factor * (x[i] - z[i]); }

// tanh overflows on some devices for large arguments.
fn softcap(i: u32) { y[i] = p.factor * tanh(clamp(y[i] / p.factor, -15.0, 15.0)); }

// y: mean, x: deviation, z: parameter, v: gradient.
fn adalora_sensitivity(i: u32) {
    let now = abs(z[i] * v[i]);
    let mean = p.beta * y[i] + (1.0 - p.beta) * now;
    y[i] = mean;
    x[i] = p.beta2 * x[i] + (1.0 - p.beta2) * abs(now - mean);
}
