//! What developers ask: drawn from a seed, or read from a trace of requests by time, lengths and block hashes, in the form
//! in which Mooncake publishes its own (one JSON object a line: `timestamp` in milliseconds, `input_length`,
//! `output_length`, `hash_ids` of 512 tokens each).

use std::io::{BufRead, Write};
use std::sync::Arc;

use cuckoo_scheduler::mixed;
use cuckoo_wire::message::ServiceClass;
use serde::{Deserialize, Serialize};

use super::chance::Chance;

/// Tokens that one hash of a trace stands for.
const TRACE_BLOCK_TOKENS: usize = 512;
/// Ids of ordinary tokens are from here on; those below mean something.
const TOKENS_FROM: u32 = 16;
const VOCABULARY: u64 = 32_000;
/// The token that ends an output.
pub(super) const STOP: u32 = 1;

/// One request, and what its model answers.
#[derive(Clone, Debug)]
pub struct Job {
    /// When it comes, in microseconds.
    pub at_us: u64,
    /// Who asks.
    pub tenant: u64,
    /// How urgent it is.
    pub class: ServiceClass,
    /// What it asks.
    pub prompt: Arc<[u32]>,
    /// Tokens of its answer, the last of which ends it.
    pub output: u32,
    /// The most that it allows.
    pub max_new: u32,
    /// Key of its draws.
    pub seed: u64,
}

impl Job {
    /// The token at a place of the answer: whoever computes it, whenever.
    pub(super) fn token(&self, at: u32) -> u32 {
        match at + 1 == self.output {
            true => STOP,
            false => word(self.seed ^ mixed(u64::from(at))),
        }
    }

    fn answer(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.output).map(|at| self.token(at))
    }
}

fn word(of: u64) -> u32 {
    TOKENS_FROM + (mixed(of) % VOCABULARY) as u32
}

/// What is asked of the whole market.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Requests in all.
    pub requests: usize,
    /// Of them in a second, on the average.
    pub per_second: f64,
    /// Who asks.
    pub tenants: u64,
}

/// Conversations that one tenant's users have share its system prompt; agents share a longer one and go round many times;
/// documents are long and each its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chat,
    Agent,
    Document,
}

/// One conversation while it is drawn.
struct Talk {
    kind: Kind,
    tenant: u64,
    known: Vec<u32>,
    turns: u32,
    at_us: u64,
}

impl Workload {
    /// Requests in the order in which they come. Time runs in waves: twice as many at the top as on the average.
    pub fn draw(&self, seed: u64) -> Vec<Job> {
        let mut chance = Chance::new(seed).fork(1);
        let mut jobs = Vec::with_capacity(self.requests);
        let mut at_us = 0.0;
        // Each conversation has several turns, so fewer begin.
        let mean_us = 1e6 / self.per_second * MEAN_TURNS;
        while jobs.len() < self.requests {
            at_us += chance.until_next(mean_us) * if ((at_us / WAVE_US) as u64).is_multiple_of(2) { 0.67 } else { 2.0 };
            // However seldom they come, all come within a year.
            let mut talk = begin(&mut chance, self.tenants, (at_us as u64).min(TRACE_MS_MAX * 1_000));
            while talk.turns > 0 && jobs.len() < self.requests {
                jobs.push(turn(&mut chance, &mut talk));
            }
        }
        jobs.sort_by_key(|job| job.at_us);
        jobs
    }
}

const WAVE_US: f64 = 20e6;
const MEAN_TURNS: f64 = 3.3;

fn begin(chance: &mut Chance, tenants: u64, at_us: u64) -> Talk {
    // A few tenants ask for most.
    let tenant = (tenants as f64 * chance.unit() * chance.unit()) as u64;
    let (kind, system, turns) = match chance.below(10) {
        0..6 => (Kind::Chat, 200 + tenant % 5 * 150, 1 + chance.below(6)),
        6..9 => (Kind::Agent, 1_200 + tenant % 3 * 400, 2 + chance.below(6)),
        _ => (Kind::Document, 0, 1),
    };
    let known = (0..system).map(|at| word(tenant << 32 | (kind as u64) << 20 | at)).collect();
    Talk { kind, tenant, known, turns: turns as u32, at_us }
}

fn turn(chance: &mut Chance, talk: &mut Talk) -> Job {
    let (said, output, pause_s) = match talk.kind {
        Kind::Chat => (chance.around(40.0, 0.8), chance.around(120.0, 0.7), chance.until_next(8.0)),
        Kind::Agent => (chance.around(150.0, 0.6), chance.around(50.0, 0.6), chance.until_next(0.5)),
        Kind::Document => (chance.around(3_000.0, 0.4), chance.around(60.0, 0.5), 0.0),
    };
    let seed = chance.number();
    let said = (said as u64).clamp(4, 6_000);
    talk.known.extend((0..said).map(|at| word(seed ^ at << 16)));
    let output = (output as u32).clamp(2, 400);
    let class = match talk.kind {
        Kind::Chat => ServiceClass::Standard,
        Kind::Agent => ServiceClass::Interactive,
        Kind::Document => ServiceClass::Batch,
    };
    let job = Job {
        at_us: talk.at_us,
        tenant: talk.tenant,
        class,
        prompt: talk.known.clone().into(),
        output,
        max_new: 512,
        seed,
    };
    talk.known.extend(job.answer());
    talk.turns -= 1;
    // The next turn comes when this one has been read: about 30 ms a token.
    talk.at_us += u64::from(output) * 30_000 + (pause_s * 1e6) as u64;
    job
}

/// One line of a trace.
#[derive(Debug, Deserialize, Serialize)]
struct Line {
    timestamp: u64,
    input_length: usize,
    output_length: u32,
    hash_ids: Vec<u64>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line is none of a trace.
    #[error(
        "line {line}: {why}; expected an object with timestamp, input_length, output_length and hash_ids of 512 tokens each"
    )]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// A year.
const TRACE_MS_MAX: u64 = 366 * 86_400_000;
/// Tokens of a prompt at most.
const TRACE_INPUT_MAX: usize = 131_072;

/// Reads a trace. All come from one tenant, as the form does not say who asks.
///
/// # Errors
/// If it cannot be read, or a line is not of that form.
pub fn read_trace(from: impl BufRead) -> Result<Vec<Job>, TraceError> {
    let mut jobs = Vec::new();
    for (at, line) in from.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |why: String| TraceError::Line { line: at + 1, why };
        let Line { timestamp, input_length, output_length, hash_ids } =
            serde_json::from_str(&line).map_err(|e| wrong(e.to_string()))?;
        if timestamp > TRACE_MS_MAX {
            return Err(wrong(format!("it comes after {timestamp} ms, and a trace lasts a year at most")));
        }
        if input_length == 0 || input_length > TRACE_INPUT_MAX || output_length == 0 {
            return Err(wrong(format!("lengths {input_length} and {output_length} make no request")));
        }
        if hash_ids.len() != input_length.div_ceil(TRACE_BLOCK_TOKENS) {
            return Err(wrong(format!("{} hashes for {input_length} tokens", hash_ids.len())));
        }
        let tokens = hash_ids.iter().flat_map(|id| (0..TRACE_BLOCK_TOKENS as u64).map(move |i| word(id << 12 ^ i)));
        jobs.push(Job {
            at_us: timestamp * 1_000,
            tenant: 0,
            class: ServiceClass::Standard,
            prompt: tokens.take(input_length).collect(),
            output: output_length,
            max_new: output_length.max(512),
            seed: mixed(at as u64),
        });
    }
    jobs.sort_by_key(|job| job.at_us);
    Ok(jobs)
}

/// Writes jobs as a trace. Blocks are named by what they and those before them hold.
///
/// # Errors
/// If it cannot be written.
pub fn write_trace(mut to: impl Write, jobs: &[Job]) -> std::io::Result<()> {
    for job in jobs {
        let mut before = 0;
        let hash_ids = job
            .prompt
            .chunks(TRACE_BLOCK_TOKENS)
            .map(|block| {
                before = block.iter().fold(before, |hash, token| mixed(hash ^ u64::from(*token)));
                // As wide as other readers take them.
                before >> 20
            })
            .collect();
        let line =
            Line { timestamp: job.at_us / 1_000, input_length: job.prompt.len(), output_length: job.output, hash_ids };
        serde_json::to_writer(&mut to, &line)?;
        to.write_all(b"\n")?;
    }
    Ok(())
}
