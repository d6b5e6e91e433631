//! Scores of generated texts against references: those that data-to-text papers report.
//!
//! | name | what | range |
//! |---|---|---|
//! | `bleu` | [`bleu()`], as sacreBLEU | 0 to 100 |
//! | `bleu-e2e` | [`bleu_e2e`], as the E2E challenge's script | 0 to 1 |
//! | `nist` | [`nist()`] | from 0 |
//! | `meteor` | [`meteor_exact`]: exact matches only | 0 to 1 |
//! | `rouge-l` | [`rouge_l`] | 0 to 1 |
//! | `cider` | [`cider()`] | 0 to 10 |
//!
//! BLEU and NIST read words as mteval-v13a does. The other three read them as COCO's caption evaluation does, in
//! lower case and without punctuation, with a smaller tokenizer than Stanford's ([`tokens::words_ptb`]).

mod bleu;
mod cider;
mod meteor;
mod ngrams;
mod nist;
mod rouge;
mod segment;
pub mod tokens;

use std::fmt;
use std::str::FromStr;

pub use bleu::{bleu, bleu_e2e};
pub use cider::cider;
pub use meteor::meteor_exact;
pub use nist::nist;
pub use rouge::rouge_l;
pub use segment::Segment;

use crate::Error;

/// A score of a corpus of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NlgMetric {
    Bleu,
    BleuE2e,
    Nist,
    Meteor,
    RougeL,
    Cider,
}

impl NlgMetric {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Bleu, Self::BleuE2e, Self::Nist, Self::Meteor, Self::RougeL, Self::Cider];

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bleu => "bleu",
            Self::BleuE2e => "bleu-e2e",
            Self::Nist => "nist",
            Self::Meteor => "meteor",
            Self::RougeL => "rouge-l",
            Self::Cider => "cider",
        }
    }

    /// The score of `segments`.
    pub fn score(self, segments: &[Segment]) -> f64 {
        match self {
            Self::Bleu => bleu(segments),
            Self::BleuE2e => bleu_e2e(segments),
            Self::Nist => nist(segments),
            Self::Meteor => meteor_exact(segments),
            Self::RougeL => rouge_l(segments),
            Self::Cider => cider(segments),
        }
    }
}

impl fmt::Display for NlgMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for NlgMetric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|metric| metric.name() == name)
            .ok_or_else(|| Error::Options(lowrank_files::unknown("metric", name, Self::ALL.map(Self::name))))
    }
}
