//! What a replica has to do, by what its model is for: one face for the batcher. Decides nothing itself.

use std::time::Duration;

use cuckoo_wire::message::{Assign, Encode, SequenceId, StepItem, Task, Window};

use super::batch::{Batch, BatchStats, StepOutput, StepPlan};
use super::batcher::BatcherArgs;
use super::texts::TextBatch;

/// The sequences of one replica.
#[allow(clippy::large_enum_variant, reason = "there is one a replica, and it is never moved")]
pub(super) enum Work {
    /// Of a model that generates.
    Generate(Batch),
    /// Of an encoder.
    Embed(TextBatch),
}

impl Work {
    /// None, for the model that is offered.
    pub(super) fn new(args: &BatcherArgs) -> Self {
        match args.offer.task {
            Task::Generate => {
                let batch = Batch::with_kv(args.limits, args.offer.weights, &args.kv);
                let batch = batch.with_adapters(&args.offer.adapters);
                Self::Generate(match &args.draft {
                    Some(draft) => batch.with_draft(draft),
                    None => batch,
                })
            }
            Task::Embed => Self::Embed(TextBatch::new(args.limits)),
        }
    }

    pub(super) fn assign(&mut self, assign: Assign) {
        match self {
            Self::Generate(batch) => batch.assign(assign),
            Self::Embed(batch) => {
                let why = "this replica's model makes vectors of texts and generates nothing";
                batch.refuse(assign.sequence, assign.blocks, why);
            }
        }
    }

    pub(super) fn encode(&mut self, encode: Encode) {
        match self {
            Self::Generate(batch) => {
                batch.refuse(encode.sequence, encode.blocks, "this replica's model makes no vectors of texts");
            }
            Self::Embed(batch) => batch.encode(encode),
        }
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        match self {
            Self::Generate(batch) => batch.cancel(id),
            Self::Embed(batch) => batch.cancel(id),
        }
    }

    /// A text needs no credit: its vector is all that there is to send.
    pub(super) fn credit(&mut self, id: SequenceId, tokens: u32) {
        if let Self::Generate(batch) = self {
            batch.credit(id, tokens);
        }
    }

    pub(super) fn fail(&mut self, id: SequenceId, why: &str) {
        if let Self::Generate(batch) = self {
            batch.fail(id, why);
        }
    }

    pub(super) fn is_compiling(&self, id: SequenceId) -> bool {
        matches!(self, Self::Generate(batch) if batch.is_compiling(id))
    }

    pub(super) fn constraint_is_ready(&mut self, id: SequenceId) {
        if let Self::Generate(batch) = self {
            batch.constraint_is_ready(id);
        }
    }

    pub(super) fn window(&self) -> Window {
        match self {
            Self::Generate(batch) => batch.window(),
            Self::Embed(batch) => batch.window(),
        }
    }

    /// See [`Batch::grant_others`].
    pub(super) fn grant_others(&mut self, others: Window) {
        match self {
            Self::Generate(batch) => batch.grant_others(others),
            Self::Embed(batch) => batch.grant_others(others),
        }
    }

    pub(super) fn sequences(&self) -> (usize, usize) {
        match self {
            Self::Generate(batch) => batch.sequences(),
            Self::Embed(batch) => batch.sequences(),
        }
    }

    /// Texts hold no blocks beyond their step.
    pub(super) fn blocks_used(&self) -> u32 {
        match self {
            Self::Generate(batch) => batch.blocks_used(),
            Self::Embed(_) => 0,
        }
    }

    /// Names of what is cached.
    pub(super) fn cached_names(&self) -> Vec<u64> {
        match self {
            Self::Generate(batch) => batch.cached_names().collect(),
            Self::Embed(_) => Vec::new(),
        }
    }

    /// Nothing of a text is kept.
    pub(super) fn take_block_news(&mut self) -> (Vec<u64>, Vec<u64>) {
        match self {
            Self::Generate(batch) => batch.take_block_news(),
            Self::Embed(_) => Default::default(),
        }
    }

    pub(super) fn expected(&self, plan: &StepPlan) -> Option<Duration> {
        match self {
            Self::Generate(batch) => batch.expected(plan),
            Self::Embed(batch) => batch.expected(plan.tokens.len() as u32),
        }
    }

    /// What was done so far, as far as it is counted.
    pub(super) fn stats(&self) -> BatchStats {
        match self {
            Self::Generate(batch) => batch.stats(),
            Self::Embed(_) => BatchStats::default(),
        }
    }

    pub(super) fn take_news(&mut self) -> Vec<StepItem> {
        match self {
            Self::Generate(batch) => batch.take_news(),
            Self::Embed(batch) => batch.take_news(),
        }
    }

    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        match self {
            Self::Generate(batch) => batch.plan(),
            Self::Embed(batch) => batch.plan(),
        }
    }

    pub(super) fn apply(&mut self, plan: StepPlan, output: StepOutput, took: Duration) {
        match self {
            Self::Generate(batch) => batch.apply(plan, output, took),
            Self::Embed(batch) => batch.apply(output, took),
        }
    }
}
