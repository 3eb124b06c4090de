//! Operations on tensors: contracts, an f64 oracle, the contract to the bit, a CPU backend and CUDA kernels. This crate never knows a model, a file format's
//! metadata or the network.
//!
//! ```text
//!            Ops  (ops.rs: one trait, one contract per operation) : Memory  (memory.rs: what a device holds)
//!        ╱    │    ╲    ╲
//! Reference Exact   Cpu   Cuda ── machine: what runs the kernels of cuda/ (driver | emulator)
//! (f64)   (NUMERICS.md) └─ pool (threads) ── lanes (16 x f32: avx512 | avx2 | portable)
//!                       └─ arena · weights · activations · linear · low_rank · attention · rows · rope
//!
//!   quant.rs (storage formats)   sampling.rs (draws; shared arithmetic)   timed.rs (any backend, measured)
//!   kv.rs (formats of keys and values)   limits.rs (what the machine can do)   check.rs (whether it does it right)
//! ```
//!
//! Every fast path is written once over [`cpu`]'s lanes, agrees with [`Reference`] within rounding and with [`Exact`] bit
//! for bit, whatever the batch, the chunking, the number of threads or the instruction set.

pub mod check;
pub mod cpu;
pub mod cuda;
pub mod exact;
pub mod kv;
pub mod limits;
pub mod low_rank;
pub mod memory;
pub mod ops;
pub mod quant;
pub mod reference;
pub mod routing;
pub mod sampling;
pub mod timed;

pub use cpu::Cpu;
pub use exact::Exact;
pub use kv::KvKind;
pub use memory::{Counted, Memory};
pub use ops::Ops;
pub use quant::Quant;
pub use reference::Reference;
pub use timed::Timed;
