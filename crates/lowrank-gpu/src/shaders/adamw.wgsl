// One step of AdamW, in the order of operations of torch.optim.AdamW.

struct Params { n: u32, decay: f32, new1: f32, old2: f32, new2: f32, minus_rate: f32, root2: f32, eps: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> param: array<f32>;
@group(0) @binding(2) var<storage, read_write> grad: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;

fn adamw(i: u32) {
    let g = grad[i];
    let first = m[i] + (g - m[i]) * p.new1;
    let second = v[i] * p.old2 + p.new2 * g * g;
    m[i] = first;
    v[i] = second;
    param[i] = param[i] * p.decay + p.minus_rate * first / (sqrt(second) / p.root2 + p.eps);
}
