//! Which tokens of a distribution stay in the running: top-k, typical-p, top-p, min-p, XTC. Each takes what the one before
//! left, and leaves somebody.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::nucleus::{Scale, nucleus, share};
use super::{Candidate, Noise, SamplingParams};

/// What they all leave; `None` if none of them is in force.
pub(super) fn survivors(
    logits: &[f32],
    mut most: Candidate,
    p: &SamplingParams,
    noise: Noise,
) -> Option<Vec<Candidate>> {
    let temperature = f64::from(p.temperature);
    let k = p.top_k as usize;
    let mut kept = (k > 0 && k < logits.len()).then(|| top(logits, k));
    if p.typical_p < 1.0 {
        let typical = typical(in_order(kept, logits), most.logit, temperature, p.typical_p);
        // The most probable token may well be untypical.
        most = typical.iter().copied().min_by(Candidate::order).unwrap_or(most);
        kept = Some(typical);
    }
    if p.top_p < 1.0 {
        kept = Some(match kept {
            Some(mut kept) => {
                kept.sort_unstable_by_key(|c| c.id);
                let logits: Vec<f32> = kept.iter().map(|c| c.logit).collect();
                nucleus(&logits, Scale::new(most.logit, temperature), p.top_p).into_iter().map(|i| kept[i]).collect()
            }
            None => {
                let chosen = nucleus(logits, Scale::new(most.logit, temperature), p.top_p).into_iter();
                chosen.map(|i| Candidate { logit: logits[i], id: i as u32 }).collect()
            }
        });
    }
    if p.min_p > 0.0 {
        kept = Some(probable(kept, logits, most, p));
    }
    if noise.excludes(p) {
        kept = Some(without_top_choices(in_order(kept, logits), Scale::new(most.logit, temperature), p.xtc_threshold));
    }
    kept
}

fn all(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits.iter().enumerate().map(|(id, &logit)| Candidate { logit, id: id as u32 })
}

/// What is left, or all that are not forbidden, in order of ids: sums over them have one order.
fn in_order(kept: Option<Vec<Candidate>>, logits: &[f32]) -> Vec<Candidate> {
    let mut kept = kept.unwrap_or_else(|| all(logits).collect());
    kept.retain(|c| c.logit != f32::NEG_INFINITY);
    kept.sort_unstable_by_key(|c| c.id);
    kept
}

/// The `k` first in [`Candidate::order`] that are not forbidden, unordered.
pub(super) fn top(logits: &[f32], k: usize) -> Vec<Candidate> {
    let room = (2 * k).max(1024);
    let mut best = Vec::with_capacity(room);
    let mut floor = f32::NEG_INFINITY;
    for c in all(logits) {
        // Strictly: among equals the earlier ids, which are in already, win.
        if c.logit > floor {
            best.push(c);
            if best.len() == room {
                floor = shorten(&mut best, k);
            }
        }
    }
    if best.len() > k {
        shorten(&mut best, k);
    }
    best
}

/// Keeps the first `k` of more than `k`; the logit of the last of them.
fn shorten(best: &mut Vec<Candidate>, k: usize) -> f32 {
    let floor = best.select_nth_unstable_by(k - 1, Candidate::order).1.logit;
    best.truncate(k);
    floor
}

/// Typical-p. The information of a token is `-ln p`, its expectation the entropy; with `p = e^below / total` their
/// difference is that of `below` and its mean, so that no logarithm is needed. The mean is a sum in order of ids.
fn typical(kept: Vec<Candidate>, most: f32, temperature: f64, mass: f32) -> Vec<Candidate> {
    let scale = Scale::new(most, temperature);
    let below = |c: &Candidate| (f64::from(c.logit) - f64::from(most)) / temperature;
    let (mut total, mut mean) = (0, 0.0);
    for c in &kept {
        let weight = scale.weight(c.logit);
        total += weight;
        mean += weight as f64 * below(c);
    }
    mean /= total as f64;
    let from_mean = |c: Candidate| Reverse(Distance { by: (below(&c) - mean).abs(), of: c });
    let mut nearest: BinaryHeap<Reverse<Distance>> = kept.into_iter().map(from_mean).collect();
    let (goal, mut sum, mut chosen) = (share(mass, total), 0, Vec::new());
    while (sum < goal || chosen.is_empty())
        && let Some(Reverse(Distance { of, .. })) = nearest.pop()
    {
        sum += scale.weight(of.logit);
        chosen.push(of);
    }
    chosen
}

/// How far a candidate is from something; lower ids are nearer among equals.
struct Distance {
    by: f64,
    of: Candidate,
}

impl Ord for Distance {
    fn cmp(&self, other: &Self) -> Ordering {
        self.by.total_cmp(&other.by).then(self.of.id.cmp(&other.of.id))
    }
}

impl PartialOrd for Distance {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Distance {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Distance {}

/// Min-p.
fn probable(kept: Option<Vec<Candidate>>, logits: &[f32], most: Candidate, p: &SamplingParams) -> Vec<Candidate> {
    let least = p.least_difference();
    let keep = |c: &Candidate| c.logit - most.logit >= least;
    let kept: Vec<Candidate> = match kept {
        Some(mut kept) => {
            kept.retain(keep);
            kept
        }
        None => all(logits).filter(keep).collect(),
    };
    match kept.is_empty() {
        // A fraction above 1 leaves nobody; the most probable token is always allowed.
        true => vec![most],
        false => kept,
    }
}

/// XTC, where it acts: of the tokens at least `threshold` probable, all but the least probable go. With one of them or
/// none, nobody does.
fn without_top_choices(mut kept: Vec<Candidate>, scale: Scale, threshold: f32) -> Vec<Candidate> {
    let weight = |c: &Candidate| scale.weight(c.logit);
    let goal = share(threshold, kept.iter().map(weight).sum());
    let choices = kept.iter().filter(|c| weight(c) >= goal);
    if let Some(last) = choices.copied().max_by(Candidate::order) {
        kept.retain(|c| weight(c) < goal || c.id == last.id);
    }
    kept
}
