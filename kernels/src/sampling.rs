//! How a token is drawn from logits: the same arithmetic on every backend.
//!
//! Randomness is a counter-based generator (Philox4x32-10, Salmon et al., SC'11) keyed by the request's seed with
//! (position, token) as its counter, used as Gumbel noise: `argmax(logit / T + g)`. A draw therefore depends on the
//! seed, the position and the logits alone: any position can be drawn again anywhere, in any order.
//!
//! The noise of a token: word `token % 4` of `philox(key = seed, counter = (position low, position high, token / 4, 0))`,
//! `u = (word + 0.5) / 2^32`, `g = -ln(-ln u)`, all in `f64`.

mod mask;
mod nucleus;
mod philox;

use std::borrow::Cow;
use std::collections::HashMap;

pub use self::mask::TokenMask;
use self::nucleus::nucleus;
use self::philox::philox;
use crate::ops::OpsError;

/// How to draw. The defaults are the plain distribution of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides logits; 0 is greedy (the highest logit; the lowest id among equals).
    pub temperature: f32,
    /// Keep the k highest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens before anything else; negative infinity forbids.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }
}

/// One draw.
#[derive(Clone, Copy, Debug)]
pub struct SampleRequest<'a> {
    /// Row of the logits.
    pub row: usize,
    /// How to draw.
    pub params: &'a SamplingParams,
    /// Key of the generator.
    pub seed: u64,
    /// Position in the sequence of the token to be drawn.
    pub position: u64,
    /// What the sequence holds so far; only penalties read it.
    pub counts: &'a TokenCounts,
    /// The tokens that may be drawn; `None` where any may.
    pub allowed: Option<&'a TokenMask>,
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
}

/// Occurrences of each token in one sequence, kept up to date as it grows.
#[derive(Clone, Debug, Default)]
pub struct TokenCounts {
    /// Occurrences in the output; 0 for tokens that only the prompt holds.
    output: HashMap<u32, u32>,
}

impl TokenCounts {
    /// Tokens that were given.
    pub fn push_prompt(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.output.entry(token).or_insert(0);
        }
    }

    /// A token that was drawn.
    pub fn push_output(&mut self, token: u32) {
        *self.output.entry(token).or_insert(0) += 1;
    }
}

/// A token that is still in the running.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Higher logits first, lower ids first among equals.
    fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// Draws one token from a row of logits.
///
/// In this order: bias, mask, repetition penalty, presence and frequency penalties; greedy if the temperature is 0; then
/// temperature, top-k, top-p (of what top-k left), min-p, and the noise.
///
/// # Errors
/// [`OpsError::Fault`] if a logit is NaN or plus infinity, or none is finite.
pub fn draw(logits: &[f32], request: &SampleRequest<'_>) -> Result<Sampled, OpsError> {
    let params = request.params;
    let logits = adjusted(logits, request);
    let most = highest(&logits)?;
    // Written so that a NaN temperature is greedy too.
    let token = if params.temperature > 0.0 {
        let temperature = f64::from(params.temperature);
        let noise = Noise { seed: request.seed, position: request.position };
        match survivors(&logits, most, temperature, params) {
            None => noise.draw_any(&logits, most, temperature),
            Some(survivors) => noise.draw_from(&survivors, temperature),
        }
    } else {
        most.id
    };
    Ok(Sampled { token })
}

/// The logits after bias, mask and penalties; borrowed if there are none.
fn adjusted<'a>(logits: &'a [f32], request: &SampleRequest<'_>) -> Cow<'a, [f32]> {
    let p = request.params;
    let penalties = p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
    let penalized = penalties && !request.counts.output.is_empty();
    let mut logits = Cow::Borrowed(logits);
    if p.logit_bias.is_empty() && !penalized && request.allowed.is_none() {
        return logits;
    }
    let values = logits.to_mut();
    for &(token, bias) in &p.logit_bias {
        if let Some(logit) = values.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(allowed) = request.allowed {
        allowed.apply(values);
    }
    if penalized {
        for (&token, &count) in &request.counts.output {
            let Some(logit) = values.get_mut(token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            if count > 0 {
                *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
            }
        }
    }
    logits
}

/// The highest logit; the lowest id among equals.
fn highest(logits: &[f32]) -> Result<Candidate, OpsError> {
    let (mut most, mut sound) = ([f32::NEG_INFINITY; 16], [true; 16]);
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            most[i] = if chunk[i] > most[i] { chunk[i] } else { most[i] };
            sound[i] &= chunk[i] < f32::INFINITY;
        }
    }
    let logit = most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if !(sound.iter().all(|&s| s) && rest.iter().all(|&v| v < f32::INFINITY)) {
        return Err(OpsError::Fault("a logit is NaN or infinite: weights or kernels are broken".into()));
    }
    if logit == f32::NEG_INFINITY {
        return Err(OpsError::Fault("no token is allowed: every logit is minus infinity".into()));
    }
    let id = logits.iter().position(|&v| v == logit).expect("the maximum is one of them");
    Ok(Candidate { logit, id: id as u32 })
}

/// What top-k, top-p and min-p leave; `None` if none of them is in force.
fn survivors(logits: &[f32], most: Candidate, temperature: f64, p: &SamplingParams) -> Option<Vec<Candidate>> {
    let k = p.top_k as usize;
    let mut kept = (k > 0 && k < logits.len()).then(|| top(logits, k));
    if p.top_p < 1.0 {
        kept = Some(match kept {
            Some(mut kept) => {
                kept.sort_unstable_by_key(|c| c.id);
                let logits: Vec<f32> = kept.iter().map(|c| c.logit).collect();
                nucleus(&logits, most.logit, temperature, p.top_p).into_iter().map(|i| kept[i]).collect()
            }
            None => {
                let chosen = nucleus(logits, most.logit, temperature, p.top_p).into_iter();
                chosen.map(|i| Candidate { logit: logits[i], id: i as u32 }).collect()
            }
        });
    }
    if p.min_p > 0.0 {
        let least = f64::from(p.min_p);
        let keep = |logit: f32| {
            let below = f64::from(logit - most.logit) / temperature;
            // The first test spares most tokens the exponential; its margin covers the rounding of the logarithm.
            below > least.ln() - 1e-6 && below.exp() >= least
        };
        match &mut kept {
            Some(kept) => kept.retain(|c| keep(c.logit)),
            None => kept = Some(all(logits).filter(|c| keep(c.logit)).collect()),
        }
        if kept.as_ref().is_some_and(Vec::is_empty) {
            // A fraction above 1 leaves nobody; the most probable token is always allowed.
            kept = Some(vec![most]);
        }
    }
    kept
}

fn all(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits.iter().enumerate().map(|(id, &logit)| Candidate { logit, id: id as u32 })
}

/// The `k` first in [`Candidate::order`] that are not forbidden, unordered.
fn top(logits: &[f32], k: usize) -> Vec<Candidate> {
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

/// No noise exceeds this: the largest `u` is `1 - 2^-33`, and `-ln(-ln u) < -ln(1 - u) = 33 ln 2 = 22.873...`.
const NOISE_MAX: f64 = 33.0 * std::f64::consts::LN_2;

/// Covers the rounding of logarithms and of a division wherever a bound is compared with a score.
const SLACK: f64 = 1e-6;

/// The Gumbel noise of one position.
#[derive(Clone, Copy)]
struct Noise {
    seed: u64,
    position: u64,
}

impl Noise {
    /// The words of tokens `4 * group ..`.
    fn words(self, group: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox(key, [self.position as u32, (self.position >> 32) as u32, group, 0])
    }

    fn draw_from(self, candidates: &[Candidate], temperature: f64) -> u32 {
        let mut race = Race::new(temperature);
        for &c in candidates {
            race.enter(c, self.words(c.id / 4)[c.id as usize % 4]);
        }
        race.winner
    }

    /// Draws among all tokens. The favourite goes first, so that nearly all others are seen to lose by a bound.
    fn draw_any(self, logits: &[f32], most: Candidate, temperature: f64) -> u32 {
        let mut race = Race::new(temperature);
        race.enter(most, self.words(most.id / 4)[most.id as usize % 4]);
        for (group, logits) in logits.chunks(4).enumerate() {
            if logits.iter().all(|&logit| race.hopeless(logit)) {
                continue;
            }
            let words = self.words(group as u32);
            for (i, (&logit, word)) in logits.iter().zip(words).enumerate() {
                race.enter(Candidate { logit, id: (4 * group + i) as u32 }, word);
            }
        }
        race.winner
    }
}

/// The best score so far.
struct Race {
    temperature: f64,
    best: f64,
    winner: u32,
    /// Logits below this cannot win with any noise.
    logit_min: f64,
}

impl Race {
    fn new(temperature: f64) -> Self {
        Self { temperature, best: f64::NEG_INFINITY, winner: 0, logit_min: f64::NEG_INFINITY }
    }

    fn hopeless(&self, logit: f32) -> bool {
        f64::from(logit) < self.logit_min
    }

    fn enter(&mut self, c: Candidate, word: u32) {
        let logit = f64::from(c.logit) / self.temperature;
        // With `1 - u = (!word + 0.5) / 2^32` and `-ln u > 1 - u`, the noise is below `(leading zeros + 1) ln 2`: no
        // logarithm is taken for a token that would lose even so.
        let bound = f64::from((!word).leading_zeros() + 1) * std::f64::consts::LN_2;
        if logit + bound + SLACK < self.best || c.logit == f32::NEG_INFINITY {
            return;
        }
        let score = logit + gumbel(word);
        if score > self.best || (score == self.best && c.id < self.winner) {
            (self.best, self.winner) = (score, c.id);
            self.logit_min = (score - NOISE_MAX - SLACK) * self.temperature;
        }
    }
}

fn gumbel(word: u32) -> f64 {
    let u = (f64::from(word) + 0.5) / 4_294_967_296.0;
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests;
