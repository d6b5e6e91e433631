//! The heap of the process.

/// From this many bytes on, a block of the heap is a mapping of its own.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING: i32 = 256 << 10;

/// Lets large blocks go back to the system as soon as they are freed, where its allocator would come to keep them
/// (glibc raises its limit with each one freed).
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes two numbers and may come at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
    }
}

/// Gives free pages of the heap back to the system, where its allocator would keep them (glibc).
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes a number, touches free memory alone, and may come from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
