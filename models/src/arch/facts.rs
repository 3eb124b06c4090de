//! The numbers of a model, wherever they were read, and the bounds that they must keep. It knows no tensors.

use super::{ArchError, Gating, Pooling, RopeScaling};

pub(super) const LAYERS_MAX: u64 = 1_024;
pub(super) const HIDDEN_MAX: u64 = 1 << 16;
pub(super) const HEADS_MAX: u64 = 1_024;
pub(super) const HEAD_DIM_MAX: u64 = 1_024;
pub(super) const FFN_MAX: u64 = 1 << 20;
pub(super) const VOCAB_MAX: u64 = 1 << 21;
pub(super) const CONTEXT_TOKENS_MAX: u64 = 1 << 24;
pub(super) const EXPERTS_MAX: u64 = 1_024;
pub(super) const TOKEN_TYPES_MAX: u64 = 1_024;

/// What metadata says of a model, bounded, with the family's defaults filled in.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) context_tokens: usize,
    pub(super) epsilon: f32,
    pub(super) norm_weight_offset: f32,
    pub(super) rope: RopeFacts,
    /// The window, and the layers that have it.
    pub(super) window: Option<(usize, Vec<bool>)>,
    /// Layers whose positions are rotated.
    pub(super) rotated: Vec<bool>,
    pub(super) attention_scale: f32,
    pub(super) attention_softcap: Option<f32>,
    pub(super) final_softcap: Option<f32>,
    pub(super) embedding_scale: f32,
    pub(super) residual_scale: f32,
    pub(super) logit_scale: f32,
    pub(super) experts: Option<ExpertFacts>,
    pub(super) causal: bool,
    pub(super) pooling: Pooling,
    pub(super) token_types: usize,
}

#[derive(Debug, Clone)]
pub(super) struct RopeFacts {
    pub(super) base: f32,
    pub(super) dims: usize,
    pub(super) scaling: RopeScaling,
    /// Base and scaling of layers with a window, where they have their own.
    pub(super) windowed: Option<(f32, RopeScaling)>,
}

#[derive(Debug, Clone)]
pub(super) struct ExpertFacts {
    pub(super) count: usize,
    pub(super) used: usize,
    pub(super) width: usize,
    pub(super) shared_width: Option<usize>,
    pub(super) gating: Gating,
    pub(super) normalize: bool,
    pub(super) scale: f32,
}

impl Facts {
    /// What must hold between the numbers.
    pub(super) fn check(&self) -> Result<(), ArchError> {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        if heads % kv_heads != 0 {
            return Err(ArchError::Inconsistent(format!(
                "{heads} query heads do not divide among {kv_heads} kv heads"
            )));
        }
        let dims = self.rope.dims;
        if !head_dim.is_multiple_of(2) || !dims.is_multiple_of(2) || dims > head_dim {
            return Err(ArchError::Inconsistent(format!("heads of {head_dim} with {dims} rotated elements")));
        }
        if let Some(experts) = &self.experts
            && experts.used > experts.count
        {
            return Err(ArchError::Inconsistent(format!("{} of {} experts", experts.used, experts.count)));
        }
        Ok(())
    }
}

/// The integer `value` of `key`, if it lies within `1..=max`.
pub(super) fn bounded(key: &str, value: u64, max: u64) -> Result<usize, ArchError> {
    if (1..=max).contains(&value) {
        return Ok(value as usize);
    }
    let (value, max) = (value.to_string(), max.to_string());
    Err(ArchError::OutOfBounds { key: key.to_owned(), value, min: "1".to_owned(), max })
}

/// The real `value` of `key`, if it lies within `min..=max`; a NaN is in no range.
pub(super) fn within(key: &str, value: f32, min: f32, max: f32) -> Result<f32, ArchError> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    let (value, min, max) = (value.to_string(), min.to_string(), max.to_string());
    Err(ArchError::OutOfBounds { key: key.to_owned(), value, min, max })
}

/// The layers with a window where all but every `period`-th have one.
pub(super) fn all_but_every(period: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
}

/// What YaRN multiplies sine and cosine by for a `factor`.
pub(super) fn yarn_attention(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 1.0 + 0.1 * factor.ln() }
}
