//! The actor that owns a device's memory and runs its steps, on a thread of its own: a step blocks, and must block
//! nothing else. Decides nothing.

use std::sync::Arc;
use std::time::Instant;

use cuckoo_kernels::ops::{OpsError, Span, StepLayout};
use cuckoo_kernels::sampling::{LogprobRequest, Logprobs, SampleRequest, TokenMask};
use cuckoo_kernels::{Cpu, Ops};
use cuckoo_models::{ArchSpec, ModelFiles};
use ractor::thread_local::ThreadLocalActor;
use ractor::{ActorProcessingErr, ActorRef};

use super::DeviceKind;
use super::batch::{BatchLimits, Score, StepOutput, StepPlan};
use super::batcher::BatcherMsg;
use super::kv_plan::KvPlan;
use super::masks::PendingMask;
use crate::forward::{KvMemory, LoadError, Model, Workspace};

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
    pub(super) files: Arc<ModelFiles>,
    pub(super) spec: ArchSpec,
    pub(super) limits: BatchLimits,
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
}

impl<O: Ops> Engine<O> {
    fn load(ops: O, args: &ExecutorArgs) -> Result<Self, LoadError> {
        Self::new(ops, &args.files, &args.spec, args.limits)
    }

    /// Loads the weights in `files` and allocates all that a batch within `limits` will ever need, keys and values as
    /// [`KvPlan::new`] says.
    pub fn new(mut ops: O, files: &ModelFiles, spec: &ArchSpec, limits: BatchLimits) -> Result<Self, LoadError> {
        let model = Model::load(&mut ops, files, spec, |_| ())?;
        let rows = limits.step_tokens_max as usize;
        let logits_rows = limits.draws_max() as usize;
        let work = Workspace::new(&mut ops, spec, rows, logits_rows)?;
        let cache = KvMemory::new(&mut ops, &KvPlan::new(spec, &limits).shapes(spec))?;
        tracing::info!(backend = ops.describe(), layers = spec.layers, kv_blocks = limits.kv_blocks, "model loaded");
        Ok(Self { ops, model, work, cache, drawn: Vec::new(), logits_rows })
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
        self.model.forward(&mut self.ops, &mut self.work, &mut self.cache, &tokens, &layouts, &[])?;
        if self.model.spec().is_encoder() {
            return self.pool(&plan.spans);
        }
        let scores = self.score(&plan.scores)?;
        if plan.draws.is_empty() {
            return Ok(StepOutput { scores, ..StepOutput::default() });
        }
        let wanted: Vec<usize> = plan.draws.iter().map(|d| d.row).collect();
        self.model.logits(&mut self.ops, &mut self.work, &wanted)?;
        let mask = |at| masks.get(at).and_then(Option::as_ref).and_then(PendingMask::wait);
        let masks: Vec<Option<Arc<TokenMask>>> = (0..plan.draws.len()).map(mask).collect();
        let requests: Vec<SampleRequest<'_>> = plan
            .draws
            .iter()
            .enumerate()
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
        let drawn = self.ops.sample(&self.work.logits, &requests)?;
        self.drawn.extend(drawn.into_iter().map(|s| s.token));
        let logprobs = self.logprobs(plan)?;
        Ok(StepOutput { drawn: self.drawn.clone(), logprobs, scores, ..StepOutput::default() })
    }

    /// The vectors of an encoder's texts.
    fn pool(&mut self, spans: &[Span]) -> Result<StepOutput, OpsError> {
        let texts: Vec<_> = spans.iter().map(|span| span.first_row..span.first_row + span.rows).collect();
        self.model.pool(&mut self.ops, &mut self.work, &texts)?;
        let values = self.ops.read(&self.work.picked)?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(OpsError::Fault("a vector is not finite: the weights or the device are damaged".to_owned()));
        }
        let vectors = values.chunks(self.model.spec().hidden).map(<[f32]>::to_vec).collect();
        Ok(StepOutput { vectors, ..StepOutput::default() })
    }

    /// Log-probabilities of a prompt's tokens. A prompt has more rows than there is room for logits, so they take turns.
    fn score(&mut self, scores: &[Score]) -> Result<Vec<Logprobs>, OpsError> {
        let mut found = Vec::with_capacity(scores.len());
        for scores in scores.chunks(self.logits_rows) {
            let rows: Vec<usize> = scores.iter().map(|s| s.row).collect();
            self.model.logits(&mut self.ops, &mut self.work, &rows)?;
            let request = |(row, s): (usize, &Score)| LogprobRequest { row, token: s.token, top: s.top };
            let requests: Vec<LogprobRequest> = scores.iter().enumerate().map(request).collect();
            found.extend(self.ops.logprobs(&self.work.logits, &requests)?);
        }
        Ok(found)
    }

    /// Log-probabilities of what was just drawn, for those draws that want them.
    fn logprobs(&mut self, plan: &StepPlan) -> Result<Vec<Option<Logprobs>>, OpsError> {
        let wanting = plan.draws.iter().zip(&self.drawn).enumerate();
        let requests: Vec<LogprobRequest> = wanting
            .filter_map(|(row, (draw, token))| Some(LogprobRequest { row, token: *token, top: draw.logprobs? }))
            .collect();
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = self.ops.logprobs(&self.work.logits, &requests)?.into_iter();
        Ok(plan.draws.iter().map(|draw| draw.logprobs.and_then(|_| found.next())).collect())
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

impl<O: Ops> Stepper for Engine<O> {
    fn step(&mut self, plan: &StepPlan, masks: &[Option<PendingMask>]) -> Result<StepOutput, OpsError> {
        self.step_masked(plan, masks)
    }
}
