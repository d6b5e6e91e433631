//! One base model, many adapters: a server with OpenAI's interface.
//!
//! ```text
//! http/      routes: OpenAI's, vLLM's and llama-server's for adapters, metrics
//!   Text     tokens to text, stop strings, log-probabilities
//! Jobs       files and fine-tuning: processes over the same base
//! Registry   adapters by name: loading, mixtures, a budget of bytes, places in the routed set
//! Engine     one thread with the decoder: requests of all adapters in one batch
//! Host       the base model and how adapters are read
//! ```

mod engine;
mod error;
mod grammar;
mod host;
mod http;
mod jobs;
mod lease;
mod metrics;
mod options;
mod random;
mod registry;
mod server;

pub use error::{Error, Result};
pub use host::{HeadModel, Host, HostError, TrainRun};
pub use options::{ServeOptions, parse_adapter};
pub use server::{Server, serve};
