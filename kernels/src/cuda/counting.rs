//! A machine that only counts what is taken of its memory: so the code that loads a model tells what that takes on a GPU.

use std::ffi::CStr;

use super::attention::StepLists;
use super::machine::{Extent, Machine, Piece, TiledMatrix};
use super::rounding::Rounding;
use super::sampling::Ahead;
use super::{Cuda, Profile};
use crate::memory::Counted;
use crate::ops::OpsError;

/// What a GPU's driver rounds pieces up to.
const GRANULE: u64 = 512;

/// Holds nothing, runs nothing.
#[derive(Clone, Debug, Default)]
pub struct Counting {
    bytes: u64,
    host_bytes: u64,
}

/// A piece that is only counted.
#[derive(Clone, Debug)]
pub struct CountedPiece {
    bytes: usize,
}

impl Piece for CountedPiece {
    fn address(&self) -> u64 {
        0
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What a piece of so many bytes takes.
pub(super) fn rounded(bytes: usize) -> u64 {
    (bytes as u64).max(1).next_multiple_of(GRANULE)
}

impl Machine for Counting {
    type Memory = CountedPiece;
    type Pending = ();
    const HOLDS: bool = false;

    fn describe(&self) -> String {
        "counting".to_owned()
    }

    fn architecture(&self) -> u32 {
        80
    }

    fn multiprocessors(&self) -> u32 {
        1
    }

    fn tensor_map(&self, of: &TiledMatrix) -> Result<[u64; 16], OpsError> {
        of.check().map(|()| [0; 16])
    }

    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<CountedPiece, OpsError> {
        let all = (bytes < usize::MAX).then(|| self.bytes.checked_add(rounded(bytes))).flatten();
        self.bytes = all.ok_or(OpsError::OutOfMemory { what, bytes })?;
        Ok(CountedPiece { bytes })
    }

    fn release(&mut self, memory: CountedPiece) {
        self.bytes -= rounded(memory.bytes);
    }

    fn took_of_host(&mut self, bytes: usize) {
        self.host_bytes = self.host_bytes.saturating_add(bytes as u64);
    }

    fn write(&mut self, _: &mut CountedPiece, _: usize, _: &[u8]) -> Result<(), OpsError> {
        Ok(())
    }

    fn zero(&mut self, _: &mut CountedPiece, _: usize) -> Result<(), OpsError> {
        Ok(())
    }

    fn read(&mut self, _: &CountedPiece, _: usize, to: &mut [u8]) -> Result<(), OpsError> {
        to.fill(0);
        Ok(())
    }

    fn read_ahead(&mut self, _: &CountedPiece, _: usize) -> Result<(), OpsError> {
        Ok(())
    }

    fn finish(&mut self, (): (), to: &mut [u8]) -> Result<(), OpsError> {
        to.fill(0);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), OpsError> {
        Ok(())
    }

    unsafe fn launch(&mut self, _: &'static CStr, _: Extent, _: &[u8]) -> Result<(), OpsError> {
        Ok(())
    }
}

/// Counts what a [`Cuda`] of which the same is asked takes of its GPU. The data of matrices is not looked at and may be empty.
pub type Sizes = Cuda<Counting>;

impl Sizes {
    /// Of a backend that computes what `profile` says.
    pub fn of(profile: Profile) -> Self {
        Self::with_profile(Counting::default(), profile)
    }
}

impl Clone for Sizes {
    fn clone(&self) -> Self {
        Self {
            machine: self.machine.clone(),
            profile: self.profile,
            scratch: self.scratch.clone(),
            steps: StepLists::default(),
            needs: self.needs,
            bounds: self.bounds,
            ahead: Ahead::default(),
            rounding: Rounding::default(),
            buffers: self.buffers,
        }
    }
}

impl Counted for Sizes {
    fn bytes(&self) -> u64 {
        self.machine.bytes
    }

    fn host_bytes(&self) -> u64 {
        self.machine.host_bytes
    }
}
