//! Tools for adapter files: convert between formats, compose, extract, resize, prune, compare, look into.
//!
//! An adapter here is what its file holds: [`Lora`], pairs of matrices by module path with their alpha, whatever
//! format ([`FileFormat`]) it came in. No base model is loaded, but where one is part of the question.
//!
//! ```
//! use lowrank_tools::{FileFormat, Kind, Lora, Options, Pair, Tensor, formats};
//!
//! # fn main() -> lowrank_tools::Result<()> {
//! let dir = std::env::temp_dir().join("lowrank-tools-example");
//! let (a, b) = (Tensor::new(vec![1, 2], vec![1.0, 2.0]), Tensor::new(vec![3, 1], vec![0.5, 0.0, -1.0]));
//! let path = "model.layers.0.self_attn.q_proj";
//! let mut lora = Lora::default();
//! lora.pairs.insert(path.into(), Pair::new(path, a, b, 2.0, Kind::Linear)?);
//!
//! formats::write(&lora, &dir, formats::peft::FORMAT, &Options::default())?;
//! let again = formats::read(&dir, FileFormat::detect(&dir)?, &Options::default())?;
//! assert_eq!(again.pairs, lora.pairs);
//! # std::fs::remove_dir_all(&dir).unwrap();
//! # Ok(())
//! # }
//! ```

pub mod compare;
pub mod compose;
mod error;
pub mod extract;
pub mod formats;
mod lora;
pub mod modules;
mod rank;
pub mod raw;
pub mod report;
pub mod resize;
pub mod tensor;

pub use error::{Error, Result};
pub use formats::{FileFormat, Options};
pub use lora::{Kind, Lora, Origin, Pair, PairNames};
pub use rank::Rule;
pub use regex::Regex;
pub use tensor::Tensor;
