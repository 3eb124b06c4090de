//! Times: of launches kept as a graph, by the card's clock; of what answers its host, by the host's.

use std::time::{Duration, Instant};

use cuckoo_kernels::Ops;
use cuckoo_kernels::cuda::{Clock, Cuda, Replay};
use cuckoo_kernels::ops::OpsError;

use super::contract::{Checked, check};
use super::op::Op;
use super::work::{Numbers, Work};

/// A backend that is measured.
pub(crate) type Card<M> = Cuda<Replay<M>>;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Bytes of the card's second-level cache.
    pub(crate) l2_bytes: u64,
    /// Samples, where there is time for so many.
    pub(crate) samples: usize,
    /// Time for the samples of a row.
    pub(crate) row: Duration,
}

/// Operands together are this many times what the cache holds.
const CACHES: u64 = 3;
/// Sets of operands: two at least, because a product finds activations rounded that it rounded the last time; and no more than these
/// of what is small.
const SETS_MIN: usize = 2;
const SETS_MAX: usize = 128;
/// Fewer samples have no median.
const SAMPLES_MIN: usize = 3;
/// A sample takes at least this long where operations are short, so that the clock's steps are small beside it.
const SAMPLE: Duration = Duration::from_millis(2);
/// Launches in one graph.
const LAUNCHES_MAX: usize = 1024;

/// Times of one operation, in microseconds, in ascending order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Times {
    pub(crate) us: Vec<f64>,
    /// Operations in each sample.
    pub(crate) each: usize,
    /// Launches that each sample had; none where the host's clock was used.
    pub(crate) launches: usize,
}

impl Times {
    fn new(samples: &[Duration], each: usize, launches: usize) -> Self {
        let mut us: Vec<f64> = samples.iter().map(|s| 1e6 * s.as_secs_f64() / each as f64).collect();
        us.sort_by(f64::total_cmp);
        Self { us, each, launches }
    }

    /// The one in the middle; the lower of two.
    pub(crate) fn median(&self) -> f64 {
        self.us.get(self.us.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }
}

/// A row that was computed, checked and timed.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) checked: Checked,
    /// Whether the output was the same after all runs; `None` where it is not kept.
    pub(crate) stays: Option<bool>,
    pub(crate) times: Times,
    /// Sets of operands that took turns.
    pub(crate) sets: usize,
}

impl Effort {
    /// How many sets of operands are needed so that none is found in the cache when its turn comes.
    pub(crate) fn sets(&self, op: &Op) -> usize {
        match op {
            Op::CopyOut { .. } => 1,
            _ => ((CACHES * self.l2_bytes).div_ceil(op.cost().bytes.max(1)) as usize).clamp(SETS_MIN, SETS_MAX),
        }
    }

    /// Operations in one sample, in whole turns of all sets where that is affordable, and samples.
    fn plan(&self, one: Duration, sets: usize) -> (usize, usize) {
        let one = one.max(Duration::from_nanos(100));
        let wanted = (SAMPLE.as_secs_f64() / one.as_secs_f64()).ceil() as usize;
        let affordable = (self.row.as_secs_f64() / SAMPLES_MIN as f64 / one.as_secs_f64()) as usize;
        let each = wanted.clamp(1, LAUNCHES_MAX).next_multiple_of(sets).min(affordable.max(1));
        let samples = (self.row.as_secs_f64() / (one * each as u32).as_secs_f64()) as usize;
        (each, samples.clamp(SAMPLES_MIN, self.samples))
    }
}

/// Checks the first set, measures all of them in turns, checks the last.
pub(crate) fn measure<M: Clock>(
    cuda: &mut Card<M>,
    (op, allowed): (&Op, f64),
    effort: &Effort,
) -> Result<Measured, OpsError> {
    let (numbers, sets) = (Numbers::new(op), effort.sets(op));
    let mut work = Work::new(cuda, *op, sets, &numbers)?;
    let (mut checked, before) = check(cuda, &mut work, op, (0, &numbers, allowed))?;
    let times = match op.answers() {
        true => answers(cuda, &mut work, effort)?,
        false => launches(cuda, &mut work, effort)?,
    };
    // What is turned in place was turned on.
    let stays = match op {
        Op::RopeStore { .. } | Op::Sample { .. } | Op::CopyOut { .. } => None,
        _ => Some(work.output(cuda, 0)?.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits())),
    };
    drop(before);
    if sets > 1 {
        let (last, _) = check(cuda, &mut work, op, (sets - 1, &numbers, allowed))?;
        checked = match checked.is_right() {
            true => last,
            false => checked,
        };
    }
    drop(work);
    // What was dropped is given back.
    cuda.wait()?;
    Ok(Measured { checked, stays, times, sets })
}

/// As users get it: the host asks, and has the answer.
fn answers<M: Clock>(cuda: &mut Card<M>, work: &mut Work<Card<M>>, effort: &Effort) -> Result<Times, OpsError> {
    let sets = work.sets;
    let mut once = |set: usize| {
        let began = Instant::now();
        work.launch(cuda, set)?;
        cuda.wait()?;
        Ok::<_, OpsError>(began.elapsed())
    };
    let one = once(0)?;
    let samples = ((effort.row.as_secs_f64() / one.as_secs_f64()) as usize).clamp(SAMPLES_MIN, effort.samples);
    let samples: Vec<Duration> = (0..samples).map(|i| once(i % sets)).collect::<Result<_, _>>()?;
    Ok(Times::new(&samples, 1, 0))
}

/// Launches as one graph, by the card's clock.
fn launches<M: Clock>(cuda: &mut Card<M>, work: &mut Work<Card<M>>, effort: &Effort) -> Result<Times, OpsError> {
    // Once each: what is prepared at the first time is prepared, and the lists of the step are where they stay.
    for set in 0..work.sets {
        work.launch(cuda, set)?;
    }
    cuda.wait()?;
    work.launch(cuda, 0)?;
    let first = cuda.machine().time_replays(1)?;
    let one = first.rounds.first().copied().unwrap_or_default();
    let (each, samples) = effort.plan(one, work.sets);
    // So that nothing is left of the first set that its turn would find: each turn does all of its work, in every round.
    work.launch(cuda, work.sets - 1)?;
    cuda.wait()?;
    for i in 0..each {
        work.launch(cuda, i % work.sets)?;
    }
    let replayed = cuda.machine().time_replays(samples)?;
    // An operation that answers or writes in between breaks the sequence, and a part of it would be measured.
    if first.launches == 0 || replayed.launches != each * first.launches {
        return Err(OpsError::Fault(format!(
            "{each} operations of {} launches were kept as {} launches",
            first.launches, replayed.launches
        )));
    }
    Ok(Times::new(&replayed.rounds, each, replayed.launches))
}

/// What a launch takes at least: in a graph, and alone with its host waiting for it.
pub(crate) fn launch_us<M: Clock>(cuda: &mut Card<M>, effort: &Effort) -> Result<(f64, f64), OpsError> {
    let op = Op::Norm { rows: 1, cols: 32 };
    let numbers = Numbers::new(&op);
    let mut work = Work::new(cuda, op, 1, &numbers)?;
    let in_graph = launches(cuda, &mut work, effort)?.median();
    let waited = answers(cuda, &mut work, effort)?.median();
    drop(work);
    cuda.wait()?;
    Ok((in_graph, waited))
}
