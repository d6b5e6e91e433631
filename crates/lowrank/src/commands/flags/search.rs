//! Flags of greedy and beam search.

use lowrank::models::SearchOptions;
use lowrank::models::decode::EarlyStopping;
use lowrank::{Error, Result};

/// How to search, in transformers' words.
#[derive(clap::Args)]
pub struct SearchFlags {
    /// Texts followed at once; above 1 a beam search
    #[arg(long, default_value_t = 1)]
    num_beams: usize,
    /// A beam's log-probability is divided by its length to this power
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    length_penalty: f32,
    /// No run of so many tokens twice, prompt included; 0 for no such rule
    #[arg(long, default_value_t = 0)]
    no_repeat_ngram_size: usize,
    /// false, true (stop at as many finished texts as beams) or never (before nothing can get better)
    #[arg(long, default_value = "false")]
    early_stopping: String,
}

impl SearchFlags {
    /// Whether they say anything but greedy decoding.
    pub fn is_search(&self) -> bool {
        self.num_beams > 1 || self.no_repeat_ngram_size > 0
    }

    /// What they say.
    pub fn options(&self) -> Result<SearchOptions> {
        let early_stopping = match self.early_stopping.as_str() {
            "false" => EarlyStopping::Likely,
            "true" => EarlyStopping::Always,
            "never" => EarlyStopping::Never,
            other => {
                return Err(Error::Usage(format!("--early-stopping {other}: choose false, true or never")));
            }
        };
        let options = SearchOptions {
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            early_stopping,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
        };
        options.check()?;
        Ok(options)
    }
}
