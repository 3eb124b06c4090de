//! What a rival's rule sees, kept exact.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::chance::Chance;
use super::super::fleet::{Frame, Hardware};
use super::super::rival::{Rival, Rule, View};
use super::super::workload::Job;
use super::ours::chain;

/// How much one request counts in the means that a rule sees.
const MEAN_SHARE: f64 = 0.1;

pub(super) struct Rivals {
    rule: Rule,
    rival: Rival,
    views: Vec<View>,
    /// Sequences that each miner runs at once.
    sequences: Vec<u32>,
    /// What each request that is placed has to compute of its prompt.
    uncached: HashMap<usize, u64>,
    /// Who waits for a miner that asks, or for any miner at all.
    waiting: VecDeque<(usize, u32, u64, Arc<[u64]>)>,
}

impl Rivals {
    pub(super) fn new(rule: Rule, miners: &[Hardware], chance: Chance) -> Self {
        let views = miners.iter().map(|hardware| View {
            blocks: (0, u64::from(hardware.blocks())),
            capability: hardware.tokens_per_second(),
            price: hardware.price(),
            ..View::default()
        });
        Self {
            rule,
            rival: Rival::new(rule, chance),
            views: views.collect(),
            sequences: miners.iter().map(Hardware::sequences).collect(),
            uncached: HashMap::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn joins(&mut self, miner: usize) {
        self.views[miner].is_up = true;
    }

    pub(super) fn leaves(&mut self, miner: usize) {
        let View { capability, price, blocks, .. } = self.views[miner];
        self.views[miner] = View { capability, price, blocks: (0, blocks.1), ..View::default() };
    }

    /// The scheduler was killed.
    pub(super) fn forget(&mut self) {
        (0..self.views.len()).for_each(|miner| self.leaves(miner));
        self.waiting.clear();
        self.uncached.clear();
    }

    /// Where a request goes; `None` where it waits here.
    pub(super) fn choose(&mut self, request: usize, job: &Job, accepted: u32) -> Option<usize> {
        let (tokens, chain) = (job.prompt.len() as u32 + accepted, chain(job, accepted));
        let miner = self.rival.choose(&self.views, job.tenant, tokens, &chain);
        match miner {
            Some(miner) => self.sent(request, miner, tokens, &chain),
            None => self.waiting.push_back((request, tokens, job.tenant, chain)),
        }
        miner
    }

    /// Those that waited and go now.
    pub(super) fn polled(&mut self, links: &[Option<u64>]) -> Vec<(usize, usize)> {
        let mut going = Vec::new();
        while let Some((request, tokens, tenant, chain)) = self.waiting.pop_front() {
            let has_room = |at: &usize| links[*at].is_some() && self.views[*at].in_flight < self.sequences[*at];
            let miner = match self.rule {
                // Whoever has most room has asked most often.
                Rule::Horde => {
                    (0..links.len()).filter(has_room).max_by_key(|at| self.sequences[*at] - self.views[*at].in_flight)
                }
                _ => self.rival.choose(&self.views, tenant, tokens, &chain),
            };
            let Some(miner) = miner else {
                self.waiting.push_front((request, tokens, tenant, chain));
                break;
            };
            self.sent(request, miner, tokens, &chain);
            going.push((request, miner));
        }
        going
    }

    /// A request waits no longer.
    pub(super) fn withdraw(&mut self, request: usize) {
        self.waiting.retain(|(waits, ..)| *waits != request);
    }

    fn sent(&mut self, request: usize, miner: usize, tokens: u32, chain: &[u64]) {
        let view = &mut self.views[miner];
        let cached = view.hit(chain) as u64 * 16;
        let uncached = u64::from(tokens).saturating_sub(cached);
        view.in_flight += 1;
        view.queued += 1;
        view.prefilling += uncached;
        self.uncached.insert(request, uncached);
    }

    pub(super) fn stepped(&mut self, miner: usize, frame: &Frame) {
        let view = &mut self.views[miner];
        view.blocks.0 = frame.blocks_used;
        frame.evicted.iter().for_each(|name| _ = view.cached.remove(name));
        view.cached.extend(&frame.cached);
        if frame.rows > 0 {
            view.itl_ms += MEAN_SHARE * (frame.took.as_secs_f64() * 1e3 - view.itl_ms);
        }
    }

    pub(super) fn answered(&mut self, request: usize, miner: usize, ttft_ms: f64) {
        let view = &mut self.views[miner];
        if let Some(uncached) = self.uncached.remove(&request) {
            view.queued = view.queued.saturating_sub(1);
            view.prefilling = view.prefilling.saturating_sub(uncached);
        }
        view.ttft_ms += MEAN_SHARE * (ttft_ms - view.ttft_ms);
    }

    pub(super) fn ended(&mut self, request: usize, miner: usize) {
        self.uncached.remove(&request);
        let view = &mut self.views[miner];
        view.in_flight = view.in_flight.saturating_sub(1);
    }
}
