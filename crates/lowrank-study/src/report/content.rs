//! What a report holds.

use lowrank_files::Provenance;

use super::figure::Figure;
use super::table::Table;

/// A report. Titles, texts and captions are plain; letters such as `₀` and `ᵀ` in them are set as indices.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its heading.
    pub title: String,
    /// Below the title.
    pub subtitle: String,
    /// What made it.
    pub made: Provenance,
    /// Its sections, in order.
    pub sections: Vec<Section>,
}

/// A section of a report.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// Paragraphs.
    pub text: Vec<String>,
    /// Command lines, each with a title.
    pub commands: Vec<(String, String)>,
    /// Tables.
    pub tables: Vec<Table>,
    /// Figures.
    pub figures: Vec<Figure>,
    /// Prompts and the texts that were generated behind them.
    pub samples: Vec<Samples>,
}

/// A prompt and what was generated behind it, each text with the time it is of.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The prompt.
    pub prompt: String,
    /// When, such as "step 100", and the text; the last one is shown, the others on demand.
    pub texts: Vec<(String, String)>,
}
