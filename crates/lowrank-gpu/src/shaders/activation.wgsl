// Activations, plain and gated, forward and backward. `act` is the activation's number.

struct Params { n: u32, act: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;

fn logistic(x: f32) -> f32 {
    let e = exp(-abs(x));
    return select(1.0, e, x < 0.0) / (1.0 + e);
}

fn hyperbolic(x: f32) -> f32 {
    let a = min(abs(x), 15.0);
    let s = a * a;
    let small = ((((-0.0057049464 * s + 0.020639053) * s - 0.053739704) * s + 0.13331442) * s - 0.3333328) * s * a + a;
    let large = 1.0 - 2.0 / (exp(a + a) + 1.0);
    return select(large, small, a < 0.625) * select(1.0, -1.0, x < 0.0);
}

// An odd polynomial below 0.925, else 1 - e^-p(|x|).
fn error_function(x: f32) -> f32 {
    let a = abs(x);
    let s = a * a;
    let p = ((((-5.9537e-4 * s + 0.0049859323) * s - 0.026761714) * s + 0.112816826) * s - 0.3761248) * s + 0.12837915;
    let small = p * a + a;
    let t = min(a, 4.0);
    let q = ((((-2.139856e-4 * t + 0.003214961) * t - 0.022889981) * t + 0.10526187) * t + 0.6357183) * t + 1.1285144;
    let large = 1.0 - exp(-q * t);
    return select(large, small, a < 0.925) * select(1.0, -1.0, x < 0.0);
}

fn gelu(x: f32) -> vec2<f32> {
    let phi = error_function(x * 0.70710678) * 0.5 + 0.5;
    let density = exp(-0.5 * x * x) * 0.3989423;
    return vec2(x * phi, x * density + phi);
}

// Value and slope.
fn activation(x: f32) -> vec2<f32> {
    switch p.act {
        case 0u: { // silu
            let s = logistic(x);
            let y = x * s;
            return vec2(y, y * (1.0 - s) + s);
        }
        case 1u: { return gelu(x); }
        case 2u: { // gelu_tanh
            let c = 0.7978846;
            let t = hyperbolic(x * (x * x * c * 0.044715 + c));
            let inner = x * x * 3.0 * c * 0.044715 + c;
            let phi = t * 0.5 + 0.5;
            return vec2(x * phi, x * (1.0 - t * t) * inner * 0.5 + phi);
        }
        case 3u: { // quick_gelu
            let s = logistic(x * 1.702);
            let y = x * s;
            return vec2(y, y * (1.0 - s) * 1.702 + s);
        }
        case 4u: { return vec2(max(x, 0.0), select(0.0, 1.0, x > 0.0)); } // relu
        case 5u: { // tanh
            let t = hyperbolic(x);
            return vec2(t, 1.0 - t * t);
        }
        case 6u: { // gelu_10
            let g = gelu(x);
            return select(g, vec2(10.0, 0.0), g.x > 10.0);
        }
        case 7u: { // relu2
            let y = max(x, 0.0);
            return vec2(y * y, y + y);
        }
        case 8u: { return vec2(clamp(x, 0.0, 6.0), select(0.0, 1.0, x > 0.0 && x < 6.0)); } // relu6
        case 9u: { // leaky_relu
            let slope = select(0.01, 1.0, x > 0.0);
            return vec2(x * slope, slope);
        }
        case 10u: { // sigmoid
            let s = logistic(x);
            return vec2(s, s * (1.0 - s));
        }
        case 11u: { // mish
            let e = exp(min(x, 20.0));
            let n = e * (e + 2.0);
            let t = n / (n + 2.0);
            return vec2(x * t, x * (1.0 - t * t) * logistic(x) + t);
        }
        case 12u: { // hardswish
            let inside = vec2(x * (x / 6.0 + 0.5), x / 3.0 + 0.5);
            return select(select(inside, vec2(0.0, 0.0), x < -3.0), vec2(x, 1.0), x > 3.0);
        }
        case 13u: { // laplace
            let z = (x - 0.70710678) * (0.70710678 / 0.282095);
            return vec2(error_function(z) * 0.5 + 0.5, exp(-z * z) * (0.3989423 / 0.282095));
        }
        default: { return vec2(x, 1.0); }
    }
}

fn activate(i: u32) { y[i] = activation(x[i]).x; }
fn activate_in_place(i: u32) { y[i] = activation(y[i]).x; }
fn activate_backward(i: u32) { y[i] *= activation(x[i]).y; }
fn gated(i: u32) { y[i] = activation(x[i]).x * z[i]; }
fn gated_in_place(i: u32) { y[i] = activation(y[i]).x * x[i]; }

// y: dh, becomes that of the gate; x: dup; z: gate; v: up.
fn gated_backward(i: u32) {
    let a = activation(z[i]);
    let d = y[i];
    x[i] = d * a.x;
    y[i] = d * v[i] * a.y;
}

// y: gate, x: up, which become their gradients; z: dh.
fn gated_backward_in_place(i: u32) {
    let a = activation(y[i]);
    let d = z[i];
    y[i] = d * x[i] * a.y;
    x[i] = d * a.x;
}
