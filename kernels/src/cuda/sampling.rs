//! Draws and log-probabilities as launches: what `src/sampling.rs` says, and the same tokens.
//!
//! What a request does to its logits is made into lists here (penalties by history, DRY and bad words among them) and applied on the
//! device. Only tokens come back. A draw with typical-p in force reads its row and is drawn on the host: whose information is
//! how far from a mean that is summed up in order of ids is no prefix of anything, and few ask for it.

use std::collections::VecDeque;
use std::mem::take;

use bytemuck::{cast_slice_mut, pod_read_unaligned};

use super::args::{
    cuckoo_adjust, cuckoo_answer, cuckoo_changes, cuckoo_draw, cuckoo_list, cuckoo_logprobs,
    cuckoo_no_token_CUCKOO_BROKEN as BROKEN, cuckoo_no_token_CUCKOO_NOTHING_ALLOWED as NOTHING_ALLOWED,
    cuckoo_question, cuckoo_sample, cuckoo_take_drawn,
};
use super::machine::Machine;
use super::operations::{THREADS, WARP};
use super::scratch::Held;
use super::{Buffer, Cuda};
use crate::ops::{DrawAhead, OpsError};
use crate::sampling::{self, Candidate, LogprobRequest, Logprobs, SampleRequest, Sampled};

/// Memory for changed rows, or for exponentials: more of them take turns.
const ROWS_BYTES: usize = 64 << 20;
/// Blocks in the second dimension of a grid at most.
const GRID_MAX: usize = 65_535;
/// Threads for a row at most.
const ROW_THREADS: usize = 512;
/// What they share: `sampling::Shared` of `cuda/select.cuh`.
const SHARED_BYTES: usize = 2 * 2048 * 8 + 32 * 8 + 16;
/// Exponentials that are added up at a time: `sampling::TILE` of `cuda/logprobs.cu`.
const TILE: usize = 2048;
/// Weights of more tokens than this might not fit a sum, nor their ids a rank.
const TOKENS_MAX: usize = 1 << 20;

/// Threads for a row.
fn threads(cols: usize) -> usize {
    (cols / 8).next_multiple_of(WARP).clamp(WARP, ROW_THREADS)
}

/// How many rows of so many bytes take a turn together.
fn together(row_bytes: usize) -> usize {
    (ROWS_BYTES / row_bytes.max(1)).clamp(1, GRID_MAX)
}

/// What a place for a token says.
fn token_of(word: u32) -> Result<u32, OpsError> {
    match word {
        BROKEN => Err(sampling::broken()),
        NOTHING_ALLOWED => Err(sampling::nothing_allowed()),
        token => Ok(token),
    }
}

/// Words of a launch's lists.
#[derive(Default)]
struct Lists(Vec<u32>);

impl Lists {
    fn words(&mut self, words: impl IntoIterator<Item = u32>) -> cuckoo_list {
        let first = self.0.len();
        self.0.extend(words);
        cuckoo_list { first: first as u32, count: (self.0.len() - first) as u32 }
    }

    fn pairs(&mut self, pairs: impl IntoIterator<Item = (u32, u32)>) -> cuckoo_list {
        let list = self.words(pairs.into_iter().flat_map(|(token, word)| [token, word]));
        cuckoo_list { count: list.count / 2, ..list }
    }

    /// Tokens, none of them twice.
    fn set(&mut self, tokens: impl Iterator<Item = u32>) -> cuckoo_list {
        let mut tokens: Vec<u32> = tokens.collect();
        tokens.sort_unstable();
        tokens.dedup();
        self.words(tokens)
    }

    /// What a request does to a row of `cols` logits; `None` if nothing.
    fn changes(&mut self, r: &SampleRequest<'_>, cols: usize) -> Option<cuckoo_changes> {
        let (p, history, begin) = (r.params, r.history, self.0.len());
        let here = |token: &u32| (*token as usize) < cols;
        let mut biases: Vec<(u32, u32)> = p
            .logit_bias
            .iter()
            .filter(|(token, _)| here(token))
            .map(|(token, bias)| (*token, bias.to_bits()))
            .collect();
        // Those of a token keep their order.
        biases.sort_by_key(|(token, _)| *token);
        let seen = history.output.iter().filter(|(token, _)| p.penalizes() && here(token));
        let changes = cuckoo_changes {
            row: r.row as u32,
            masked: u32::from(r.allowed.is_some()),
            mask: self.words(r.allowed.iter().flat_map(|mask| mask.words()).copied().take(cols.div_ceil(32))),
            allowed: self.words(p.allowed_tokens.iter().copied().filter(here)),
            biases: self.pairs(biases),
            seen: self.pairs(seen.map(|(token, count)| (*token, *count))),
            repeated: self.pairs(r.repetitions().filter(|(token, _)| here(token)).map(|(t, by)| (t, by.to_bits()))),
            bad: self.set(r.completions().filter(here)),
            forbidden: self.set(r.forbidden.iter().copied().filter(here)),
            repetition: p.repetition_penalty,
            presence: p.presence_penalty,
            frequency: p.frequency_penalty,
            padding: 0,
        };
        (changes.masked != 0 || self.0.len() > begin).then_some(changes)
    }
}

/// How to draw from the logits at an address.
fn draw(r: &SampleRequest<'_>, cols: usize, to: usize, logits: u64) -> cuckoo_draw {
    let p = r.params;
    let halves = |v: u64| [v as u32, (v >> 32) as u32];
    let warm = p.temperature > 0.0;
    let temperature = if warm { f64::from(p.temperature) } else { 0.0 };
    cuckoo_draw {
        logits,
        temperature,
        top_p: if p.top_p < 1.0 { sampling::part_of(p.top_p) } else { 1.0 },
        xtc: if r.excludes_top_choices() { sampling::part_of(p.xtc_threshold) } else { -1.0 },
        seed: halves(r.seed),
        position: halves(r.position),
        top_k: if (p.top_k as usize) < cols { p.top_k } else { 0 },
        to: to as u32,
        least: if warm && p.min_p > 0.0 { p.least_difference() } else { f32::NEG_INFINITY },
        sharpness: if warm { p.sharpness() } else { 1.0 },
        near: near(sampling::part_of(p.top_p), cols),
        padding: 0,
    }
}

/// How probable a token must be, as a logarithm of a multiple of the most probable one's, for top-p to look at it: as many as there
/// are that are less probable together have less than what may be left out of all. Minus infinity where the rounding of weights
/// to whole numbers is not small beside that.
fn near(top_p: f64, cols: usize) -> f32 {
    /// Far more than weights are rounded by, as fractions of themselves.
    const MARGIN: f64 = 1e-3;
    // The most probable token's weight; all weigh no less.
    let (whole, count) = (f64::from(2f32.powi(40)), cols as f64);
    let spare = 1.0 - top_p;
    if spare * whole * MARGIN > 2.0 * (count + 2.0) {
        (libm::log(spare / count) - 2.0 * MARGIN) as f32
    } else {
        f32::NEG_INFINITY
    }
}

/// Whether the device can draw this.
fn is_for_device(r: &SampleRequest<'_>, cols: usize) -> bool {
    cols <= TOKENS_MAX && !(r.params.typical_p < 1.0 && r.params.temperature > 0.0)
}

impl<M: Machine> Cuda<M> {
    /// [`crate::ops::Ops::sample`]. The tokens stay in the scratch memory as well, in order of requests.
    pub(super) fn draw(
        &mut self,
        logits: &Buffer<M>,
        requests: &[SampleRequest<'_>],
    ) -> Result<Vec<Sampled>, OpsError> {
        assert!(requests.iter().all(|r| r.row < logits.rows), "every row is there");
        let tokens = self.scratch.drawn.at_least(&mut self.machine, (requests.len() * 4).max(1), "drawn tokens")?;
        let numbered: Vec<(usize, &SampleRequest<'_>)> =
            requests.iter().enumerate().filter(|(_, r)| is_for_device(r, logits.cols)).collect();
        for requests in numbered.chunks(together(logits.cols * size_of::<f32>())) {
            self.draw_together(logits, requests, tokens)?;
        }
        let mut words = vec![0u32; requests.len()];
        if !numbered.is_empty() {
            self.scratch.drawn.read(&mut self.machine, 0, cast_slice_mut(&mut words))?;
        }
        let mut drawn = Vec::with_capacity(requests.len());
        for (to, r) in requests.iter().enumerate() {
            let token = if is_for_device(r, logits.cols) {
                token_of(words[to])?
            } else {
                let token = sampling::draw(&self.row_of(logits, r.row)?, r)?.token;
                self.scratch.drawn.write(&mut self.machine, to * 4, &token.to_ne_bytes())?;
                token
            };
            drawn.push(Sampled { token });
        }
        Ok(drawn)
    }

    fn draw_together(
        &mut self,
        logits: &Buffer<M>,
        requests: &[(usize, &SampleRequest<'_>)],
        tokens: u64,
    ) -> Result<(), OpsError> {
        let cols = logits.cols;
        let (machine, row_bytes) = (&mut self.machine, cols * size_of::<f32>());
        let mut lists = Lists::default();
        let asked: Vec<Option<cuckoo_changes>> = requests.iter().map(|(_, r)| lists.changes(r, cols)).collect();
        let changes: Vec<cuckoo_changes> = asked.iter().flatten().copied().collect();
        let room = (changes.len() * row_bytes).max(1);
        let changed = self.scratch.changed.at_least(machine, room, "changed logits")?;
        let mut used = 0;
        let mut draws = Vec::with_capacity(requests.len());
        for ((to, r), change) in requests.iter().zip(&asked) {
            let (rows, row) = if change.is_some() { (changed, used) } else { (logits.address(), r.row) };
            used += usize::from(change.is_some());
            draws.push(draw(r, cols, *to, rows + (row * row_bytes) as u64));
        }
        let adjust = cuckoo_adjust {
            logits: logits.address(),
            requests: self.scratch.changes.holding(machine, &changes, "changes to logits")?,
            lists: self.scratch.lists.holding(machine, &lists.0, "lists of tokens")?,
            out: changed,
            cols: cols as u32,
            padding: 0,
        };
        let draws_at = self.scratch.draws.holding(machine, &draws, "draws")?;
        let sample = cuckoo_sample { draws: draws_at, tokens, cols: cols as u32, padding: 0 };
        let shape = (threads(cols), SHARED_BYTES);
        // SAFETY: rows were asserted, tokens of lists are below `cols`, and there is room for every changed row and every token.
        unsafe {
            self.launch(c"cuckoo_adjust_logits", [changes.len(), 1, 1], shape, &adjust)?;
            self.launch(c"cuckoo_draw_tokens", [draws.len(), 1, 1], shape, &sample)
        }
    }

    /// [`crate::ops::Ops::logprobs`].
    pub(super) fn rank(&mut self, logits: &Buffer<M>, requests: &[LogprobRequest]) -> Result<Vec<Logprobs>, OpsError> {
        let sound = |r: &LogprobRequest| r.row < logits.rows && (r.token as usize) < logits.cols;
        assert!(requests.iter().all(sound), "every row and token is there");
        let mut found = Vec::with_capacity(requests.len());
        for requests in requests.chunks(together(logits.cols * size_of::<f64>())) {
            self.rank_together(logits, requests, &mut found)?;
        }
        Ok(found)
    }

    fn rank_together(
        &mut self,
        logits: &Buffer<M>,
        requests: &[LogprobRequest],
        found: &mut Vec<Logprobs>,
    ) -> Result<(), OpsError> {
        let (machine, cols) = (&mut self.machine, logits.cols);
        let mut room = 0;
        let questions: Vec<cuckoo_question> = requests
            .iter()
            .map(|r| {
                let top = (r.top as usize).min(cols);
                room += top;
                cuckoo_question { row: r.row as u32, token: r.token, top: top as u32, first: (room - top) as u32 }
            })
            .collect();
        // Answers, then the most probable tokens.
        let answers_bytes = questions.len() * size_of::<cuckoo_answer>();
        let mut bytes = vec![0u8; answers_bytes + room * 8];
        let answers = self.scratch.answers.at_least(machine, bytes.len(), "answers")?;
        let exponentials =
            self.scratch.exponentials.at_least(machine, questions.len() * cols * size_of::<f64>(), "exponentials")?;
        let args = cuckoo_logprobs {
            logits: logits.address(),
            questions: self.scratch.questions.holding(machine, &questions, "questions")?,
            answers,
            top: answers + answers_bytes as u64,
            exponentials,
            cols: cols as u32,
            padding: 0,
        };
        let count = questions.len();
        let tiles = TILE * size_of::<f64>();
        // SAFETY: rows and tokens were asserted, and there is room for every answer and every exponential.
        unsafe {
            self.launch(c"cuckoo_logprob_ranks", [count, 1, 1], (threads(cols), SHARED_BYTES), &args)?;
            self.launch(c"cuckoo_logprob_exponentials", [cols.div_ceil(THREADS), count, 1], (THREADS, 0), &args)?;
            self.launch(c"cuckoo_logprob_sums", [count, 1, 1], (threads(cols).min(THREADS), tiles), &args)?;
        }
        self.scratch.answers.read(&mut self.machine, 0, &mut bytes)?;
        let (answers, top) = bytes.split_at(answers_bytes);
        for (q, bytes) in questions.iter().zip(answers.chunks_exact(size_of::<cuckoo_answer>())) {
            found.push(answered(&pod_read_unaligned(bytes), &top[q.first as usize * 8..])?);
        }
        Ok(())
    }

    fn row_of(&mut self, x: &Buffer<M>, row: usize) -> Result<Vec<f32>, OpsError> {
        let mut values = vec![0.0f32; x.cols];
        self.machine.read(&x.memory, row * x.cols * size_of::<f32>(), cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// What the device found, as logarithms. `top` begins with what was found for this.
fn answered(a: &cuckoo_answer, top: &[u8]) -> Result<Logprobs, OpsError> {
    let count = token_of(a.found)? as usize;
    let normalizer = libm::log(a.sum);
    let logprob = |logit: f32| ((f64::from(logit) - f64::from(a.highest)) - normalizer) as f32;
    let candidate = |words: &[u8; 8]| {
        let [id, logit]: [u32; 2] = pod_read_unaligned(words);
        Candidate { logit: f32::from_bits(logit), id }
    };
    let mut best: Vec<Candidate> = top.as_chunks::<8>().0[..count].iter().map(candidate).collect();
    best.sort_unstable_by(Candidate::order);
    let top = best.into_iter().map(|c| (c.id, logprob(c.logit))).collect();
    Ok(Logprobs { logprob: logprob(a.own), rank: a.rank, top })
}

/// Draws that nobody has waited for.
pub(super) struct Ahead<M: Machine> {
    /// How many tokens each of them gives, and their copies, oldest first.
    flying: VecDeque<(usize, M::Pending)>,
    /// Which of the two places of tokens the last draw used.
    odd: bool,
    /// What the next embedding takes from there: (row, draw).
    fed: Vec<[u32; 2]>,
}

impl<M: Machine> Default for Ahead<M> {
    fn default() -> Self {
        Self { flying: VecDeque::new(), odd: false, fed: Vec::new() }
    }
}

impl<M: Machine> DrawAhead<Buffer<M>> for Cuda<M> {
    fn can_draw(&self, requests: &[SampleRequest<'_>], vocabulary: usize) -> bool {
        requests.iter().all(|r| is_for_device(r, vocabulary))
    }

    fn draw(&mut self, logits: &Buffer<M>, requests: &[SampleRequest<'_>]) -> Result<(), OpsError> {
        assert!(requests.iter().all(|r| r.row < logits.rows), "every row is there");
        // The place before the last is free: only the last draw is fed to a step, which is launched before the next draw.
        self.ahead.odd = !self.ahead.odd;
        let bytes = requests.len().max(1) * size_of::<u32>();
        let (machine, held) = self.drawn_ahead();
        let tokens = held.at_least(machine, bytes, "drawn tokens")?;
        let numbered: Vec<(usize, &SampleRequest<'_>)> = requests.iter().enumerate().collect();
        for requests in numbered.chunks(together(logits.cols * size_of::<f32>())) {
            self.draw_together(logits, requests, tokens)?;
        }
        let (machine, held) = self.drawn_ahead();
        let pending = held.read_ahead(machine, bytes)?;
        self.ahead.flying.push_back((requests.len(), pending));
        Ok(())
    }

    fn feed(&mut self, rows: Vec<(usize, usize)>) {
        self.ahead.fed = rows.into_iter().map(|(row, draw)| [row as u32, draw as u32]).collect();
    }

    fn collect(&mut self) -> Result<Vec<Sampled>, OpsError> {
        let (count, pending) =
            self.ahead.flying.pop_front().ok_or_else(|| OpsError::Fault("nothing was drawn ahead".to_owned()))?;
        let mut words = vec![0u32; count.max(1)];
        self.machine.finish(pending, cast_slice_mut(&mut words))?;
        words[..count].iter().map(|word| Ok(Sampled { token: token_of(*word)? })).collect()
    }
}

impl<M: Machine> Cuda<M> {
    /// The place of the last draw's tokens.
    fn drawn_ahead(&mut self) -> (&mut M, &mut Held<M>) {
        let held = if self.ahead.odd { &mut self.scratch.drawn_odd } else { &mut self.scratch.drawn_even };
        (&mut self.machine, held)
    }

    /// Puts what was fed into the tokens at an address, if anything was; ids are below `vocabulary`.
    pub(super) fn take_drawn(&mut self, tokens: u64, vocabulary: usize) -> Result<bool, OpsError> {
        let fed = take(&mut self.ahead.fed);
        if fed.is_empty() {
            return Ok(false);
        }
        let (machine, held) = self.drawn_ahead();
        let args = cuckoo_take_drawn {
            tokens,
            drawn: held.at_least(machine, 0, "drawn tokens")?,
            pairs: self.scratch.fed.holding(&mut self.machine, &fed, "rows of drawn tokens")?,
            count: fed.len() as u32,
            vocabulary: vocabulary as u32,
        };
        // SAFETY: rows are of the step and draws of the last one, as who feeds promises; ids are checked by the kernel.
        unsafe { self.launch(c"cuckoo_take_drawn_tokens", [fed.len().div_ceil(THREADS), 1, 1], (THREADS, 0), &args)? }
        Ok(true)
    }
}
