//! METEOR (Denkowski & Lavie 2014) with exact matches only: no stems, no synonyms, no paraphrases.
//!
//! An alignment pairs equal words of hypothesis and reference, each at most once: as many as possible, then in as
//! few chunks (runs that are contiguous on both sides) as possible, then with the least shift of positions. With
//! content words weighing `delta` and function words `1 - delta`, `P` and `R` are the weighted shares of matched
//! words in hypothesis and reference, `F = P R / (alpha P + (1 - alpha) R)`, and the score is
//! `F (1 - gamma (chunks / matches)^beta)`. Parameters are those of METEOR 1.5 for English, whose program gives
//! the same numbers with `-m exact`; with its other matchers it gives higher ones. The corpus score is that of the
//! summed counts, each segment with the reference it scores best on.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::segment::Segment;
use super::tokens::words_ptb;

const ALPHA: f64 = 0.85;
const BETA: f64 = 0.2;
const GAMMA: f64 = 0.6;
const DELTA: f64 = 0.75;

/// Alignments looked at in parallel (METEOR's program follows 40, of which many can be the same).
const BEAM: usize = 200;

/// METEOR's English function words, those whose share of running text is above one in a thousand.
static FUNCTION_WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    "the , . to of and a in that for \" is on 's it with was as said at he by be from have has are his but an this \
     not i will ’ they ) -rrb- ( -lrb- who their had we which were been more or s its would about new one after you \
     : also up when there than $ all out her people she year two - can if last first “ over other ” into some what \
     so -- no time years could ? 't — '"
        .split_whitespace()
        .collect()
});

/// What one hypothesis and one reference (or a corpus of them) have in common.
#[derive(Clone, Copy, Default)]
struct Stats {
    hypothesis: Weight,
    reference: Weight,
    matched: Weight,
    /// None where all words match in one run.
    chunks: usize,
}

/// Content and function words.
#[derive(Clone, Copy, Default)]
struct Weight {
    content: usize,
    function: usize,
}

impl Weight {
    fn of<'a>(words: impl Iterator<Item = &'a String>) -> Self {
        let mut weight = Self::default();
        for word in words {
            match FUNCTION_WORDS.contains(word.as_str()) {
                true => weight.function += 1,
                false => weight.content += 1,
            }
        }
        weight
    }

    fn add(&mut self, other: Self) {
        self.content += other.content;
        self.function += other.function;
    }

    fn total(self) -> usize {
        self.content + self.function
    }

    fn weighted(self) -> f64 {
        DELTA * self.content as f64 + (1.0 - DELTA) * self.function as f64
    }
}

impl Stats {
    fn score(&self) -> f64 {
        let matched = self.matched.weighted();
        if matched == 0.0 {
            return 0.0;
        }
        let precision = matched / self.hypothesis.weighted();
        let recall = matched / self.reference.weighted();
        let f = precision * recall / (ALPHA * precision + (1.0 - ALPHA) * recall);
        let fragmentation = self.chunks as f64 / self.matched.total() as f64;
        f * (1.0 - GAMMA * fragmentation.powf(BETA))
    }
}

/// Corpus METEOR with exact matches only, from 0 to 1.
pub fn meteor_exact(segments: &[Segment]) -> f64 {
    let mut corpus = Stats::default();
    for segment in segments {
        let hypothesis = words_ptb(&segment.hypothesis);
        let all = segment.references.iter().map(|r| compare(&hypothesis, &words_ptb(r)));
        let best = all.reduce(|best, next| if next.score() > best.score() { next } else { best });
        let best = best.unwrap_or_default();
        corpus.hypothesis.add(best.hypothesis);
        corpus.reference.add(best.reference);
        corpus.matched.add(best.matched);
        corpus.chunks += best.chunks;
    }
    corpus.score()
}

fn compare(hypothesis: &[String], reference: &[String]) -> Stats {
    let pairs = align(hypothesis, reference);
    let runs = pairs.windows(2).filter(|p| p[1] != (p[0].0 + 1, p[0].1 + 1)).count();
    let chunks = if pairs.is_empty() { 0 } else { 1 + runs };
    let whole = chunks == 1 && pairs.len() == hypothesis.len() && pairs.len() == reference.len();
    Stats {
        hypothesis: Weight::of(hypothesis.iter()),
        reference: Weight::of(reference.iter()),
        matched: Weight::of(pairs.iter().map(|p| &hypothesis[p.0])),
        chunks: if whole { 0 } else { chunks },
    }
}

/// A part of an alignment, up to some word of the hypothesis.
#[derive(Clone)]
struct Partial {
    pairs: Vec<(usize, usize)>,
    /// Positions of the reference that are taken.
    used: Vec<bool>,
    chunks: usize,
    shift: usize,
}

impl Partial {
    fn with(&self, i: usize, j: usize) -> Self {
        let goes_on = i > 0 && j > 0 && self.pairs.last() == Some(&(i - 1, j - 1));
        let mut longer = self.clone();
        longer.chunks += usize::from(!goes_on);
        longer.shift += i.abs_diff(j);
        longer.used[j] = true;
        longer.pairs.push((i, j));
        longer
    }

    /// What decides how it can go on after word `i`.
    fn state(&self, i: usize) -> (Option<usize>, &[bool]) {
        (self.pairs.last().filter(|pair| pair.0 == i).map(|pair| pair.1), &self.used)
    }
}

/// Pairs of positions of equal words, by position in the hypothesis: as many as there can be, in as few chunks as a
/// search finds that follows the best [`BEAM`] partial alignments.
fn align(hypothesis: &[String], reference: &[String]) -> Vec<(usize, usize)> {
    let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, word) in reference.iter().enumerate() {
        places.entry(word).or_default().push(j);
    }
    // How many more times each word comes in the hypothesis.
    let mut coming: HashMap<&str, usize> = HashMap::new();
    hypothesis.iter().for_each(|word| *coming.entry(word).or_default() += 1);

    let mut beam =
        vec![Partial { pairs: Vec::new(), used: vec![false; reference.len()], chunks: 0, shift: 0 }];
    for (i, word) in hypothesis.iter().enumerate() {
        let left = coming.get_mut(word.as_str()).expect("counted");
        *left -= 1;
        let Some(places) = places.get(word.as_str()) else { continue };
        let mut next = Vec::new();
        for partial in &beam {
            let free = places.iter().filter(|j| !partial.used[**j]);
            next.extend(free.clone().map(|&j| partial.with(i, j)));
            // Leaving the word out must not cost a pair.
            if free.count() <= *left {
                next.push(partial.clone());
            }
        }
        next.sort_by_key(|p| (p.chunks, p.shift));
        let mut seen = HashSet::new();
        let fresh: Vec<bool> = next.iter().map(|p| seen.insert(p.state(i))).collect();
        let mut fresh = fresh.into_iter();
        next.retain(|_| fresh.next() == Some(true));
        next.truncate(BEAM);
        beam = next;
    }
    beam.into_iter().min_by_key(|p| (p.chunks, p.shift)).map(|p| p.pairs).unwrap_or_default()
}
