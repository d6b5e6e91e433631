//! The memory arena: every activation and gradient of a step lives in one reserved address range.
//!
//! Blocks are placed first-fit and neighbours coalesce when freed, so the high-water mark is the
//! peak of the step and later steps of the same size touch no new page. What a forward pass leaves for the
//! backward pass grows from the other end of the range: between blocks that come and go it would leave holes. The
//! same bookkeeping without memory behind it is what the Plan device counts with: the forecast is exact by
//! construction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use memmap2::{MmapMut, MmapOptions};

use crate::error::Error;

/// Blocks start at multiples of this many floats (64 bytes: a cache line, an AVX-512 register).
const ALIGN: usize = 16;

/// Smaller blocks (256 KiB) lie with those that are saved: left among large ones they would break up what these leave free.
const SMALL_FLOATS: usize = 1 << 16;

/// Bytes in which Linux gives memory where it is advised to use huge pages. The two ends of the range start at multiples.
const HUGE_PAGE: usize = 2 << 20;

/// A shared handle to the arena.
#[derive(Clone)]
pub(crate) struct Arena(Arc<Inner>);

struct Inner {
    /// The reserved range; `None` where only sizes are counted.
    memory: Option<Reserved>,
    state: Mutex<State>,
}

struct Reserved {
    /// The first huge page of the mapping.
    base: *mut f32,
    floats: usize,
    // Where memory cannot be given back it is held and not used.
    #[cfg_attr(not(unix), allow(dead_code))]
    map: MmapMut,
}

// SAFETY: the range is plain memory; blocks handed out never overlap, and each is reached through
// one `Block` only.
unsafe impl Send for Reserved {}
unsafe impl Sync for Reserved {}

#[derive(Default)]
struct State {
    /// Counted from the start of the range.
    temporary: End,
    /// Counted from its end.
    saved: End,
}

impl State {
    fn end(&mut self, saved: bool) -> &mut End {
        if saved { &mut self.saved } else { &mut self.temporary }
    }

    /// Where a block goes, and whether that is among the saved ones. What is temporary is placed there rather than in
    /// memory never touched: in a backward pass their end gets free.
    fn place(&mut self, len: usize, saved: bool) -> (usize, bool) {
        let saved = saved || len < SMALL_FLOATS;
        if !saved {
            for end in [false, true] {
                let most = self.end(end).peak;
                if let Some(start) = self.end(end).take(len, most) {
                    return (start, end);
                }
            }
        }
        (self.end(saved).take(len, usize::MAX).expect("there is no limit"), saved)
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
    /// Everything at or above is not in the process's memory.
    touched: usize,
}

impl End {
    /// Takes `len` free values, none of which lies at `most` or above.
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
        self.touched = self.touched.max(self.top);
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
        Self::reserve_at_most(if cfg!(target_pointer_width = "64") { 1 << 40 } else { 1 << 30 })
    }

    fn reserve_at_most(mut bytes: usize) -> Self {
        // Address space costs nothing; where a limit forbids the large range, ask for less.
        let map = loop {
            match MmapOptions::new().len(bytes + HUGE_PAGE).no_reserve_swap().map_anon() {
                Ok(map) => break map,
                Err(_) if bytes > 1 << 24 => bytes /= 2,
                Err(error) => {
                    out_of_memory(format!("cannot reserve {bytes} bytes of address space: {error}"))
                }
            }
        };
        let mut map = map;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_mut_ptr();
        let base = start.wrapping_add(start.align_offset(HUGE_PAGE)).cast();
        let reserved = Reserved { base, floats: bytes / size_of::<f32>(), map };
        Self(Arc::new(Inner { memory: Some(reserved), state: Mutex::default() }))
    }

    /// An arena that only counts.
    pub fn counting() -> Self {
        Self(Arc::new(Inner { memory: None, state: Mutex::default() }))
    }

    /// A block for `floats` values. `saved`: for the backward pass, while others come and go.
    pub fn take(&self, floats: usize, saved: bool) -> Block {
        let len = floats.next_multiple_of(ALIGN);
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        let (start, saved) = state.place(len, saved);
        if let Some(memory) = &self.0.memory {
            let used = state.temporary.top + state.saved.top;
            if used > memory.floats {
                let (used, most) = (used / 250_000, memory.floats / 250_000);
                drop(state);
                out_of_memory(format!(
                    "the step needs {used} MB of address space, and {most} MB could be reserved: allow more (`ulimit -v`), or \
                     take smaller batches"
                ));
            }
        }
        Block { arena: self.clone(), start, floats, len, saved }
    }

    /// High-water mark in bytes since the last [`Arena::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        let state = self.0.state.lock().expect("no panic holds the lock");
        (state.temporary.peak + state.saved.peak) * 4
    }

    /// The pages behind that mark: what it takes of the process's memory, where the system gives huge pages.
    pub fn peak_page_bytes(&self) -> usize {
        let state = self.0.state.lock().expect("no panic holds the lock");
        let page = page_bytes();
        [&state.temporary, &state.saved].map(|end| (end.peak * 4).next_multiple_of(page)).iter().sum()
    }

    /// Gives the pages of free memory at the inner ends back to the system.
    pub fn trim(&self) {
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        let Some(memory) = &self.0.memory else { return };
        let page = page_bytes() / size_of::<f32>();
        for saved in [false, true] {
            let end = state.end(saved);
            let (from, to) = (end.top.next_multiple_of(page), end.touched.next_multiple_of(page));
            if from < to {
                memory.give_back(if saved { memory.floats - to } else { from }, to - from);
            }
            end.touched = end.top;
        }
    }

    pub fn reset_peak(&self) {
        let mut state = self.0.state.lock().expect("no panic holds the lock");
        for end in [false, true] {
            let end = state.end(end);
            end.peak = end.top;
        }
    }
}

impl Reserved {
    /// Gives back the pages of `len` values from `at` on, which no block holds.
    fn give_back(&self, at: usize, len: usize) {
        #[cfg(unix)]
        {
            let skip = self.base as usize - self.map.as_ptr() as usize;
            let (offset, len) = (skip + at * size_of::<f32>(), len * size_of::<f32>());
            // SAFETY: no block lies there, and the next one there has undefined values: zeros are as good as any.
            let _ =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, len) };
        }
        #[cfg(not(unix))]
        let _ = (at, len);
    }
}

/// Bytes of the pages in which the range gets its memory.
fn page_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if setting.is_ok_and(|text| !text.contains("[never]")) { HUGE_PAGE } else { 4 << 10 }
    })
}

fn out_of_memory(what: String) -> ! {
    Error::Memory(what).end_step()
}

/// One block of the arena, given back when dropped.
pub struct Block {
    arena: Arena,
    /// Its distance from its end of the range.
    start: usize,
    floats: usize,
    len: usize,
    saved: bool,
}

impl Block {
    /// Where its first value lies.
    fn pointer(&self, memory: &Reserved) -> *mut f32 {
        let at = if self.saved { memory.floats - self.start - self.len } else { self.start };
        memory.base.wrapping_add(at)
    }

    /// The values; empty where the arena only counts.
    pub(crate) fn data(&self) -> &[f32] {
        match &self.arena.0.memory {
            // SAFETY: the block lies in the mapping (checked in `take`), the mapping is
            // zero-initialised by the system, and no other block overlaps it.
            Some(m) => unsafe { std::slice::from_raw_parts(self.pointer(m), self.floats) },
            None => &[],
        }
    }

    /// The values, to write.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        match &self.arena.0.memory {
            // SAFETY: as `data`; `&mut self` makes this the only access.
            Some(m) => unsafe { std::slice::from_raw_parts_mut(self.pointer(m), self.floats) },
            None => &mut [],
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.arena.0.state.lock().expect("no panic holds the lock");
        state.end(self.saved).give(self.start, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_neighbours_coalesce_and_are_used_again() {
        for saved in [false, true] {
            let arena = Arena::counting();
            let a = arena.take(SMALL_FLOATS + 100, saved);
            let b = arena.take(SMALL_FLOATS + 10, saved);
            let c = arena.take(SMALL_FLOATS, saved);
            assert_eq!(arena.peak_bytes(), (3 * SMALL_FLOATS + 112 + 16) * 4);
            drop(a);
            drop(b);
            let d = arena.take(2 * SMALL_FLOATS + 128, saved);
            assert_eq!((d.start, d.saved), (0, saved), "the two freed blocks serve as one");
            drop(c);
            drop(d);
            let top = arena.0.state.lock().unwrap().end(saved).top;
            assert_eq!(top, 0);
            arena.reset_peak();
            assert_eq!(arena.peak_bytes(), 0);
        }
    }

    #[test]
    fn more_than_could_be_reserved_is_an_error_and_no_message() {
        let arena = Arena::reserve_at_most(1 << 20);
        let small = arena.take(1 << 10, false);
        let take = std::panic::AssertUnwindSafe(|| drop(arena.take(1 << 20, false)));
        let payload = std::panic::catch_unwind(take).expect_err("4 MB of 1 MB");
        let error = payload.downcast::<Error>().expect("an error of the engine");
        assert!(error.to_string().contains("the step needs 4 MB"), "{error}");
        drop(small);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn trimming_gives_free_memory_back_and_keeps_blocks() {
        use std::os::unix::fs::FileExt as _;
        // Of this mapping alone: other tests allocate meanwhile. `smaps` would not do, where the kernel has joined this
        // mapping with one beside it.
        let resident = |arena: &Arena| {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let page = maps.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).unwrap();
            let page = page.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
            let map = &arena.0.memory.as_ref().unwrap().map;
            let mut pages = vec![0u8; map.len() / page * 8];
            let file = std::fs::File::open("/proc/self/pagemap").unwrap();
            file.read_exact_at(&mut pages, (map.as_ptr() as usize / page * 8) as u64).unwrap();
            // Bit 63 of a page's entry: present in memory.
            pages.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() * page
        };
        let arena = Arena::reserve_at_most(1 << 30);
        let mut kept = [false, true].map(|saved| arena.take(SMALL_FLOATS, saved));
        kept.iter_mut().for_each(|block| block.data_mut().fill(3.0));
        for saved in [false, true] {
            let mut block = arena.take(10 << 20, saved);
            block.data_mut().fill(1.0);
        }
        assert!(resident(&arena) >= 80 << 20, "{}", resident(&arena));
        arena.trim();
        let left = resident(&arena);
        assert!(left <= 2 * HUGE_PAGE, "{left}");
        assert!(kept.iter().all(|block| block.data().iter().all(|x| *x == 3.0)));
        let mut again = arena.take(10 << 20, false);
        again.data_mut().fill(2.0);
        assert!(again.data().iter().all(|x| *x == 2.0) && kept[0].data()[0] == 3.0);
    }

    #[test]
    fn blocks_do_not_overlap() {
        let arena = Arena::reserve();
        let mut blocks: Vec<Block> =
            [(SMALL_FLOATS + 5, false), (SMALL_FLOATS, false), (5, false), (SMALL_FLOATS, true), (5, true)]
                .map(|(floats, saved)| arena.take(floats, saved))
                .into();
        assert_eq!(
            blocks.iter().filter(|b| b.saved).count(),
            3,
            "small blocks lie with those that are saved"
        );
        for (number, block) in (1..).zip(&mut blocks) {
            block.data_mut().fill(number as f32);
        }
        for (number, block) in (1..).zip(&blocks) {
            assert!(block.data().iter().all(|&x| x == number as f32));
            assert_eq!(block.data().as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn grows_from_a_free_block_at_the_top() {
        let arena = Arena::counting();
        let a = arena.take(SMALL_FLOATS, false);
        let b = arena.take(SMALL_FLOATS, false);
        let c = arena.take(SMALL_FLOATS, false);
        drop(b);
        drop(c);
        let d = arena.take(4 * SMALL_FLOATS, false);
        assert_eq!(d.start, SMALL_FLOATS);
        drop(a);
    }

    /// At one end the larger block would lie above what is saved, and the room of the smaller one would stay empty.
    #[test]
    fn what_is_saved_leaves_no_holes() {
        let arena = Arena::counting();
        let small = arena.take(2 * SMALL_FLOATS, false);
        let kept = arena.take(SMALL_FLOATS, true);
        drop(small);
        let large = arena.take(3 * SMALL_FLOATS, false);
        assert_eq!(arena.peak_bytes(), 4 * SMALL_FLOATS * 4);
        drop((large, kept));
    }

    #[test]
    fn temporary_blocks_use_the_room_of_saved_ones() {
        let arena = Arena::counting();
        let first = arena.take(SMALL_FLOATS, true);
        let second = arena.take(2 * SMALL_FLOATS, true);
        drop(second);
        let temporary = arena.take(2 * SMALL_FLOATS, false);
        assert_eq!((temporary.start, temporary.saved), (SMALL_FLOATS, true));
        let more = arena.take(SMALL_FLOATS, false);
        assert_eq!((more.start, more.saved), (0, false), "there is no room left");
        assert_eq!(arena.peak_bytes(), 4 * SMALL_FLOATS * 4);
        drop(first);
    }
}
