// Sums and maxima over the threads of a workgroup, always in the same order. All threads must call.

var<workgroup> reduction: array<f32, THREADS>;

fn sum_all(t: u32, x: f32) -> f32 {
    reduction[t] = x;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s >>= 1u) {
        if t < s { reduction[t] += reduction[t + s]; }
        workgroupBarrier();
    }
    let total = reduction[0];
    workgroupBarrier();
    return total;
}

fn max_all(t: u32, x: f32) -> f32 {
    reduction[t] = x;
    workgroupBarrier();
    for (var s = THREADS / 2u; s > 0u; s >>= 1u) {
        if t < s { reduction[t] = max(reduction[t], reduction[t + s]); }
        workgroupBarrier();
    }
    let most = reduction[0];
    workgroupBarrier();
    return most;
}
