//! Who looks on: what each tenant waits for and gets, for the report and for pictures. It changes nothing.

use std::collections::BTreeMap;

use super::super::fairness::{Fairness, INPUT_WEIGHT, OUTPUT_WEIGHT, TENANTS_MAX};
use super::super::recording::{OverTime, Recording, TENANTS_RECORDED};
use super::super::report::ServiceGap;
use super::super::workload::Job;

pub(super) struct Watch {
    fairness: Fairness,
    compared: usize,
    requests: Vec<Seen>,
    /// Where pictures are asked for.
    recording: Option<Box<Recording>>,
}

/// What is known of one request.
struct Seen {
    /// Its tenant's place among those that are compared, if it is one of them.
    tenant: Option<usize>,
    is_waiting: bool,
    /// Its prompt was counted: another miner that computes it again does its tenant no second service.
    was_served: bool,
}

impl Watch {
    pub(super) fn new(jobs: &[Job], miners: usize, is_recorded: bool) -> Self {
        let mut asked = BTreeMap::<u64, u64>::new();
        for job in jobs {
            *asked.entry(job.tenant).or_default() += weighted(job.prompt.len() as u64, u64::from(job.output));
        }
        let mut tenants: Vec<u64> = asked.keys().copied().collect();
        // Those that ask for most: they are the ones that can wait at the same time for long.
        tenants.sort_by_key(|tenant| (std::cmp::Reverse(asked[tenant]), *tenant));
        tenants.truncate(TENANTS_MAX);
        let places: BTreeMap<u64, usize> = tenants.iter().copied().zip(0..).collect();
        let seen = |job: &Job| Seen { tenant: places.get(&job.tenant).copied(), is_waiting: false, was_served: false };
        let recording = || {
            let served = tenants.iter().take(TENANTS_RECORDED).map(|tenant| (*tenant, OverTime::default()));
            Box::new(Recording { served: served.collect(), miners, ..Recording::default() })
        };
        Self {
            fairness: Fairness::new(tenants.len()),
            compared: tenants.len(),
            requests: jobs.iter().map(seen).collect(),
            recording: is_recorded.then(recording),
        }
    }

    /// A request waits in a queue, the board's or a miner's.
    pub(super) fn waits(&mut self, now_us: u64, request: usize) {
        let seen = &mut self.requests[request];
        if let Some(tenant) = seen.tenant
            && !std::mem::replace(&mut seen.is_waiting, true)
        {
            self.fairness.waits(now_us, tenant);
        }
    }

    /// It is in no queue: on its way, computed, or over.
    pub(super) fn goes(&mut self, now_us: u64, request: usize) {
        let seen = &mut self.requests[request];
        if let Some(tenant) = seen.tenant
            && std::mem::replace(&mut seen.is_waiting, false)
        {
            self.fairness.goes(now_us, tenant);
        }
    }

    /// It came into a miner's batch, where its prompt is computed.
    pub(super) fn enters(&mut self, now_us: u64, request: usize, input: usize) {
        self.goes(now_us, request);
        if !std::mem::replace(&mut self.requests[request].was_served, true) {
            self.serves(now_us, request, weighted(input as u64, 0));
        }
    }

    /// Tokens of its answer came.
    pub(super) fn delivers(&mut self, now_us: u64, request: usize, output: usize) {
        self.serves(now_us, request, weighted(0, output as u64));
    }

    fn serves(&mut self, now_us: u64, request: usize, tokens: u64) {
        let Some(tenant) = self.requests[request].tenant else { return };
        self.fairness.serves(now_us, tenant, tokens);
        if let Some(recording) = &mut self.recording
            && let Some((_, served)) = recording.served.get_mut(tenant)
        {
            served.add(now_us, tokens);
        }
    }

    /// A miner computes a step.
    pub(super) fn computes(&mut self, now_us: u64, took_us: u64) {
        if let Some(recording) = &mut self.recording {
            recording.busy.span(now_us, now_us + took_us);
        }
    }

    /// What came of it, with the gap's bound, and what was recorded.
    pub(super) fn seen(self, bound: u64) -> (ServiceGap, Option<Box<Recording>>) {
        debug_assert!(self.requests.iter().all(|seen| !seen.is_waiting), "all have ended");
        let (tokens, contended_us) = self.fairness.measured();
        let (contended_s, tenants) = (contended_us as f64 / 1e6, self.compared);
        (ServiceGap { tokens, bound, contended_s, tenants }, self.recording)
    }
}

fn weighted(input: u64, output: u64) -> u64 {
    INPUT_WEIGHT * input + OUTPUT_WEIGHT * output
}
