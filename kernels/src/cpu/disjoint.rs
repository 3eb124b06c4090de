//! One slice written by many chunks of a job at once, each its own ranges. Never decides who owns which range.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that hands out parts of itself.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: sharing it only allows to make `&mut` to elements on other threads, which `T: Send` permits; that those do not
// overlap is the contract of `range`.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Over the whole slice, borrowed for as long as parts may be in use.
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// One part. Panics if it is not within the slice.
    ///
    /// # Safety
    /// No part that overlaps this one is in use at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is the purpose; the safety contract excludes aliases")]
    pub(super) unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a part lies outside its slice");
        // SAFETY: within the slice by the assertion, borrowed mutably for `'a`, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
