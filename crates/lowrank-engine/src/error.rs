/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight whose shape, format and bytes do not fit together.
    #[error("weight: {0}")]
    Weight(String),
}
