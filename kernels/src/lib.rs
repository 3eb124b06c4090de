//! Operations on tensors: contracts, an f64 oracle and a CPU backend. This crate never knows a model, a file format's
//! metadata or the network.
//!
//! ```text
//!            Ops  (ops.rs: one trait, one contract per operation)
//!           ╱   ╲
//!   Reference    Cpu ── pool (threads) ── lanes (8 x f32: avx2 | portable)
//!   f64, naive    └─ weights · activations · linear · attention · rows · rope
//!           ╲   ╱
//!      quant.rs (storage formats)   sampling.rs (draws; shared arithmetic)   limits.rs (what the machine can do)
//! ```
//!
//! Every fast path is written once over [`cpu`]'s lanes and must agree with [`Reference`] within rounding, and with
//! itself bit for bit whatever the batch, the chunking, the number of threads or the instruction set.

pub mod cpu;
pub mod limits;
pub mod ops;
pub mod quant;
pub mod reference;
pub mod sampling;

pub use cpu::Cpu;
pub use ops::Ops;
pub use quant::Quant;
pub use reference::Reference;
