//! Attention: which queries see which keys, as tables for `attention.wgsl`.

use lowrank_engine::kernels::{dropout_odds, visible_keys};
use lowrank_engine::{
    AttentionGradients, AttentionInputs, AttentionShape, Backend as _, Error, Segment, Tensor,
};

use crate::gpu::Gpu;
use crate::runtime::Word as _;
use crate::shaders::File;

/// The most values in a head.
const MOST_HEAD_DIM: usize = 256;

/// For each query of each segment: its row, the keys that it sees, and where these lie.
fn query_table(shape: &AttentionShape, segments: &[Segment]) -> Vec<u32> {
    let mut table = Vec::new();
    for segment in segments {
        for (i, row) in segment.q.clone().enumerate() {
            let keys = visible_keys(shape, segment, i);
            let prefix = &segment.prefix;
            table.extend(
                [row, keys.start, keys.end, prefix.start, prefix.len(), segment.own.start].map(|x| x as u32),
            );
        }
    }
    table
}

/// For each of `rows` keys: the runs of queries that see it. Headers, and behind them the runs.
fn key_table(shape: &AttentionShape, segments: &[Segment], rows: usize) -> Vec<u32> {
    let mut runs: Vec<Vec<[u32; 3]>> = vec![Vec::new(); rows];
    for segment in segments {
        let spans: Vec<_> = (0..segment.q.len()).map(|i| visible_keys(shape, segment, i)).collect();
        let (mut first, mut end) = (0, 0);
        for (position, row) in segment.prefix.clone().chain(segment.own.clone()).enumerate() {
            // Both ends of what a query sees grow with the query.
            while first < spans.len() && spans[first].end <= position {
                first += 1;
            }
            while end < spans.len() && spans[end].start <= position {
                end += 1;
            }
            if first < end {
                let start = segment.q.start;
                runs[row].push([start + first, start + end, position].map(|x| x as u32));
            }
        }
    }
    let mut table = Vec::new();
    let mut at = 0;
    for runs in &runs {
        table.extend([at, at + runs.len() as u32]);
        at += runs.len() as u32;
    }
    table.extend(runs.into_iter().flatten().flatten());
    table
}

fn parameters(shape: &AttentionShape, rows: usize, entries: usize, stats: usize) -> Vec<u32> {
    let AttentionShape { heads, kv_heads, head_dim, scale, .. } = *shape;
    let (drop, factor) = shape.dropout.map_or((0, 1.0), |dropout| dropout_odds(dropout.p));
    let seed = shape.dropout.map_or(0, |dropout| dropout.seed);
    let mut words: Vec<u32> = [rows, heads, kv_heads, head_dim].map(|x| x.word()).into();
    words.extend([scale, shape.softcap.unwrap_or(0.0), f32::NEG_INFINITY].map(f32::to_bits));
    words.push(entries.word());
    words.extend([drop as u32, (drop > u64::from(u32::MAX)).into(), factor.to_bits()]);
    words.extend([seed as u32, (seed >> 32) as u32, stats.word()]);
    words
}

fn check(
    gpu: &Gpu,
    inputs: &AttentionInputs<'_>,
    shape: &AttentionShape,
    segments: &[Segment],
) -> [usize; 2] {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    if head_dim > MOST_HEAD_DIM {
        Error::Device(format!(
            "{}: attention with {head_dim} values in a head is not there for GPUs yet (at most {MOST_HEAD_DIM}): use device \
             `cpu`",
            gpu.runtime.name
        ))
        .end_step();
    }
    let (n, m) = (inputs.q.len() / (heads * head_dim), inputs.k.len() / (kv_heads * head_dim));
    assert!(heads.is_multiple_of(kv_heads), "attention: {heads} heads, {kv_heads} kv heads");
    assert_eq!(inputs.q.len(), n * heads * head_dim, "attention: q is not a whole number of rows");
    assert!(
        inputs.k.len() == m * kv_heads * head_dim && inputs.v.len() == inputs.k.len(),
        "attention: rows of k, v"
    );
    for Segment { q, prefix, own } in segments {
        assert!(q.end <= n && prefix.end <= m && own.end <= m, "attention: a segment is outside the rows");
        assert!(!shape.causal || q.len() <= own.len(), "attention: more causal queries than own keys");
    }
    [n, m]
}

pub(crate) fn forward(
    gpu: &Gpu,
    [o, lse]: [&mut Tensor; 2],
    inputs: AttentionInputs<'_>,
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let [n, _] = check(gpu, &inputs, shape, segments);
    assert!(o.len() == inputs.q.len() && lse.len() == n * shape.heads, "attention: outputs of {n} rows");
    let table = query_table(shape, segments);
    let rows = table.len() / 6;
    let (q, k, v) = (gpu.read(inputs.q), gpu.read(inputs.k), gpu.read(inputs.v));
    let (o, lse) = (gpu.write(o), gpu.write(lse));
    let buffers = [None, Some(&q), Some(&k), Some(&v), Some(&o), Some(&lse)];
    let parameters = parameters(shape, rows, 0, 0);
    gpu.runtime.dispatch((File::Attention, "attention"), [rows, shape.heads], &parameters, &buffers, &table);
}

pub(crate) fn backward(
    gpu: &Gpu,
    gradients: AttentionGradients<'_>,
    dy: &Tensor,
    inputs: AttentionInputs<'_>,
    [o, lse]: [&Tensor; 2],
    shape: &AttentionShape,
    segments: &[Segment],
) {
    let [n, m] = check(gpu, &inputs, shape, segments);
    let AttentionGradients { dq, dk, dv } = gradients;
    assert_eq!([dq.len(), dy.len(), o.len()], [inputs.q.len(); 3], "attention_backward: queries");
    assert_eq!([dk.len(), dv.len()], [inputs.k.len(); 2], "attention_backward: keys");
    let queries = query_table(shape, segments);
    if queries.len() / 6 < n {
        // Rows of no segment.
        gpu.fill(dq, 0.0);
    }
    let keys = key_table(shape, segments, m);
    let stats = gpu.scratch(2 * n * shape.heads);
    let (q, k, v) = (gpu.read(inputs.q), gpu.read(inputs.k), gpu.read(inputs.v));
    let (dy, o, lse) = (gpu.read(dy), gpu.read(o), gpu.read(lse));
    let (dq, dk, dv) = (gpu.write(dq), gpu.write(dk), gpu.write(dv));
    let run = |entry, rows, heads, buffers: &[Option<&_>], data: &[u32]| {
        let parameters = parameters(shape, rows, 2 * m, n * shape.heads);
        gpu.runtime.dispatch((File::Attention, entry), [rows, heads], &parameters, buffers, data);
    };
    let buffers = [&q, &q, &k, &v, &o, &lse, &dy, &stats].map(Some);
    run("attention_stats", n, shape.heads, &buffers, &[]);
    let buffers = [None, Some(&q), Some(&k), Some(&v), Some(&dq), Some(&stats), Some(&dy)];
    run("attention_queries", queries.len() / 6, shape.heads, &buffers, &queries);
    let buffers = [None, Some(&q), Some(&k), Some(&v), Some(&dk), Some(&stats), Some(&dy), Some(&dv)];
    run("attention_keys", m, shape.kv_heads, &buffers, &keys);
}
