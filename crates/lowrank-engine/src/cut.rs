//! Files that are cut while they are mapped: the system then sends SIGBUS to whoever reads what is gone.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Mapped files that a message can name; a model in more shards is named for these alone.
const SLOTS: usize = 1024;

/// A mapping and the file's name. `start` is 0 where the slot is free, 1 while it is filled.
struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    name: AtomicPtr<u8>,
    name_len: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        name: AtomicPtr::new(std::ptr::null_mut()),
        name_len: AtomicUsize::new(0),
    }
}; SLOTS];

/// What SIGBUS meant before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping's place in the table, until it is dropped.
pub(crate) struct Named {
    slot: Option<&'static Slot>,
    _name: Box<[u8]>,
}

impl Named {
    /// Notes that `bytes` are those of the file at `path`.
    pub fn new(bytes: &[u8], path: &Path) -> Self {
        let mut name = path.as_os_str().as_encoded_bytes().to_vec().into_boxed_slice();
        let take =
            |slot: &&Slot| slot.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = TABLE.iter().filter(|_| !bytes.is_empty()).find(take);
        if let Some(slot) = slot {
            slot.len.store(bytes.len(), Ordering::Relaxed);
            slot.name.store(name.as_mut_ptr(), Ordering::Relaxed);
            slot.name_len.store(name.len(), Ordering::Relaxed);
            slot.start.store(bytes.as_ptr() as usize, Ordering::Release);
        }
        Self { slot, _name: name }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.start.store(0, Ordering::Release);
        }
    }
}

/// From now on, where a mapped file is cut while it is in use, the process names it and ends with code 1. SIGBUS for
/// any other reason stays what it is.
pub fn name_files_that_are_cut() {
    // SAFETY: plain data of which zeros are a value; every pointer is to such a value; the handler calls nothing that a
    // signal may not call.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if BEFORE.get().is_none() && libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) == 0 {
            let _ = BEFORE.set(before);
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }
}

type Handler = unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

unsafe extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO a valid `info`; names live as long as their mapping is in the
    // table, and whoever reads a mapping keeps it; what was set before with SA_SIGINFO is a handler of this type.
    unsafe {
        let at = (*info).si_addr() as usize;
        for slot in &TABLE {
            let start = slot.start.load(Ordering::Acquire);
            if start > 1 && at.wrapping_sub(start) < slot.len.load(Ordering::Relaxed) {
                let say = |text: *const u8, len: usize| libc::write(2, text.cast(), len);
                let (before, after) = ("\nerror: ", CUT);
                say(before.as_ptr(), before.len());
                say(slot.name.load(Ordering::Relaxed), slot.name_len.load(Ordering::Relaxed));
                say(after.as_ptr(), after.len());
                libc::_exit(1);
            }
        }
        // Whatever this was means what it meant; a read that failed fails again on return.
        if let Some(before) = BEFORE.get() {
            libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
            let is_function = ![libc::SIG_DFL, libc::SIG_IGN].contains(&before.sa_sigaction);
            if is_function && before.sa_flags & libc::SA_SIGINFO != 0 {
                std::mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
            }
        }
    }
}

const CUT: &str = ": was cut short, or its disk cannot be read, while it was in use: models are mapped and not copied, so \
                   leave their files as they are until the command ends\n";
