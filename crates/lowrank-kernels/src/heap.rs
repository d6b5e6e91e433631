//! The heap of the process.

/// Gives free pages of the heap back to the system, where its allocator would keep them (glibc).
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes a number, touches free memory alone, and may come from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
