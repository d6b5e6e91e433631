// Rows picked by index, and the sums of their gradients.
//
// Entry e of `data` is (row of y, row of x) for `copy_rows`; for `add_rows` the header of group g is (row of y, first entry,
// one past the last), and an entry is (row of x, factor in f32's bits). Value j of a row r lies at r * row + at + j * step.

struct Params {
    n: u32, width: u32, scale: f32, entries: u32,
    y_row: u32, y_at: u32, y_step: u32,
    x_row: u32, x_at: u32, x_step: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> data: array<u32>;

fn copy_rows(i: u32) {
    let e = i / p.width;
    let j = i % p.width;
    let value = x[data[2u * e + 1u] * p.x_row + p.x_at + j * p.x_step];
    y[data[2u * e] * p.y_row + p.y_at + j * p.y_step] = p.scale * value;
}

fn add_rows(i: u32) {
    let g = 3u * (i / p.width);
    let j = i % p.width;
    let to = data[g] * p.y_row + p.y_at + j * p.y_step;
    var sum = y[to];
    for (var e = data[g + 1u]; e < data[g + 2u]; e++) {
        let entry = p.entries + 2u * e;
        sum += bitcast<f32>(data[entry + 1u]) * x[data[entry] * p.x_row + p.x_at + j * p.x_step];
    }
    y[to] = sum;
}

// data: first and one past the last row of each mean.
fn mean_rows(i: u32) {
    let r = i / p.width;
    let j = i % p.width;
    let first = data[2u * r];
    let end = data[2u * r + 1u];
    var sum = x[first * p.width + j];
    for (var t = first + 1u; t < end; t++) { sum += x[t * p.width + j]; }
    y[i] = sum * (1.0 / f32(end - first));
}
