//! What runs kernels: memory of its own, and launches that happen in order. A GPU through its driver, or the emulator.

use std::ffi::CStr;

use crate::ops::OpsError;

/// A piece of a machine's memory, given back when it is dropped.
pub trait Piece {
    /// Where it begins, on the machine.
    fn address(&self) -> u64;
    /// How long it is.
    fn bytes(&self) -> usize;
}

/// The extent of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Blocks of threads.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes that the threads of a block share.
    pub shared_bytes: u32,
}

/// Runs kernels by name, one after the other.
pub trait Machine {
    /// Its memory.
    type Memory: Piece;
    /// Whether memory holds what is written to it; a machine that only counts need not be given anything.
    const HOLDS: bool = true;

    /// As a person would like to read it.
    fn describe(&self) -> String;
    /// Zeros. Addresses are multiples of 256.
    fn allocate(&mut self, bytes: usize, what: &'static str) -> Result<Self::Memory, OpsError>;
    /// Gives memory back.
    fn release(&mut self, memory: Self::Memory) {
        drop(memory);
    }
    /// Is told of memory of the host that was taken.
    fn took_of_host(&mut self, _bytes: usize) {}
    /// Copies to the machine, from byte `at` on.
    ///
    /// # Panics
    /// If it does not fit.
    fn write(&mut self, to: &mut Self::Memory, at: usize, bytes: &[u8]) -> Result<(), OpsError>;
    /// Sets the first `bytes` bytes to zero.
    ///
    /// # Panics
    /// If there are not so many.
    fn zero(&mut self, of: &mut Self::Memory, bytes: usize) -> Result<(), OpsError>;
    /// Copies from the machine, from byte `at` on, when all launches before are done.
    ///
    /// # Panics
    /// If there is not so much.
    fn read(&mut self, from: &Self::Memory, at: usize, to: &mut [u8]) -> Result<(), OpsError>;
    /// Waits until everything is done.
    fn wait(&mut self) -> Result<(), OpsError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// `args` is the structure of that kernel (`cuda/args.h`), its addresses lie in memory of this machine that is not dropped
    /// before the launch is done, and its extents are within that memory.
    unsafe fn launch(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) -> Result<(), OpsError>;
}
