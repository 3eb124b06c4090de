//! The market on a virtual clock: the same [`Board`](cuckoo_scheduler::Board), [`Batch`](cuckoo_runtime::Batch) with its KV
//! cache, and [`Books`](cuckoo_scheduler::ledger::Books) as in production, with miners whose steps only take time, networks
//! that only delay, and faults from a seed. The same seed gives the same bytes.
//!
//! ```text
//! workload ─▶ market: Board, or a rival's rule ─ latency ▶ fleet: Batch ▶ a step's time
//!                 ▲ tokens, windows, block news ◀─ latency ─┘
//!                 └ what must always hold is checked on the way; report and pictures at the end
//! ```

mod chance;
mod fairness;
mod fleet;
mod market;
mod plots;
mod recording;
mod report;
mod rival;
mod workload;

pub use chance::Chance;
pub use fleet::{HARDWARE, Hardware};
pub use market::{Faults, Scenario, Violation, record, run};
pub use plots::{DrawError, Pictures};
pub use recording::Recording;
pub use report::{ClassReport, Report, ServiceGap, Spread};
pub use rival::Rule;
pub use workload::{Job, TraceError, Workload, read_trace, write_trace};
