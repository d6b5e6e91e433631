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
    /// A device that failed or that cannot do what was asked. Operations end the step with it as they do with
    /// [`Error::Memory`].
    #[error("{0}")]
    Device(String),
}

impl Error {
    /// Ends the step with this error as the payload, which no panic hook prints.
    pub fn end_step(self) -> ! {
        std::panic::resume_unwind(Box::new(self))
    }
}
