//! A loaded engine under a clock: prompts and generations of given shapes, step by step, without actors and network, on any
//! backend. The bench of GPU kernels (`benches/gpu`) uses this very file.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use cuckoo_kernels::cuda::{Cuda, Machine};
use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_kernels::timed::Spent;
use cuckoo_kernels::{Cpu, KvKind, Ops, Timed};
use cuckoo_models::{ArchSpec, ModelFiles};
use cuckoo_runtime::forward::{check, kv_shapes};
use cuckoo_runtime::{Batch, BatchLimits, Engine, KvPlan, STEPS_IN_FLIGHT_MAX, StepOutput, StepPlan};
use cuckoo_wire::message::{Assign, ReplicaId, Sampling, SequenceId, WeightsHash};

/// Tokens of the prompt that a fresh process answers first.
pub(super) const FIRST_PROMPT_TOKENS: u32 = 32;
/// Tokens that a sequence may generate while others still read their prompts, beyond the steps that takes.
const SLACK_TOKENS: u32 = 4;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// One sequence reads `tokens` tokens of a prompt after `depth` others.
    Prompt { tokens: u32, depth: u32 },
    /// `batch` sequences with prompts of `depth` tokens generate `tokens` each.
    Generate { tokens: u32, depth: u32, batch: u32 },
}

impl Case {
    /// The same, as short as it can be: what has never run is slower.
    pub(super) fn warm_up(self) -> Self {
        match self {
            Self::Generate { depth, batch, .. } => Self::Generate { tokens: 1, depth, batch },
            prompt @ Self::Prompt { .. } => prompt,
        }
    }

    /// Sequences at once.
    pub(super) fn batch(self) -> u32 {
        match self {
            Self::Prompt { .. } => 1,
            Self::Generate { batch, .. } => batch,
        }
    }

    /// The length of a sequence's prompt, and the tokens it may generate.
    fn sequence(self, step_tokens: u32) -> (u32, u32) {
        match self {
            Self::Prompt { tokens, depth } => (depth + tokens, 1),
            Self::Generate { tokens, depth, batch } => {
                let prompt = depth.max(1);
                (prompt, tokens + (prompt * batch).div_ceil(step_tokens) + batch + SLACK_TOKENS)
            }
        }
    }
}

/// What a step costs at least.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    /// Bytes of weights that every step reads, as they are in the file.
    pub(super) weight_bytes: u64,
    /// Bytes of keys and values of one position.
    pub(super) position_bytes: u64,
    /// Multiplications and additions by weights for a row; a multiply-add counts as two.
    pub(super) row_ops: u64,
    /// The same for a row whose logits are wanted.
    pub(super) head_ops: u64,
}

impl Costs {
    fn of(files: &ModelFiles, spec: &ArchSpec) -> Self {
        let block_bytes: usize = kv_shapes(spec, 1).iter().map(|shape| shape.block_bytes()).sum();
        let mut costs = Self { position_bytes: (block_bytes / KV_BLOCK_TOKENS) as u64, ..Self::default() };
        let head = spec.output.head.as_ref().map(|head| head.weight.name.as_str());
        for tensor in files.tensors() {
            let embedding = tensor.name == spec.input.embedding.name;
            // Of a table that is no head only the rows of the step's tokens are read.
            if embedding && !spec.tied_head {
                continue;
            }
            costs.weight_bytes += tensor.bytes();
            match tensor.dims.len() {
                2 if embedding || Some(tensor.name.as_str()) == head => costs.head_ops += 2 * tensor.weights(),
                // Of experts only some are computed with.
                2 if !tensor.name.contains(".experts.") => costs.row_ops += 2 * tensor.weights(),
                _ => {}
            }
        }
        costs
    }
}

/// What was measured of one case.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// Tokens that count: rows of a prompt, or tokens generated.
    pub(super) tokens: u64,
    /// How long they took, plans and all.
    pub(super) elapsed: Duration,
    /// Each step's computation.
    pub(super) steps: Vec<Duration>,
    /// From each step's end to the start of the next.
    pub(super) gaps: Vec<Duration>,
    /// Of that, planning and taking in results.
    pub(super) planning: Vec<Duration>,
    /// Bytes that had to be read.
    pub(super) bytes: u64,
    /// Multiplications and additions by weights.
    pub(super) ops: u64,
    /// A digest of all tokens drawn: the same on every machine and number of threads, unless one of them errs.
    pub(super) digest: u64,
    /// Where the steps' time went, by operation and shape.
    pub(super) spent: BTreeMap<String, Spent>,
}

impl Run {
    pub(super) fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64()
    }
}

/// A backend, and where its time goes.
pub(super) trait Backend: Ops {
    /// Time by operation since the last call.
    fn take_spent(&mut self) -> BTreeMap<String, Spent>;
}

impl Backend for Timed<Cpu> {
    fn take_spent(&mut self) -> BTreeMap<String, Spent> {
        Timed::take_spent(self)
    }
}

/// An operation only asks a GPU for something, so the time that it takes here says nothing.
impl<M: Machine> Backend for Cuda<M> {
    fn take_spent(&mut self) -> BTreeMap<String, Spent> {
        BTreeMap::new()
    }
}

/// A model, loaded.
pub(super) struct Rig<B: Backend> {
    engine: Engine<B>,
    limits: BatchLimits,
    kv: KvPlan,
    vocab: u32,
    costs: Costs,
}

impl<B: Backend> Rig<B> {
    /// Loads the model in `path` onto `backend`, with room for each of `cases`.
    pub(super) fn load(path: &Path, backend: B, step_tokens: u32, cases: &[Case]) -> anyhow::Result<Self> {
        let files = ModelFiles::open(path)?;
        let spec = files.spec()?;
        check(&spec)?;
        if spec.is_encoder() {
            bail!("this model makes vectors of texts: only models that generate are measured");
        }
        let sequences_max = cases.iter().map(|c| c.batch()).max().unwrap_or(1);
        let step_tokens_max = step_tokens.max(sequences_max);
        let first = Case::Prompt { tokens: FIRST_PROMPT_TOKENS, depth: 0 };
        let (mut kv_blocks, context) = (0, u32::try_from(spec.context_tokens)?);
        for case in cases.iter().chain([&first]) {
            let (prompt, new) = case.sequence(step_tokens_max);
            if prompt + new > context {
                bail!("a sequence of {} tokens exceeds the model's context of {context}", prompt + new);
            }
            kv_blocks = kv_blocks.max(case.batch() * Assign::blocks_for(prompt, new, KV_BLOCK_TOKENS as u32));
        }
        let limits = BatchLimits {
            sequences_max,
            step_tokens_max,
            step_target: Duration::MAX,
            drafts_max: 0,
            kv_blocks,
            kv_kind: KvKind::F16,
            spill_bytes: 0,
            context_tokens: context,
        };
        let engine = Engine::new(backend, &files, &spec, limits)?;
        let costs = Costs::of(&files, &spec);
        Ok(Self { kv: KvPlan::new(&spec, &limits), engine, limits, vocab: u32::try_from(spec.vocab)?, costs })
    }

    pub(super) fn costs(&self) -> Costs {
        self.costs
    }

    /// Answers a short prompt with one token.
    pub(super) fn first_token(&mut self) -> anyhow::Result<Run> {
        self.run(Case::Prompt { tokens: FIRST_PROMPT_TOKENS, depth: 0 })
    }

    /// Runs one case; what comes before it is not timed.
    pub(super) fn run(&mut self, case: Case) -> anyhow::Result<Run> {
        let mut drive = Drive {
            batch: Batch::with_kv(self.limits, WeightsHash([0; 32]), &self.kv),
            steps_max: if self.engine.backend().ahead().is_some() { STEPS_IN_FLIGHT_MAX } else { 1 },
            rig: self,
            run: Run { digest: FNV_OFFSET, ..Run::default() },
            flights: VecDeque::new(),
            waiting: None,
            ended: None,
        };
        let (prompt, new) = case.sequence(drive.rig.limits.step_tokens_max);
        for id in 0..case.batch() {
            let assign = drive.rig.assign(id, prompt, new);
            drive.batch.assign(assign);
        }
        match case {
            Case::Prompt { tokens, depth } => {
                let mut position = 0;
                while position < depth {
                    position += drive.step()?.rows;
                }
                drive.reset();
                let from = position;
                while position < depth + tokens {
                    position += drive.step()?.rows;
                }
                drive.run.tokens = u64::from(position - from);
            }
            Case::Generate { tokens, batch, .. } => {
                while drive.step()?.draws < batch {}
                drive.reset();
                for _ in 0..tokens {
                    drive.run.tokens += u64::from(drive.step()?.draws);
                }
            }
        }
        drive.land()?;
        drive.run.spent = drive.rig.engine.backend().take_spent();
        Ok(drive.run)
    }

    fn assign(&self, id: u32, prompt_tokens: u32, max_new: u32) -> Assign {
        // Ordinary words, different for each sequence.
        let tokens = (0..prompt_tokens).map(|i| (1_000 + i * 37 + id * 101) % self.vocab).collect();
        let sequence = SequenceId(u64::from(id));
        Assign {
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            credit: u32::MAX,
            ..Assign::new(ReplicaId(0), sequence, tokens, max_new, KV_BLOCK_TOKENS as u32)
        }
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// One run in progress.
struct Drive<'a, B: Backend> {
    rig: &'a mut Rig<B>,
    batch: Batch,
    run: Run,
    /// Steps that are begun before the first of them is done: more than one where a device draws by itself, as a miner does it.
    steps_max: usize,
    /// Steps that were begun, oldest first.
    flights: VecDeque<Flight>,
    /// A plan that cannot be begun before the steps in flight are done.
    waiting: Option<StepPlan>,
    /// When the last step's computation ended.
    ended: Option<Instant>,
}

/// A step that was begun.
struct Flight {
    plan: StepPlan,
    began: Instant,
    /// What came of it, where the backend computed it at once, and when.
    output: Option<(StepOutput, Instant)>,
}

/// What a step did.
struct Stepped {
    rows: u32,
    draws: u32,
}

impl<B: Backend> Drive<'_, B> {
    /// Forgets what was measured so far, except for the digest.
    fn reset(&mut self) {
        self.run = Run { digest: self.run.digest, ..Run::default() };
        self.rig.engine.backend().take_spent();
        self.ended = None;
    }

    /// Begins as many steps as may be in flight, and takes in the oldest.
    fn step(&mut self) -> anyhow::Result<Stepped> {
        let woken = Instant::now();
        let mut planning = Duration::ZERO;
        while self.flights.len() < self.steps_max && self.begin(&mut planning)? {}
        let Some(Flight { plan, began, output }) = self.flights.pop_front() else {
            bail!("nothing is left to compute: {:?}", self.batch.take_news());
        };
        let (output, ended) = match output {
            Some(done) => done,
            None => (self.rig.engine.finish()?, Instant::now()),
        };
        // Of steps in flight, the next begins when the one before it is done.
        let began = self.ended.map_or(began, |before| before.max(began));
        let drawn = output.drawn.clone();
        let applying = Instant::now();
        let stepped = self.count(&plan);
        self.batch.apply(plan, output, ended - began);
        self.batch.take_news();
        let applied = Instant::now();
        for token in drawn {
            self.run.digest = (self.run.digest ^ u64::from(token)).wrapping_mul(FNV_PRIME);
        }
        self.run.steps.push(ended - began);
        self.run.planning.push(planning + (applied - applying));
        if let Some(before) = self.ended.replace(ended) {
            self.run.gaps.push(began - before);
        }
        self.run.elapsed += applied - woken;
        Ok(stepped)
    }

    /// Plans a step and begins it; `false` where there is none to begin now.
    fn begin(&mut self, planning: &mut Duration) -> anyhow::Result<bool> {
        let woken = Instant::now();
        let Some(plan) = self.waiting.take().or_else(|| self.batch.plan()) else { return Ok(false) };
        let began = Instant::now();
        *planning += began - woken;
        let output = if self.rig.engine.begin(&plan)? {
            None
        } else if self.flights.is_empty() {
            Some((self.rig.engine.step(&plan)?, Instant::now()))
        } else {
            self.waiting = Some(plan);
            return Ok(false);
        };
        self.flights.push_back(Flight { plan, began, output });
        Ok(true)
    }

    /// Waits for what is in flight and forgets it.
    fn land(&mut self) -> anyhow::Result<()> {
        for flight in self.flights.drain(..).filter(|flight| flight.output.is_none()) {
            let _ = (flight, self.rig.engine.finish()?);
        }
        Ok(())
    }

    fn count(&mut self, plan: &StepPlan) -> Stepped {
        let (rows, draws) = (plan.tokens.len() as u64, plan.draws.len() as u64);
        let positions: u64 = plan.spans.iter().map(|s| (s.first_position + s.rows) as u64).sum();
        let costs = self.rig.costs;
        self.run.bytes += costs.weight_bytes + costs.position_bytes * positions;
        self.run.ops += costs.row_ops * rows + costs.head_ops * draws;
        Stepped { rows: rows as u32, draws: draws as u32 }
    }
}
