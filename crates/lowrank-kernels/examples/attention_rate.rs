//! Rates of attention, forward and backward, in GFLOP/s of the (query, key) pairs that see each other:
//! 4 `head_dim` operations per pair and head forward, 10 backward. `RAYON_NUM_THREADS=1` gives one core's.
//! With `--cpu-time` the rate is per second of processor time, summed over threads, which other processes
//! disturb less.

use lowrank_kernels::{AttentionShape, Segment, attention, attention_backward, normal};

/// Segments of `tokens` tokens each behind a shared prefix of `prompt` tokens.
fn segments(prompt: usize, tokens: usize, count: usize) -> Vec<Segment> {
    let prefix = 0..prompt;
    let mut all: Vec<Segment> = (0..count)
        .map(|i| {
            let own = prompt + i * tokens..prompt + (i + 1) * tokens;
            Segment { q: own.clone(), prefix: prefix.clone(), own }
        })
        .collect();
    if prompt > 0 {
        all.insert(0, Segment { q: prefix.clone(), prefix: 0..0, own: prefix });
    }
    all
}

/// Seconds by the clock, or of processor time.
fn now(cpu_time: bool) -> f64 {
    let clock = if cpu_time { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Seconds of one call: the best of several runs.
fn seconds(mut f: impl FnMut()) -> f64 {
    let cpu_time = std::env::args().any(|a| a == "--cpu-time");
    f();
    let (mut best, start) = (f64::INFINITY, now(false));
    while now(false) - start < 0.6 {
        let one = now(cpu_time);
        f();
        best = best.min(now(cpu_time) - one);
    }
    best
}

fn numbers(n: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    normal(&mut x, 0.0, 1.0, 1, stream);
    x
}

fn measure(name: &str, shape: &AttentionShape, segments: &[Segment]) {
    let n = segments.iter().map(|s| s.q.end).max().unwrap_or(0);
    let m = segments.iter().map(|s| s.own.end).max().unwrap_or(0);
    let (q_len, k_len) = (n * shape.heads * shape.head_dim, m * shape.kv_heads * shape.head_dim);
    let (q, k, v, dout) = (numbers(q_len, 1), numbers(k_len, 2), numbers(k_len, 3), numbers(q_len, 4));
    let (mut out, mut lse) = (vec![0.0; q_len], vec![0.0; n * shape.heads]);
    let pairs: usize = segments
        .iter()
        .flat_map(|s| {
            let (first, window) =
                (s.prefix.len() + s.own.len() - s.q.len(), shape.window.unwrap_or(usize::MAX));
            let all = s.prefix.len() + s.own.len();
            (0..s.q.len()).map(move |i| if shape.causal { (first + i + 1).min(window) } else { all })
        })
        .sum();
    let flops = (pairs * shape.heads * shape.head_dim) as f64;
    let forward = seconds(|| attention(&mut out, &mut lse, &q, &k, &v, shape, segments));
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let backward = if n < m {
        f64::NAN
    } else {
        seconds(|| {
            attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape, segments);
        })
    };
    println!(
        "{name:44} forward {:7.1} us {:6.1} GFLOP/s   backward {:8.1} us {:6.1} GFLOP/s",
        forward * 1e6,
        flops * 4e-9 / forward,
        backward * 1e6,
        flops * 10e-9 / backward,
    );
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    let shape = |heads, kv_heads, head_dim: usize| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: true,
        window: None,
        softcap: None,
        dropout: None,
    };
    let small = shape(9, 3, 64);
    measure("8 x 128 tokens, 9/3 heads of 64", &small, &segments(0, 128, 8));
    measure("25 x 40 tokens, 9/3 heads of 64", &small, &segments(0, 40, 25));
    measure("25 x 20 tokens + prefix 30, 9/3 heads of 64", &small, &segments(30, 20, 25));
    measure("1 x 2048 tokens, 9/3 heads of 64", &small, &segments(0, 2048, 1));
    let window = AttentionShape { window: Some(256), ..small };
    measure("1 x 4096 tokens, window 256, 9/3 heads of 64", &window, &segments(0, 4096, 1));
    measure("8 x 128 tokens, 12/12 heads of 64", &shape(12, 12, 64), &segments(0, 128, 8));
    measure("4 x 256 tokens, 8/2 heads of 128", &shape(8, 2, 128), &segments(0, 256, 4));
    measure("2 x 512 tokens, 8/1 heads of 256", &shape(8, 1, 256), &segments(0, 512, 2));
    let encoder = AttentionShape { causal: false, ..shape(12, 12, 32) };
    measure("16 x 64 tokens, both ways, 12 heads of 32", &encoder, &segments(0, 64, 16));
    for keys in [100, 1000, 8000] {
        let step = [Segment { q: 0..1, prefix: 0..0, own: 0..keys }];
        measure(&format!("1 query, {keys} keys, 9/3 heads of 64"), &small, &step);
    }
}
