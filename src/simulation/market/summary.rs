//! What came of a run.

use cuckoo_wire::limits::BLOCK_TOKENS;

use super::super::fairness::bound;
use super::super::fleet::SimMiner;
use super::super::recording::{Distribution, Recording};
use super::super::report::{ClassReport, Report, Seen, ServiceGap, Spread, is_good, jain};
use super::super::workload::Job;
use super::Market;
use super::stream::Stage;

impl Market<'_> {
    pub(super) fn summary(self) -> (Report, Option<Recording>) {
        let mut report = self.report();
        let longest_input = self.scenario.jobs.iter().map(|job| job.prompt.len() as u64).max().unwrap_or(0);
        let blocks: u64 = self.scenario.miners.iter().map(|hardware| u64::from(hardware.blocks())).sum();
        let done: Vec<Seen> = self.done().map(|(_, seen)| seen).collect();
        let (service_gap, recording) = self.watch.seen(bound(longest_input, blocks * BLOCK_TOKENS as u64));
        report.service_gap = service_gap;
        let recording = recording.map(|recording| Recording {
            ttft: Distribution::of(done.iter().map(|seen| seen.ttft_ms)),
            itl: Distribution::of(done.iter().map(|seen| seen.itl_ms)),
            recovery: Distribution::of(self.recoveries.iter().copied()),
            ..*recording
        });
        (report, recording)
    }

    /// Those that were answered to their end, and what they saw.
    fn done(&self) -> impl Iterator<Item = (&Job, Seen)> {
        let requests = self.scenario.jobs.iter().zip(&self.streams);
        requests.filter(|(_, stream)| stream.stage == Stage::Done).map(|(job, stream)| (job, stream.seen(job)))
    }

    fn report(&self) -> Report {
        let scenario = self.scenario;
        let done: Vec<(&Job, Seen)> = self.done().collect();
        let spread = |of: &dyn Fn(&Seen) -> f64| Spread::of(done.iter().map(|(_, seen)| of(seen)).collect());
        let good = done.iter().filter(|(job, seen)| is_good(job, seen)).count();
        let (tokens, cost) = done.iter().fold((0, 0), |(t, c), (_, seen)| (t + u64::from(seen.output), c + seen.cost));
        let seconds = self.streams.iter().map(|stream| stream.last_us).max().unwrap_or(0) as f64 / 1e6;
        let looked_up = self.miners.iter().map(SimMiner::looked_up).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let busy: u64 = self.miners.iter().map(|miner| miner.busy_us).sum();
        Report {
            rule: scenario.rule.name(),
            seed: scenario.seed,
            requests: scenario.jobs.len(),
            finished: done.len(),
            turned_away: scenario.jobs.len() - done.len(),
            good,
            goodput: good as f64 / scenario.jobs.len().max(1) as f64,
            classes: ClassReport::all(
                scenario
                    .jobs
                    .iter()
                    .zip(&self.streams)
                    .map(|(job, stream)| (job, (stream.stage == Stage::Done).then(|| stream.seen(job)))),
            ),
            seconds,
            tokens,
            ttft_ms: spread(&|seen| seen.ttft_ms),
            itl_ms: spread(&|seen| seen.itl_ms),
            stall_ms: spread(&|seen| seen.stall_ms),
            cached: looked_up.1 as f64 / looked_up.0.max(1) as f64,
            cost_per_mtok: cost as f64 * 1e6 / tokens.max(1) as f64,
            busy: busy as f64 / 1e6 / seconds.max(1e-6) / self.miners.len().max(1) as f64,
            income: self.accounts.income(&scenario.miners),
            fairness: jain(&self.served()),
            service_gap: ServiceGap::default(),
            moves: self.streams.iter().map(|stream| u64::from(stream.moves)).sum(),
            recovery_ms: Spread::of(self.recoveries.clone()),
            digest: format!("{:016x}", self.digest),
        }
    }

    /// What each tenant got in time, of what it asked.
    fn served(&self) -> Vec<f64> {
        let mut tenants = std::collections::BTreeMap::<u64, (f64, f64)>::new();
        for (job, stream) in self.scenario.jobs.iter().zip(&self.streams) {
            let (asked, got) = tenants.entry(job.tenant).or_default();
            *asked += 1.0;
            *got += f64::from(u8::from(stream.stage == Stage::Done && is_good(job, &stream.seen(job))));
        }
        tenants.values().map(|(asked, got)| got / asked).collect()
    }
}
