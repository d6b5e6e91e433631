// c = alpha a b + beta c in tiles of 64 x 64, steps of 16 along k; each of 256 threads holds 4 x 4 sums.
//
// `load_b(k0, column0, t)` fills `b_tile` and comes from gemm_values.wgsl (b is f32) or gemm_weight.wgsl (b is a frozen weight).

struct Params {
    m: u32, n: u32, k: u32, a_row: u32, a_col: u32, a_at: u32, c_row: u32, c_at: u32, alpha: f32, beta: f32,
    b_row: u32, b_col: u32, words: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> c: array<f32>;
@group(0) @binding(2) var<storage, read_write> a: array<f32>;

// Row k of a tile holds 16 vectors of neighbouring rows of a, or columns of b.
var<workgroup> a_tile: array<vec4<f32>, 256>;
var<workgroup> b_tile: array<vec4<f32>, 256>;

fn a_value(row: u32, k: u32) -> f32 {
    if row < p.m && k < p.k { return a[p.a_at + row * p.a_row + k * p.a_col]; }
    return 0.0;
}

// Neighbouring threads read neighbouring values.
fn load_a(k0: u32, row0: u32, t: u32) {
    let along_k = p.a_col == 1u;
    let k = select(t / 16u, t % 16u, along_k);
    let quad = select(t % 16u, t / 16u, along_k);
    let row = row0 + 4u * quad;
    a_tile[k * 16u + quad] =
        vec4(a_value(row, k0 + k), a_value(row + 1u, k0 + k), a_value(row + 2u, k0 + k), a_value(row + 3u, k0 + k));
}

fn store(row: u32, column: u32, sums: vec4<f32>) {
    if row >= p.m { return; }
    for (var j = 0u; j < 4u; j++) {
        if column + j < p.n {
            let at = p.c_at + row * p.c_row + column + j;
            var value = p.alpha * sums[j];
            if p.beta != 0.0 { value += p.beta * c[at]; }
            c[at] = value;
        }
    }
}

@compute @workgroup_size(256)
fn gemm_main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let tiles = (p.n + 63u) / 64u;
    let all = tiles * ((p.m + 63u) / 64u);
    for (var tile = group.x; tile < all; tile += groups.x) {
        let row0 = tile / tiles * 64u;
        let column0 = tile % tiles * 64u;
        let x = t % 16u;
        let y = t / 16u;
        var s0 = vec4(0.0);
        var s1 = vec4(0.0);
        var s2 = vec4(0.0);
        var s3 = vec4(0.0);
        for (var k0 = 0u; k0 < p.k; k0 += 16u) {
            load_a(k0, row0, t);
            load_b(k0, column0, t);
            workgroupBarrier();
            for (var k = 0u; k < 16u; k++) {
                let av = a_tile[k * 16u + y];
                let bv = b_tile[k * 16u + x];
                s0 = fma(vec4(av.x), bv, s0);
                s1 = fma(vec4(av.y), bv, s1);
                s2 = fma(vec4(av.z), bv, s2);
                s3 = fma(vec4(av.w), bv, s3);
            }
            workgroupBarrier();
        }
        let row = row0 + 4u * y;
        let column = column0 + 4u * x;
        store(row, column, s0);
        store(row + 1u, column, s1);
        store(row + 2u, column, s2);
        store(row + 3u, column, s3);
    }
}
