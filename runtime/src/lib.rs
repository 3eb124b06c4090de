//! Everything a miner runs.
//!
//! ```text
//! Miner
//! ├─ Link      the connection to the scheduler; lost ▶ made again
//! └─ Device    one a model and device; a fault in either child restarts both
//!     ├─ Batcher    Batch + KvCache, or TextBatch for an encoder: decides each step
//!     └─ Executor   own thread: weights, KV memory, the forward pass
//!
//! scheduler ─Assign▶ Link ▶ Batcher ─StepPlan▶ Executor ▶ forward ▶ kernels
//!           ◀─Step── Link ◀ Batcher ◀──tokens──┘
//! ```
//!
//! Before anything is loaded, `memory` decides what fits.
//!
//! The cores are pure and exported: [`Batch`], [`KvCache`], [`StepBudget`], [`forward`]. The actors are private shells around them.

#![forbid(unsafe_code)]

mod device;
pub mod forward;
mod link;
mod memory;
mod miner;

pub use device::{
    Batch, BatchLimits, BatchStats, BlockHash, DeviceConfig, DeviceKind, DraftConfig, DraftPlan, Draw, Engine,
    GroupPlan, Guess, GuessedRow, HOLE, KvCache, KvCopy, KvPlan, KvWay, MaskWorkers, PendingMask, Placeholder,
    STEPS_IN_FLIGHT_MAX, Score, SharedMatcher, StepBudget, StepOutput, StepPlan, TextBatch, texts_per_step,
};
pub use link::LinkStatus;
pub use memory::{Available, BatchWish, MemoryError, MemoryPlan, Shortage, plan_on_cpu};
pub use miner::{MineConfig, MineError, Miner, ModelConfig, mine};
