//! The actor that owns a device's memory and runs its steps, on a thread of its own: a step blocks, and must block
//! nothing else. Decides nothing.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cuckoo_kernels::ops::{OpsError, Span, StepLayout};
use cuckoo_kernels::sampling::{LogprobRequest, Logprobs, SampleRequest, TokenMask};
use cuckoo_kernels::{Cpu, Ops};
use cuckoo_models::{Adapter, ArchSpec, Gguf};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use super::DeviceKind;
use super::batch::{BatchLimits, Draw, Score, StepOutput, StepPlan};
use super::batcher::BatcherMsg;
use super::kv_plan::KvPlan;
use super::masks::PendingMask;
use crate::forward::{self, KvMemory, LoadError, Model, Use, Workspace};

/// Messages of the executor.
pub(super) enum ExecutorMsg {
    /// Compute, draw, and tell `reply_to`.
    Run {
        /// What to compute.
        plan: StepPlan,
        /// The mask of each draw that has one; they are computed meanwhile.
        masks: Vec<Option<PendingMask>>,
        /// Who asked.
        reply_to: ActorRef<BatcherMsg>,
    },
}

/// What to load, and where.
#[derive(Clone)]
pub(super) struct ExecutorArgs {
    pub(super) device: DeviceKind,
    pub(super) weights: PathBuf,
    pub(super) gguf: Arc<Gguf>,
    pub(super) spec: ArchSpec,
    pub(super) limits: BatchLimits,
    /// Adapters and their files.
    pub(super) adapters: Vec<(PathBuf, Arc<Adapter>)>,
}

/// Loads what computes. Called on the executor's own thread, at each of its starts.
pub(super) type Load = Arc<dyn Fn() -> Result<Box<dyn Stepper>, LoadError> + Send + Sync>;

impl ExecutorArgs {
    /// Loads the model onto the device.
    pub(super) fn load(&self) -> Result<Box<dyn Stepper>, LoadError> {
        Ok(match self.device {
            DeviceKind::Cpu { threads } => Box::new(Engine::load(Cpu::new(threads), self)?),
        })
    }
}

#[derive(Default)]
pub(super) struct Executor;

impl ThreadLocalActor for Executor {
    type Msg = ExecutorMsg;
    type State = Box<dyn Stepper>;
    type Arguments = Load;

    async fn pre_start(&self, _me: ActorRef<ExecutorMsg>, load: Load) -> Result<Self::State, ActorProcessingErr> {
        Ok(load()?)
    }

    async fn handle(
        &self,
        _me: ActorRef<ExecutorMsg>,
        message: ExecutorMsg,
        engine: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ExecutorMsg::Run { plan, masks, reply_to } => {
                let began = Instant::now();
                // A fault fails this actor; its supervisor starts the device afresh.
                let output = engine.step(&plan, &masks)?;
                // A batcher that is gone has nobody to tell.
                let _ = reply_to.cast(BatcherMsg::Stepped { plan, masks, output, took: began.elapsed() });
            }
        }
        Ok(())
    }
}

/// A loaded model on some backend.
pub(super) trait Stepper {
    /// Computes a step and draws its tokens.
    fn step(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError>;
}

/// One model on one backend, with the memory that its batch needs.
pub struct Engine<O: Ops> {
    ops: O,
    model: Model<O>,
    work: Workspace<O>,
    cache: KvMemory<O>,
    /// What the last step drew: the tokens that the next one may have placeholders for.
    drawn: Vec<u32>,
    /// Rows of logits that the workspace holds.
    logits_rows: usize,
    /// Adapters that rows may use, by the numbers that plans have for them.
    adapters: Vec<forward::Adapter<O>>,
}

impl<O: Ops> Engine<O> {
    fn load(ops: O, args: &ExecutorArgs) -> Result<Self, LoadError> {
        let file = File::open(&args.weights)?;
        let mut engine = Self::new(ops, &args.gguf, &file, &args.spec, args.limits)?;
        for (path, adapter) in &args.adapters {
            engine.add_adapter(adapter, &File::open(path)?)?;
        }
        Ok(engine)
    }

    /// Loads `adapter`, opened from `file`: the next of those that plans may name.
    pub fn add_adapter(&mut self, adapter: &Adapter, file: &File) -> Result<(), LoadError> {
        self.adapters.push(forward::Adapter::load(&mut self.ops, adapter, file, self.model.spec())?);
        Ok(())
    }

    /// Loads the weights in `file` and allocates all that a batch within `limits` will ever need, keys and values as
    /// [`KvPlan::new`] says.
    pub fn new(mut ops: O, gguf: &Gguf, file: &File, spec: &ArchSpec, limits: BatchLimits) -> Result<Self, LoadError> {
        let model = Model::load(&mut ops, gguf, file, spec, |_| ())?;
        let rows = limits.step_tokens_max as usize;
        let logits_rows = limits.draws_max() as usize;
        let work = Workspace::new(&mut ops, spec, rows, logits_rows)?;
        let cache = KvMemory::new(&mut ops, &KvPlan::new(spec, &limits).shapes(spec))?;
        tracing::info!(backend = ops.describe(), layers = spec.layers, kv_blocks = limits.kv_blocks, "model loaded");
        Ok(Self { ops, model, work, cache, drawn: Vec::new(), logits_rows, adapters: Vec::new() })
    }

    /// Computes the rows of `plan`, scores what it wants scored, and draws a token for each of its draws. Plans come in
    /// the order in which they were made, so that what the one before drew is known here even where it was not when this
    /// one was made.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, OpsError> {
        self.step_masked(plan, &[])
    }

    /// The same, with the masks of those draws that have one. They are waited for when the logits are there, so that
    /// whoever computes them has the whole forward pass for it. A draw whose mask failed is made without it.
    pub fn step_masked(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        let layout = |blocks| StepLayout { spans: &plan.spans, blocks };
        let layouts: Vec<_> = plan.blocks.iter().map(|blocks| layout(blocks.as_slice())).collect();
        let tokens = plan.resolve(&self.drawn);
        self.drawn.clear();
        let uses = uses(plan, &self.adapters);
        let (ops, work) = (&mut self.ops, &mut self.work);
        self.model.forward_adapted(ops, work, &mut self.cache, &tokens, (&layouts, &uses))?;
        let broken = self.broken(plan)?;
        let is_broken = |row: usize| broken.iter().any(|span| rows_of(&plan.spans[*span]).contains(&row));
        let scores = self.score(&plan.scores, &is_broken)?;
        if plan.draws.is_empty() {
            return Ok(StepOutput { scores, broken, ..StepOutput::default() });
        }
        let wanted: Vec<usize> = plan.draws.iter().map(|d| d.row).collect();
        self.model.logits(&mut self.ops, &mut self.work, &wanted)?;
        let mask = |at| masks.get(at).and_then(Option::as_ref).and_then(PendingMask::wait);
        let masks: Vec<Option<Arc<TokenMask>>> = (0..plan.draws.len()).map(mask).collect();
        let requests: Vec<SampleRequest<'_>> = plan
            .draws
            .iter()
            .enumerate()
            .filter(|(_, d)| !is_broken(d.row))
            .map(|(row, d)| SampleRequest {
                row,
                params: &d.params,
                seed: d.seed,
                position: d.position,
                history: &d.history,
                forbidden: &d.forbidden,
                allowed: masks[row].as_deref(),
            })
            .collect();
        let mut drawn = self.ops.sample(&self.work.logits, &requests)?.into_iter();
        // For what is broken nothing is drawn; its sequence ends before anybody looks.
        let token = |d: &Draw| if is_broken(d.row) { 0 } else { drawn.next().map_or(0, |s| s.token) };
        self.drawn.extend(plan.draws.iter().map(token));
        let logprobs = self.logprobs(plan, &is_broken)?;
        Ok(StepOutput { drawn: self.drawn.clone(), logprobs, scores, broken })
    }

    /// Spans whose adapters gave what are no numbers, as far as anybody will look. An adapter is a stranger's: it must not
    /// take the device down for all others.
    fn broken(&mut self, plan: &StepPlan) -> Result<Vec<usize>, OpsError> {
        let mut broken = Vec::new();
        let looked_at = plan.draws.iter().map(|d| d.row).chain(plan.scores.iter().map(|s| s.row));
        let mut rows: Vec<(usize, usize)> = looked_at
            .filter_map(|row| Some((row, plan.spans.iter().position(|span| rows_of(span).contains(&row))?)))
            .filter(|(_, span)| plan.adapters[*span].is_some())
            .collect();
        rows.sort_unstable();
        for rows in rows.chunks(self.logits_rows) {
            let numbers: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
            let hidden = self.model.hidden(&mut self.ops, &mut self.work, &numbers)?;
            let width = self.model.spec().hidden;
            let found =
                rows.iter().zip(hidden.chunks(width)).filter(|(_, values)| !values.iter().all(|v| v.is_finite()));
            broken.extend(found.map(|((_, span), _)| *span));
        }
        broken.dedup();
        Ok(broken)
    }

    /// Log-probabilities of a prompt's tokens. A prompt has more rows than there is room for logits, so they take turns.
    fn score(&mut self, scores: &[Score], is_broken: &dyn Fn(usize) -> bool) -> Result<Vec<Logprobs>, OpsError> {
        let mut found = Vec::with_capacity(scores.len());
        for scores in scores.chunks(self.logits_rows) {
            let rows: Vec<usize> = scores.iter().map(|s| s.row).collect();
            self.model.logits(&mut self.ops, &mut self.work, &rows)?;
            let request = |(row, s): (usize, &Score)| LogprobRequest { row, token: s.token, top: s.top };
            let sound = |(_, s): &(usize, &Score)| !is_broken(s.row);
            let requests: Vec<LogprobRequest> = scores.iter().enumerate().filter(sound).map(request).collect();
            let mut answers = self.ops.logprobs(&self.work.logits, &requests)?.into_iter();
            let nothing = || Logprobs { logprob: 0.0, rank: 0, top: Vec::new() };
            let answer = |s: &Score| if is_broken(s.row) { None } else { answers.next() }.unwrap_or_else(nothing);
            found.extend(scores.iter().map(answer));
        }
        Ok(found)
    }

    /// Log-probabilities of what was just drawn, for those draws that want them.
    fn logprobs(
        &mut self,
        plan: &StepPlan,
        is_broken: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<Logprobs>>, OpsError> {
        let wanted = |draw: &Draw| draw.logprobs.filter(|_| !is_broken(draw.row));
        let wanting = plan.draws.iter().zip(&self.drawn).enumerate();
        let requests: Vec<LogprobRequest> = wanting
            .filter_map(|(row, (draw, token))| Some(LogprobRequest { row, token: *token, top: wanted(draw)? }))
            .collect();
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = self.ops.logprobs(&self.work.logits, &requests)?.into_iter();
        Ok(plan.draws.iter().map(|draw| wanted(draw).and_then(|_| found.next())).collect())
    }

    /// The backend, for what it can tell about itself.
    pub fn backend(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Logits of the last step's draws, row-major.
    pub fn logits(&mut self) -> Result<Vec<f32>, OpsError> {
        self.ops.read(&self.work.logits)
    }
}

/// The rows of a plan that use adapters.
fn uses<'a, O: Ops>(plan: &StepPlan, adapters: &'a [forward::Adapter<O>]) -> Vec<Use<'a, O>> {
    let spans = plan.spans.iter().zip(&plan.adapters);
    spans.filter_map(|(span, adapter)| Some(Use { rows: rows_of(span), adapter: &adapters[(*adapter)?] })).collect()
}

fn rows_of(span: &Span) -> std::ops::Range<usize> {
    span.first_row..span.first_row + span.rows
}

impl<O: Ops> Stepper for Engine<O> {
    fn step(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        self.step_masked(plan, masks)
    }
}
