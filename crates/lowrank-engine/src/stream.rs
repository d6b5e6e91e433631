//! Bases larger than memory: the weights of one block of a model at a time.
//!
//! Blocks run in order, forward and then backward, so their weights are needed in an order known beforehand.
//! When a block begins, the pages of the one before are given back, and the system is told to fetch those of
//! the next. Everything is read-only and has its file behind it: a page given back too early costs time only.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::mapped::Mapped;

/// Bytes of a mapped file.
pub type Span = (Arc<Mapped>, Range<usize>);

/// Pages come in groups of this many bytes where neighbours are in the system's cache (Linux' `fault_around_bytes`).
const AROUND: usize = 64 << 10;

/// Which bytes belong to which block of a model.
pub struct BaseStream {
    blocks: Vec<Vec<Span>>,
    /// What belongs to no block: embeddings and output layer.
    rest: Vec<Span>,
    now: Mutex<Option<usize>>,
}

/// Which way the blocks are gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

impl BaseStream {
    /// The bytes of each block in the order in which they run, and the bytes of everything else.
    pub fn new(blocks: Vec<Vec<Span>>, rest: Vec<Span>) -> Self {
        Self { blocks, rest, now: Mutex::new(None) }
    }

    /// Most bytes of weights that are in memory at once: the largest block, and what belongs to none.
    pub fn window_bytes(&self) -> usize {
        self.blocks.iter().map(|block| bytes(block)).max().unwrap_or(0) + bytes(&self.rest)
    }

    /// Block `block` is about to run.
    pub(crate) fn enter(&self, block: usize, direction: Direction) {
        let mut now = self.now.lock().expect("nobody panics with it");
        if *now == Some(block) {
            return;
        }
        if let Some(spans) = now.and_then(|before| self.blocks.get(before)) {
            spans.iter().for_each(give_back);
        }
        self.rest.iter().for_each(give_back);
        let next = match direction {
            Direction::Forward => block.checked_add(1),
            Direction::Backward => block.checked_sub(1),
        };
        // After the last block comes the output layer.
        let next = next.map(|next| self.blocks.get(next).unwrap_or(&self.rest));
        next.into_iter().flatten().for_each(fetch);
        *now = Some(block);
    }
}

fn bytes(spans: &[Span]) -> usize {
    spans.iter().map(|(_, range)| range.len()).sum()
}

/// Gives the memory of these pages back: what is read there again comes from the file.
pub fn give_back((map, range): &Span) {
    let start = range.start / AROUND * AROUND;
    let end = range.end.next_multiple_of(AROUND).min(map.len());
    // A refusal costs memory, no correctness.
    #[cfg(unix)]
    // SAFETY: the map is read-only and has a file behind it, so its pages can always be read again.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    #[cfg(not(unix))]
    let _ = (start, end);
}

fn fetch((map, range): &Span) {
    #[cfg(unix)]
    let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    #[cfg(not(unix))]
    let _ = (map, range);
}
