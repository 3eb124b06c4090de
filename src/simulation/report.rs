//! What came of a simulation.

use cuckoo_scheduler::{Objective, objective};
use serde::Serialize;

use super::workload::Job;

/// What one request saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The first token, in milliseconds after the request.
    pub(super) ttft_ms: f64,
    /// Between tokens, on the average.
    pub(super) itl_ms: f64,
    /// The longest pause between two.
    pub(super) stall_ms: f64,
    /// Tokens.
    pub(super) output: u32,
    /// What it cost, in nano-credits.
    pub(super) cost: u64,
}

/// The middle and the ends of many numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The middle.
    pub p50: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 99 % are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    pub(super) fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let Some(last) = numbers.len().checked_sub(1) else { return Self::default() };
        let at = |share: f64| numbers[(last as f64 * share).round() as usize];
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: numbers[last] }
    }
}

/// Everything about one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Who placed.
    pub rule: &'static str,
    /// Where chance began.
    pub seed: u64,
    /// Requests in all.
    pub requests: usize,
    /// Those that were answered to their end.
    pub finished: usize,
    /// Those that were turned away, or waited for too long.
    pub turned_away: usize,
    /// Those that gave their first token and their tokens in time: both as their class aims at.
    pub good: usize,
    /// The share of all that were good.
    pub goodput: f64,
    /// The same by class: how many there were, how many were good, and of the others how many had their first token late and
    /// how many the rest too slowly.
    pub classes: Vec<ClassReport>,
    /// Seconds until the last ended.
    pub seconds: f64,
    /// Tokens of output that were asked for to the end.
    pub tokens: u64,
    /// Time to the first token.
    pub ttft_ms: Spread,
    /// Time between tokens, the mean of each request.
    pub itl_ms: Spread,
    /// The longest pause between two tokens of each request.
    pub stall_ms: Spread,
    /// Of the tokens of prompts, those that were in a cache.
    pub cached: f64,
    /// Nano-credits for a million tokens of output, all in all.
    pub cost_per_mtok: f64,
    /// The share of time that miners computed.
    pub busy: f64,
    /// The share of income that each kind of hardware got.
    pub income: Vec<(&'static str, f64)>,
    /// Jain's index of what tenants got of what they asked: 1 where all got the same share.
    pub fairness: f64,
    /// How far apart tenants got while they waited.
    pub service_gap: ServiceGap,
    /// How often requests moved because a miner was lost.
    pub moves: u64,
    /// From the loss of a miner to the next token of each of its requests.
    pub recovery_ms: Spread,
    /// A hash over all that was answered, and when.
    pub digest: String,
}

/// How far apart tenants got that waited at the same time, in weighted tokens: one for a token of a prompt, two for one of an
/// answer, counted when the prompt comes into a batch and when the answer comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ServiceGap {
    /// The largest difference between two, in any interval in which both had requests waiting all the time.
    pub tokens: u64,
    /// What it is at most with a virtual token counter on one server that had all KV memory of the fleet (Sheng et al. 2024).
    pub bound: u64,
    /// Seconds in which two or more had requests waiting.
    pub contended_s: f64,
    /// Tenants that were compared: those that ask for most, where there are too many.
    pub tenants: usize,
}

/// What became of the requests of one class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClassReport {
    /// Its name.
    pub class: &'static str,
    /// Requests in all.
    pub requests: usize,
    /// Those that were good.
    pub good: usize,
    /// Those whose first token was late.
    pub late: usize,
    /// Those whose first token was in time, and the rest too slow.
    pub slow: usize,
}

impl ClassReport {
    /// Of all classes that there are requests of.
    pub(super) fn all<'a>(requests: impl Iterator<Item = (&'a Job, Option<Seen>)>) -> Vec<Self> {
        let mut classes =
            vec![("interactive", Self::default()), ("standard", Self::default()), ("batch", Self::default())];
        for (job, seen) in requests {
            let class = &mut classes[job.class as usize].1;
            class.requests += 1;
            let Some(seen) = seen else { continue };
            let is_late = seen.ttft_ms > objective(job.class).ttft_ms;
            class.late += usize::from(is_late);
            class.good += usize::from(is_good(job, &seen));
            class.slow += usize::from(!is_late && !is_good(job, &seen));
        }
        let named = classes.into_iter().map(|(class, report)| Self { class, ..report });
        named.filter(|report| report.requests > 0).collect()
    }
}

/// Jain, Chiu and Hawe 1984.
pub(super) fn jain(shares: &[f64]) -> f64 {
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    if squares > 0.0 { sum * sum / (shares.len() as f64 * squares) } else { 1.0 }
}

/// Whether a request got what its class aims at.
pub(super) fn is_good(job: &Job, seen: &Seen) -> bool {
    let Objective { ttft_ms, itl_ms, .. } = objective(job.class);
    seen.ttft_ms <= ttft_ms && seen.itl_ms <= itl_ms
}
