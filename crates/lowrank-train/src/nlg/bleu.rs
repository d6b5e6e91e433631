//! BLEU (Papineni et al. 2002): `100 BP exp(mean_n ln p_n)`, `n` from 1 to 4.
//!
//! `p_n` is the share of the hypotheses' n-grams that occur in a reference, each counted at most as often as in
//! the reference that has it most often, over the whole corpus. With `c` words in all hypotheses and `r` in the
//! references closest in length, `BP = exp(1 - r / c)` where `c < r`, else 1.

use super::ngrams::{clipped, closest_length};
use super::segment::Segment;
use super::tokens::words_13a;

const ORDERS: usize = 4;

/// Counts of a corpus.
#[derive(Default)]
struct Totals {
    hits: [usize; ORDERS],
    grams: [usize; ORDERS],
    words: usize,
    reference_words: usize,
}

fn totals(segments: &[Segment], prepare: impl Fn(&str) -> String) -> Totals {
    let mut totals = Totals::default();
    for segment in segments {
        let hypothesis = words_13a(&prepare(&segment.hypothesis));
        let references: Vec<_> = segment.references.iter().map(|r| words_13a(&prepare(r))).collect();
        totals.words += hypothesis.len();
        totals.reference_words += closest_length(hypothesis.len(), &references);
        for n in 1..=ORDERS {
            totals.grams[n - 1] += (hypothesis.len() + 1).saturating_sub(n);
            totals.hits[n - 1] +=
                clipped(&hypothesis, &references, n).iter().map(|(_, hits)| hits).sum::<usize>();
        }
    }
    totals
}

fn brevity_penalty(totals: &Totals) -> f64 {
    let (c, r) = (totals.words as f64, totals.reference_words as f64);
    match totals.words {
        0 => 0.0,
        _ if c < r => (1.0 - r / c).exp(),
        _ => 1.0,
    }
}

/// Corpus BLEU from 0 to 100 as sacreBLEU's `corpus_bleu` computes it: case counts, words as `13a` cuts them, and
/// the k-th order without a hit gets `100 / 2^k` hits (smoothing `exp`).
pub fn bleu(segments: &[Segment]) -> f64 {
    let totals = totals(segments, str::to_owned);
    if totals.hits == [0; ORDERS] || totals.grams.contains(&0) {
        return 0.0;
    }
    let (mut share, mut logs) = (1.0, 0.0);
    for (&hits, &grams) in totals.hits.iter().zip(&totals.grams) {
        let hits = if hits == 0 {
            share /= 2.0;
            share
        } else {
            hits as f64
        };
        logs += (100.0 * hits / grams as f64).ln();
    }
    brevity_penalty(&totals) * (logs / ORDERS as f64).exp()
}

/// Corpus BLEU from 0 to 1 as the E2E challenge's script (`pymteval.py`) computes it: [`bleu`] in lower case and
/// without smoothing; no hit at all counts as `1e-15` of one. An empty text has no words (there it has one), a short
/// one no n-grams (there a negative number of them).
pub fn bleu_e2e(segments: &[Segment]) -> f64 {
    let totals = totals(segments, str::to_lowercase);
    let precision = |(&hits, &grams): (&usize, &usize)| (hits as f64).max(1e-15) / (grams as f64).max(1e-9);
    let logs: f64 = totals.hits.iter().zip(&totals.grams).map(|order| precision(order).ln()).sum();
    brevity_penalty(&totals) * (logs / ORDERS as f64).exp()
}
