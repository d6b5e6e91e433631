//! How much memory this process holds.

/// The most bytes that were resident at any time so far, or `None` where the system does not say.
///
/// Linux: `VmHWM` of `/proc/self/status`; macOS: `getrusage`. Both count the pages of mapped files
/// that were read.
pub fn peak_rss_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return status("VmHWM:");
    #[cfg(target_os = "macos")]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        // macOS counts in bytes, unlike the other systems that have this call.
        return getrusage(UsageWho::RUSAGE_SELF).ok().and_then(|usage| u64::try_from(usage.max_rss()).ok());
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    None
}

/// The bytes resident now, or `None` where the system does not say (all but Linux).
pub fn current_rss_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    return status("VmRSS:");
    #[cfg(not(target_os = "linux"))]
    None
}

/// A line such as `VmHWM:     1234 kB`.
#[cfg(target_os = "linux")]
fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn sees_an_allocation() {
        const SIZE: usize = 64 << 20;
        let before = current_rss_bytes().unwrap();
        let mut block = vec![0u8; SIZE];
        for page in block.chunks_mut(4096) {
            page[0] = 1;
        }
        let during = current_rss_bytes().unwrap();
        drop(std::hint::black_box(block));
        // The kernel keeps these counts loosely, and other tests run meanwhile.
        assert!(during > before + SIZE as u64 / 2, "{before} -> {during}");
        assert!(peak_rss_bytes().unwrap() > before + SIZE as u64 / 2);
    }
}
