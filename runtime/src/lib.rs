//! Everything a miner runs.
//!
//! ```text
//! Miner       loads and unloads what schedulers need: `residency` decides
//! ├─ Link      the connection to a scheduler; lost ▶ made again
//! └─ Device    one a model and device; a fault in either child restarts both
//!     ├─ Batcher    Batch + KvCache, or TextBatch for an encoder: decides each step
//!     └─ Executor   own thread: weights, KV memory, the forward pass
//!
//! scheduler ─Assign▶ Link ▶ Batcher ─StepPlan▶ Executor ▶ forward ▶ kernels
//!           ◀─Step── Link ◀ Batcher ◀──tokens──┘
//! ```
//!
//! Before anything is loaded, `survey` finds the devices and `memory` decides what fits.
//!
//! The cores are pure and most are exported: [`Batch`], [`KvCache`], [`StepBudget`], [`forward`]. The actors are private shells around them.

#![forbid(unsafe_code)]

mod device;
pub mod forward;
mod link;
mod memory;
mod miner;
mod residency;
mod survey;

pub use device::{
    Batch, BatchLimits, BatchStats, BlockHash, Customary, DeviceConfig, DeviceKind, DraftConfig, DraftPlan, Draw,
    Engine, GroupPlan, Guess, GuessedRow, HOLE, KvCache, KvCopy, KvPlan, KvWay, MaskWorkers, PendingMask, Placeholder,
    STEPS_IN_FLIGHT_MAX, Score, SharedMatcher, StepBudget, StepOutput, StepPlan, TextBatch, texts_per_step,
};
pub use link::LinkStatus;
pub use memory::{Available, BatchWish, Described, MemoryError, MemoryPlan, Room, Shortage, Together, plan_on};
pub use miner::{MineConfig, MineError, Miner, ModelConfig, mine};
pub use survey::{DeviceChoice, Devices, Examined, NoDevice, examine};
