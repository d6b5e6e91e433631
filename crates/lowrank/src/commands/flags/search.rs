//! Flags of greedy and beam search.

use lowrank::Result;
use lowrank::models::SearchOptions;
use lowrank::models::decode::EarlyStopping;

/// How to search, in transformers' words.
#[derive(clap::Args)]
pub struct SearchFlags {
    /// Number of beams; above 1 turns on beam search
    #[arg(long, value_parser = super::ranges::whole::<usize>("num_beams"), default_value_t = 1, help_heading = "Beam search", hide_short_help = true)]
    num_beams: usize,
    /// Exponent of the length that a beam's log-probability is divided by
    #[arg(
        value_parser = super::ranges::real_f32("length_penalty"),
        long,
        default_value_t = 1.0,
        allow_negative_numbers = true,
        help_heading = "Beam search",
        hide_short_help = true
    )]
    length_penalty: f32,
    /// Do not repeat any N tokens in a row, prompt included; 0 turns this off
    #[arg(long, value_parser = super::ranges::whole::<usize>("no_repeat_ngram_size"), default_value_t = 0, help_heading = "Beam search", hide_short_help = true)]
    no_repeat_ngram_size: usize,
    /// When to stop a beam search: false, true (once as many texts as beams have ended) or never (until no beam can improve)
    #[arg(long, value_parser = ["false", "true", "never"], default_value = "false", help_heading = "Beam search", hide_short_help = true)]
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
            "true" => EarlyStopping::Always,
            "never" => EarlyStopping::Never,
            _ => EarlyStopping::Likely,
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
