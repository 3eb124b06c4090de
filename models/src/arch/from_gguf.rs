//! A model's numbers from GGUF metadata. Keys and defaults are those that converters write and llama.cpp reads.

use super::facts::{self, ExpertFacts, Facts, RopeFacts, all_but_every, bounded, within};
use super::family::{ExpertsRule, Family};
use super::{ArchError, Gating, Pooling, RopeFactors, RopeScaling};
use crate::gguf::{GgmlType, Gguf};

/// What `gguf` says, and which family it belongs to.
pub(super) fn facts(gguf: &Gguf) -> Result<(Facts, &'static Family), ArchError> {
    let name = gguf.str("general.architecture").ok_or(ArchError::NoArchitecture)?;
    let family = Family::named(name).ok_or_else(|| ArchError::Unsupported(name.to_owned()))?;
    let keys = Keys { gguf, prefix: name };
    let layers = keys.size("block_count", facts::LAYERS_MAX)?;
    let hidden = keys.size("embedding_length", facts::HIDDEN_MAX)?;
    let heads = keys.alike("attention.head_count", facts::HEADS_MAX, None)?;
    let kv_heads = keys.alike("attention.head_count_kv", facts::HEADS_MAX, Some(heads))?;
    if keys.absent("attention.key_length") && hidden % heads != 0 {
        return Err(ArchError::Inconsistent(format!("width {hidden} does not divide among {heads} heads")));
    }
    let head_dim = keys.size_or("attention.key_length", facts::HEAD_DIM_MAX, hidden / heads)?;
    let value_dim = keys.size_or("attention.value_length", facts::HEAD_DIM_MAX, head_dim)?;
    if value_dim != head_dim {
        return Err(ArchError::Inconsistent(format!("heads of {head_dim} keys and {value_dim} values")));
    }
    keys.refuse_features(family)?;
    let context_tokens = keys.size("context_length", facts::CONTEXT_TOKENS_MAX)?;
    let experts = keys.experts(family)?;
    let window = keys.window(family, layers)?;
    let is_granite = family.is_granite();
    let unit = |key, default| if is_granite { keys.real(key, Some(default), 1e-6, 1e6) } else { Ok(default) };
    let facts = Facts {
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        // A model of experts alone may lack it.
        ffn: match &experts {
            Some(experts) => keys.alike("feed_forward_length", facts::FFN_MAX, Some(experts.width))?,
            None => keys.alike("feed_forward_length", facts::FFN_MAX, None)?,
        },
        vocab: vocab(gguf)?,
        context_tokens,
        epsilon: keys.epsilon(family)?,
        norm_weight_offset: 0.0,
        rope: keys.rope(family, head_dim, context_tokens, window.is_some())?,
        rotated: keys.rotated(family, layers),
        attention_scale: keys.attention_scale(family, layers, hidden, heads, head_dim)?,
        attention_softcap: keys.softcap("attn_logit_softcapping", family.gguf == "gemma2", 50.0)?,
        final_softcap: keys.softcap("final_logit_softcapping", family.gguf == "gemma2", 30.0)?,
        embedding_scale: match family.root_embedding_scale {
            true => (hidden as f32).sqrt(),
            false => unit("embedding_scale", 1.0)?,
        },
        residual_scale: unit("residual_scale", 1.0)?,
        // The file has the divisor.
        logit_scale: if is_granite { 1.0 / keys.real("logit_scale", None, 1e-6, 1e6)? } else { 1.0 },
        window,
        experts,
        causal: match keys.gguf.bool(&keys.named("attention.causal")) {
            Some(causal) => causal,
            None => family.causal,
        },
        pooling: keys.pooling()?,
        token_types: match family.is_bert() {
            true => bounded("tokenizer.ggml.token_type_count", token_types(gguf), facts::TOKEN_TYPES_MAX)?,
            false => 0,
        },
    };
    Ok((facts, family))
}

fn token_types(gguf: &Gguf) -> u64 {
    gguf.u64("tokenizer.ggml.token_type_count").unwrap_or(1)
}

/// The rows of the embedding, which the tokenizer must agree with.
fn vocab(gguf: &Gguf) -> Result<usize, ArchError> {
    const EMBEDDING: &str = "token_embd.weight";
    let rows = gguf.tensor(EMBEDDING).ok_or_else(|| ArchError::MissingTensor(EMBEDDING.to_owned()))?.dims.get(1);
    let rows = bounded("token_embd.weight rows", rows.copied().unwrap_or(0), facts::VOCAB_MAX)?;
    if let Some(freqs) = gguf.tensor("rope_freqs.weight")
        && freqs.kind != GgmlType::F32
    {
        return Err(ArchError::Inconsistent("rope_freqs.weight is not F32".to_owned()));
    }
    match gguf.strings("tokenizer.ggml.tokens") {
        Some(tokens) if tokens.len() != rows => Err(ArchError::Inconsistent(format!(
            "the tokenizer has {} tokens, the embedding {rows} rows",
            tokens.len(),
        ))),
        _ => Ok(rows),
    }
}

/// Metadata under the architecture's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn named(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn absent(&self, key: &str) -> bool {
        let name = self.named(key);
        !self.gguf.keys().any(|key| key == name)
    }

    fn size(&self, key: &str, max: u64) -> Result<usize, ArchError> {
        let name = self.named(key);
        let value = self.gguf.u64(&name).ok_or_else(|| ArchError::MissingKey(name.clone()))?;
        bounded(&name, value, max)
    }

    fn size_or(&self, key: &str, max: u64, default: usize) -> Result<usize, ArchError> {
        if self.absent(key) { bounded(&self.named(key), default as u64, max) } else { self.size(key, max) }
    }

    /// A size that some files give for each layer; only the same for all is computed.
    fn alike(&self, key: &str, max: u64, default: Option<usize>) -> Result<usize, ArchError> {
        let name = self.named(key);
        if let Some(values) = self.gguf.numbers(&name) {
            let first = *values.first().ok_or_else(|| ArchError::MissingKey(name.clone()))?;
            if values.iter().any(|value| *value != first) {
                return Err(ArchError::Feature(format!("layers of different {name}")));
            }
            return bounded(&name, first.max(0.0) as u64, max);
        }
        match default {
            Some(default) => self.size_or(key, max, default),
            None => self.size(key, max),
        }
    }

    fn real(&self, key: &str, default: Option<f32>, min: f32, max: f32) -> Result<f32, ArchError> {
        let name = self.named(key);
        let value = match (self.gguf.f32(&name), default) {
            (Some(value), _) => value,
            (None, Some(default)) if self.absent(key) => default,
            _ => return Err(ArchError::MissingKey(name)),
        };
        within(&name, value, min, max)
    }

    fn epsilon(&self, family: &Family) -> Result<f32, ArchError> {
        let key = match family.norm {
            super::NormKind::Rms => "attention.layer_norm_rms_epsilon",
            super::NormKind::Layer => "attention.layer_norm_epsilon",
        };
        self.real(key, None, 1e-13, 1e-1)
    }

    /// What would change results silently if it were ignored.
    fn refuse_features(&self, family: &Family) -> Result<(), ArchError> {
        if let Some(count) = self.gguf.u64(&self.named("expert_count")).filter(|count| *count > 0)
            && family.experts == ExpertsRule::Never
        {
            return Err(ArchError::Feature(format!("a mixture of {count} experts in {}", family.gguf)));
        }
        let foreign: &[&str] = match family.is_granite() {
            true => &[],
            false => &["logit_scale", "residual_scale", "embedding_scale"],
        };
        let never = ["attention.clamp_kqv", "attention.max_alibi_bias", "attention.temperature_scale"];
        let never = never.iter().chain(&["expert_group_count", "attention.key_length_swa", "deepstack_mapping"]);
        for key in foreign.iter().chain(never) {
            let value = self.gguf.f32(&self.named(key)).map_or(1.0, f32::abs);
            // Converters write zero for "none" in some of these.
            if !self.absent(key) && value != 0.0 && self.gguf.u64(&self.named(key)) != Some(0) {
                return Err(ArchError::Feature(self.named(key)));
            }
        }
        Ok(())
    }

    fn attention_scale(
        &self,
        family: &Family,
        layers: usize,
        hidden: usize,
        heads: usize,
        head_dim: usize,
    ) -> Result<f32, ArchError> {
        if !self.absent("attention.scale") {
            let scale = self.real("attention.scale", None, 0.0, 1e3)?;
            if scale != 0.0 {
                return Ok(scale);
            }
        }
        // The 27B models of gemma 2 and 3 scale by the width per head; the file does not say so, only its depth does.
        let wide = matches!((family.gguf, layers), ("gemma2", 46) | ("gemma3", 62));
        let dim = if wide { hidden / heads } else { head_dim };
        Ok(1.0 / (dim.max(1) as f32).sqrt())
    }

    fn softcap(&self, key: &str, by_default: bool, default: f32) -> Result<Option<f32>, ArchError> {
        if self.absent(key) {
            return Ok(by_default.then_some(default));
        }
        let cap = self.real(key, None, 0.0, 1e6)?;
        Ok((cap > 0.0).then_some(cap))
    }

    fn window(&self, family: &Family, layers: usize) -> Result<Option<(usize, Vec<bool>)>, ArchError> {
        const KEY: &str = "attention.sliding_window";
        const PATTERN: &str = "attention.sliding_window_pattern";
        let window = match (family.gguf, self.gguf.u64(&self.named(KEY))) {
            ("gemma2", None) => Some(4_096),
            (_, Some(0) | None) => None,
            (_, Some(window)) => Some(bounded(&self.named(KEY), window, facts::CONTEXT_TOKENS_MAX)?),
        };
        let Some(window) = window else { return Ok(None) };
        let pattern = self.named(PATTERN);
        let has_window = match (self.gguf.numbers(&pattern), self.gguf.u64(&pattern), family.window_period) {
            (Some(values), ..) if values.len() < layers => {
                return Err(ArchError::Inconsistent(format!("{pattern} has {} entries", values.len())));
            }
            (Some(values), ..) => values[..layers].iter().map(|value| *value != 0.0).collect(),
            (None, Some(period), _) => {
                all_but_every(usize::try_from(period).unwrap_or(usize::MAX).min(layers + 1), layers)
            }
            (None, None, Some(period)) => all_but_every(period, layers),
            // phi 3 was trained with the window in all layers (llama.cpp leaves it out).
            (None, None, None) => vec![true; layers],
        };
        Ok(Some((window, has_window)))
    }

    fn rotated(&self, family: &Family, layers: usize) -> Vec<bool> {
        // Granite uses this key as the switch of its rotations.
        let off = family.is_granite() && self.gguf.bool(&self.named("rope.scaling.finetuned")) == Some(false);
        let period = family.unrotated_period;
        (1..=layers).map(|nth| !off && period.is_none_or(|period| nth % period != 0)).collect()
    }

    fn rope(
        &self,
        family: &Family,
        head_dim: usize,
        context: usize,
        has_windows: bool,
    ) -> Result<RopeFacts, ArchError> {
        let base = self.real("rope.freq_base", Some(10_000.0), 1.0, 1e12)?;
        let scaling = self.rope_scaling(context)?;
        let own = family.window_rope_base;
        let window_base = self.real("rope.freq_base_swa", Some(own.unwrap_or(base)), 1.0, 1e12)?;
        // Where windows have a base of their own, long contexts are none of their concern.
        let window_scaling = if own.is_some() { RopeScaling::None } else { scaling.clone() };
        let windowed = (window_base != base || window_scaling != scaling) && has_windows;
        Ok(RopeFacts {
            base,
            dims: self.size_or("rope.dimension_count", facts::HEAD_DIM_MAX, head_dim)?,
            scaling,
            windowed: windowed.then_some((window_base, window_scaling)),
        })
    }

    fn rope_scaling(&self, context: usize) -> Result<RopeScaling, ArchError> {
        let old = self.real("rope.scale_linear", Some(0.0), 0.0, 1e6)?;
        let factor = self.real("rope.scaling.factor", Some(old), 0.0, 1e6)?;
        let attention = self.real("rope.scaling.attn_factor", Some(1.0), 1e-3, 1e3)?;
        let original = "rope.scaling.original_context_length";
        let original_context = self.size_or(original, facts::CONTEXT_TOKENS_MAX, context)?;
        let has_long = self.gguf.tensor("rope_factors_long.weight").is_some();
        match self.gguf.str(&self.named("rope.scaling.type")) {
            Some("longrope") | None if has_long => Ok(RopeScaling::LongRope {
                original_context,
                short: RopeFactors::Values(Vec::new()),
                long: RopeFactors::Values(Vec::new()),
                attention_factor: attention,
            }),
            Some("none") => Ok(RopeScaling::None),
            Some("linear") | None if factor == 0.0 || factor == 1.0 => Ok(RopeScaling::None),
            Some("linear") | None => Ok(RopeScaling::Linear { factor }),
            Some("yarn") if factor >= 1.0 => Ok(RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast: self.real("rope.scaling.yarn_beta_fast", Some(32.0), 1e-3, 1e6)?,
                beta_slow: self.real("rope.scaling.yarn_beta_slow", Some(1.0), 1e-3, 1e6)?,
                attention_factor: attention * facts::yarn_attention(factor),
                truncate: true,
            }),
            Some(kind) => Err(ArchError::Feature(format!("{kind:?} scaling of positions by {factor}"))),
        }
    }

    fn experts(&self, family: &Family) -> Result<Option<ExpertFacts>, ArchError> {
        let none = self.gguf.u64(&self.named("expert_count")).unwrap_or(0) == 0;
        if none && family.experts != ExpertsRule::Always {
            return Ok(None);
        }
        let count = self.size("expert_count", facts::EXPERTS_MAX)?;
        let used = self.size("expert_used_count", facts::EXPERTS_MAX)?;
        let width = match self.absent("expert_feed_forward_length") {
            false => self.alike("expert_feed_forward_length", facts::FFN_MAX, None)?,
            // Mixtral's and granite's experts are as wide as the key says, the first qwen2moe's together.
            true => {
                let ffn = self.alike("feed_forward_length", facts::FFN_MAX, None)?;
                if family.gguf.starts_with("qwen") { (ffn / used).max(1) } else { ffn }
            }
        };
        const SHARED: &str = "expert_shared_feed_forward_length";
        let shared = self.gguf.u64(&self.named(SHARED)).filter(|width| *width > 0);
        let shared_width = match (shared, family.gguf) {
            (Some(width), _) => Some(bounded(&self.named(SHARED), width, facts::FFN_MAX)?),
            (None, "qwen2moe") => Some(self.alike("feed_forward_length", facts::FFN_MAX, None)?),
            (None, _) => None,
        };
        let gating = match self.gguf.u64(&self.named("expert_gating_func")) {
            None | Some(0) if family.sinks => Gating::SoftmaxOfChosen,
            None | Some(0 | 1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(code) => return Err(ArchError::Feature(format!("expert gating function {code}"))),
        };
        let scale = self.real("expert_weights_scale", Some(1.0), 0.0, 1e3)?;
        let normalize = self.gguf.bool(&self.named("expert_weights_norm"));
        // Softmax over the chosen sums to one anyway.
        let by_default = family.gguf != "qwen2moe" && gating != Gating::SoftmaxOfChosen;
        Ok(Some(ExpertFacts {
            count,
            used,
            width,
            shared_width,
            gating,
            normalize: normalize.unwrap_or(by_default),
            scale: if scale == 0.0 { 1.0 } else { scale },
        }))
    }

    fn pooling(&self) -> Result<Pooling, ArchError> {
        match self.gguf.u64(&self.named("pooling_type")) {
            None | Some(0) => Ok(Pooling::None),
            Some(1) => Ok(Pooling::Mean),
            Some(2) => Ok(Pooling::First),
            Some(3) => Ok(Pooling::Last),
            Some(code) => Err(ArchError::Feature(format!("pooling of kind {code}"))),
        }
    }
}
