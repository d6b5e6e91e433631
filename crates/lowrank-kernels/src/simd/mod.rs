//! The one layer over the vector instructions of AVX-512, AVX2 with FMA, and plain Rust (NEON on aarch64).
//!
//! [`Vector`] is a register of f32 lanes, [`Level`] a set of instructions, and [`level`] the one that is used. A kernel is
//! written once, generic over [`Vector`]: inside [`dispatch`], which compiles it for every level and takes that of
//! [`level`], or, where the level is an argument (the products), inside [`at_level`] and [`Vector::enter`].

mod dispatch;
mod level;
mod portable;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use dispatch::{at_level, dispatch, for_lanes};
#[cfg(target_arch = "x86_64")]
pub(crate) use level::amx_available;
pub use level::{Level, level};
pub(crate) use portable::Portable;
pub(crate) use vector::Vector;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};
