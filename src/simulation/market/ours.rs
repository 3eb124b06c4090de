//! The board of this project, as the dispatcher drives it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cuckoo_scheduler::{Board, Computes, Ended, LinkId, Need, ReplicaKey, Steps, Tenant, Ticket, Whom};
use cuckoo_wire::message::{Price, ReplicaId, Task};

use super::super::fleet::{Frame, SimMiner, WEIGHTS};
use super::super::workload::Job;
use super::stream::{Place, Stream};

const MODEL: Computes = Computes { weights: WEIGHTS, adapter: None };

pub(super) struct Ours {
    board: Board,
    tickets: HashMap<u64, usize>,
    tickets_made: u64,
}

/// What keeps a tenant's blocks apart.
pub(super) fn salt(tenant: u64) -> [u8; 16] {
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&tenant.to_le_bytes());
    salt
}

/// Names of the blocks of what a request knows.
pub(super) fn chain(job: &Job, accepted: u32) -> Arc<[u64]> {
    let known: Vec<u32> = job.prompt.iter().copied().chain((0..accepted).map(|at| job.token(at))).collect();
    Need::chain_of(&MODEL, &salt(job.tenant), &known)
}

fn key(link: u64) -> ReplicaKey {
    ReplicaKey { link: LinkId(link), replica: ReplicaId(1) }
}

impl Ours {
    pub(super) fn new(seed: u64) -> Self {
        Self { board: Board::new(seed), tickets: HashMap::new(), tickets_made: 0 }
    }

    pub(super) fn offer(&mut self, link: u64, miner: &SimMiner) {
        self.board.offer(key(link), miner.offer(), Duration::from_micros(2 * miner.latency_us));
    }

    pub(super) fn lose(&mut self, link: u64) {
        self.board.lose_link(LinkId(link));
    }

    /// False if it is turned away.
    pub(super) fn submit(&mut self, request: usize, job: &Job, stream: &Stream, now: Duration) -> bool {
        let accepted = stream.accepted;
        self.tickets_made += 1;
        let need = Need {
            model: MODEL,
            task: Task::Generate,
            tokens: job.prompt.len() as u32 + accepted,
            max_new: job.max_new - accepted,
            limit: Price { input_per_mtok: u64::MAX, output_per_mtok: u64::MAX },
            tenant: Tenant(job.tenant),
            class: job.class,
            has_begun: accepted > 0,
            chain: chain(job, accepted),
            whom: Whom::Any,
            numerics: stream.numerics,
        };
        let is_in = self.board.submit(Ticket(self.tickets_made), need, now).is_ok();
        if is_in {
            self.tickets.insert(self.tickets_made, request);
        }
        is_in
    }

    /// Which requests go to which connections, and under which tickets.
    pub(super) fn place(&mut self, now: Duration) -> Vec<(usize, u64, u64)> {
        let placed = self.board.place(now);
        placed.into_iter().map(|p| (self.tickets[&p.ticket.0], p.key.link.0, p.ticket.0)).collect()
    }

    pub(super) fn stepped(&mut self, link: u64, frame: &Frame) {
        let steps = Steps {
            steps: u32::from(frame.rows > 0),
            rows: frame.rows,
            took: frame.took,
            blocks_used: frame.blocks_used,
            cached: &frame.cached,
            evicted: &frame.evicted,
        };
        self.board.stepped(key(link), steps);
        self.board.grant(key(link), frame.window);
    }

    pub(super) fn answered(&mut self, place: &Place, now: Duration) {
        if let Some(ticket) = place.ticket {
            self.board.answered(key(place.link), Ticket(ticket), now);
        }
    }

    pub(super) fn ended(&mut self, place: &Place, output: u32, is_lost: bool, now: Duration) {
        if let Some(ticket) = place.ticket {
            self.tickets.remove(&ticket);
            self.board.ended(key(place.link), Ticket(ticket), Ended { output, is_lost }, now);
        }
    }

    /// A request waits no longer.
    pub(super) fn withdraw(&mut self, request: usize) {
        let Some(ticket) = self.tickets.iter().find(|(_, waits)| **waits == request).map(|(ticket, _)| *ticket) else {
            return;
        };
        self.tickets.remove(&ticket);
        self.board.withdraw(Ticket(ticket));
    }

    /// Requests that waited for too long.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<usize> {
        let late = self.board.expire(now);
        late.into_iter().filter_map(|(ticket, _)| self.tickets.remove(&ticket.0)).collect()
    }

    /// Whether nothing is left of what has ended.
    pub(super) fn check_idle(&self) -> Result<(), String> {
        if self.board.waiting() > 0 || !self.tickets.is_empty() {
            return Err(format!("{} requests are left on the board", self.board.waiting()));
        }
        match self.board.replicas().find(|replica| replica.sequences_in_use() > 0) {
            Some(replica) => Err(format!("{} sequences of a replica never came back", replica.sequences_in_use())),
            None => Ok(()),
        }
    }
}
