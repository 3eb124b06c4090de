//! Everything the market runs.
//!
//! ```text
//! Scheduler      an owner of shared truth that fails stops the whole
//! ├─ Gateway     the doors; leaves fail alone
//! │   ├─ Developer × developers' connections   (QUIC here, HTTP beside it: both run Market::serve)
//! │   └─ Miner × miners' connections
//! ├─ Dispatcher  Board: which waiting request goes to which replica
//! ├─ Ledger      books: who paid whom, on disk
//! └─ Catalog     the models that can be asked for
//!
//! developer ─▶ Gateway ─▶ serve(): tokens ▶ hold ▶ Dispatcher ─▶ miner's link ─▶ miner
//!           ◀─ text ◀──── serve() ◀──────────── step frames ◀────────────────────┘
//! ```
//!
//! The cores are pure and exported: [`Board`], and the books in [`ledger`]. The actors are private shells around them.

#![forbid(unsafe_code)]

mod adopt;
mod catalog;
mod constraint;
mod dispatcher;
mod embed;
mod gateway;
mod hold;
pub mod journal;
pub mod ledger;
mod market;
mod metrics;
mod prompt;
mod root;
mod serve;
mod spell;
mod text;
mod tools;
mod words;

pub use dispatcher::{
    BlockName, Board, Charge, Computes, Considered, DeviceKey, Ended, LinkId, Need, Objective, Placement, Quote,
    Reasons, Replica, ReplicaKey, Residency, Steps, Tenant, Ticket, Turned, WAITING_MAX, Whom, mixed, objective,
};
pub use root::{ScheduleConfig, ScheduleError, Scheduler, schedule};
