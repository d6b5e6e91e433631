//! Against [`super::reference`], in f64.

use super::{AttentionDropout, AttentionShape, Segment, attention, attention_backward, reference};

fn numbers(n: usize, salt: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    crate::normal(&mut x, 0.0, 1.0, 11, salt);
    x
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale,
        causal: true,
        window: None,
        softcap: None,
        dropout: None,
    }
}

/// Segments of the given lengths, one after the other.
fn packed(lengths: &[usize]) -> Vec<Segment> {
    let mut at = 0;
    let run = |&n: &usize| {
        at += n;
        Segment { q: at - n..at, prefix: 0..0, own: at - n..at }
    };
    lengths.iter().map(run).collect()
}

/// A prompt and completions that share it.
fn shared(prompt: usize, completions: &[usize]) -> Vec<Segment> {
    let mut all = packed(&[&[prompt], completions].concat());
    all[1..].iter_mut().for_each(|s| s.prefix = 0..prompt);
    all
}

fn close(name: &str, got: &[f32], want: &[f32], limit: f32) {
    let largest = want.iter().fold(1.0f32, |m, x| if x.is_finite() { m.max(x.abs()) } else { m });
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() <= limit * largest, "{name}[{i}] = {g}, not {w}");
    }
}

struct Run {
    out: Vec<f32>,
    lse: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

fn run(q: &[f32], k: &[f32], v: &[f32], dout: &[f32], shape: &AttentionShape, segments: &[Segment]) -> Run {
    let poison = |n: usize| vec![f32::NAN; n];
    let rows = q.len() / shape.head_dim;
    let (mut out, mut lse) = (poison(q.len()), poison(rows));
    attention(&mut out, &mut lse, q, k, v, shape, segments);
    let (mut dq, mut dk, mut dv) = (poison(q.len()), poison(k.len()), poison(k.len()));
    attention_backward(&mut dq, &mut dk, &mut dv, dout, q, k, v, &out, &lse, shape, segments);
    Run { out, lse, dq, dk, dv }
}

fn check(shape: &AttentionShape, segments: &[Segment], n: usize, m: usize) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let (q, dout) = (numbers(n * heads * head_dim, 1), numbers(n * heads * head_dim, 2));
    let (k, v) = (numbers(m * kv_heads * head_dim, 3), numbers(m * kv_heads * head_dim, 4));
    let got = run(&q, &k, &v, &dout, shape, segments);
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; n * heads]);
    reference::forward(&mut out, &mut lse, &q, &k, &v, shape, segments);
    close("out", &got.out, &out, 2e-6);
    close("lse", &got.lse, &lse, 2e-6);
    let (mut dq, mut dk, mut dv) = (out.clone(), k.clone(), k.clone());
    reference::backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, shape, segments);
    close("dq", &got.dq, &dq, 1e-5);
    close("dk", &got.dk, &dk, 1e-5);
    close("dv", &got.dv, &dv, 1e-5);
}

/// `segments` cover query rows `0..n` and key rows up to the largest end.
fn check_packed(shape: &AttentionShape, segments: &[Segment]) {
    let n = segments.iter().map(|s| s.q.end).max().unwrap();
    let m = segments.iter().map(|s| s.prefix.end.max(s.own.end)).max().unwrap();
    check(shape, segments, n, m);
}

/// `f` on pools of one, two and five threads.
fn with_threads(f: impl Fn() + Sync + Send) {
    for threads in [1, 2, 5] {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&f);
    }
}

#[test]
fn shapes_and_lengths() {
    for (heads, kv_heads, d) in
        [(1, 1, 1), (2, 1, 20), (6, 2, 32), (9, 3, 64), (4, 4, 80), (4, 1, 96), (2, 2, 256)]
    {
        for lengths in [&[1usize][..], &[2, 1, 3], &[40, 17, 5], &[131, 64]] {
            check_packed(&shape(heads, kv_heads, d), &packed(lengths));
        }
    }
}

#[test]
fn longer_than_a_tile() {
    with_threads(|| check_packed(&shape(3, 1, 32), &packed(&[417, 3])));
    with_threads(|| check_packed(&shape(2, 2, 64), &packed(&[391])));
    check_packed(&shape(16, 1, 8), &packed(&[150]));
}

#[test]
fn bidirectional_window_and_cap() {
    for causal in [true, false] {
        for window in [None, Some(1), Some(7), Some(130)] {
            for softcap in [None, Some(1.5)] {
                let shape = AttentionShape { causal, window, softcap, ..shape(4, 2, 24) };
                with_threads(|| check_packed(&shape, &packed(&[300, 1, 33])));
                check_packed(&shape, &shared(21, &[40, 3]));
            }
        }
    }
}

#[test]
fn dropped_probabilities() {
    for (heads, kv_heads, d) in [(4, 2, 24), (3, 3, 64)] {
        for (p, seed) in [(0.1, 1), (0.5, 1 << 40), (0.0, 3), (1.0, 4)] {
            for (causal, window) in [(true, None), (false, Some(45))] {
                let dropout = Some(AttentionDropout { p, seed });
                let shape = AttentionShape { causal, window, dropout, ..shape(heads, kv_heads, d) };
                with_threads(|| check_packed(&shape, &packed(&[300, 1, 33])));
                check_packed(&shape, &shared(21, &[40, 3]));
            }
        }
    }
}

#[test]
fn queries_without_keys_and_keys_without_queries() {
    let shape = AttentionShape { causal: false, ..shape(2, 1, 16) };
    let segments = [
        Segment { q: 0..3, prefix: 0..0, own: 5..5 },
        Segment { q: 3..10, prefix: 0..0, own: 2..9 },
        Segment { q: 10..10, prefix: 0..2, own: 0..4 },
    ];
    check(&shape, &segments, 10, 12);
}

#[test]
fn keys_shared_by_queries_of_several_segments() {
    let shape = AttentionShape { causal: false, ..shape(4, 2, 16) };
    let read = |q: std::ops::Range<usize>, own| Segment { q, prefix: 0..0, own };
    with_threads(|| {
        check_packed(&shape, &[read(0..90, 0..200), read(90..300, 0..200), read(300..340, 150..260)])
    });
}

#[test]
fn a_shared_prefix_equals_repeated_prompts() {
    let shape = shape(6, 2, 32);
    let (prompt, completions) = (45, [30usize, 1, 22, 160]);
    let segments = shared(prompt, &completions);
    let n = segments.last().unwrap().q.end;
    let (q_width, k_width) = (6 * 32, 2 * 32);
    let (q, dout) = (numbers(n * q_width, 1), numbers(n * q_width, 2));
    let (k, v) = (numbers(n * k_width, 3), numbers(n * k_width, 4));
    // The same with the prompt once per completion: its outputs count in the first copy only.
    let spread = |x: &[f32], width: usize, copies: bool| {
        let mut all = Vec::new();
        for (c, s) in segments[1..].iter().enumerate() {
            let prompt = &x[..prompt * width];
            all.extend(prompt.iter().map(|x| if copies || c == 0 { *x } else { 0.0 }));
            all.extend(&x[s.q.start * width..s.q.end * width]);
        }
        all
    };
    let repeated = packed(&completions.map(|c| c + prompt));
    let want = run(
        &spread(&q, q_width, true),
        &spread(&k, k_width, true),
        &spread(&v, k_width, true),
        &spread(&dout, q_width, false),
        &shape,
        &repeated,
    );
    // Back: prompt rows summed over the copies (`sum`) or taken from the first.
    let gather = |x: &[f32], width: usize, sum: bool| {
        let mut all = vec![0.0; n * width];
        for (c, (s, r)) in segments[1..].iter().zip(&repeated).enumerate() {
            let copy = &x[r.q.start * width..r.q.end * width];
            for (a, x) in all[..prompt * width].iter_mut().zip(copy) {
                *a += if sum || c == 0 { *x } else { 0.0 };
            }
            all[s.q.start * width..s.q.end * width].copy_from_slice(&copy[prompt * width..]);
        }
        all
    };
    with_threads(|| {
        let got = run(&q, &k, &v, &dout, &shape, &segments);
        close("out", &got.out, &gather(&want.out, q_width, false), 1e-5);
        close("lse", &got.lse, &gather(&want.lse, 6, false), 1e-5);
        close("dq", &got.dq, &gather(&want.dq, q_width, true), 1e-5);
        close("dk", &got.dk, &gather(&want.dk, k_width, true), 1e-5);
        close("dv", &got.dv, &gather(&want.dv, k_width, true), 1e-5);
    });
}

#[test]
fn many_completions_of_a_long_prompt() {
    // Enough work for one unit to be cut over threads, by diagonals and by parts of the prefix.
    with_threads(|| check_packed(&shape(6, 1, 32), &shared(300, &[90, 60, 130, 40, 201])));
}

#[test]
fn one_thread_count_gives_one_result() {
    let shape = shape(3, 1, 64);
    let segments = shared(260, &[300, 150, 80, 80]);
    let n = segments.last().unwrap().q.end;
    let (q, dout) = (numbers(n * 192, 1), numbers(n * 192, 2));
    let (k, v) = (numbers(n * 64, 3), numbers(n * 64, 4));
    with_threads(|| {
        let first = run(&q, &k, &v, &dout, &shape, &segments);
        for _ in 0..5 {
            let again = run(&q, &k, &v, &dout, &shape, &segments);
            assert!(first.out == again.out && first.lse == again.lse);
            assert!(first.dq == again.dq && first.dk == again.dk && first.dv == again.dv);
        }
    });
}

#[test]
fn decoding_equals_the_full_forward() {
    for (d, window, softcap) in [(64, None, None), (20, None, Some(2.0)), (64, Some(700), None)] {
        let shape = AttentionShape { window, softcap, ..shape(6, 2, d) };
        let n = 1300;
        let (q, k, v) = (numbers(n * 6 * d, 1), numbers(n * 2 * d, 3), numbers(n * 2 * d, 4));
        let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; n * 6]);
        attention(&mut out, &mut lse, &q, &k, &v, &shape, &packed(&[n]));
        for (at, count) in [(0, 1), (17, 1), (130, 2), (1298, 1), (1290, 2), (1200, 100), (1299, 1)] {
            let rows = at * 6 * d..(at + count) * 6 * d;
            // A cache longer than the sequence, whose unused rows must not be read.
            let (mut k, mut v) = (k.clone(), v.clone());
            k[(at + count) * 2 * d..].fill(f32::NAN);
            v[(at + count) * 2 * d..].fill(f32::NAN);
            for prefix in [0, at / 3] {
                let segment = Segment { q: 0..count, prefix: 0..prefix, own: prefix..at + count };
                let (mut one, mut one_lse) = (vec![f32::NAN; count * 6 * d], vec![f32::NAN; count * 6]);
                attention(&mut one, &mut one_lse, &q[rows.clone()], &k, &v, &shape, &[segment]);
                close("out", &one, &out[rows.clone()], 2e-6);
                close("lse", &one_lse, &lse[at * 6..(at + count) * 6], 2e-6);
            }
        }
    }
}

#[test]
fn not_a_number_stays_visible() {
    let shape = shape(2, 1, 16);
    let (mut q, k, v) = (numbers(10 * 32, 1), numbers(10 * 16, 3), numbers(10 * 16, 4));
    q[9 * 32 + 3] = f32::NAN;
    let got = run(&q, &k, &v, &numbers(10 * 32, 2), &shape, &packed(&[10]));
    assert!(got.out[9 * 32].is_nan() && got.lse[9 * 2].is_nan() && got.dk[0].is_nan());
    assert!(got.out[9 * 32 + 16].is_finite() && got.out[8 * 32].is_finite());
}

#[test]
#[should_panic(expected = "two segments share query row 3")]
fn shared_queries_are_refused() {
    let x = numbers(5 * 4, 1);
    let mut segments = packed(&[4, 1]);
    segments[1].q = 3..4;
    attention(&mut [0.0; 20], &mut [0.0; 5], &x, &x, &x, &shape(1, 1, 4), &segments);
}
