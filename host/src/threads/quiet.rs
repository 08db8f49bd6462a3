//! Panics of libraries that are answers: sled's at bytes that it does not expect, Arrow's at types that it
//! does not know. Nobody but the caller needs to see them, least of all the host's log, where a client
//! could have one written with each request.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread becomes an answer.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`; a panic in it is returned, and told to nobody else. What `work` leaves half done must not
/// be used after one.
///
/// # Errors
/// What the panic carries.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                hook(panic);
            }
        }));
    });
    let before = IS_QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_QUIET.set(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer_and_quiet_ends_with_it() {
        let outer = quietly(|| {
            let inner = quietly(|| panic!("inside"));
            assert_eq!(inner.unwrap_err().downcast_ref(), Some(&"inside"));
            assert!(IS_QUIET.get());
            7
        });
        assert_eq!(outer.unwrap(), 7);
        assert!(!IS_QUIET.get());
    }
}
