//! The memory arena: every activation and gradient of a step lives in one reserved address range.
//!
//! Blocks are placed first-fit and neighbours coalesce when freed, so the high-water mark is the
//! peak of the step and later steps of the same size touch no new page. What a forward pass leaves for the
//! backward pass grows from the other end of the range: between blocks that come and go it would leave holes. The
//! same bookkeeping without memory behind it is what the Plan device counts with: the forecast is exact by
//! construction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use memmap2::{MmapMut, MmapOptions};

/// Blocks start at multiples of this many floats (64 bytes: a cache line, an AVX-512 register).
const ALIGN: usize = 16;

/// Smaller blocks (256 KiB) lie with those that last: left among large ones they would break up what these leave free.
const SMALL: usize = 1 << 16;

/// A shared handle to the arena.
#[derive(Clone)]
pub(crate) struct Arena(Arc<Inner>);

struct Inner {
    /// The reserved range; `None` where only sizes are counted.
    memory: Option<Reserved>,
    state: Mutex<State>,
}

struct Reserved {
    base: *mut f32,
    floats: usize,
    /// Keeps the mapping alive.
    _map: MmapMut,
}

// SAFETY: the range is plain memory; blocks handed out never overlap, and each is reached through
// one `Block` only.
unsafe impl Send for Reserved {}
unsafe impl Sync for Reserved {}

#[derive(Default)]
struct State {
    /// Counted from the start of the range.
    passing: End,
    /// Counted from its end.
    lasting: End,
}

impl State {
    fn end(&mut self, lasting: bool) -> &mut End {
        if lasting { &mut self.lasting } else { &mut self.passing }
    }

    /// Where a block goes, and whether that is among the lasting ones. What passes is placed there rather than in
    /// memory never touched: in a backward pass their end gets free.
    fn place(&mut self, len: usize, lasting: bool) -> (usize, bool) {
        let lasting = lasting || len < SMALL;
        let used_before = |end: &mut End| end.take(len, end.peak);
        if !lasting && let Some(at) = used_before(&mut self.passing) {
            return (at, false);
        }
        if !lasting && let Some(at) = used_before(&mut self.lasting) {
            return (at, true);
        }
        let at = self.end(lasting).take(len, usize::MAX).expect("there is no limit");
        (at, lasting)
    }
}

/// One end of the range: blocks are placed by their distance from it.
#[derive(Default)]
struct End {
    /// Free blocks below `top`: start -> length, never adjacent to each other.
    free: BTreeMap<usize, usize>,
    /// Everything at or above is untouched.
    top: usize,
    peak: usize,
}

impl End {
    /// Takes `len` free numbers, none of which lies at `most` or above.
    fn take(&mut self, len: usize, most: usize) -> Option<usize> {
        let found = self.free.iter().find(|&(_, &have)| have >= len).map(|(&at, &have)| (at, have));
        if let Some((at, have)) = found {
            self.free.remove(&at);
            if have > len {
                self.free.insert(at + len, have - len);
            }
            return Some(at);
        }
        // Grow from the last free block where it touches the top.
        let last = self.free.last_key_value().filter(|&(&at, &have)| at + have == self.top);
        let at = last.map_or(self.top, |(&at, _)| at);
        if len > most.saturating_sub(at) {
            return None;
        }
        self.free.remove(&at);
        self.top = at + len;
        self.peak = self.peak.max(self.top);
        Some(at)
    }

    fn give(&mut self, mut start: usize, mut len: usize) {
        if let Some((&at, &have)) = self.free.range(..start).next_back()
            && at + have == start
        {
            self.free.remove(&at);
            (start, len) = (at, have + len);
        }
        if let Some(have) = self.free.remove(&(start + len)) {
            len += have;
        }
        if start + len == self.top {
            self.top = start;
        } else {
            self.free.insert(start, len);
        }
    }
}

impl Arena {
    /// An arena over reserved memory. Pages are taken from the system when first touched.
    pub fn reserve() -> Self {
        // Address space costs nothing; where a limit forbids the large range, ask for less.
        let mut bytes: usize = if cfg!(target_pointer_width = "64") { 1 << 40 } else { 1 << 30 };
        let map = loop {
            match MmapOptions::new().len(bytes).no_reserve_swap().map_anon() {
                Ok(map) => break map,
                Err(_) if bytes > 1 << 24 => bytes /= 2,
                Err(error) => panic!("cannot reserve {bytes} bytes of address space: {error}"),
            }
        };
        let mut map = map;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let reserved = Reserved { base: map.as_mut_ptr().cast(), floats: map.len() / 4, _map: map };
        Self(Arc::new(Inner { memory: Some(reserved), state: Mutex::default() }))
    }

    /// An arena that only counts.
    pub fn counting() -> Self {
        Self(Arc::new(Inner { memory: None, state: Mutex::default() }))
    }

    /// A block for `floats` numbers. `lasting`: for the backward pass, while others come and go.
    pub fn take(&self, floats: usize, lasting: bool) -> Block {
        let len = floats.next_multiple_of(ALIGN);
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        let (start, lasting) = state.place(len, lasting);
        let mut at = start;
        if let Some(memory) = &self.0.memory {
            let used = state.passing.top + state.lasting.top;
            assert!(
                used <= memory.floats,
                "the step needs {} MB, more address space than could be reserved ({} MB)",
                used / 250_000,
                memory.floats / 250_000
            );
            if lasting {
                at = memory.floats - start - len;
            }
        }
        Block { arena: self.clone(), at, floats, start, len, lasting }
    }

    /// High-water mark in bytes since the last [`Arena::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        let state = self.0.state.lock().expect("no panic holds the lock");
        (state.passing.peak + state.lasting.peak) * 4
    }

    pub fn reset_peak(&self) {
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        for end in [false, true] {
            let end = state.end(end);
            end.peak = end.top;
        }
    }
}

/// One block of the arena, given back when dropped.
pub(crate) struct Block {
    arena: Arena,
    /// Its first number in the range.
    at: usize,
    floats: usize,
    /// Its place at its end of the range.
    start: usize,
    len: usize,
    lasting: bool,
}

impl Block {
    pub fn floats(&self) -> usize {
        self.floats
    }

    /// The numbers; empty where the arena only counts.
    pub fn data(&self) -> &[f32] {
        match &self.arena.0.memory {
            // SAFETY: `at..at+floats` lies in the mapping (checked in `take`), the mapping is
            // zero-initialised by the system, and no other block overlaps it.
            Some(m) => unsafe { std::slice::from_raw_parts(m.base.add(self.at), self.floats) },
            None => &[],
        }
    }

    /// The numbers, to write.
    pub fn data_mut(&mut self) -> &mut [f32] {
        match &self.arena.0.memory {
            // SAFETY: as `data`; `&mut self` makes this the only access.
            Some(m) => unsafe { std::slice::from_raw_parts_mut(m.base.add(self.at), self.floats) },
            None => &mut [],
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.arena.0.state.lock().expect("no panic holds the lock");
        state.end(self.lasting).give(self.start, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_coalesce_and_are_used_again() {
        let arena = Arena::counting();
        let a = arena.take(100, false);
        let b = arena.take(10, false);
        let c = arena.take(1, false);
        assert_eq!(arena.peak_bytes(), (112 + 16 + 16) * 4);
        drop(a);
        drop(b);
        let d = arena.take(128, false);
        assert_eq!(d.start, 0, "the two freed blocks serve as one");
        drop(c);
        drop(d);
        assert_eq!(arena.0.state.lock().unwrap().passing.top, 0);
        arena.reset_peak();
        assert_eq!(arena.peak_bytes(), 0);
    }

    #[test]
    fn blocks_do_not_overlap() {
        let arena = Arena::reserve();
        let mut a = arena.take(5, false);
        let mut b = arena.take(5, false);
        let [mut c, mut d] = [(); 2].map(|()| arena.take(5, true));
        a.data_mut().fill(1.0);
        b.data_mut().fill(2.0);
        c.data_mut().fill(3.0);
        d.data_mut().fill(4.0);
        for (block, number) in [(&a, 1.0), (&b, 2.0), (&c, 3.0), (&d, 4.0)] {
            assert!(block.data().iter().all(|&x| x == number));
            assert_eq!(block.data().as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn grows_from_a_free_block_at_the_top() {
        let arena = Arena::counting();
        let a = arena.take(16, false);
        let b = arena.take(16, false);
        drop(b);
        let c = arena.take(64, false);
        assert_eq!(c.start, 16);
        drop(a);
    }

    #[test]
    fn what_lasts_leaves_no_holes() {
        let arena = Arena::counting();
        let mut kept = Vec::new();
        for _ in 0..3 {
            let passing = arena.take(64, false);
            kept.push(arena.take(32, true));
            drop(passing);
        }
        assert_eq!(arena.peak_bytes(), (64 + 3 * 32) * 4);
        drop(kept);
        arena.reset_peak();
        assert_eq!(arena.peak_bytes(), 0);
    }
}
