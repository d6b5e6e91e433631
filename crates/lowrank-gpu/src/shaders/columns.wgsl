// Rows and columns of matrices: n values of y or x, d columns in a row.

struct Params { n: u32, d: u32, e: u32, at: u32, from_: u32, width: u32, value: f32, mode: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> f: array<f32>;
@group(0) @binding(4) var<storage, read_write> data: array<u32>;

// y: [N,d], x: [N,e].
fn copy_columns(i: u32) {
    let row = i / p.width;
    let j = i % p.width;
    y[row * p.d + p.at + j] = x[row * p.e + p.from_ + j];
}

fn fill_columns(i: u32) { y[i / p.width * p.d + p.at + i % p.width] = p.value; }

// f: [d].
fn add_bias(i: u32) { y[i] += f[i % p.d]; }
fn set_bias(i: u32) { y[i] = f[i % p.d]; }

fn scale_columns(i: u32) {
    let scaled = f[i % p.d] * x[i];
    if p.value == 0.0 { y[i] = scaled; } else { y[i] = p.value * y[i] + scaled; }
}

// f: [N].
fn scale_rows(i: u32) { y[i] *= f[i / p.d]; }

// data: first and one past the last kept column of each row.
fn keep_columns(i: u32) {
    let row = i / p.d;
    let j = i % p.d;
    if j < data[2u * row] || j >= data[2u * row + 1u] { y[i] = 0.0; }
}

// y[b,a,:] = x[a,b,:]: d = A, e = B, width = C.
fn swap_axes(i: u32) {
    let c = i % p.width;
    let a = i / p.width % p.d;
    let b = i / p.width / p.d;
    y[i] = x[(a * p.e + b) * p.width + c];
}

// y: [N,width], x: [N,d], data: [width].
fn gather_columns(i: u32) { y[i] = x[i / p.width * p.d + data[i % p.width]]; }

// y: [N,d], x: [N,width]; mode 1: with a bias f: [d].
fn replace_columns(i: u32) {
    let column = data[i % p.width];
    var value = x[i];
    if p.mode == 1u { value += f[column]; }
    y[i / p.width * p.d + column] = value;
}

// y[t, i K + k] = x[t + k - K / 2, i]; data: first and one past the last row of t's segment. d = D, width = K.
fn unfold(i: u32) {
    let k = i % p.width;
    let column = i / p.width % p.d;
    let t = i / p.width / p.d;
    let there = t + k;
    let half = p.width / 2u;
    var value = 0.0;
    if there >= half && there - half >= data[2u * t] && there - half < data[2u * t + 1u] {
        value = x[(there - half) * p.d + column];
    }
    y[i] = value;
}

// Backward: y = dx: [N,d], x = dy: [N, d K].
fn unfold_backward(i: u32) {
    let column = i % p.d;
    let row = i / p.d;
    let half = p.width / 2u;
    var sum = 0.0;
    // In the order of the rows it was copied to.
    for (var back = 0u; back < p.width; back++) {
        let k = p.width - 1u - back;
        let there = row + half;
        if there >= k && there - k >= data[2u * row] && there - k < data[2u * row + 1u] {
            sum += x[((there - k) * p.d + column) * p.width + k];
        }
    }
    y[i] = sum;
}
