//! Launches as data: what is to run, in order, so that it can be kept, compared and run again.

use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::machine::{Extent, Machine};
use crate::ops::OpsError;

/// Kernels in order, each with its arguments.
#[derive(Clone, Default, PartialEq)]
pub struct Launches {
    list: Vec<Launch>,
    args: Vec<Unit>,
}

#[derive(Clone, PartialEq)]
struct Launch {
    kernel: &'static CStr,
    extent: Extent,
    /// Where its arguments begin, in units.
    begin: usize,
    /// Bytes of them.
    bytes: usize,
}

/// The strictest alignment that a structure of arguments has: a tensor map's.
#[derive(Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Unit([u8; 64]);

impl Launches {
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One more, after all others.
    pub(super) fn push(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) {
        let (begin, bytes) = (self.args.len(), args.len());
        self.args.resize(begin + bytes.div_ceil(size_of::<Unit>()), Unit([0; 64]));
        bytemuck::cast_slice_mut(&mut self.args[begin..])[..bytes].copy_from_slice(args);
        self.list.push(Launch { kernel, extent, begin, bytes });
    }

    /// Forgets them, and keeps the memory for the next.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.args.clear();
    }

    /// Equal for equal ones.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for launch in &self.list {
            (launch.kernel, launch.extent).hash(&mut hasher);
        }
        hasher.write(bytemuck::cast_slice(&self.args));
        hasher.finish()
    }

    /// Runs them in order.
    ///
    /// # Safety
    /// As [`Machine::launch`] of each.
    pub unsafe fn run<M: Machine>(&self, machine: &mut M) -> Result<(), OpsError> {
        self.list.iter().try_for_each(|launch| {
            let args = &bytemuck::cast_slice(&self.args[launch.begin..])[..launch.bytes];
            // SAFETY: the caller's promise.
            unsafe { machine.launch(launch.kernel, launch.extent, args) }
        })
    }
}
