/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight whose shape, format and bytes do not fit together.
    #[error("weight: {0}")]
    Weight(String),
    /// Memory that the system does not give. A step cannot go on without it, so operations do not return it: it is the
    /// payload of the panic that ends the step ([`std::panic::resume_unwind`]).
    #[error("{0}")]
    Memory(String),
}
