//! A loaded model on some backend, and the steps that it computes. Decides nothing.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use cuckoo_kernels::Ops;
use cuckoo_kernels::ops::{OpsError, Span, StepLayout};
use cuckoo_kernels::sampling::{LogprobRequest, Logprobs, SampleRequest, TokenMask};
use cuckoo_models::{Adapter, ArchSpec, ModelFiles};

use super::batch::{BatchLimits, Draw, Score, StepOutput, StepPlan};
use super::draft_model::Guess;
use super::executor::ExecutorArgs;
use super::kv_cache::{KvCopy, KvWay};
use super::kv_plan::KvPlan;
use super::masks::PendingMask;
use crate::forward::{self, KvMemory, LoadError, Model, Use, Workspace};

/// One model on one backend, with the memory that its batch needs, and a small one beside it where one guesses for it.
pub struct Engine<O: Ops> {
    ops: O,
    target: Loaded<O>,
    draft: Option<Loaded<O>>,
    /// Adapters that rows of the target may use, by the numbers that plans have for them. What drafts has none: it only
    /// guesses.
    adapters: Vec<forward::Adapter<O>>,
    /// Steps that were begun and not finished.
    ahead: usize,
}

/// A model, and what steps of it need.
struct Loaded<O: Ops> {
    model: Model<O>,
    work: Workspace<O>,
    cache: KvMemory<O>,
    /// What the last step drew: the tokens that the next one may have placeholders for.
    drawn: Vec<u32>,
    /// Rows of logits that the workspace holds.
    logits_rows: usize,
}

/// Whether a row of a step is one that an adapter has turned into what are no numbers.
type IsBroken<'a> = &'a dyn Fn(usize) -> bool;

impl<O: Ops> Engine<O> {
    pub(super) fn load(ops: O, args: &ExecutorArgs) -> Result<Self, LoadError> {
        let mut engine = Self::new(ops, &args.files, &args.spec, args.limits)?;
        if let Some(draft) = &args.draft {
            engine = engine.with_draft(&draft.files, &draft.spec, args.limits)?;
        }
        for (path, adapter) in &args.adapters {
            engine.add_adapter(adapter, &File::open(path)?)?;
        }
        Ok(engine)
    }

    /// Loads `adapter`, opened from `file`: the next of those that plans may name.
    pub fn add_adapter(&mut self, adapter: &Adapter, file: &File) -> Result<(), LoadError> {
        self.adapters.push(forward::Adapter::load(&mut self.ops, adapter, file, self.target.model.spec())?);
        Ok(())
    }

    /// Loads the weights in `files` and allocates all that a batch within `limits` will ever need, keys and values as
    /// [`KvPlan::new`] says.
    pub fn new(mut ops: O, files: &ModelFiles, spec: &ArchSpec, limits: BatchLimits) -> Result<Self, LoadError> {
        let target = Loaded::new(&mut ops, files, spec, limits, limits.draws_max())?;
        tracing::info!(backend = ops.describe(), layers = spec.layers, kv_blocks = limits.kv_blocks, "model loaded");
        Ok(Self { ops, target, draft: None, adapters: Vec::new(), ahead: 0 })
    }

    /// Loads a draft model as well, for the passes that a batch of the same limits plans for it.
    pub fn with_draft(mut self, files: &ModelFiles, spec: &ArchSpec, limits: BatchLimits) -> Result<Self, LoadError> {
        self.draft = Some(Loaded::new(&mut self.ops, files, spec, limits.of_draft(), limits.sequences_max)?);
        tracing::info!(layers = spec.layers, "draft model loaded");
        Ok(self)
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
        assert_eq!(self.ahead, 0, "steps that were begun are finished first");
        let mut output = self.guess(plan);
        let tokens = plan.resolve(&self.target.drawn, &output.guesses);
        let uses = uses(plan, &self.adapters);
        self.target.forward(&mut self.ops, plan, &tokens, &uses)?;
        if plan.draws.is_empty() {
            // Nothing else waits for it, and the next step is as long as this one is seen to take.
            self.ops.wait()?;
        }
        if self.target.model.spec().is_encoder() {
            output.vectors = self.target.pool(&mut self.ops, &plan.spans)?;
            return Ok(output);
        }
        output.broken = self.target.broken(&mut self.ops, plan)?;
        let broken = &output.broken;
        let is_broken = |row: usize| broken.iter().any(|span| rows_of(&plan.spans[*span]).contains(&row));
        output.scores = self.target.score(&mut self.ops, &plan.scores, &is_broken)?;
        output.drawn = self.target.draw(&mut self.ops, plan, masks, &is_broken)?;
        output.logprobs = self.target.logprobs(&mut self.ops, plan, &is_broken)?;
        Ok(output)
    }

    /// Begins a step whose output [`Self::finish`] gives, so that the next one can be begun before this one is done: what it draws
    /// stays on the device, where the next step's placeholders find it. `false` where the backend draws nothing there or the
    /// step is more than rows and draws: nothing was begun, and [`Self::step_masked`] is to compute it.
    pub fn begin(&mut self, plan: &StepPlan) -> Result<bool, OpsError> {
        let requests: Vec<SampleRequest<'_>> =
            plan.draws.iter().enumerate().map(|(row, d)| request(row, d, None)).collect();
        let (is_encoder, vocabulary) = (self.target.model.spec().is_encoder(), self.target.model.spec().vocab);
        let Some(ahead) = self.ops.ahead().filter(|ahead| ahead.can_draw(&requests, vocabulary)) else {
            return Ok(false);
        };
        if is_encoder || !is_plain(plan) {
            return Ok(false);
        }
        let tokens = if self.ahead == 0 {
            plan.resolve(&self.target.drawn, &[])
        } else {
            ahead.feed(plan.placeholders.iter().map(|place| (place.row, place.draw)).collect());
            plan.tokens.as_slice().into()
        };
        self.target.forward(&mut self.ops, plan, &tokens, &[])?;
        if !plan.draws.is_empty() {
            let wanted: Vec<usize> = plan.draws.iter().map(|d| d.row).collect();
            self.target.model.logits(&mut self.ops, &mut self.target.work, &wanted)?;
        }
        let ahead = self.ops.ahead().ok_or_else(|| OpsError::Fault("a backend draws ahead or does not".to_owned()))?;
        ahead.draw(&self.target.work.logits, &requests)?;
        self.ahead += 1;
        Ok(true)
    }

    /// The output of the oldest step that was begun, when it is there.
    pub fn finish(&mut self) -> Result<StepOutput, OpsError> {
        let ahead = self.ops.ahead().ok_or_else(|| OpsError::Fault("no step was begun".to_owned()))?;
        let drawn: Vec<u32> = ahead.collect()?.iter().map(|sampled| sampled.token).collect();
        self.ahead -= 1;
        if self.ahead == 0 {
            self.target.drawn.clone_from(&drawn);
        }
        Ok(StepOutput { drawn, ..StepOutput::default() })
    }

    /// Has the draft model make its passes. If it fails it is let go, and the step goes on with guesses that are likely
    /// to be wrong: what is drawn does not depend on them.
    fn guess(&mut self, plan: &StepPlan) -> StepOutput {
        let mut output = StepOutput::default();
        let mut drawn: Vec<Vec<u32>> = Vec::with_capacity(plan.passes.len());
        for pass in &plan.passes {
            let began = Instant::now();
            let guessed = match &mut self.draft {
                Some(draft) => draft.pass(&mut self.ops, pass).map_err(|e| e.to_string()),
                None => Err("it has failed before".to_owned()),
            };
            match guessed {
                Ok(tokens) => drawn.push(tokens),
                Err(why) => {
                    tracing::error!(%why, "the draft model failed; going on without it");
                    (self.draft, output.draft_fault) = (None, Some(why));
                    break;
                }
            }
            output.passes.push(began.elapsed());
        }
        let vocabulary = self.target.model.spec().vocab;
        let guess = |from: Guess| drawn.get(from.pass).map_or(0, |drawn| within(vocabulary, drawn[from.draw]));
        output.guesses = plan.guesses.iter().map(|guessed| guess(guessed.from)).collect();
        output
    }

    /// The backend, for what it can tell about itself.
    pub fn backend(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Logits of the last step's draws, row-major.
    pub fn logits(&mut self) -> Result<Vec<f32>, OpsError> {
        self.ops.read(&self.target.work.logits)
    }
}

/// A token, or some other where a vocabulary ends before it: tables of one vocabulary may be padded to different lengths.
fn within(vocabulary: usize, token: u32) -> u32 {
    if (token as usize) < vocabulary { token } else { 0 }
}

impl<O: Ops> Loaded<O> {
    fn new(
        ops: &mut O,
        files: &ModelFiles,
        spec: &ArchSpec,
        limits: BatchLimits,
        draws_max: u32,
    ) -> Result<Self, LoadError> {
        let model = Model::load(ops, files, spec, |_| ())?;
        let (rows, logits_rows) = (limits.step_tokens_max as usize, draws_max as usize);
        let work = Workspace::new(ops, spec, rows, logits_rows)?;
        let kv = KvPlan::new(spec, &limits);
        let cache = KvMemory::with_host(ops, &kv.shapes(spec), &kv.host_shapes(spec))?;
        Ok(Self { model, work, cache, drawn: Vec::new(), logits_rows })
    }

    /// A whole step of a draft model: what it draws.
    fn pass(&mut self, ops: &mut O, pass: &StepPlan) -> Result<Vec<u32>, OpsError> {
        let mut tokens = pass.resolve(&self.drawn, &[]).into_owned();
        tokens.iter_mut().for_each(|token| *token = within(self.model.spec().vocab, *token));
        self.forward(ops, pass, &tokens, &[])?;
        self.draw(ops, pass, &[], &|_| false)
    }

    fn forward(&mut self, ops: &mut O, plan: &StepPlan, tokens: &[u32], uses: &[Use<'_, O>]) -> Result<(), OpsError> {
        let layout = |blocks| StepLayout { spans: &plan.spans, blocks };
        let layouts: Vec<_> = plan.blocks.iter().map(|blocks| layout(blocks.as_slice())).collect();
        self.drawn.clear();
        self.copy(ops, &plan.copies)?;
        self.model.forward_adapted(ops, &mut self.work, &mut self.cache, tokens, (&layouts, uses))
    }

    /// Moves blocks between the device and the host, in the order in which that was decided.
    fn copy(&mut self, ops: &mut O, copies: &[KvCopy]) -> Result<(), OpsError> {
        for run in copies.chunk_by(|a, b| (a.group, a.way) == (b.group, b.way)) {
            let KvCopy { group, way, .. } = run[0];
            match way {
                KvWay::Out => {
                    let blocks: Vec<(u32, u32)> = run.iter().map(|copy| (copy.block, copy.slot)).collect();
                    self.cache.copy_out(ops, group, &blocks)?;
                }
                KvWay::In => {
                    let slots: Vec<(u32, u32)> = run.iter().map(|copy| (copy.slot, copy.block)).collect();
                    self.cache.copy_in(ops, group, &slots)?;
                }
            }
        }
        Ok(())
    }

    /// Spans whose adapters gave what are no numbers, as far as anybody will look. An adapter is a stranger's: it must not
    /// take the device down for all others.
    fn broken(&mut self, ops: &mut O, plan: &StepPlan) -> Result<Vec<usize>, OpsError> {
        if plan.adapters.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        let mut broken = Vec::new();
        let looked_at = plan.draws.iter().map(|d| d.row).chain(plan.scores.iter().map(|s| s.row));
        let mut rows: Vec<(usize, usize)> = looked_at
            .filter_map(|row| Some((row, plan.spans.iter().position(|span| rows_of(span).contains(&row))?)))
            .filter(|(_, span)| plan.adapters[*span].is_some())
            .collect();
        rows.sort_unstable();
        for rows in rows.chunks(self.logits_rows) {
            let numbers: Vec<usize> = rows.iter().map(|(row, _)| *row).collect();
            let hidden = self.model.hidden(ops, &mut self.work, &numbers)?;
            let width = self.model.spec().hidden;
            let found =
                rows.iter().zip(hidden.chunks(width)).filter(|(_, values)| !values.iter().all(|v| v.is_finite()));
            broken.extend(found.map(|((_, span), _)| *span));
        }
        broken.dedup();
        Ok(broken)
    }

    /// Log-probabilities of a prompt's tokens. A prompt has more rows than there is room for logits, so they take turns.
    fn score(&mut self, ops: &mut O, scores: &[Score], is_broken: IsBroken<'_>) -> Result<Vec<Logprobs>, OpsError> {
        let mut found = Vec::with_capacity(scores.len());
        for scores in scores.chunks(self.logits_rows) {
            let rows: Vec<usize> = scores.iter().map(|s| s.row).collect();
            self.model.logits(ops, &mut self.work, &rows)?;
            let request = |(row, s): (usize, &Score)| LogprobRequest { row, token: s.token, top: s.top };
            let sound = |(_, s): &(usize, &Score)| !is_broken(s.row);
            let requests: Vec<LogprobRequest> = scores.iter().enumerate().filter(sound).map(request).collect();
            let mut answers = ops.logprobs(&self.work.logits, &requests)?.into_iter();
            let nothing = || Logprobs { logprob: 0.0, rank: 0, top: Vec::new() };
            let answer = |s: &Score| if is_broken(s.row) { None } else { answers.next() }.unwrap_or_else(nothing);
            found.extend(scores.iter().map(answer));
        }
        Ok(found)
    }

    /// One token for each draw.
    fn draw(
        &mut self,
        ops: &mut O,
        plan: &StepPlan,
        masks: &[Option<PendingMask>],
        is_broken: IsBroken<'_>,
    ) -> Result<Vec<u32>, OpsError> {
        if plan.draws.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<usize> = plan.draws.iter().map(|d| d.row).collect();
        self.model.logits(ops, &mut self.work, &wanted)?;
        let mask = |at| masks.get(at).and_then(Option::as_ref).and_then(PendingMask::wait);
        let masks: Vec<Option<Arc<TokenMask>>> = (0..plan.draws.len()).map(mask).collect();
        let requests: Vec<SampleRequest<'_>> = plan
            .draws
            .iter()
            .enumerate()
            .filter(|(_, d)| !is_broken(d.row))
            .map(|(row, d)| request(row, d, masks[row].as_deref()))
            .collect();
        let mut drawn = ops.sample(&self.work.logits, &requests)?.into_iter();
        // For what is broken nothing is drawn; its sequence ends before anybody looks.
        let token = |d: &Draw| if is_broken(d.row) { 0 } else { drawn.next().map_or(0, |s| s.token) };
        self.drawn.extend(plan.draws.iter().map(token));
        Ok(self.drawn.clone())
    }

    /// The vectors of an encoder's texts.
    fn pool(&mut self, ops: &mut O, spans: &[Span]) -> Result<Vec<Vec<f32>>, OpsError> {
        let texts: Vec<_> = spans.iter().map(rows_of).collect();
        self.model.pool(ops, &mut self.work, &texts)?;
        let values = ops.read(&self.work.picked)?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(OpsError::Fault("a vector is not finite: the weights or the device are damaged".to_owned()));
        }
        Ok(values.chunks(self.model.spec().hidden).map(<[f32]>::to_vec).collect())
    }

    /// Log-probabilities of what was just drawn, for those draws that want them.
    fn logprobs(
        &mut self,
        ops: &mut O,
        plan: &StepPlan,
        is_broken: IsBroken<'_>,
    ) -> Result<Vec<Option<Logprobs>>, OpsError> {
        let wanted = |draw: &Draw| draw.logprobs.filter(|_| !is_broken(draw.row));
        let wanting = plan.draws.iter().zip(&self.drawn).enumerate();
        let requests: Vec<LogprobRequest> = wanting
            .filter_map(|(row, (draw, token))| Some(LogprobRequest { row, token: *token, top: wanted(draw)? }))
            .collect();
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = ops.logprobs(&self.work.logits, &requests)?.into_iter();
        Ok(plan.draws.iter().map(|draw| wanted(draw).and_then(|_| found.next())).collect())
    }
}

/// The rows of a plan that use adapters.
fn uses<'a, O: Ops>(plan: &StepPlan, adapters: &'a [forward::Adapter<O>]) -> Vec<Use<'a, O>> {
    let spans = plan.spans.iter().zip(&plan.adapters);
    spans.filter_map(|(span, adapter)| Some(Use { rows: rows_of(span), adapter: &adapters[(*adapter)?] })).collect()
}

fn rows_of(span: &Span) -> Range<usize> {
    span.first_row..span.first_row + span.rows
}

/// The draw of a row of logits.
fn request<'a>(row: usize, d: &'a Draw, allowed: Option<&'a TokenMask>) -> SampleRequest<'a> {
    SampleRequest {
        row,
        params: &d.params,
        seed: d.seed,
        position: d.position,
        history: &d.history,
        forbidden: &d.forbidden,
        allowed,
    }
}

/// Whether a step is rows and draws and nothing else: nobody looks at what it computes but at the tokens.
fn is_plain(plan: &StepPlan) -> bool {
    plan.passes.is_empty()
        && plan.guesses.is_empty()
        && plan.scores.is_empty()
        && plan.adapters.iter().all(Option::is_none)
        && plan.draws.iter().all(|draw| draw.logprobs.is_none())
}
