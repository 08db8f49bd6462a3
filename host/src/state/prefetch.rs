//! Memory asked for ahead of time.
//!
//! A store's entries are met in the order of a batch's keys, which is none: each look at one waits for
//! memory, unless it was asked for a while before.

/// How many elements ahead of its use memory is asked for: what the processor can wait for at once.
pub(super) const AHEAD: usize = 16;

/// Asks for the memory of an element, if there is one, and does not wait for it.
#[inline]
pub(super) fn prefetch<T>(slice: &[T], index: usize) {
    if let Some(element) = slice.get(index) {
        prefetch_ref(element);
    }
}

/// Asks for memory that a reference points to, and does not wait for it.
#[inline]
pub(super) fn prefetch_ref<T>(element: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) };
    }
    // Other processors look ahead as far as they do by themselves.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = element;
}
