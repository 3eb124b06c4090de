//! One request on its way.

use cuckoo_wire::message::{Numerics, SequenceId};

use super::super::report::Seen;
use super::super::workload::Job;

/// Where a request is computed.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) miner: usize,
    pub(super) link: u64,
    pub(super) sequence: SequenceId,
    /// Its name on the board, where there is one.
    pub(super) ticket: Option<u64>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Unborn,
    Open,
    Done,
    TurnedAway,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) stage: Stage,
    pub(super) place: Option<Place>,
    /// Tokens that its developer has.
    pub(super) accepted: u32,
    /// How they were computed, if there are any.
    pub(super) numerics: Option<Numerics>,
    /// Of these, those since it was placed last.
    pub(super) since_placed: u32,
    pub(super) first_us: u64,
    pub(super) last_us: u64,
    stall_us: u64,
    pub(super) moves: u32,
    pub(super) lost_at: Option<u64>,
    pub(super) cost: u64,
}

impl Stream {
    pub(super) fn is_on(&self, miner: usize, link: u64) -> bool {
        self.place.as_ref().is_some_and(|place| place.miner == miner && place.link == link)
    }

    /// One token more, now.
    pub(super) fn accept(&mut self, now_us: u64) {
        match self.accepted {
            0 => self.first_us = now_us,
            _ => self.stall_us = self.stall_us.max(now_us - self.last_us),
        }
        self.accepted += 1;
        self.since_placed += 1;
        self.last_us = now_us;
    }

    pub(super) fn seen(&self, job: &Job) -> Seen {
        let gaps = self.accepted.saturating_sub(1).max(1);
        Seen {
            ttft_ms: (self.first_us.saturating_sub(job.at_us)) as f64 / 1e3,
            itl_ms: (self.last_us - self.first_us) as f64 / 1e3 / f64::from(gaps),
            stall_ms: self.stall_us as f64 / 1e3,
            output: self.accepted,
            cost: self.cost,
        }
    }
}
