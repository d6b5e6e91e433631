//! Decoding: requests that join, go one token further together, and leave, over one cache of keys and values.
//!
//! ```text
//! Decoder   requests, chunked prefill, one forward pass a step, events
//!   Job     a request: its prompt, then its texts, sampled or searched
//!     sampling, search
//!   Lanes   sequences over the cache: prompt rows shared by branches, then own rows
//!     Rows  which rows of the cache are whose
//! ```
//!
//! A prompt is computed once for all texts that follow it: the samples of a group and the beams of a search are lanes
//! whose segments have the prompt's rows as their prefix. Nothing is padded and nothing is copied when a lane joins or
//! leaves.
//!
//! A decoder over a routed set ([`Decoder::set_adapters`]) serves requests with adapters of their own in one pass.
//!
//! The tokens of a request do not depend on the requests beside it, except where kernels round the products of one row
//! and of several rows differently: then logits differ in their last bits, and a text where two tokens are that close.
//! The same requests in the same order give the same bits.

mod decoder;
mod job;
mod lanes;
mod request;
mod rows;
mod sampling;
mod search;
mod sequence;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, DecoderOptions};
pub use request::{Constrained, Constraint, Event, Finish, Request, RequestAdapter, RequestId, Strategy};
pub use sampling::{Logprobs, Sampling};
pub use search::{Decoded, EarlyStopping, SearchOptions};
pub use sequence::Sequence;
