//! CIDEr (Vedantam et al. 2015), its variant D: how alike two texts are in the n-grams that tell something.
//!
//! An n-gram that occurs `t` times weighs `t (ln S - ln max(1, d))`, with `S` segments and `d` of them having it in
//! a reference. For each `n` from 1 to 4 a hypothesis `h` and a reference `r` are compared by
//! `sum min(h, r) r / (|h| |r|) exp(-(l_h - l_r)^2 / (2 sigma^2))`, where `l` counts bigrams and `sigma = 6`. The
//! score of a segment is 10 times the mean over `n` and references, that of the corpus the mean over segments.

use std::collections::{HashMap, HashSet};

use super::ngrams::{Counts, count};
use super::segment::Segment;
use super::tokens::words_ptb;

const ORDERS: usize = 4;
const SIGMA: f64 = 6.0;

/// Weights of the n-grams of one order.
struct Vector<'a> {
    weights: HashMap<&'a [String], f64>,
    norm: f64,
}

/// Corpus CIDEr, from 0 to 10, as COCO's caption evaluation computes it with document frequencies of the references
/// at hand. One segment alone always scores 0: its n-grams occur in every document.
pub fn cider(segments: &[Segment]) -> f64 {
    let corpus: Vec<(Vec<String>, Vec<Vec<String>>)> = segments
        .iter()
        .map(|s| (words_ptb(&s.hypothesis), s.references.iter().map(|r| words_ptb(r)).collect()))
        .collect();
    let mut documents = Counts::new();
    for (_, references) in &corpus {
        let grams: HashSet<&[String]> =
            references.iter().flat_map(|r| (1..=ORDERS).flat_map(|n| r.windows(n))).collect();
        grams.into_iter().for_each(|gram| *documents.entry(gram).or_default() += 1);
    }
    let all = (corpus.len() as f64).ln();
    let weigh = |words| weights(words, &documents, all);
    let mut sum = 0.0;
    for (hypothesis, references) in &corpus {
        let own = weigh(hypothesis);
        let scores = references.iter().map(|reference| {
            let delta = bigrams(hypothesis) - bigrams(reference);
            let penalty = (-delta * delta / (2.0 * SIGMA * SIGMA)).exp();
            let other = weigh(reference);
            own.iter().zip(&other).map(|(h, r)| similarity(h, r) * penalty).sum::<f64>()
        });
        sum += 10.0 * scores.sum::<f64>() / (ORDERS * references.len().max(1)) as f64;
    }
    sum / corpus.len().max(1) as f64
}

fn bigrams(words: &[String]) -> f64 {
    words.len().saturating_sub(1) as f64
}

fn weights<'a>(words: &'a [String], documents: &Counts<'_>, all: f64) -> [Vector<'a>; ORDERS] {
    std::array::from_fn(|n| {
        let weigh = |(gram, times): (&'a [String], usize)| {
            let documents = documents.get(gram).copied().unwrap_or(0).max(1) as f64;
            (gram, times as f64 * (all - documents.ln()))
        };
        let weights: HashMap<_, _> = count(words, n + 1).into_iter().map(weigh).collect();
        let norm = weights.values().map(|w| w * w).sum::<f64>().sqrt();
        Vector { weights, norm }
    })
}

fn similarity(hypothesis: &Vector<'_>, reference: &Vector<'_>) -> f64 {
    let product: f64 = hypothesis
        .weights
        .iter()
        .filter_map(|(gram, h)| reference.weights.get(gram).map(|r| h.min(*r) * r))
        .sum();
    let norms = hypothesis.norm * reference.norm;
    if norms == 0.0 { product } else { product / norms }
}
