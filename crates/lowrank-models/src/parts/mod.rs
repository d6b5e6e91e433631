//! What several architectures share.

pub(crate) mod activation;
pub(crate) mod decoder;
pub(crate) mod dropout;
pub(crate) mod encoder;
pub(crate) mod fields;
pub(crate) mod rope;
pub(crate) mod spec;
