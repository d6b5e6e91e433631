//! What the metrics score.

/// A generated text and what people wrote for the same input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// What was generated.
    pub hypothesis: String,
    /// At least one.
    pub references: Vec<String>,
}
