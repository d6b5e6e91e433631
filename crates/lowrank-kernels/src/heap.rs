//! Memory of the process that the system would leave with it: of the heap, and of the program itself.

use std::sync::atomic::{AtomicBool, Ordering};

/// From this many bytes on, a block of the heap is a mapping of its own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING: i32 = 256 << 10;

/// Whether the program has said that its heap is the system's.
static SYSTEM: AtomicBool = AtomicBool::new(false);

/// Lets large blocks go back to the system as soon as they are freed, where its allocator would come to keep them
/// (glibc raises its limit with each one freed), and lets [`trim_heap`] work. For a program that allocates with the
/// system's allocator: a library cannot know whose heap it is in.
pub fn unmap_large_blocks_when_freed() {
    SYSTEM.store(true, Ordering::Relaxed);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two values and may come at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
    }
}

/// Gives free pages of the heap back to the system, where its allocator would keep them (glibc) and the program has called
/// [`unmap_large_blocks_when_freed`].
pub fn trim_heap() {
    if !SYSTEM.load(Ordering::Relaxed) {
        return;
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes a value, touches free memory alone, and may come from any thread; the heap is glibc's.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the pages of the program's own code and constants back: those that are needed again come from the system's cache
/// of its file. Most of them only started the program.
pub fn evict_program_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    {
        /// One loaded file; stops at the one that holds this function.
        unsafe extern "C" fn visit(
            file: *mut libc::dl_phdr_info,
            _: libc::size_t,
            _: *mut libc::c_void,
        ) -> libc::c_int {
            // SAFETY: the loader vouches for the description and its headers.
            let (base, headers) = unsafe {
                let file = &*file;
                (file.dlpi_addr as usize, std::slice::from_raw_parts(file.dlpi_phdr, file.dlpi_phnum.into()))
            };
            let loaded = || headers.iter().filter(|h| h.p_type == libc::PT_LOAD);
            let range = |h: &libc::Elf64_Phdr| {
                let start = base + h.p_vaddr as usize;
                start..start + h.p_memsz as usize
            };
            if !loaded().any(|h| range(h).contains(&(visit as *const () as usize))) {
                return 0;
            }
            // SAFETY: the call takes a value.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            for range in loaded().filter(|h| h.p_flags & libc::PF_W == 0).map(range) {
                let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
                // SAFETY: nobody writes to these pages, so the file behind them has what they have.
                unsafe { libc::madvise(start as *mut _, end.saturating_sub(start), libc::MADV_DONTNEED) };
            }
            1
        }
        // SAFETY: `visit` keeps to what the call allows.
        unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    /// Pages of files in this process's memory, in kB.
    fn files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
        line.and_then(|kb| kb.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
    }

    #[test]
    fn a_program_goes_on_without_its_pages() {
        static SQUARES: [u64; 4096] = {
            let mut squares = [0; 4096];
            let mut i = 0;
            while i < squares.len() {
                squares[i] = (i * i) as u64;
                i += 1;
            }
            squares
        };
        let sum = || std::hint::black_box(&SQUARES).iter().sum::<u64>();
        let before = sum();
        let resident = files();
        super::evict_program_pages();
        let left = files();
        // Emulators of other processors keep the pages.
        if cfg!(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64")) {
            assert!(left < resident, "{left} kB of files are resident, of {resident}");
        }
        assert_eq!(sum(), before);
        assert_eq!(before, (0..4096).map(|i| i * i).sum::<u64>());
    }
}
