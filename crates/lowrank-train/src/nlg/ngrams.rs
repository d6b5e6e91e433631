//! Counts of n-grams.

use std::collections::HashMap;

/// How often each n-gram occurs.
pub(super) type Counts<'a> = HashMap<&'a [String], usize>;

/// The n-grams of `words`.
pub(super) fn count(words: &[String], n: usize) -> Counts<'_> {
    let mut counts = Counts::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// For each n-gram of `hypothesis`, how often it occurs there and in the reference that has it most often.
pub(super) fn clipped<'a>(
    hypothesis: &'a [String],
    references: &[Vec<String>],
    n: usize,
) -> Vec<(&'a [String], usize)> {
    let references: Vec<Counts<'_>> = references.iter().map(|words| count(words, n)).collect();
    let most = |gram| references.iter().filter_map(|counts| counts.get(gram)).max().copied().unwrap_or(0);
    count(hypothesis, n).into_iter().map(|(gram, own)| (gram, own.min(most(gram)))).collect()
}

/// The length of the reference closest in length to `len`; of two as close, the shorter.
pub(super) fn closest_length(len: usize, references: &[Vec<String>]) -> usize {
    references.iter().map(Vec::len).min_by_key(|&own| (own.abs_diff(len), own)).unwrap_or(0)
}
