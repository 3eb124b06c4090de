//! The CUDA backend: the operations of [`crate::ops`] as launches of the kernels in `cuda/`, over a [`Machine`] that runs them. It
//! computes the contract, bit for bit, so whatever runs its kernels can be checked against [`crate::Cpu`].
//!
//! Never decides anything about sequences or models; its launches are those of one step in order.

#[allow(
    non_camel_case_types,
    unreachable_pub,
    missing_docs,
    clippy::all,
    reason = "made by bindgen from cuda/args.h, whose comments it has"
)]
mod args;
mod attention;
#[cfg(feature = "emulator")]
mod emulator;
mod kv_cache;
mod low_rank;
mod machine;
mod matrix;
mod operations;
mod products;
mod rounding;
mod scratch;
#[cfg(test)]
mod tests;

#[cfg(feature = "emulator")]
pub use self::emulator::Emulator;
pub use self::kv_cache::{HostKv, KvCache};
pub use self::low_rank::LowRank;
pub use self::machine::{Machine, Piece};
pub use self::matrix::Matrix;
use self::rounding::Rounding;
pub(crate) use self::scratch::Bounds;
use self::scratch::Scratch;

/// Kernels on a machine.
pub struct Cuda<M: Machine> {
    machine: M,
    scratch: Scratch<M>,
    bounds: Bounds,
    rounding: Rounding,
    buffers: u64,
}

/// Values in `f32`.
pub struct Vector<M: Machine> {
    memory: M::Memory,
    len: usize,
}

/// Activations: `[row][col]` of `f32`.
pub struct Buffer<M: Machine> {
    memory: M::Memory,
    capacity: usize,
    rows: usize,
    cols: usize,
    /// Its number, and how often it has been written to: what is in it, by name.
    contents: (u64, u64),
    /// The operation that wrote it last, if that is one that can leave it rounded as well.
    maker: Option<u64>,
}

/// Cosines and sines: `[position][pair][2]` of `f32`.
pub struct RopeTable<M: Machine> {
    memory: M::Memory,
    pairs: usize,
    positions: usize,
    halves: bool,
}

impl<M: Machine> Cuda<M> {
    /// On `machine`.
    pub fn new(machine: M) -> Self {
        Self {
            machine,
            scratch: Scratch::default(),
            bounds: Bounds::default(),
            rounding: Rounding::default(),
            buffers: 0,
        }
    }

    /// With other bounds.
    #[cfg(test)]
    pub(crate) fn bounded(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }
}
