//! A library put before libc (`LD_PRELOAD`) that breaks one file operation of a process on purpose.
//!
//! `FAULT_DIR` names the folder whose operations count; `FAULT_COUNT` a file that gets their number at the end; `FAULT_AT`
//! the operation to break, from 1; `FAULT_MODE` how:
//!
//! * `kill`: the process is gone before the operation;
//! * `torn`: a write does half its bytes, then the process is gone;
//! * `power`: as `kill`, and the bytes of every file that were written since its last fsync are zeros (renames stay, as on
//!   file systems that journal names and not data);
//! * `full`: this operation and all later ones that need space fail with ENOSPC.
//!
//! The test compiles this file with `rustc --crate-type cdylib`; it needs nothing but libc.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

type Size = usize;
type Count = isize;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn readlink(path: *const c_char, out: *mut c_char, size: Size) -> Count;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn getpid() -> c_int;
    fn __errno_location() -> *mut c_int;
    fn atexit(f: extern "C" fn()) -> c_int;
}

const NEXT: *mut c_void = -1isize as *mut c_void;
const ENOSPC: c_int = 28;
const O_WRITING: c_int = 0o3;
const O_CREAT: c_int = 0o100;

static DONE: AtomicU64 = AtomicU64::new(0);
/// Files written since their last fsync, with the length that is safe.
static DIRTY: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

struct Plan {
    dir: String,
    at: u64,
    mode: String,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let var = |name: &str| std::env::var(name).unwrap_or_default();
        // SAFETY: registers a function without arguments.
        unsafe { atexit(tell) };
        Plan { dir: var("FAULT_DIR"), at: var("FAULT_AT").parse().unwrap_or(0), mode: var("FAULT_MODE") }
    })
}

/// Writes how many operations there were.
extern "C" fn tell() {
    if let Ok(file) = std::env::var("FAULT_COUNT") {
        let _ = std::fs::write(file, DONE.load(Ordering::SeqCst).to_string());
    }
}

/// The path behind a descriptor, where it is one of the folder's.
fn of(fd: c_int) -> Option<String> {
    let link = format!("/proc/self/fd/{fd}\0");
    let mut out = [0u8; 4096];
    // SAFETY: the path ends in a zero byte, the buffer has the size given.
    let n = unsafe { readlink(link.as_ptr().cast(), out.as_mut_ptr().cast(), out.len()) };
    let path = String::from_utf8_lossy(&out[..usize::try_from(n).ok()?]).into_owned();
    path.starts_with(&plan().dir).then_some(path)
}

/// The path of an operation by name, where it is one of the folder's.
fn named(path: *const c_char) -> Option<String> {
    // SAFETY: callers of libc pass a string that ends in a zero byte.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    path.starts_with(&plan().dir).then_some(path)
}

fn die() -> ! {
    // SAFETY: ends this process.
    unsafe {
        kill(getpid(), 9);
    }
    loop {
        std::hint::spin_loop();
    }
}

enum Verdict {
    Go,
    Torn,
    Full,
}

/// Counts an operation, and says what becomes of it.
fn next() -> Verdict {
    let (plan, now) = (plan(), DONE.fetch_add(1, Ordering::SeqCst) + 1);
    if plan.at == 0 || now < plan.at {
        return Verdict::Go;
    }
    match plan.mode.as_str() {
        "full" => Verdict::Full,
        "torn" if now == plan.at => Verdict::Torn,
        "power" => {
            let dirty = std::mem::take(&mut *DIRTY.lock().unwrap());
            for (path, safe) in dirty {
                let _ = zero(&path, safe);
            }
            die()
        }
        _ => die(),
    }
}

/// Overwrites a file with zeros from `safe` on, past the functions below.
fn zero(path: &str, safe: u64) -> Option<()> {
    let length = std::fs::metadata(path).ok()?.len();
    let path = std::ffi::CString::new(path).ok()?;
    let open: extern "C" fn(*const c_char, c_int, ...) -> c_int = real(c"open")?;
    let pwrite: extern "C" fn(c_int, *const c_void, Size, c_long) -> Count = real(c"pwrite")?;
    let fd = open(path.as_ptr(), 1);
    let zeros = vec![0u8; usize::try_from(length.saturating_sub(safe)).ok()?];
    (pwrite(fd, zeros.as_ptr().cast(), zeros.len(), c_long::try_from(safe).ok()?) >= 0).then_some(())
}

/// The function of this name after this library.
fn real<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the symbol is looked up by name, and `F` is the type that libc declares for it.
    unsafe {
        let found = dlsym(NEXT, name.as_ptr());
        (!found.is_null()).then(|| std::mem::transmute_copy(&found))
    }
}

fn full<T: From<i8>>() -> T {
    // SAFETY: this thread's errno.
    unsafe { *__errno_location() = ENOSPC };
    T::from(-1)
}

/// Notes that a file is about to be written.
fn mark(path: String) {
    let length = std::fs::metadata(&path).map_or(0, |file| file.len());
    DIRTY.lock().unwrap().entry(path).or_insert(length);
}

macro_rules! by_descriptor_write {
    ($($name:ident($($more:ident: $type:ty),*);)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int, bytes: *const c_void, count: Size $(, $more: $type)*) -> Count {
            let go: extern "C" fn(c_int, *const c_void, Size $(, $type)*) -> Count =
                real(&std::ffi::CString::new(stringify!($name)).unwrap()).unwrap();
            let Some(path) = of(fd) else { return go(fd, bytes, count $(, $more)*) };
            match next() {
                Verdict::Go => { mark(path); go(fd, bytes, count $(, $more)*) }
                Verdict::Torn => { go(fd, bytes, count / 2 $(, $more)*); die() }
                Verdict::Full => full(),
            }
        }
    )*};
}

by_descriptor_write! {
    write();
    pwrite(offset: c_long);
    pwrite64(offset: c_long);
    writev();
}

macro_rules! sync {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(fd: c_int) -> c_int {
            let go: extern "C" fn(c_int) -> c_int = real(&std::ffi::CString::new(stringify!($name)).unwrap()).unwrap();
            let Some(path) = of(fd) else { return go(fd) };
            match next() {
                Verdict::Torn => die(),
                _ => { DIRTY.lock().unwrap().remove(&path); go(fd) }
            }
        }
    )*};
}

sync!(fsync fdatasync);

macro_rules! by_name {
    ($($name:ident($($more:ident: $type:ty),*) $space:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(path: *const c_char $(, $more: $type)*) -> c_int {
            let go: extern "C" fn(*const c_char $(, $type)*) -> c_int =
                real(&std::ffi::CString::new(stringify!($name)).unwrap()).unwrap();
            if named(path).is_none() { return go(path $(, $more)*); }
            match next() {
                Verdict::Torn => die(),
                Verdict::Full if $space => full(),
                _ => go(path $(, $more)*),
            }
        }
    )*};
}

by_name! {
    unlink() false;
    rmdir() false;
    mkdir(mode: u32) true;
}

#[unsafe(no_mangle)]
pub extern "C" fn unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
    let go: extern "C" fn(c_int, *const c_char, c_int) -> c_int = real(c"unlinkat").unwrap();
    if of(folder).is_none() && named(path).is_none() {
        return go(folder, path, flags);
    }
    match next() {
        Verdict::Torn => die(),
        _ => go(folder, path, flags),
    }
}

fn renamed(from: *const c_char, to: *const c_char, go: impl FnOnce() -> c_int) -> c_int {
    let (Some(from), Some(to)) = (named(from), named(to)) else { return go() };
    match next() {
        Verdict::Torn => die(),
        Verdict::Full => full(),
        Verdict::Go => {
            // A name moves, and what was not synced under it moves along; whole folders too.
            let mut dirty = DIRTY.lock().unwrap();
            let moved: Vec<String> = dirty.keys().filter(|path| path.starts_with(&from)).cloned().collect();
            for path in moved {
                let safe = dirty.remove(&path).unwrap_or(0);
                dirty.insert(path.replacen(&from, &to, 1), safe);
            }
            drop(dirty);
            go()
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let go: extern "C" fn(*const c_char, *const c_char) -> c_int = real(c"rename").unwrap();
    renamed(from, to, || go(from, to))
}

#[unsafe(no_mangle)]
pub extern "C" fn renameat2(a: c_int, from: *const c_char, b: c_int, to: *const c_char, flags: u32) -> c_int {
    let go: extern "C" fn(c_int, *const c_char, c_int, *const c_char, u32) -> c_int = real(c"renameat2").unwrap();
    renamed(from, to, || go(a, from, b, to, flags))
}

#[unsafe(no_mangle)]
pub extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    let go: extern "C" fn(*const c_char, *const c_char) -> c_int = real(c"link").unwrap();
    if named(to).is_none() {
        return go(from, to);
    }
    match next() {
        Verdict::Torn => die(),
        Verdict::Full => full(),
        Verdict::Go => go(from, to),
    }
}

macro_rules! opening {
    ($($name:ident)*) => {$(
        /// Opening for writing makes or empties a file.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(path: *const c_char, flags: c_int, mode: u32) -> c_int {
            let go: extern "C" fn(*const c_char, c_int, u32) -> c_int =
                real(&std::ffi::CString::new(stringify!($name)).unwrap()).unwrap();
            if flags & O_WRITING == 0 || named(path).is_none() { return go(path, flags, mode); }
            match next() {
                Verdict::Torn => die(),
                Verdict::Full if flags & O_CREAT != 0 => full(),
                _ => go(path, flags, mode),
            }
        }
    )*};
}

opening!(open open64);
