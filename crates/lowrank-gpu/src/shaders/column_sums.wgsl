// Sums over rows, thread i for column i: y[i] += sum_r dy[r,i] u[r,i], in the order of the rows. The factors u depend on mode.

struct Params { n: u32, rows: u32, mode: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;
@group(0) @binding(4) var<storage, read_write> f: array<f32>;
@group(0) @binding(5) var<storage, read_write> g: array<f32>;

// 0: u = 1. 1: u = x. 2: u = x f[r]. 3: u = (x - g[r]) f[r]. 4: the sum of x dy is divided by f[i].
fn column_sums(i: u32) {
    var sum = 0.0;
    for (var r = 0u; r < p.rows; r++) {
        let at = r * p.n + i;
        switch p.mode {
            case 0u: { sum += dy[at]; }
            case 1u, 4u: { sum += dy[at] * x[at]; }
            case 2u: { sum += dy[at] * x[at] * f[r]; }
            default: { sum += dy[at] * (x[at] - g[r]) * f[r]; }
        }
    }
    if p.mode == 4u { sum /= f[i]; }
    y[i] += sum;
}
