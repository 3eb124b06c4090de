//! The virtual clock: what happens next.

use std::collections::BTreeMap;

use cuckoo_wire::message::{Assign, SequenceId};

use super::super::fleet::Frame;

/// Something that happens. Miners and requests are named by their places in the scenario.
#[derive(Debug)]
pub(super) enum Event {
    Arrives { request: usize },
    Leaves { request: usize },
    Assigned { miner: usize, link: u64, request: usize, assign: Box<Assign> },
    Cancelled { miner: usize, link: u64, sequence: SequenceId },
    Landed { miner: usize, link: u64 },
    Heard { miner: usize, link: u64, frame: Box<Frame> },
    Connects { miner: usize, link: u64 },
    Killed { miner: usize, for_us: u64 },
    Frozen { miner: usize, for_us: u64 },
    CutOff { miner: usize, for_us: u64 },
    Missed { miner: usize, link: u64 },
    Restarts { miner: usize },
    SchedulerKilled,
    SchedulerBack,
    Expires,
}

/// Events by time; those of one moment in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Events {
    now_us: u64,
    made: u64,
    coming: BTreeMap<(u64, u64), Event>,
}

impl Events {
    pub(super) fn now(&self) -> u64 {
        self.now_us
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.made += 1;
        self.coming.insert((at_us.max(self.now_us), self.made), event);
    }

    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us + us, event);
    }

    /// The next, unless it is later.
    pub(super) fn next_until(&mut self, until_us: u64) -> Option<Event> {
        self.coming.first_key_value().filter(|((at, _), _)| *at <= until_us)?;
        self.next()
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.coming.pop_first()?;
        self.now_us = at;
        Some(event)
    }
}
