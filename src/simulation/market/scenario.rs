//! What a run is made of, and why one ends too early.

use super::super::fleet::Hardware;
use super::super::rival::Rule;
use super::super::workload::Job;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Who places.
    pub rule: Rule,
    /// The fleet.
    pub miners: Vec<Hardware>,
    /// In how many ways miners compute, each in the next one's turn; 1 where what one began any other goes on with.
    pub numerics: u16,
    /// What is asked.
    pub jobs: Vec<Job>,
    /// What breaks.
    pub faults: Faults,
}

/// Faults of the whole market in a minute, on the average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// A miner's process is killed, and is started again after some seconds.
    pub kills: f64,
    /// A miner stops for 50 ms to 10 s.
    pub freezes: f64,
    /// A miner cannot be reached for 50 ms to 10 s.
    pub partitions: f64,
    /// The scheduler's process is killed.
    pub scheduler_kills: f64,
    /// The share of developers who leave before their answer is whole.
    pub departures: f64,
}

/// Something that must never be, and was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, at {at_us} µs: {what}")]
pub struct Violation {
    /// Where it is found again.
    pub seed: u64,
    /// When, by the virtual clock.
    pub at_us: u64,
    /// What.
    pub what: String,
}
