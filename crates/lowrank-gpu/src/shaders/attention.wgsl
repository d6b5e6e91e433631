// Attention over segments without a matrix of scores: one workgroup of 64 threads for a query (or a key) of one head, which
// goes over its keys (or queries) 64 at a time. Thread t holds dimensions t, t + 64, .. of a head, at most 256.
//
// data, for queries: (row, first key, one past the last, prefix's first row, its length, own first row) of each, keys by
// position. For keys: header (first entry, one past the last) of each row, then from `entries` on entries (first query row,
// one past the last, position of the key).

struct Params {
    rows: u32, heads: u32, kv_heads: u32, head_dim: u32, scale: f32, cap: f32, nowhere: f32, entries: u32,
    drop: u32, drop_all: u32, factor: f32, seed_low: u32, seed_high: u32, stats: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> data: array<u32>;
@group(0) @binding(2) var<storage, read_write> q: array<f32>;
@group(0) @binding(3) var<storage, read_write> k: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;
@group(0) @binding(5) var<storage, read_write> o: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;
@group(0) @binding(7) var<storage, read_write> dy: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

var<workgroup> left: array<f32, 256>;
var<workgroup> right: array<f32, 256>;
var<workgroup> first: array<f32, 64>;
var<workgroup> second: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

fn capped(s: f32) -> f32 {
    if p.cap > 0.0 { return p.cap * tanh(clamp(s / p.cap, -15.0, 15.0)); }
    return s;
}

fn slope(s: f32) -> f32 {
    if p.cap > 0.0 { return 1.0 - s / p.cap * (s / p.cap); }
    return 1.0;
}

// The factor of dropout of a query's row and head, and a key's position.
fn kept(row: u32, head: u32, position: u32) -> f32 {
    if p.drop == 0u && p.drop_all == 0u { return 1.0; }
    if p.drop_all == 1u { return 0.0; }
    let stream = row * p.heads + head;
    let counter = position / 32u * 8u + position % 8u;
    let bits = philox(vec4(counter, 0u, stream, 0u), vec2(p.seed_low, p.seed_high));
    return select(p.factor, 0.0, bits[position % 32u / 8u] < p.drop);
}

fn key_row(at: u32, position: u32) -> u32 {
    let prefix = data[at + 4u];
    if position < prefix { return data[at + 3u] + position; }
    return data[at + 5u] + position - prefix;
}

fn attention(entry: u32, head: u32, t: u32) {
    let at = 6u * entry;
    let row = data[at];
    let kv = head / (p.heads / p.kv_heads);
    let own = (row * p.heads + head) * p.head_dim;
    for (var i = t; i < p.head_dim; i += THREADS) { left[i] = q[own + i]; }
    workgroupBarrier();
    var most = -3.0e38;
    var total = 0.0;
    var sums = array<f32, 4>();
    let end = data[at + 2u];
    for (var j0 = data[at + 1u]; j0 < end; j0 += THREADS) {
        let j = j0 + t;
        var score = -3.0e38;
        var there = 0u;
        if j < end {
            there = (key_row(at, j) * p.kv_heads + kv) * p.head_dim;
            var dot = 0.0;
            for (var i = 0u; i < p.head_dim; i++) { dot = fma(left[i], k[there + i], dot); }
            score = capped(dot * p.scale);
        }
        let now = max(most, max_all(t, score));
        let shrink = exp(most - now);
        most = now;
        var e = 0.0;
        if j < end { e = exp(score - most); }
        total = total * shrink + sum_all(t, e);
        if j < end { e *= kept(row, head, j); }
        first[t] = e;
        places[t] = there;
        workgroupBarrier();
        let count = min(THREADS, end - j0);
        for (var part = 0u; part * THREADS + t < p.head_dim; part++) {
            var sum = sums[part] * shrink;
            for (var i = 0u; i < count; i++) { sum = fma(first[i], v[places[i] + part * THREADS + t], sum); }
            sums[part] = sum;
        }
        workgroupBarrier();
    }
    let inverse = select(0.0, 1.0 / total, total > 0.0);
    for (var part = 0u; part * THREADS + t < p.head_dim; part++) {
        o[own + part * THREADS + t] = sums[part] * inverse;
    }
    if t == 0u { lse[row * p.heads + head] = select(p.nowhere, most + log(total), total > 0.0); }
    workgroupBarrier();
}

// dv: for each query and head, its lse and, from `stats` on, dy . o. A row's entry is its number here.
fn attention_stats(entry: u32, head: u32, t: u32) {
    let own = entry * p.heads + head;
    var dot = 0.0;
    for (var i = t; i < p.head_dim; i += THREADS) { dot += dy[own * p.head_dim + i] * o[own * p.head_dim + i]; }
    let total = sum_all(t, dot);
    if t == 0u {
        dv[own] = lse[own];
        dv[p.stats + own] = total;
    }
}

// o: dq; lse: what `attention_stats` wrote.
fn attention_queries(entry: u32, head: u32, t: u32) {
    let at = 6u * entry;
    let row = data[at];
    let kv = head / (p.heads / p.kv_heads);
    let stat = row * p.heads + head;
    let own = stat * p.head_dim;
    for (var i = t; i < p.head_dim; i += THREADS) {
        left[i] = q[own + i];
        right[i] = dy[own + i];
    }
    workgroupBarrier();
    var sums = array<f32, 4>();
    let end = data[at + 2u];
    for (var j0 = data[at + 1u]; j0 < end; j0 += THREADS) {
        let j = j0 + t;
        if j < end {
            let there = (key_row(at, j) * p.kv_heads + kv) * p.head_dim;
            var dot = 0.0;
            var dp = 0.0;
            for (var i = 0u; i < p.head_dim; i++) {
                dot = fma(left[i], k[there + i], dot);
                dp = fma(right[i], v[there + i], dp);
            }
            let score = capped(dot * p.scale);
            let probability = exp(score - lse[stat]);
            dp *= kept(row, head, j);
            first[t] = probability * (dp - lse[p.stats + stat]) * slope(score) * p.scale;
            places[t] = there;
        }
        workgroupBarrier();
        let count = min(THREADS, end - j0);
        for (var part = 0u; part * THREADS + t < p.head_dim; part++) {
            var sum = sums[part];
            for (var i = 0u; i < count; i++) { sum = fma(first[i], k[places[i] + part * THREADS + t], sum); }
            sums[part] = sum;
        }
        workgroupBarrier();
    }
    for (var part = 0u; part * THREADS + t < p.head_dim; part++) { o[own + part * THREADS + t] = sums[part]; }
    workgroupBarrier();
}

// o: dk; lse: what `attention_stats` wrote. `head` counts key heads; a pair is a query and a head that reads it.
fn attention_keys(row: u32, head: u32, t: u32) {
    let group = p.heads / p.kv_heads;
    let own = (row * p.kv_heads + head) * p.head_dim;
    for (var i = t; i < p.head_dim; i += THREADS) {
        left[i] = k[own + i];
        right[i] = v[own + i];
    }
    workgroupBarrier();
    var keys = array<f32, 4>();
    var values = array<f32, 4>();
    for (var e = data[2u * row]; e < data[2u * row + 1u]; e++) {
        let at = p.entries + 3u * e;
        let start = data[at];
        let position = data[at + 2u];
        let pairs = (data[at + 1u] - start) * group;
        for (var pair0 = 0u; pair0 < pairs; pair0 += THREADS) {
            let pair = pair0 + t;
            if pair < pairs {
                let query = start + pair / group;
                let reader = head * group + pair % group;
                let stat = query * p.heads + reader;
                let there = stat * p.head_dim;
                var dot = 0.0;
                var dp = 0.0;
                for (var i = 0u; i < p.head_dim; i++) {
                    dot = fma(q[there + i], left[i], dot);
                    dp = fma(dy[there + i], right[i], dp);
                }
                let score = capped(dot * p.scale);
                let probability = exp(score - lse[stat]);
                let factor = kept(query, reader, position);
                first[t] = probability * (dp * factor - lse[p.stats + stat]) * slope(score) * p.scale;
                second[t] = probability * factor;
                places[t] = there;
            }
            workgroupBarrier();
            let count = min(THREADS, pairs - pair0);
            for (var part = 0u; part * THREADS + t < p.head_dim; part++) {
                let i = part * THREADS + t;
                var key = keys[part];
                var value = values[part];
                for (var j = 0u; j < count; j++) {
                    key = fma(first[j], q[places[j] + i], key);
                    value = fma(second[j], dy[places[j] + i], value);
                }
                keys[part] = key;
                values[part] = value;
            }
            workgroupBarrier();
        }
    }
    for (var part = 0u; part * THREADS + t < p.head_dim; part++) {
        let i = part * THREADS + t;
        o[own + i] = keys[part];
        dv[own + i] = values[part];
    }
    workgroupBarrier();
}
