//! Memory for weights: large mappings of huge pages, cut into slabs. A batch of one is bound by how fast weights are
//! read, and with 4 KiB pages a fifth of that is spent on finding the pages.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::ops::OpsError;

/// What is mapped at a time, if no slab asks for more.
const CHUNK_BYTES: usize = 32 << 20;

/// Every slab begins at a line of the cache.
const ALIGN: usize = 64;

/// How slabs are cut from chunks: the arithmetic, without the memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    /// Bytes of all chunks so far.
    mapped: u64,
    /// Free bytes of the newest.
    left: usize,
}

/// Where the next slab goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// What it takes.
    padded: usize,
    /// The chunk that has to be mapped for it, if one has to be.
    chunk: Option<usize>,
}

impl Layout {
    /// Where `bytes` bytes go; `None` where that is no size.
    pub(super) fn place(&self, bytes: usize) -> Option<Place> {
        let padded = bytes.checked_next_multiple_of(ALIGN)?;
        let is_full = padded > self.left || self.mapped == 0;
        Some(Place { padded, chunk: is_full.then_some(padded.max(CHUNK_BYTES)) })
    }

    /// Puts it there.
    pub(super) fn take(&mut self, place: Place) {
        if let Some(chunk) = place.chunk {
            self.mapped = self.mapped.saturating_add(chunk as u64);
            self.left = chunk;
        }
        self.left -= place.padded;
    }

    /// Bytes of all chunks.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped
    }
}

/// Hands out slabs.
#[derive(Default)]
pub(super) struct Arena {
    layout: Layout,
    chunk: Option<Arc<MmapMut>>,
    /// First free byte of the chunk.
    at: NonNullBytes,
    /// Bytes mapped, as the mappings say.
    mapped: u64,
}

/// Where free bytes begin; dangling while there are none.
struct NonNullBytes(NonNull<u8>);

impl Default for NonNullBytes {
    fn default() -> Self {
        Self(NonNull::dangling())
    }
}

// SAFETY: the bytes it points to are used through `&mut Arena` only, until they belong to a slab.
unsafe impl Send for NonNullBytes {}

/// A slice in an arena, filled once and then only read.
pub(super) struct Slab<T> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the mapping.
    _chunk: Arc<MmapMut>,
}

// SAFETY: a slab is the only one that refers to its bytes, and lends them by the rules of `&` and `&mut` alone.
unsafe impl<T: Send> Send for Slab<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Slab<T> {}

impl Arena {
    /// `len` zeros.
    pub(super) fn zeroed<T: Pod>(&mut self, len: usize, what: &'static str) -> Result<Slab<T>, OpsError> {
        const { assert!(align_of::<T>() <= ALIGN, "slabs are aligned to a line of the cache") };
        let bytes = len.saturating_mul(size_of::<T>());
        let place = self.layout.place(bytes).ok_or(OpsError::OutOfMemory { what, bytes })?;
        if let Some(chunk) = place.chunk {
            self.map(chunk, what)?;
        }
        self.layout.take(place);
        let chunk = self.chunk.clone().expect("the first slab maps a chunk");
        let start = self.at.0.cast();
        // SAFETY: the layout has found room for `padded` bytes in the chunk, so this stays within the mapping or one past
        // its end.
        self.at = NonNullBytes(unsafe { self.at.0.add(place.padded) });
        Ok(Slab { start, len, _chunk: chunk })
    }

    /// Bytes of all mappings so far.
    pub(super) fn mapped(&self) -> u64 {
        self.mapped
    }

    fn map(&mut self, bytes: usize, what: &'static str) -> Result<(), OpsError> {
        let mut chunk = MmapMut::map_anon(bytes).map_err(|_| OpsError::OutOfMemory { what, bytes })?;
        #[cfg(target_os = "linux")]
        {
            // Without huge pages everything works and is slower: nothing to report.
            let _ = chunk.advise(memmap2::Advice::HugePage);
        }
        self.at = NonNullBytes(NonNull::new(chunk.as_mut_ptr()).expect("a mapping is not at null"));
        self.mapped += chunk.len() as u64;
        self.chunk = Some(Arc::new(chunk));
        Ok(())
    }
}

impl<T: Pod> Slab<T> {
    /// To fill it.
    pub(super) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` values of plain data in the mapping that `_chunk` keeps, which no other slab shares (the arena
        // hands out every byte once), borrowed mutably with the slab. All bit patterns of a `Pod` are values.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Deref for Slab<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: as in `as_mut`, borrowed with the slab.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn slabs_are_zeroed_aligned_and_apart() {
        let mut arena = Arena::default();
        let lengths = [1, 63, 64, 65, 1000, CHUNK_BYTES / 8 + 1, 5, 0, CHUNK_BYTES / 16];
        let mut slabs: Vec<Slab<u64>> = lengths.iter().map(|n| arena.zeroed(*n, "a test").unwrap()).collect();
        drop(arena);
        for (i, slab) in slabs.iter_mut().enumerate() {
            assert!(slab.iter().all(|v| *v == 0) && slab.as_ptr().addr().is_multiple_of(ALIGN));
            slab.as_mut().fill(i as u64 + 1);
        }
        for (i, (slab, n)) in slabs.iter().zip(lengths).enumerate() {
            assert!(slab.len() == n && slab.iter().all(|v| *v == i as u64 + 1));
        }
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let refused = Arena::default().zeroed::<u64>(usize::MAX / 4, "a test").err();
        assert!(matches!(refused, Some(OpsError::OutOfMemory { .. })));
        assert!(matches!(Arena::default().zeroed::<u8>(1 << 60, "a test").err(), Some(OpsError::OutOfMemory { .. })));
    }
}
