//! How much memory this process holds.

#[cfg(target_os = "linux")]
use std::collections::HashSet;

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

/// Of [`current_rss_bytes`], the pages of the program's files and its libraries'; 0 where the system does not say.
pub fn program_rss_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        // A line such as `7f..-7f.. r-xp 00000000 08:01 123  /usr/lib/libc.so.6` begins each mapping.
        let header = |line: &'_ str| {
            let mut words = line.split_ascii_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let path = words.nth(3).unwrap_or_default().to_owned();
            (range.contains('-') && rights.len() == 4).then(|| (path, rights.contains('x')))
        };
        let mappings = text.lines().filter_map(header);
        let files: HashSet<String> =
            mappings.filter(|(path, code)| *code && path.starts_with('/')).map(|(path, _)| path).collect();
        let (mut inside, mut kib) = (false, 0);
        for line in text.lines() {
            if let Some((path, _)) = header(line) {
                inside = files.contains(&path);
            } else if let (true, Some(value)) = (inside, line.strip_prefix("Rss:")) {
                kib += value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            }
        }
        kib << 10
    }
    #[cfg(not(target_os = "linux"))]
    0
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
    fn the_program_is_a_part_of_the_process() {
        let (program, all) = (program_rss_bytes(), current_rss_bytes().unwrap());
        // Any program that runs has its code and the C library's there.
        assert!((100_000..all).contains(&program), "{program} of {all}");
    }

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
