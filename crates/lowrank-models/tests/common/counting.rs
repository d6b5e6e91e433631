//! An allocator that counts, for tests of how much memory something takes. Each test file that wants
//! it makes it its own: `#[global_allocator] static ALLOCATOR: Counting = Counting;`

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// Counts the bytes each thread takes, so that tests side by side do not count each other's.
pub struct Counting;

thread_local! {
    /// Bytes taken less those given back.
    static NOW: Cell<isize> = const { Cell::new(0) };
    /// The most of them so far.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The same of all threads together.
static NOW_OF_ALL: AtomicIsize = AtomicIsize::new(0);
static PEAK_OF_ALL: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    let now = NOW_OF_ALL.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK_OF_ALL.fetch_max(now, Ordering::Relaxed);
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

/// Runs `work`: its result, the bytes it keeps and the most it took, on this thread.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    let since = |bytes: isize| usize::try_from(bytes - before).unwrap_or(0);
    (result, since(NOW.get()), since(PEAK.get()))
}

/// The same on all threads: its result and the most that they took. For a test that is alone in its file.
#[allow(dead_code)]
pub fn measured_on_all_threads<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW_OF_ALL.load(Ordering::Relaxed);
    PEAK_OF_ALL.store(before, Ordering::Relaxed);
    let result = work();
    (result, usize::try_from(PEAK_OF_ALL.load(Ordering::Relaxed) - before).unwrap_or(0))
}

// SAFETY: hands every request to the system's allocator unchanged and only counts, in cells that need neither
// memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
