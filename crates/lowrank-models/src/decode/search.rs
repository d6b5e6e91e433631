//! Greedy and beam search behind one prompt, as transformers' `generate` does them: which tokens follow, given the
//! logits of each beam.

use std::collections::BinaryHeap;

use lowrank_files::Range;

use crate::{Error, Result};

/// Whether a beam search ends before nothing can get better (transformers' `early_stopping`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// Where the best beam, at its present length, is worse than all finished ones.
    #[default]
    Likely,
    /// As soon as there are as many finished texts as beams.
    Always,
    /// Where no length it can still reach would make the best beam better.
    Never,
}

/// How to search.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchOptions {
    /// Texts followed at once; 1 takes the most likely token each time.
    pub num_beams: usize,
    /// A finished text of `n` tokens scores `sum of log-probabilities / n^length_penalty`.
    pub length_penalty: f32,
    /// When a search ends.
    pub early_stopping: EarlyStopping,
    /// No run of so many tokens occurs twice, the prompt included; 0 for no such rule.
    pub no_repeat_ngram_size: usize,
}

impl Default for SearchOptions {
    /// Greedy.
    fn default() -> Self {
        Self {
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::default(),
            no_repeat_ngram_size: 0,
        }
    }
}

impl SearchOptions {
    /// Checks that every field has a value that makes sense.
    ///
    /// # Errors
    /// Names the field and what it may be.
    pub fn check(&self) -> Result<()> {
        for (name, value, range) in [
            ("num_beams", self.num_beams as f64, Range::Whole(1, 1024)),
            ("length_penalty", f64::from(self.length_penalty), Range::Real(-8.0, 8.0)),
        ] {
            range.check(value).map_err(|what| Error::Request(format!("`{name}` {what}")))?;
        }
        Ok(())
    }
}

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// Of a search: the sum of the tokens' log-probabilities, over `n^length_penalty` where beams were searched.
    pub score: Option<f32>,
}

/// A text that is being followed.
#[derive(Clone, Debug)]
pub(super) struct Beam {
    /// What was generated.
    pub tokens: Vec<u32>,
    /// Sum of log-probabilities.
    pub score: f32,
    /// Where its keys and values are (before [`Search::settle`], those of its parent).
    pub lane: usize,
}

/// Greedy or beam search behind one prompt.
pub(super) struct Search {
    how: SearchOptions,
    ends: Vec<u32>,
    most: usize,
    beams: Vec<Beam>,
    /// Scores and tokens of finished texts, best first.
    finished: Vec<(f32, Vec<u32>)>,
    done: bool,
}

impl Search {
    /// At most `most` tokens are generated.
    pub fn new(how: &SearchOptions, most: usize, ends: &[u32]) -> Self {
        let beams = vec![Beam { tokens: Vec::new(), score: 0.0, lane: 0 }];
        let (how, ends) = (how.clone(), ends.to_vec());
        Self { how, ends, most, beams, finished: Vec::new(), done: false }
    }

    /// The texts that go on.
    pub fn beams(&self) -> &[Beam] {
        &self.beams
    }

    /// Whether nothing goes on.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The best text.
    pub fn best(&mut self) -> Decoded {
        // None is finished only where every continuation was forbidden.
        let unfinished = || (f32::NEG_INFINITY, std::mem::take(&mut self.beams[0].tokens));
        let (score, tokens) = self.finished.first_mut().map_or_else(unfinished, std::mem::take);
        Decoded { tokens, score: Some(score) }
    }

    /// Gives every beam a lane of its own: `copy(from, to)` copies the rows of a lane.
    pub fn settle(&mut self, mut copy: impl FnMut(usize, usize)) {
        let parents: Vec<usize> = self.beams.iter().map(|beam| beam.lane).collect();
        let mut free: Vec<usize> = (0..self.how.num_beams).filter(|lane| !parents.contains(lane)).collect();
        for (i, beam) in self.beams.iter_mut().enumerate() {
            // The first child stays in its parent's lane.
            if parents[..i].contains(&parents[i]) {
                beam.lane = free.pop().expect("as many lanes as beams");
                copy(parents[i], beam.lane);
            }
        }
    }

    /// Goes one token further, given the logits `[beams, V]`.
    pub fn advance(&mut self, prompt: &[u32], logits: &[f32]) {
        let vocab = logits.len() / self.beams.len();
        // transformers keeps so many, so that enough go on where the best ones end.
        let keep = match self.how.num_beams {
            1 => 1,
            beams => beams * (1 + self.ends.len()).max(2),
        };
        let mut top = TopK::new(keep);
        for (b, (beam, logits)) in self.beams.iter().zip(logits.chunks_exact(vocab)).enumerate() {
            let banned = banned(prompt, &beam.tokens, self.how.no_repeat_ngram_size);
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|l| (l - most).exp()).sum();
            let ln_sum = sum.ln();
            for (token, logit) in logits.iter().enumerate() {
                let score = (logit - most - ln_sum) + beam.score;
                if top.takes(score) && !banned.contains(&(token as u32)) {
                    top.push(score, b, token as u32);
                }
            }
        }
        let candidates = top.into_sorted();
        let length = self.beams[0].tokens.len() + 1;
        let longer = |c: &Candidate| {
            let mut tokens = self.beams[c.beam].tokens.clone();
            tokens.push(c.token);
            tokens
        };
        let ends = |c: &Candidate| length == self.most || self.ends.contains(&c.token);
        let beams = self.how.num_beams;
        let divisor = if beams == 1 { 1.0 } else { (length as f32).powf(self.how.length_penalty) };
        // Only the first `num_beams` may end; the others are there to go on.
        let ended: Vec<(f32, Vec<u32>)> = candidates
            .iter()
            .take(beams)
            .filter(|c| ends(c))
            .map(|c| (c.score / divisor, longer(c)))
            .collect();
        let next: Vec<Beam> = candidates
            .iter()
            .filter(|c| !ends(c))
            .take(beams)
            .map(|c| Beam { tokens: longer(c), score: c.score, lane: self.beams[c.beam].lane })
            .collect();
        self.finished.extend(ended);
        // Stable: of equal scores the earlier text stays in front.
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(beams);
        self.done = next.is_empty() || !self.can_improve(next[0].score, length);
        if !self.done {
            self.beams = next;
        }
    }

    /// Whether a beam of `length` tokens and sum `score` may still come to be among the best.
    fn can_improve(&self, score: f32, length: usize) -> bool {
        if self.finished.len() < self.how.num_beams {
            return true;
        }
        if self.how.num_beams == 1 || self.how.early_stopping == EarlyStopping::Always {
            return false;
        }
        let penalty = self.how.length_penalty;
        let reach = match self.how.early_stopping {
            EarlyStopping::Never if penalty > 0.0 => self.most,
            _ => length,
        };
        let worst = self.finished.last().expect("there is one").0;
        score / (reach as f32).powf(penalty) > worst
    }
}

/// Tokens that would repeat a run of `n` tokens of the prompt and the text.
fn banned(prompt: &[u32], text: &[u32], n: usize) -> Vec<u32> {
    let all = [prompt, text].concat();
    if n == 0 || all.len() + 1 < n {
        return Vec::new();
    }
    let last = &all[all.len() + 1 - n..];
    all.windows(n).filter(|run| run[..n - 1] == *last).map(|run| run[n - 1]).collect()
}

/// A token that may follow a beam.
#[derive(Clone, Copy, PartialEq)]
struct Candidate {
    score: f32,
    beam: usize,
    token: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    /// The worst is the greatest: a heap gives it first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let place = |c: &Self| (c.beam, c.token);
        other.score.total_cmp(&self.score).then(place(self).cmp(&place(other)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The `k` best candidates so far.
struct TopK {
    k: usize,
    worst: f32,
    heap: BinaryHeap<Candidate>,
}

impl TopK {
    fn new(k: usize) -> Self {
        Self { k, worst: f32::NEG_INFINITY, heap: BinaryHeap::with_capacity(k + 1) }
    }

    fn takes(&self, score: f32) -> bool {
        score > self.worst
    }

    fn push(&mut self, score: f32, beam: usize, token: u32) {
        self.heap.push(Candidate { score, beam, token });
        if self.heap.len() > self.k {
            self.heap.pop();
        }
        if self.heap.len() == self.k {
            self.worst = self.heap.peek().expect("k is not 0").score;
        }
    }

    /// Best first.
    fn into_sorted(self) -> Vec<Candidate> {
        self.heap.into_sorted_vec()
    }
}
