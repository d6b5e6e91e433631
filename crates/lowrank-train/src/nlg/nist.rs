//! NIST (Doddington 2002): matched n-grams weigh what they tell, `n` from 1 to 5.
//!
//! `info(w1..wn) = log2(count(w1..w(n-1)) / count(w1..wn))` over all references (the count of nothing is the
//! number of words there). The score is `BP sum_n (sum of info over matched n-grams / n-grams of the hypotheses)`,
//! `BP = exp(-beta ln(min(1, c / r))^2)` with `c` words in the hypotheses, `r` the sum over segments of the mean
//! length of its references, and `beta` such that `BP = 1/2` at `c / r = 2/3`. Case does not count.
//!
//! As `pymteval.py` of the E2E challenge computes it, but that a text shorter than `n` has no n-grams (there it has
//! a negative number of them) and an empty text no words (there one). NLTK's differs in the length of references.

use std::collections::HashMap;

use super::ngrams::clipped;
use super::segment::Segment;
use super::tokens::words_13a;

const ORDERS: usize = 5;

/// Corpus NIST, from 0 up.
pub fn nist(segments: &[Segment]) -> f64 {
    let words = |text: &String| words_13a(&text.to_lowercase());
    let corpus: Vec<(Vec<String>, Vec<Vec<String>>)> =
        segments.iter().map(|s| (words(&s.hypothesis), s.references.iter().map(words).collect())).collect();
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    let mut reference_length = 0.0;
    for (_, references) in &corpus {
        let mut sum = 0;
        for reference in references {
            sum += reference.len();
            for n in 1..=ORDERS {
                reference.windows(n).for_each(|gram| *counts.entry(gram).or_default() += 1);
            }
        }
        *counts.entry(&[]).or_default() += sum;
        reference_length += sum as f64 / references.len().max(1) as f64;
    }
    let info = |gram: &[String]| (counts[&gram[..gram.len() - 1]] as f64 / counts[gram] as f64).log2();

    let mut score = 0.0;
    let mut length = 0;
    for n in 1..=ORDERS {
        let (mut told, mut grams) = (0.0, 0);
        for (hypothesis, references) in &corpus {
            grams += (hypothesis.len() + 1).saturating_sub(n);
            let hits = clipped(hypothesis, references, n);
            told += hits.iter().filter(|(_, hits)| *hits > 0).map(|(g, h)| info(g) * *h as f64).sum::<f64>();
        }
        if n == 1 {
            length = grams;
        }
        if told > 0.0 {
            score += told / grams as f64;
        }
    }
    score * length_penalty(length as f64 / reference_length)
}

fn length_penalty(ratio: f64) -> f64 {
    let beta = -0.5_f64.ln() / 1.5_f64.ln().powi(2);
    match ratio {
        r if r >= 1.0 => 1.0,
        r if r > 0.0 => (-beta * r.ln().powi(2)).exp(),
        _ => 0.0,
    }
}
