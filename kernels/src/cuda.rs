//! The CUDA backend: the operations of [`crate::ops`] as launches of the kernels in `cuda/`, over a [`Machine`] that runs them. It
//! computes the contract, bit for bit, so whatever runs its kernels can be checked against [`crate::Cpu`]; unless it is asked for
//! [`Profile::Fast`].
//!
//! Never decides anything about sequences or models; its launches are those of one step in order.

#[allow(
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    missing_docs,
    clippy::all,
    reason = "made by bindgen from cuda/args.h, whose comments it has"
)]
mod args;
mod attention;
mod counting;
mod data_sheet;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
mod float_products;
mod gpu;
mod kv_cache;
mod launches;
mod low_rank;
mod machine;
mod matrix;
mod operations;
mod products;
mod replay;
mod rounding;
mod routing;
mod sampling;
mod scratch;
#[cfg(test)]
mod tests;

use self::attention::StepLists;
pub use self::counting::Sizes;
pub use self::data_sheet::DataSheet;
#[cfg(feature = "cuda")]
pub use self::driver::Driver;
#[cfg(feature = "emulator")]
pub use self::emulator::Emulator;
pub use self::float_products::Profile;
pub use self::gpu::{Copies, Gpu, NoGpu, free_bytes, gpus};
pub use self::kv_cache::{HostKv, KvCache};
pub use self::launches::Launches;
pub use self::low_rank::LowRank;
pub use self::machine::{Machine, Narrow, Piece, TiledMatrix};
pub use self::matrix::Matrix;
pub use self::replay::{Capture, Clock, Replay, Replayed};
use self::rounding::Rounding;
use self::sampling::Ahead;
pub(crate) use self::scratch::Bounds;
use self::scratch::{Needs, Scratch};

/// Kernels on a machine.
pub struct Cuda<M: Machine> {
    machine: M,
    profile: Profile,
    scratch: Scratch<M>,
    steps: StepLists<M>,
    needs: Needs,
    bounds: Bounds,
    ahead: Ahead<M>,
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
    /// On `machine`, computing the contract.
    pub fn new(machine: M) -> Self {
        Self::with_profile(machine, Profile::Exact)
    }

    /// On `machine`, computing what `profile` says.
    pub fn with_profile(machine: M, profile: Profile) -> Self {
        Self {
            machine,
            profile,
            scratch: Scratch::default(),
            steps: StepLists::default(),
            needs: Needs::default(),
            bounds: Bounds::default(),
            ahead: Ahead::default(),
            rounding: Rounding::default(),
            buffers: 0,
        }
    }

    /// With other bounds.
    #[cfg(test)]
    pub(crate) fn bounded(self, bounds: Bounds) -> Self {
        Self { bounds, ..self }
    }

    /// The machine, without anything that was taken of its memory.
    pub fn into_machine(self) -> M {
        self.machine
    }

    /// What runs the kernels.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }
}
