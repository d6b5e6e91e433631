//! The memory arena: every activation and gradient of a step lives in one reserved address range.
//!
//! Blocks are placed first-fit and neighbours coalesce when freed, so the high-water mark is the
//! peak of the step and later steps of the same size touch no new page. The same bookkeeping
//! without memory behind it is what the Plan device counts with: the forecast is exact by
//! construction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use memmap2::{MmapMut, MmapOptions};

/// Blocks start at multiples of this many floats (64 bytes: a cache line, an AVX-512 register).
const ALIGN: usize = 16;

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
    /// Free blocks below `top`: start -> length, never adjacent to each other.
    free: BTreeMap<usize, usize>,
    /// Everything at or above is untouched.
    top: usize,
    peak: usize,
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

    pub fn take(&self, floats: usize) -> Block {
        let len = floats.next_multiple_of(ALIGN);
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        let found = state.free.iter().find(|&(_, &have)| have >= len).map(|(&at, &have)| (at, have));
        let start = match found {
            Some((at, have)) => {
                state.free.remove(&at);
                if have > len {
                    state.free.insert(at + len, have - len);
                }
                at
            }
            None => {
                // Grow from the last free block where it touches the top.
                let at = match state.free.last_key_value() {
                    Some((&at, &have)) if at + have == state.top => {
                        state.free.remove(&at);
                        at
                    }
                    _ => state.top,
                };
                state.top = at + len;
                state.peak = state.peak.max(state.top);
                at
            }
        };
        if let Some(memory) = &self.0.memory {
            assert!(
                state.top <= memory.floats,
                "the step needs {} MB, more address space than could be reserved ({} MB)",
                state.top / 250_000,
                memory.floats / 250_000
            );
        }
        Block { arena: self.clone(), start, floats, len }
    }

    /// High-water mark in bytes since the last [`Arena::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.0.state.lock().expect("no panic holds the lock").peak * 4
    }

    pub fn reset_peak(&self) {
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        state.peak = state.top;
    }
}

/// One block of the arena, given back when dropped.
pub(crate) struct Block {
    arena: Arena,
    start: usize,
    floats: usize,
    len: usize,
}

impl Block {
    pub fn floats(&self) -> usize {
        self.floats
    }

    /// The numbers; empty where the arena only counts.
    pub fn data(&self) -> &[f32] {
        match &self.arena.0.memory {
            // SAFETY: `start..start+floats` lies in the mapping (checked in `take`), the mapping is
            // zero-initialised by the system, and no other block overlaps it.
            Some(m) => unsafe { std::slice::from_raw_parts(m.base.add(self.start), self.floats) },
            None => &[],
        }
    }

    /// The numbers, to write.
    pub fn data_mut(&mut self) -> &mut [f32] {
        match &self.arena.0.memory {
            // SAFETY: as `data`; `&mut self` makes this the only access.
            Some(m) => unsafe { std::slice::from_raw_parts_mut(m.base.add(self.start), self.floats) },
            None => &mut [],
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.arena.0.state.lock().expect("no panic holds the lock");
        let (mut start, mut len) = (self.start, self.len);
        if let Some((&at, &have)) = state.free.range(..start).next_back()
            && at + have == start
        {
            state.free.remove(&at);
            (start, len) = (at, have + len);
        }
        if let Some(have) = state.free.remove(&(start + len)) {
            len += have;
        }
        if start + len == state.top {
            state.top = start;
        } else {
            state.free.insert(start, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_coalesce_and_are_used_again() {
        let arena = Arena::counting();
        let a = arena.take(100);
        let b = arena.take(10);
        let c = arena.take(1);
        assert_eq!(arena.peak_bytes(), (112 + 16 + 16) * 4);
        drop(a);
        drop(b);
        let d = arena.take(128);
        assert_eq!(d.start, 0, "the two freed blocks serve as one");
        drop(c);
        drop(d);
        assert_eq!(arena.0.state.lock().unwrap().top, 0);
        arena.reset_peak();
        assert_eq!(arena.peak_bytes(), 0);
    }

    #[test]
    fn blocks_do_not_overlap() {
        let arena = Arena::reserve();
        let mut a = arena.take(5);
        let mut b = arena.take(5);
        a.data_mut().fill(1.0);
        b.data_mut().fill(2.0);
        assert!(a.data().iter().all(|&x| x == 1.0));
        assert_eq!(b.data().as_ptr() as usize % 64, 0);
    }

    #[test]
    fn grows_from_a_free_block_at_the_top() {
        let arena = Arena::counting();
        let a = arena.take(16);
        let b = arena.take(16);
        drop(b);
        let c = arena.take(64);
        assert_eq!(c.start, 16);
        drop(a);
    }
}
