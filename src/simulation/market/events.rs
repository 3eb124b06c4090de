//! The virtual clock: what happens next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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
    order: BinaryHeap<Reverse<(u64, u64)>>,
    what: std::collections::HashMap<u64, Event>,
}

impl Events {
    pub(super) fn now(&self) -> u64 {
        self.now_us
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.made += 1;
        self.order.push(Reverse((at_us.max(self.now_us), self.made)));
        self.what.insert(self.made, event);
    }

    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now_us + us, event);
    }

    /// The next, unless it is later.
    pub(super) fn next_until(&mut self, until_us: u64) -> Option<Event> {
        let Reverse((at, _)) = self.order.peek()?;
        if *at <= until_us { self.next() } else { None }
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        let Reverse((at, number)) = self.order.pop()?;
        self.now_us = at;
        self.what.remove(&number)
    }
}
