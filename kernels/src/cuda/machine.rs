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

/// A kind of numbers of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// The upper half of a single.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// A row-major matrix of 16-bit numbers, as the tensor memory accelerator is told of it (`CUtensorMap`): two dimensions, columns
/// first; tiles of `box_rows * box_cols`, whose rows of 128 bytes are permuted in pieces of 16 (128-byte swizzle); zeros where
/// a tile leaves the matrix; no interleave; lines of 128 bytes are fetched into the second level of cache.
#[derive(Clone, Copy, Debug)]
pub struct TiledMatrix {
    /// Where it begins: a multiple of 16.
    pub address: u64,
    /// What its numbers are.
    pub kind: Narrow,
    /// Its rows.
    pub rows: u64,
    /// Its columns.
    pub cols: u64,
    /// Bytes from one row to the next: a multiple of 16.
    pub row_bytes: u64,
    /// Rows of a tile, at most 256.
    pub box_rows: u32,
    /// Columns of a tile: 64, which are 128 bytes.
    pub box_cols: u32,
}

impl TiledMatrix {
    /// Whether the accelerator takes it; else what is wrong.
    pub fn check(&self) -> Result<(), OpsError> {
        let dimensions = [self.rows, self.cols].iter().all(|n| (1..=1 << 32).contains(n));
        let places = self.address.is_multiple_of(16) && self.row_bytes.is_multiple_of(16);
        let strides = self.row_bytes >= 2 * self.cols && self.row_bytes < 1 << 40;
        let tiles = (1..=256).contains(&self.box_rows) && self.box_cols == 64;
        match dimensions && places && strides && tiles {
            true => Ok(()),
            false => Err(OpsError::Fault(format!("the tensor memory accelerator cannot load {self:?}"))),
        }
    }
}

/// Runs kernels by name, one after the other.
pub trait Machine {
    /// Its memory.
    type Memory: Piece;
    /// A copy to the host that is on its way.
    type Pending;
    /// Whether memory holds what is written to it; a machine that only counts need not be given anything.
    const HOLDS: bool = true;

    /// As a person would like to read it.
    fn describe(&self) -> String;
    /// Its compute capability, ten times the major number plus the minor one. 90 promises the kernels of `cuda/sm90/`.
    fn architecture(&self) -> u32;
    /// Its multiprocessors: so many blocks run at once, if each fills one.
    fn multiprocessors(&self) -> u32;
    /// What kernels give the tensor memory accelerator for a matrix in this machine's memory (`cuTensorMapEncodeTiled`), if the
    /// architecture has one: 90 and later.
    fn tensor_map(&self, of: &TiledMatrix) -> Result<[u64; 16], OpsError>;
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
    /// Begins to copy the first `bytes` bytes from the machine, when all launches before are done, and waits for nothing.
    ///
    /// # Panics
    /// If there are not so many.
    fn read_ahead(&mut self, from: &Self::Memory, bytes: usize) -> Result<Self::Pending, OpsError>;
    /// Waits for such a copy, which was of `to.len()` bytes.
    fn finish(&mut self, pending: Self::Pending, to: &mut [u8]) -> Result<(), OpsError>;
    /// Waits until everything is done.
    fn wait(&mut self) -> Result<(), OpsError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// `args` is the structure of that kernel (`cuda/args.h`), its addresses lie in memory of this machine that is not dropped
    /// before the launch is done, and its extents are within that memory.
    unsafe fn launch(&mut self, kernel: &'static CStr, extent: Extent, args: &[u8]) -> Result<(), OpsError>;
}
