//! A model's numbers from the `config.json` of Hugging Face.

use serde_json::Value;

use super::facts::{self, ExpertFacts, Facts, RopeFacts, all_but_every, bounded, within};
use super::family::{ExpertsRule, Family};
use super::{ArchError, Gating, NormKind, Pooling, RopeFactors, RopeScaling, Tensors};

/// The longest configuration accepted, in bytes. Those with long lists of factors have some ten thousand.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// What `config` says, and which family it belongs to.
pub(super) fn facts(config: &str, tensors: &dyn Tensors) -> Result<(Facts, &'static Family), ArchError> {
    let value = with_old_names(parse(config)?);
    let keys = Keys { value: &value };
    let model_type = keys.str("model_type").ok_or_else(|| ArchError::MissingKey("model_type".to_owned()))?;
    let family = Family::of_model_type(model_type).ok_or_else(|| ArchError::Unsupported(model_type.to_owned()))?;
    let nomic = family.gguf == "nomic-bert";
    let named = |usual, of_nomic| if nomic { of_nomic } else { usual };
    let layers = keys.size(named("num_hidden_layers", "n_layer"), facts::LAYERS_MAX)?;
    let hidden = keys.size(named("hidden_size", "n_embd"), facts::HIDDEN_MAX)?;
    let heads = keys.size(named("num_attention_heads", "n_head"), facts::HEADS_MAX)?;
    let kv_heads = keys.size_or("num_key_value_heads", facts::HEADS_MAX, heads)?;
    let head_dim = keys.size_or("head_dim", facts::HEAD_DIM_MAX, hidden / heads)?;
    if keys.absent("head_dim") && hidden % heads != 0 {
        return Err(ArchError::Inconsistent(format!("width {hidden} does not divide among {heads} heads")));
    }
    let context_tokens = keys.size(named("max_position_embeddings", "n_positions"), facts::CONTEXT_TOKENS_MAX)?;
    let experts = keys.experts(family)?;
    let window = keys.window(family, layers)?;
    let vocab = keys.size("vocab_size", facts::VOCAB_MAX)?;
    keys.refuse_features(family, tensors)?;
    let ffn = named("intermediate_size", "n_inner");
    let scale_of =
        |key, default| if family.is_granite() { keys.real(key, Some(default), 1e-6, 1e6) } else { Ok(default) };
    let facts = Facts {
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: match &experts {
            Some(experts) => keys.size_or(ffn, facts::FFN_MAX, experts.width)?,
            None => keys.size(ffn, facts::FFN_MAX)?,
        },
        vocab,
        context_tokens,
        epsilon: keys.epsilon(family, nomic)?,
        norm_weight_offset: f32::from(u8::from(family.is_gemma())),
        rope: keys.rope(family, head_dim, context_tokens, window.is_some())?,
        rotated: keys.rotated(family, layers),
        attention_scale: keys.attention_scale(family, head_dim)?,
        attention_softcap: keys.optional("attn_logit_softcapping")?,
        final_softcap: keys.optional("final_logit_softcapping")?,
        embedding_scale: match family.root_embedding_scale {
            true => (hidden as f32).sqrt(),
            false => scale_of("embedding_multiplier", 1.0)?,
        },
        residual_scale: scale_of("residual_multiplier", 1.0)?,
        logit_scale: 1.0 / scale_of("logits_scaling", 1.0)?,
        window,
        experts,
        causal: family.causal,
        pooling: Pooling::None,
        token_types: if family.is_bert() { keys.size_or("type_vocab_size", facts::TOKEN_TYPES_MAX, 1)? } else { 0 },
    };
    Ok((facts, family))
}

/// The pooling that `1_Pooling/config.json` of a sentence encoder names.
pub(super) fn pooling(config: &str) -> Result<Pooling, ArchError> {
    let value = parse(config)?;
    let keys = Keys { value: &value };
    let kinds = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let other = ["pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"];
    let chosen: Vec<Pooling> = kinds.iter().filter(|(key, _)| keys.bool(key)).map(|(_, kind)| *kind).collect();
    match (chosen.as_slice(), other.iter().any(|key| keys.bool(key))) {
        ([one], false) => Ok(*one),
        _ => Err(ArchError::Feature("several or unknown kinds of pooling".to_owned())),
    }
}

/// Refuses a sentence encoder that does more with its vectors than `modules.json` may say here.
pub(super) fn check_modules(modules: &str) -> Result<(), ArchError> {
    let modules = parse(modules)?;
    let kind = |module: &Value| module.get("type").and_then(Value::as_str).unwrap_or("a module").to_owned();
    let last = |kind: &String| kind.rsplit('.').next().unwrap_or_default().to_owned();
    let kinds: Vec<String> = modules.as_array().into_iter().flatten().map(kind).collect();
    match kinds.iter().find(|kind| !matches!(last(kind).as_str(), "Transformer" | "Pooling" | "Normalize")) {
        Some(kind) => Err(ArchError::Feature(format!("the module {kind} of sentence-transformers"))),
        None => Ok(()),
    }
}

pub(super) fn parse(config: &str) -> Result<Value, ArchError> {
    if config.len() > CONFIG_BYTES_MAX {
        return Err(ArchError::Config(format!("{} bytes are more than {CONFIG_BYTES_MAX}", config.len())));
    }
    serde_json::from_str(config).map_err(|why| ArchError::Config(why.to_string()))
}

/// Newer configurations have all of a rotation in `rope_parameters`, for each kind of layer where these differ.
fn with_old_names(mut value: Value) -> Value {
    let parameters = value.get("rope_parameters").filter(|parameters| parameters.is_object()).cloned();
    let (Some(parameters), Some(keys)) = (parameters, value.as_object_mut()) else { return value };
    let of_all = parameters.get("full_attention").unwrap_or(&parameters);
    let windowed = parameters.get("sliding_attention").and_then(|windowed| windowed.get("rope_theta"));
    let pairs = [
        ("rope_theta", of_all.get("rope_theta")),
        ("partial_rotary_factor", of_all.get("partial_rotary_factor")),
        ("rope_local_base_freq", windowed),
        ("rope_scaling", Some(of_all)),
    ];
    for (key, found) in pairs {
        if let Some(found) = found {
            keys.entry(key).or_insert_with(|| found.clone());
        }
    }
    value
}

/// The configuration's keys; `null` is absent.
struct Keys<'a> {
    value: &'a Value,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn absent(&self, key: &str) -> bool {
        self.get(key).is_none()
    }

    fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    fn bool(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn size(&self, key: &str, max: u64) -> Result<usize, ArchError> {
        let value = self.get(key).and_then(Value::as_u64).ok_or_else(|| ArchError::MissingKey(key.to_owned()))?;
        bounded(key, value, max)
    }

    fn size_or(&self, key: &str, max: u64, default: usize) -> Result<usize, ArchError> {
        if self.absent(key) { bounded(key, default as u64, max) } else { self.size(key, max) }
    }

    fn real(&self, key: &str, default: Option<f32>, min: f32, max: f32) -> Result<f32, ArchError> {
        let value = match (self.get(key), default) {
            (Some(value), _) => value.as_f64().map(|value| value as f32),
            (None, default) => default,
        };
        within(key, value.ok_or_else(|| ArchError::MissingKey(key.to_owned()))?, min, max)
    }

    fn optional(&self, key: &str) -> Result<Option<f32>, ArchError> {
        if self.absent(key) { Ok(None) } else { self.real(key, None, 1e-3, 1e6).map(Some) }
    }

    fn epsilon(&self, family: &Family, nomic: bool) -> Result<f32, ArchError> {
        let key = match (family.norm, nomic) {
            (NormKind::Rms, _) => "rms_norm_eps",
            (NormKind::Layer, true) => "layer_norm_epsilon",
            (NormKind::Layer, false) => "layer_norm_eps",
        };
        self.real(key, None, 1e-13, 1e-1)
    }

    /// What would change results silently if it were ignored.
    fn refuse_features(&self, family: &Family, tensors: &dyn Tensors) -> Result<(), ArchError> {
        let expected: &[&str] = match family.gguf {
            "gemma2" | "gemma3" => &["gelu_pytorch_tanh"],
            "bert" => &["gelu"],
            "nomic-bert" => &["swiglu"],
            _ => &["silu"],
        };
        let keys = ["hidden_activation", "hidden_act", "activation_function"];
        if let Some(activation) = keys.iter().find_map(|key| self.str(key))
            && !expected.contains(&activation)
        {
            return Err(ArchError::Feature(format!("the activation {activation:?} in {}", family.hf)));
        }
        if self.str("position_embedding_type").is_some_and(|kind| kind != "absolute") {
            return Err(ArchError::Feature("relative positions".to_owned()));
        }
        let head = tensors.dims("lm_head.weight").is_some();
        if !family.is_bert() && !head && self.get("tie_word_embeddings").and_then(Value::as_bool) == Some(false) {
            return Err(ArchError::MissingTensor("lm_head.weight".to_owned()));
        }
        Ok(())
    }

    fn attention_scale(&self, family: &Family, head_dim: usize) -> Result<f32, ArchError> {
        if family.is_granite() {
            return self.real("attention_multiplier", Some(1.0), 1e-6, 1e3);
        }
        let dim = if family.is_gemma() { self.optional("query_pre_attn_scalar")? } else { None };
        Ok(1.0 / dim.unwrap_or(head_dim as f32).sqrt())
    }

    fn window(&self, family: &Family, layers: usize) -> Result<Option<(usize, Vec<bool>)>, ArchError> {
        let off = family.gguf.starts_with("qwen") && !self.bool("use_sliding_window");
        if self.absent("sliding_window") || off {
            return Ok(None);
        }
        let window = self.size("sliding_window", facts::CONTEXT_TOKENS_MAX)?;
        if let Some(types) = self.get("layer_types").and_then(Value::as_array) {
            if types.len() != layers {
                return Err(ArchError::Inconsistent(format!("layer_types has {} entries", types.len())));
            }
            return Ok(Some((window, types.iter().map(|kind| kind == "sliding_attention").collect())));
        }
        let has_window = match (family.window_period, family.gguf.starts_with("qwen")) {
            (Some(period), _) => all_but_every(self.size_or("sliding_window_pattern", 1_024, period)?, layers),
            // Qwen's first layers see everything.
            (None, true) => {
                let full = self.size_or("max_window_layers", facts::LAYERS_MAX, layers)?;
                (0..layers).map(|layer| layer >= full).collect()
            }
            (None, false) => vec![true; layers],
        };
        Ok(Some((window, has_window)))
    }

    fn rotated(&self, family: &Family, layers: usize) -> Vec<bool> {
        let listed = self.get("no_rope_layers").and_then(Value::as_array).filter(|list| list.len() == layers);
        let off = family.is_granite() && self.str("position_embedding_type") == Some("nope");
        (0..layers)
            .map(|layer| match (listed, family.unrotated_period) {
                (Some(list), _) => list[layer].as_u64() != Some(0),
                (None, Some(period)) => (layer + 1) % period != 0,
                (None, None) => !off,
            })
            .collect()
    }

    fn rope(
        &self,
        family: &Family,
        head_dim: usize,
        context: usize,
        has_windows: bool,
    ) -> Result<RopeFacts, ArchError> {
        let base = self.real(
            if family.gguf == "nomic-bert" { "rotary_emb_base" } else { "rope_theta" },
            Some(10_000.0),
            1.0,
            1e12,
        )?;
        let share = ["partial_rotary_factor", "rotary_emb_fraction"].iter().find(|key| !self.absent(key));
        let share = share.map_or(Ok(1.0), |key| self.real(key, None, 1e-3, 1.0))?;
        let dims = (head_dim as f32 * share) as usize;
        let scaling = self.rope_scaling(context, dims)?;
        let windowed = match family.window_rope_base {
            Some(own) if has_windows => {
                Some((self.real("rope_local_base_freq", Some(own), 1.0, 1e12)?, RopeScaling::None))
            }
            _ => None,
        };
        Ok(RopeFacts { base, dims, scaling, windowed })
    }

    fn rope_scaling(&self, context: usize, dims: usize) -> Result<RopeScaling, ArchError> {
        let Some(value) = self.get("rope_scaling") else { return Ok(RopeScaling::None) };
        let keys = Keys { value };
        let kind = keys.str("rope_type").or_else(|| keys.str("type")).unwrap_or("default");
        let max = facts::CONTEXT_TOKENS_MAX;
        let original = |default| {
            let default = self.size_or("original_max_position_embeddings", max, default)?;
            keys.size_or("original_max_position_embeddings", max, default)
        };
        let factor = || keys.real("factor", None, 1.0, 1e6);
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low: keys.real("low_freq_factor", None, 1e-3, 1e6)?,
                high: keys.real("high_freq_factor", None, 1e-3, 1e6)?,
                original_context: original(context)?,
            }),
            "yarn" => {
                let factor = factor()?;
                let attention = keys.real("attention_factor", Some(facts::yarn_attention(factor)), 1e-3, 1e3)?;
                Ok(RopeScaling::Yarn {
                    factor,
                    original_context: original(context)?,
                    beta_fast: keys.real("beta_fast", Some(32.0), 1e-3, 1e6)?,
                    beta_slow: keys.real("beta_slow", Some(1.0), 1e-3, 1e6)?,
                    attention_factor: attention,
                    truncate: keys.get("truncate").and_then(Value::as_bool).unwrap_or(true),
                })
            }
            "longrope" | "su" => {
                let original_context = original(context)?;
                let stretch = context as f32 / original_context as f32;
                let whole = (1.0 + stretch.ln() / (original_context as f32).ln()).sqrt();
                let default = if stretch > 1.0 { whole } else { 1.0 };
                Ok(RopeScaling::LongRope {
                    original_context,
                    short: keys.factors("short_factor", dims)?,
                    long: keys.factors("long_factor", dims)?,
                    attention_factor: keys.real("attention_factor", Some(default), 1e-3, 1e3)?,
                })
            }
            kind => Err(ArchError::Feature(format!("{kind:?} scaling of positions"))),
        }
    }

    fn factors(&self, key: &str, dims: usize) -> Result<RopeFactors, ArchError> {
        let list = self.get(key).and_then(Value::as_array).ok_or_else(|| ArchError::MissingKey(key.to_owned()))?;
        if list.len() != dims / 2 {
            return Err(ArchError::Inconsistent(format!("{key} has {} entries for {dims} elements", list.len())));
        }
        let value = |value: &Value| within(key, value.as_f64().unwrap_or(f64::NAN) as f32, 1e-3, 1e6);
        Ok(RopeFactors::Values(list.iter().map(value).collect::<Result<_, _>>()?))
    }

    fn experts(&self, family: &Family) -> Result<Option<ExpertFacts>, ArchError> {
        let key = ["num_local_experts", "num_experts"].into_iter().find(|key| !self.absent(key));
        let key = match (key, family.experts) {
            (None, ExpertsRule::Always) => return Err(ArchError::MissingKey("num_experts".to_owned())),
            (None, _) => return Ok(None),
            (Some(key), ExpertsRule::Always) => key,
            (Some(key), _) => return Err(ArchError::Feature(format!("{key} in {}", family.hf))),
        };
        if self.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|layers| !layers.is_empty())
            || self.size_or("decoder_sparse_step", facts::LAYERS_MAX, 1)? != 1
        {
            return Err(ArchError::Feature("layers without experts among those with".to_owned()));
        }
        let width = if self.absent("moe_intermediate_size") { "intermediate_size" } else { "moe_intermediate_size" };
        let shared = "shared_expert_intermediate_size";
        Ok(Some(ExpertFacts {
            count: self.size(key, facts::EXPERTS_MAX)?,
            used: self.size("num_experts_per_tok", facts::EXPERTS_MAX)?,
            width: self.size(width, facts::FFN_MAX)?,
            shared_width: if self.absent(shared) { None } else { Some(self.size(shared, facts::FFN_MAX)?) },
            gating: if family.sinks { Gating::SoftmaxOfChosen } else { Gating::Softmax },
            normalize: match self.absent("norm_topk_prob") {
                false => self.bool("norm_topk_prob"),
                true => matches!(family.hf, "mixtral" | "granitemoe"),
            },
            scale: 1.0,
        }))
    }
}
