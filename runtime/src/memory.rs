//! How much memory a model takes, and whether there is so much: decided before a weight is read or anything is allocated.
//!
//! The sums are those of the loading code itself, run on memory that only counts ([`Counted`]); so they are what loading then
//! takes, to the byte, and no allocation can fail after it. Keys and values get what is asked for, or what is left.

mod machine;

use std::fmt;
use std::time::Duration;

use cuckoo_kernels::ops::{KV_BLOCK_TOKENS, OpsError};
use cuckoo_kernels::{Counted, KvKind, cpu, cuda};
use cuckoo_models::{Adapter, ArchSpec, ModelFiles};

pub use self::machine::{Available, Room};
use crate::device::{BatchLimits, DeviceKind, KvPlan, texts_per_step};
use crate::forward::{self, KvMemory, LoadError, Model, Workspace};

/// Where keys and values get what is left of the memory, a sequence of so many tokens has to fit: who gets less is better
/// served by a smaller model.
const CONTEXT_TOKENS_LEAST: u32 = 512;

/// The longest text that an encoder takes, whatever its model could: a text is computed in one step, which has to fit memory.
const ENCODER_CONTEXT_TOKENS_MAX: u32 = 8_192;

/// Rows of an encoder's step at least: nobody who decodes waits for it, and many short texts fit.
const ENCODER_STEP_TOKENS: u32 = 512;

/// What a batch is to be like, before it is known how much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchWish {
    /// Sequences that run at once.
    pub sequences_max: u32,
    /// Rows of one step.
    pub step_tokens_max: u32,
    /// How long a step should take.
    pub step_target: Duration,
    /// Draft tokens of one step.
    pub drafts_max: u32,
    /// Bytes for keys and values.
    pub kv_bytes_max: u64,
    /// How they are kept.
    pub kv_kind: KvKind,
    /// Bytes of host memory for blocks whose room is needed.
    pub spill_bytes: u64,
    /// Longest sequence; `None`: as long as the model allows.
    pub context_tokens_max: Option<u32>,
}

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights as the backend keeps them, vectors, tables of rotations.
    pub weights: u64,
    /// Activations of a step.
    pub activations: u64,
    /// Keys and values on the device.
    pub kv: u64,
    /// Blocks of them on the host.
    pub spill: u64,
    /// Adapters, with what is held of a file while one is loaded.
    pub adapters: u64,
    /// Of the file, while it is loaded: before keys, values and activations are there.
    pub reading: u64,
}

impl MemoryPlan {
    /// The most that is taken at once where device and host share their memory.
    pub fn peak(&self) -> u64 {
        let later = self.activations.saturating_add(self.kv).saturating_add(self.spill).saturating_add(self.adapters);
        self.weights.saturating_add(later.max(self.reading))
    }

    /// What is taken of a device with memory of its own.
    pub fn on_device(&self) -> u64 {
        [self.weights, self.activations, self.kv, self.adapters].into_iter().fold(0, u64::saturating_add)
    }

    /// What is then taken of the host's memory, at most at once.
    pub fn on_host(&self) -> u64 {
        self.spill.max(self.reading)
    }

    /// This and another model, whose files are read one after the other.
    fn and(self, other: Self) -> Self {
        Self {
            weights: self.weights.saturating_add(other.weights),
            activations: self.activations.saturating_add(other.activations),
            kv: self.kv.saturating_add(other.kv),
            spill: self.spill.saturating_add(other.spill),
            adapters: self.adapters.saturating_add(other.adapters),
            reading: self.reading.max(other.reading),
        }
    }
}

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is too little.
    #[error(transparent)]
    Short(#[from] Shortage),
    /// Keys and values were allowed too little for a single block.
    #[error("{allowed} bytes for keys and values hold no sequence: at least {needed} are needed (--kv-mib)")]
    Kv {
        /// What was allowed.
        allowed: u64,
        /// One block.
        needed: u64,
    },
    /// The file lacks something.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// More is needed than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Shortage {
    /// What the least that is of use takes.
    pub least: MemoryPlan,
    /// How much of it where there is too little.
    pub needed: u64,
    /// Tokens of the longest sequence that it could serve.
    pub context_tokens: u64,
    /// What there is.
    pub available: Available,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = &self.least;
        write!(
            f,
            "{} of memory are needed and {} are there ({}): {} for weights, {} for activations, {} for keys and values of {} \
             tokens, {} for spilled ones, {} for adapters; {} of the file while it is read. ",
            Mib(self.needed),
            Mib(self.available.bytes),
            self.available.limit,
            Mib(least.weights),
            Mib(least.activations),
            Mib(least.kv),
            self.context_tokens,
            Mib(least.spill),
            Mib(least.adapters),
            Mib(least.reading),
        )?;
        f.write_str(
            "Choose a smaller model or one in fewer bits; a shorter --context, or a smaller --kv-mib, --spill-mib, \
             --step-tokens or --batch; fewer adapters; or allow more with --memory-mib where there is more",
        )
    }
}

/// Rounded up, so that what is needed is never told as what is there.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (u128::from(self.0) * 10).div_ceil(1 << 20);
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}

/// A model's files and what they say.
pub type Described<'a> = (&'a ModelFiles, &'a ArchSpec);

/// A model, another that drafts for it, and adapters.
pub type Together<'a> = (Described<'a>, Option<Described<'a>>, &'a [&'a Adapter]);

/// The batch that fits `room` on a device of some kind, and what it takes. Reads nothing but headers.
pub fn plan_on(
    kind: &DeviceKind,
    models: Together<'_>,
    wish: &BatchWish,
    room: Room,
) -> Result<(BatchLimits, MemoryPlan), MemoryError> {
    match kind {
        DeviceKind::Cpu { .. } => plan(cpu::Sizes::default(), models, wish, room),
        DeviceKind::Cuda(_, profile) => plan(cuda::Sizes::of(*profile), models, wish, room),
    }
}

/// The same for memory that counts as some backend would take; so far it has counted nothing.
fn plan<M: Counted + Clone>(
    mut sizes: M,
    (target, draft, adapters): Together<'_>,
    wish: &BatchWish,
    room: Room,
) -> Result<(BatchLimits, MemoryPlan), MemoryError> {
    let (mut limits, wanted_least) = wanted(target.1, wish);
    // A draft model holds what its target holds, in as many blocks of its own.
    let kv_bytes = |limits: &BatchLimits| {
        let of_draft = draft.map_or(0, |(_, spec)| KvPlan::new(spec, &limits.of_draft()).device_bytes());
        KvPlan::new(target.1, limits).device_bytes().saturating_add(of_draft)
    };
    // What is asked for, whatever there is.
    let asked = KvPlan::blocks_that_fit(&limits, |limits| kv_bytes(limits) <= wish.kv_bytes_max);
    if asked < wanted_least.min(limits.kv_blocks) && (asked == 0 || target.1.is_encoder()) {
        let kv_blocks = if target.1.is_encoder() { limits.kv_blocks } else { 1 };
        let needed = kv_bytes(&BatchLimits { kv_blocks, ..limits });
        return Err(MemoryError::Kv { allowed: wish.kv_bytes_max, needed });
    }
    // In the order in which it is loaded: the target, its keys and values, then the draft model and its own, then adapters.
    let of_target = loaded(&mut sizes, target, &limits, limits.draws_max())?;
    let whole = |limits: &BatchLimits| -> Result<MemoryPlan, LoadError> {
        let mut sizes = sizes.clone();
        let mut plan = with_kv(&mut sizes, target.1, limits, of_target)?;
        if let Some(draft) = draft {
            let of_draft = loaded(&mut sizes, draft, limits, limits.sequences_max)?;
            plan = plan.and(with_kv(&mut sizes, draft.1, &limits.of_draft(), of_draft)?);
        }
        Ok(MemoryPlan { adapters: adapted(&mut sizes, target.1, adapters)?, ..plan })
    };
    let fits = |limits: &BatchLimits| whole(limits).is_ok_and(|plan| room.lacks(&plan).is_none());
    limits.kv_blocks = asked;
    let blocks = KvPlan::blocks_that_fit(&limits, fits);
    let least = asked.min(wanted_least);
    limits.kv_blocks = blocks.max(least);
    let plan = whole(&limits)?;
    let positions = limits.kv_blocks.saturating_mul(KV_BLOCK_TOKENS as u32);
    limits.context_tokens = limits.context_tokens.min(positions);
    match room.lacks(&plan) {
        Some((needed, available)) if blocks < least => {
            Err(Shortage { least: plan, needed, context_tokens: limits.context_tokens.into(), available }.into())
        }
        _ => Ok((limits, plan)),
    }
}

/// A batch as it is wished, and how many blocks it needs to be of use.
fn wanted(spec: &ArchSpec, wish: &BatchWish) -> (BatchLimits, u32) {
    let context = u32::try_from(spec.context_tokens).unwrap_or(u32::MAX);
    let blocks = |tokens: u32| tokens.div_ceil(KV_BLOCK_TOKENS as u32);
    let limits = BatchLimits {
        sequences_max: wish.sequences_max,
        step_tokens_max: wish.step_tokens_max.max(wish.sequences_max),
        step_target: wish.step_target,
        drafts_max: wish.drafts_max,
        kv_blocks: 0,
        kv_kind: wish.kv_kind,
        spill_bytes: wish.spill_bytes,
        context_tokens: context.min(wish.context_tokens_max.unwrap_or(u32::MAX)),
    };
    if !spec.is_encoder() {
        let kv_blocks = blocks(limits.context_tokens).saturating_mul(limits.sequences_max);
        return (BatchLimits { kv_blocks, ..limits }, blocks(limits.context_tokens.min(CONTEXT_TOKENS_LEAST)));
    }
    // Rows for the longest text or as many as were asked for, and room for the keys of one step.
    let context_tokens = context.min(ENCODER_CONTEXT_TOKENS_MAX);
    let step_tokens_max = limits.step_tokens_max.max(context_tokens).max(ENCODER_STEP_TOKENS);
    let sequences_max = texts_per_step(step_tokens_max);
    // Each text begins in a block of its own.
    let kv_blocks = blocks(step_tokens_max) + sequences_max;
    let (drafts_max, spill_bytes) = (0, 0);
    (
        BatchLimits { sequences_max, step_tokens_max, drafts_max, kv_blocks, spill_bytes, context_tokens, ..limits },
        kv_blocks,
    )
}

/// What a model takes beside keys and values.
fn loaded<M: Counted>(
    sizes: &mut M,
    (files, spec): Described<'_>,
    limits: &BatchLimits,
    draws_max: u32,
) -> Result<MemoryPlan, LoadError> {
    let before = sizes.bytes();
    let reading = Model::survey(sizes, files, spec)?;
    let after = sizes.bytes();
    Workspace::new(sizes, spec, limits.step_tokens_max as usize, draws_max as usize).map_err(LoadError::Ops)?;
    let (weights, activations) = (after - before, sizes.bytes() - after);
    Ok(MemoryPlan { weights, activations, reading, ..MemoryPlan::default() })
}

/// What adapters of a model take, with what is computed between their products and with what is held while one is loaded.
fn adapted<M: Counted>(sizes: &mut M, spec: &ArchSpec, adapters: &[&Adapter]) -> Result<u64, LoadError> {
    let (before, mut held_max) = (sizes.bytes(), 0);
    for adapter in adapters {
        held_max = held_max.max(forward::Adapter::survey(sizes, adapter, spec)?);
    }
    Ok((sizes.bytes() - before).saturating_add(held_max))
}

/// `plan` with a model's keys and values, on the device and on the host.
fn with_kv<M: Counted>(
    sizes: &mut M,
    spec: &ArchSpec,
    limits: &BatchLimits,
    plan: MemoryPlan,
) -> Result<MemoryPlan, OpsError> {
    let (before, kv) = (sizes.bytes(), KvPlan::new(spec, limits));
    KvMemory::new(sizes, &kv.shapes(spec))?;
    let device = sizes.bytes();
    // Counted as the host's where the device has memory of its own, else as the device's.
    let on_host = |sizes: &M| sizes.bytes().saturating_add(sizes.host_bytes());
    let spilled_before = on_host(sizes);
    for shape in kv.host_shapes(spec) {
        sizes.host_kv(shape)?;
    }
    let (kv, spill) = (device - before, on_host(sizes).saturating_sub(spilled_before));
    Ok(MemoryPlan { kv, spill, ..plan })
}

#[cfg(test)]
mod tests;
