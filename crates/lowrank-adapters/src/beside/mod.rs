//! What is trained beside a method: biases ([`bias`]), whole modules ([`saved`]) and rows of an embedding ([`tokens`]).

pub mod bias;
pub mod saved;
pub mod tokens;
