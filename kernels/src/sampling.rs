//! How a token is drawn from logits: the same arithmetic on every backend.
//!
//! Randomness is a counter-based generator (Philox4x32-10, Salmon et al., SC'11) keyed by the request's seed with
//! (position, token) as its counter, used as Gumbel noise: `argmax(logit / T + g)`. A draw therefore depends on the
//! seed, the position and the logits alone: any position can be drawn again anywhere, in any order.
//!
//! The noise of a token: word `token % 4` of `philox(key = seed, counter = (position low, position high, token / 4, 0))`,
//! `u = (word + 0.5) / 2^32`, `g = -ln(-ln u)`, all in `f64`, with `ln` of musl (the `libm` crate). The coin of XTC is word 0 of the counter
//! `(position low, position high, 0, 1)`, as `u`.
//!
//! # What is applied, in this order
//!
//! 1. On logits: the mask [`SampleRequest::allowed`], [`SamplingParams::allowed_tokens`], the bias, the repetition
//!    penalty, presence and frequency penalties, DRY, bad words, [`SampleRequest::forbidden`]. The lists among these are
//!    not applied where they would leave no token at all; a mask always is.
//! 2. If the temperature is 0, the highest logit is taken, and that is all.
//! 3. On the distribution at the temperature: top-k, typical-p, top-p, min-p, XTC, each on what the one before it left.
//!    None of them ever leaves nobody.
//! 4. The noise.
//!
//! # What has an order, and what has none
//!
//! Probabilities that are added up are whole numbers (`nucleus.rs`), so that any number of threads may add them up in any
//! order and borders are found exactly. Only the mean of typical-p is a sum of fractions, in order of ids. Nothing depends on
//! a library of the host.

mod dry;
mod filters;
mod history;
mod logits;
mod logprobs;
mod mask;
mod nucleus;
mod philox;

use self::filters::survivors;
pub use self::history::TokenHistory;
use self::logits::adjusted;
pub use self::logprobs::{LogprobRequest, Logprobs, logprobs};
pub use self::mask::TokenMask;
pub use self::nucleus::part_of;
use self::nucleus::sharpness;
use self::philox::philox;
use crate::ops::OpsError;

/// How to draw. The defaults are the plain distribution of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides logits; 0 is greedy (the highest logit; the lowest id among equals).
    pub temperature: f32,
    /// Keep the k highest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the tokens whose information is nearest to the expected one and that together reach this probability
    /// (locally typical sampling, arXiv 2202.00666); 1 keeps all.
    pub typical_p: f32,
    /// Keep the smallest set of most probable tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable; 0 keeps all.
    pub min_p: f32,
    /// With this probability, XTC ("exclude top choices") acts on a draw: of the tokens that are at least
    /// [`SamplingParams::xtc_threshold`] probable only the least probable stays. 0 never acts.
    pub xtc_probability: f32,
    /// See [`SamplingParams::xtc_probability`]; above 0.5 no two tokens reach it, and nothing happens.
    pub xtc_threshold: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Subtracted once from tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Against the repetition of sequences, where it is in force.
    pub dry: Option<Dry>,
    /// Added to the logits of these tokens before penalties; negative infinity forbids.
    pub logit_bias: Vec<(u32, f32)>,
    /// If not empty, no other tokens are drawn.
    pub allowed_tokens: Vec<u32>,
    /// Sequences that are not to appear: the last token of one is forbidden where prompt and output end in the others.
    pub bad_words: Vec<Vec<u32>>,
}

/// DRY ("don't repeat yourself"), as llama.cpp and text-generation-webui have it: a token that would lengthen a
/// repetition loses `multiplier * base^(length - allowed_length)`, where `length` is how many of the newest tokens, at
/// most, also stand before an earlier occurrence of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// What a repetition of the allowed length costs.
    pub multiplier: f32,
    /// By how much each further token multiplies that; at least 1.
    pub base: f32,
    /// Shorter repetitions cost nothing.
    pub allowed_length: u32,
    /// How many of the newest tokens are looked at.
    pub last_n: u32,
    /// Tokens that end a repetition, sorted: none reaches back over one of them.
    pub breakers: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            logit_bias: Vec::new(),
            allowed_tokens: Vec::new(),
            bad_words: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Whether a draw depends on the tokens before it, beyond the logits that they gave.
    pub fn reads_history(&self) -> bool {
        self.penalizes() || self.dry.is_some() || self.bad_words.iter().any(|word| word.len() > 1)
    }

    /// One over the temperature, as weights have it.
    pub fn sharpness(&self) -> f32 {
        sharpness(f64::from(self.temperature))
    }

    /// How far below the highest a logit may be by min-p: `temperature * ln(min_p)`, rounded up to `f32`. A token stays where
    /// the difference of its logit and the highest, in `f32`, is at least this.
    pub fn least_difference(&self) -> f32 {
        let exact = libm::log(f64::from(self.min_p)) * f64::from(self.temperature);
        let near = exact as f32;
        if f64::from(near) < exact { near.next_up() } else { near }
    }

    pub(crate) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
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
    /// What the sequence holds so far; read only where [`SamplingParams::reads_history`] says so.
    pub history: &'a TokenHistory,
    /// Tokens that are not to be drawn this time: those that end a sequence which is not long enough yet.
    pub forbidden: &'a [u32],
    /// The tokens that may be drawn; `None` where any may.
    pub allowed: Option<&'a TokenMask>,
}

impl<'a> SampleRequest<'a> {
    /// The draw of row 0 at position 0 with a seed of 0, where any token may come.
    pub fn new(params: &'a SamplingParams, history: &'a TokenHistory) -> Self {
        Self { row: 0, params, seed: 0, position: 0, history, forbidden: &[], allowed: None }
    }

    /// Whether XTC acts on this draw.
    pub fn excludes_top_choices(&self) -> bool {
        self.noise().excludes(self.params)
    }

    fn noise(&self) -> Noise {
        Noise { seed: self.seed, position: self.position }
    }
}

/// A drawn token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
}

/// A token that is still in the running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) logit: f32,
    pub(crate) id: u32,
}

impl Candidate {
    /// Higher logits first, lower ids first among equals.
    pub(crate) fn order(a: &Self, b: &Self) -> std::cmp::Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// Draws one token from a row of logits, as this module says.
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
        let noise = request.noise();
        match survivors(&logits, most, params, noise) {
            None => noise.draw_any(&logits, most, temperature),
            Some(survivors) => noise.draw_from(&survivors, temperature),
        }
    } else {
        most.id
    };
    Ok(Sampled { token })
}

pub(crate) fn broken() -> OpsError {
    OpsError::Fault("a logit is NaN or infinite: weights or kernels are broken".into())
}

pub(crate) fn nothing_allowed() -> OpsError {
    OpsError::Fault("no token is allowed: every logit is minus infinity".into())
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
    // Adding 0 makes both zeros one: which of them is the larger is nobody's to say.
    let logit = most.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| m.max(v)) + 0.0;
    if !(sound.iter().all(|&s| s) && rest.iter().all(|&v| v < f32::INFINITY)) {
        return Err(broken());
    }
    if logit == f32::NEG_INFINITY {
        return Err(nothing_allowed());
    }
    // By chunks, which the compiler turns into vectors.
    let first = chunks.iter().position(|chunk| chunk.iter().fold(false, |any, &v| any | (v == logit)));
    let begin = first.map_or(logits.len() - rest.len(), |chunk| 16 * chunk);
    let id = logits[begin..].iter().position(|&v| v == logit).expect("the maximum is one of them");
    Ok(Candidate { logit, id: (begin + id) as u32 })
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
        self.block(group, 0)
    }

    /// Whether XTC acts. The coin is thrown wherever it could matter, and nowhere else.
    fn excludes(self, params: &SamplingParams) -> bool {
        params.xtc_probability > 0.0 && self.coin(params.xtc_probability)
    }

    /// Whether something of this probability happens at this position: XTC's coin.
    fn coin(self, probability: f32) -> bool {
        uniform(self.block(0, 1)[0]) < f64::from(probability)
    }

    /// The generator's output for this position and the last two words of its counter.
    fn block(self, group: u32, purpose: u32) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox(key, [self.position as u32, (self.position >> 32) as u32, group, purpose])
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
    -libm::log(-libm::log(uniform(word)))
}

/// Between 0 and 1, and never either.
fn uniform(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

#[cfg(test)]
mod tests;
