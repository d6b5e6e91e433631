//! Panics of code from others, on files that nobody vouches for.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::shown;

/// Runs `work`. A panic of it prints nothing; its message is the error.
///
/// # Errors
/// The message of the panic.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    thread_local! {
        static QUIET: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                usual(info);
            }
        }));
    });
    let was = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(was);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        shown(text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("it panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_its_message() {
        assert_eq!(catch_panic(|| 3), Ok(3));
        assert_eq!(catch_panic(|| -> i32 { panic!("row {}", 7) }), Err("row 7".into()));
        let nested = catch_panic(|| catch_panic(|| -> i32 { panic!("inside") }));
        assert_eq!(nested, Ok(Err("inside".into())));
    }
}
