//! Joins a model's numbers with its tensors: every tensor that is needed is there in the right shape, and no other is.

use std::collections::BTreeSet;

use super::facts::{ExpertFacts, Facts, VOCAB_MAX};
use super::family::{Family, NormPlaces};
use super::names::{Names, Role, Scheme};
use super::{
    ArchError, ArchSpec, AttentionSpec, BranchNorms, Dense, ExpertWeights, Experts, FeedForward, HfQuantization,
    InputSpec, LayerSpec, Linear, Norm, NormKind, OutputSpec, Packed, Qkv, RopeFactors, RopePairing, RopeScaling,
    RopeSpec, SharedExpert, TensorSpec, Up, facts,
};
use crate::gguf::Gguf;

/// The tensors of a model, in whatever file.
pub trait Tensors {
    /// The shape of the tensor of that name, `dims[0]` contiguous; `None` where there is none.
    fn dims(&self, name: &str) -> Option<Vec<u64>>;
    /// All names.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}

impl Tensors for Gguf {
    fn dims(&self, name: &str) -> Option<Vec<u64>> {
        self.tensor(name).map(|tensor| tensor.dims.clone())
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors().iter().map(|tensor| tensor.name.as_str()))
    }
}

/// The whole description, proved against `tensors`.
pub(super) fn spec(
    facts: Facts,
    family: &'static Family,
    scheme: Scheme,
    quantization: Option<HfQuantization>,
    tensors: &dyn Tensors,
) -> Result<ArchSpec, ArchError> {
    facts.check()?;
    let prefix = prefix(family, scheme, tensors);
    let names = Names { scheme, family, prefix };
    let mut build = Build { facts: &facts, family, names, quantization, tensors, used: BTreeSet::new() };
    let ropes = build.ropes()?;
    let input = build.input()?;
    let output = build.output()?;
    let blocks = (0..facts.layers).map(|layer| build.layer(layer)).collect::<Result<Vec<_>, _>>()?;
    build.no_strangers()?;
    let experts_width = facts.experts.as_ref().map_or(0, |experts| experts.width);
    Ok(ArchSpec {
        architecture: family.name().to_owned(),
        layers: facts.layers,
        hidden: facts.hidden,
        heads: facts.heads,
        kv_heads: facts.kv_heads,
        head_dim: facts.head_dim,
        ffn: if facts.experts.is_some() { experts_width } else { facts.ffn },
        vocab: facts.vocab,
        context_tokens: facts.context_tokens,
        norm: family.norm,
        norm_epsilon: facts.epsilon,
        norm_weight_offset: facts.norm_weight_offset,
        rope_base: facts.rope.base,
        rope_dims: facts.rope.dims,
        rope_freqs: ropes.first().is_some_and(|rope| rope.factors.is_some()),
        ropes,
        attention_scale: facts.attention_scale,
        attention_softcap: facts.attention_softcap,
        final_softcap: facts.final_softcap,
        embedding_scale: facts.embedding_scale,
        residual_scale: facts.residual_scale,
        logit_scale: facts.logit_scale,
        activation: family.activation,
        causal: facts.causal,
        pooling: facts.pooling,
        tied_head: !family.is_bert() && output.head.is_none(),
        input,
        output,
        blocks,
    })
}

/// Some files name the model before its tensors, others do not.
fn prefix(family: &Family, scheme: Scheme, tensors: &dyn Tensors) -> &'static str {
    let has = |name: &str| tensors.dims(name).is_some();
    match (scheme, family.is_bert()) {
        (Scheme::Gguf, _) => "",
        (Scheme::Hf, true) if has("bert.embeddings.word_embeddings.weight") => "bert.",
        (Scheme::Hf, false) if !has("embed_tokens.weight") => "model.",
        (Scheme::Hf, _) => "",
    }
}

/// How many inputs of a matrix of four-bit weights share a scale. Weights are computed with in blocks of 32.
fn four_bit_group(name: &str, group: Option<usize>, inputs: usize, outputs: usize) -> Result<usize, ArchError> {
    let group = group.unwrap_or(inputs);
    if !inputs.is_multiple_of(32) || !outputs.is_multiple_of(8) {
        return Err(ArchError::Inconsistent(format!("{name} has {inputs} inputs and {outputs} outputs in four bits")));
    }
    match group.is_multiple_of(32) {
        true => Ok(group),
        false => Err(ArchError::Feature(format!("four-bit weights in groups of {group}"))),
    }
}

/// The work in progress: which tensors were asked for.
struct Build<'a> {
    facts: &'a Facts,
    family: &'a Family,
    names: Names<'a>,
    quantization: Option<HfQuantization>,
    tensors: &'a dyn Tensors,
    used: BTreeSet<String>,
}

impl Build<'_> {
    fn has(&self, role: Role, layer: usize, suffix: &str) -> bool {
        self.tensors.dims(&format!("{}{suffix}", self.names.of(role, layer))).is_some()
    }

    /// A tensor that must be there.
    fn tensor(&mut self, name: String, dims: &[usize]) -> Result<TensorSpec, ArchError> {
        let found = self.tensors.dims(&name).ok_or_else(|| ArchError::MissingTensor(name.clone()))?;
        let expected: Vec<u64> = dims.iter().map(|dim| *dim as u64).collect();
        // Trailing dimensions of one say nothing: some writers pad shapes to two or four.
        let significant = |dims: &[u64]| dims.len() - dims.iter().rev().take_while(|dim| **dim == 1).count();
        if found[..significant(&found)] != expected[..significant(&expected)] {
            return Err(ArchError::Shape { tensor: name, found, expected });
        }
        self.used.insert(name.clone());
        Ok(TensorSpec { name, dims: dims.to_vec() })
    }

    fn optional(&mut self, name: String, dims: &[usize]) -> Result<Option<TensorSpec>, ArchError> {
        if self.tensors.dims(&name).is_none() {
            return Ok(None);
        }
        self.tensor(name, dims).map(Some)
    }

    /// A matrix that must be there; its bias is used where it is there.
    fn linear(&mut self, name: &str, dims: &[usize]) -> Result<Linear, ArchError> {
        let packed = self.packed(name, dims)?;
        let weight = match packed {
            Some(Packed::Awq { .. } | Packed::Gptq { .. }) => {
                TensorSpec { name: format!("{name}.weight"), dims: dims.to_vec() }
            }
            Some(Packed::Fp8 { .. }) | None => self.tensor(format!("{name}.weight"), dims)?,
        };
        let bias = self.optional(format!("{name}.bias"), &dims[1..])?;
        Ok(Linear { weight, bias, packed: packed.map(Box::new) })
    }

    /// What a quantized file has in place of, or beside, a matrix. Any matrix may be left unquantized.
    fn packed(&mut self, name: &str, dims: &[usize]) -> Result<Option<Packed>, ArchError> {
        let (Some(quantization), [inputs, outputs]) = (&self.quantization, dims) else { return Ok(None) };
        let (inputs, outputs) = (*inputs, *outputs);
        let part = |part: &str| format!("{name}.{part}");
        let is_packed = self.tensors.dims(&part("qweight")).is_some();
        match *quantization {
            HfQuantization::Awq { group } if is_packed => {
                let group = four_bit_group(name, group, inputs, outputs)?;
                Ok(Some(Packed::Awq {
                    group,
                    qweight: self.tensor(part("qweight"), &[outputs / 8, inputs])?,
                    qzeros: self.tensor(part("qzeros"), &[outputs / 8, inputs.div_ceil(group)])?,
                    scales: self.tensor(part("scales"), &[outputs, inputs.div_ceil(group)])?,
                }))
            }
            HfQuantization::Gptq { group, zero_offset, .. } if is_packed => {
                let group = four_bit_group(name, group, inputs, outputs)?;
                let linear = Packed::Gptq {
                    zero_offset,
                    group,
                    qweight: self.tensor(part("qweight"), &[outputs, inputs / 8])?,
                    qzeros: self.tensor(part("qzeros"), &[outputs / 8, inputs.div_ceil(group)])?,
                    scales: self.tensor(part("scales"), &[outputs, inputs.div_ceil(group)])?,
                    g_idx: self.optional(part("g_idx"), &[inputs])?,
                };
                Ok(Some(linear))
            }
            HfQuantization::Fp8 { block } => {
                let names = [part("weight_scale_inv"), part("weight_scale")];
                match names.into_iter().find(|name| self.tensors.dims(name).is_some()) {
                    Some(name) => self.fp8(name, block, [inputs, outputs]).map(Some),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    /// Where the file names no blocks, there is a scale for each output, or one for all.
    fn fp8(&mut self, name: String, block: Option<[usize; 2]>, sides: [usize; 2]) -> Result<Packed, ArchError> {
        let [inputs, outputs] = sides;
        let scales = self.tensors.dims(&name).map_or(0, |dims| dims.iter().product::<u64>());
        let (block, dims) = match block {
            Some(block) => (block, vec![inputs.div_ceil(block[0]), outputs.div_ceil(block[1])]),
            None if scales == 1 => (sides, Vec::new()),
            None if self.tensors.dims(&name).is_some_and(|dims| dims.len() == 1) => ([inputs, 1], vec![outputs]),
            None => ([inputs, 1], vec![1, outputs]),
        };
        if !block[0].is_multiple_of(32) {
            return Err(ArchError::Feature(format!("FP8 in blocks of {} inputs", block[0])));
        }
        let scale = self.tensor(name, &dims)?;
        Ok(Packed::Fp8 { block, scale })
    }

    fn norm(&mut self, role: Role, layer: usize) -> Result<Norm, ArchError> {
        let (name, dims) = (self.names.of(role, layer), [self.facts.hidden]);
        let weight = self.tensor(format!("{name}.weight"), &dims)?;
        let bias = match self.family.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.tensor(format!("{name}.bias"), &dims)?),
        };
        Ok(Norm { weight, bias })
    }

    fn input(&mut self) -> Result<InputSpec, ArchError> {
        let (hidden, bert) = (self.facts.hidden, self.family.is_bert());
        facts::bounded("rows of the embedding", self.facts.vocab as u64, VOCAB_MAX)?;
        let named = |role| format!("{}.weight", self.names.of(role, 0));
        let embedding = named(Role::Embedding);
        let positions = (bert && self.family.rope.is_none()).then(|| named(Role::Positions));
        let types = bert.then(|| named(Role::TokenTypes));
        Ok(InputSpec {
            embedding: self.tensor(embedding, &[hidden, self.facts.vocab])?,
            positions: match positions {
                Some(name) => Some(self.tensor(name, &[hidden, self.facts.context_tokens])?),
                None => None,
            },
            token_types: match types {
                Some(name) => self.optional(name, &[hidden, self.facts.token_types])?,
                None => None,
            },
            norm: if bert { Some(self.norm(Role::InputNorm, 0)?) } else { None },
        })
    }

    fn output(&mut self) -> Result<OutputSpec, ArchError> {
        if self.family.is_bert() {
            return Ok(OutputSpec { norm: None, head: None });
        }
        let norm = Some(self.norm(Role::OutputNorm, 0)?);
        let head = match self.has(Role::Head, 0, ".weight") {
            true => Some(self.linear(&self.names.of(Role::Head, 0), &[self.facts.hidden, self.facts.vocab])?),
            false => None,
        };
        Ok(OutputSpec { norm, head })
    }

    fn ropes(&mut self) -> Result<Vec<RopeSpec>, ArchError> {
        let Some(pairs) = self.family.rope else { return Ok(Vec::new()) };
        let dims = self.facts.rope.dims;
        let gguf = self.names.scheme == Scheme::Gguf;
        let pairs = if gguf { pairs } else { RopePairing::Halves };
        let mut scaling = self.facts.rope.scaling.clone();
        let mut factors = None;
        if gguf {
            factors = self.optional("rope_freqs.weight".to_owned(), &[dims / 2])?;
            if let RopeScaling::LongRope { short, long, .. } = &mut scaling {
                *short = RopeFactors::Tensor(self.tensor("rope_factors_short.weight".to_owned(), &[dims / 2])?);
                *long = RopeFactors::Tensor(self.tensor("rope_factors_long.weight".to_owned(), &[dims / 2])?);
            }
        }
        let mut ropes = vec![RopeSpec { base: self.facts.rope.base, dims, pairs, scaling, factors }];
        if let Some((base, scaling)) = &self.facts.rope.windowed {
            ropes.push(RopeSpec { base: *base, dims, pairs, scaling: scaling.clone(), factors: None });
        }
        Ok(ropes)
    }

    fn layer(&mut self, layer: usize) -> Result<LayerSpec, ArchError> {
        let roles = [Role::AttentionNorm, Role::AttentionAfterNorm, Role::AttentionResidualNorm];
        let attention_norms = self.norms(roles, layer)?;
        let attention = self.attention(layer)?;
        let ffn_norms = self.norms([Role::FfnNorm, Role::FfnAfterNorm, Role::FfnResidualNorm], layer)?;
        let ffn = match self.facts.experts.clone() {
            Some(experts) => FeedForward::Experts(self.experts(&experts, layer)?),
            None => FeedForward::Dense(self.dense(layer)?),
        };
        Ok(LayerSpec { attention_norms, attention, ffn_norms, ffn })
    }

    fn norms(&mut self, [before, after, residual]: [Role; 3], layer: usize) -> Result<BranchNorms, ArchError> {
        let mut norms = BranchNorms::default();
        match self.family.norms {
            NormPlaces::Before => norms.before = Some(self.norm(before, layer)?),
            NormPlaces::Around => {
                norms.before = Some(self.norm(before, layer)?);
                norms.after = Some(self.norm(after, layer)?);
            }
            NormPlaces::Residual => norms.residual = Some(self.norm(residual, layer)?),
        }
        Ok(norms)
    }

    fn attention(&mut self, layer: usize) -> Result<AttentionSpec, ArchError> {
        let Facts { hidden, heads, kv_heads, head_dim, .. } = *self.facts;
        let (query, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = match self.has(Role::Qkv, layer, ".weight") {
            true => Qkv::Fused(self.linear(&self.names.of(Role::Qkv, layer), &[hidden, query + 2 * kv])?),
            false => Qkv::Separate {
                q: self.projection(Role::Q, layer, query)?,
                k: self.projection(Role::K, layer, kv)?,
                v: self.projection(Role::V, layer, kv)?,
            },
        };
        let (mut q_norm, mut k_norm) = (None, None);
        if self.family.qk_norm {
            q_norm = Some(self.tensor(format!("{}.weight", self.names.of(Role::QNorm, layer)), &[head_dim])?);
            k_norm = Some(self.tensor(format!("{}.weight", self.names.of(Role::KNorm, layer)), &[head_dim])?);
        }
        let mut sinks = None;
        if self.family.sinks {
            let suffix = if self.names.scheme == Scheme::Gguf { ".weight" } else { "" };
            sinks = Some(self.tensor(format!("{}{suffix}", self.names.of(Role::Sinks, layer)), &[heads])?);
        }
        let window = self.facts.window.as_ref().filter(|(_, layers)| layers[layer]).map(|(window, _)| *window);
        let own_rope = window.is_some() && self.facts.rope.windowed.is_some();
        let rotated = self.family.rope.is_some() && self.facts.rotated[layer];
        Ok(AttentionSpec {
            qkv,
            q_norm,
            k_norm,
            rope: rotated.then_some(usize::from(own_rope)),
            window,
            sinks,
            output: self.linear(&self.names.of(Role::AttentionOutput, layer), &[query, hidden])?,
        })
    }

    fn projection(&mut self, role: Role, layer: usize, width: usize) -> Result<Linear, ArchError> {
        let name = self.names.of(role, layer);
        let linear = self.linear(&name, &[self.facts.hidden, width])?;
        match self.family.qkv_bias && linear.bias.is_none() {
            true => Err(ArchError::MissingTensor(format!("{name}.bias"))),
            false => Ok(linear),
        }
    }

    fn dense(&mut self, layer: usize) -> Result<Dense, ArchError> {
        let (hidden, width) = (self.facts.hidden, self.facts.ffn);
        let up = if self.family.fused_up {
            Up::Fused(self.linear(&self.names.of(Role::GateUp, layer), &[hidden, 2 * width])?)
        } else if self.family.gated {
            Up::Gated {
                gate: self.linear(&self.names.of(Role::Gate, layer), &[hidden, width])?,
                up: self.linear(&self.names.of(Role::Up, layer), &[hidden, width])?,
            }
        } else {
            Up::Plain(self.linear(&self.names.of(Role::Up, layer), &[hidden, width])?)
        };
        Ok(Dense { width, up, down: self.linear(&self.names.of(Role::Down, layer), &[width, hidden])? })
    }

    fn experts(&mut self, facts: &ExpertFacts, layer: usize) -> Result<Experts, ArchError> {
        let hidden = self.facts.hidden;
        let router = self.linear(&self.names.of(Role::Router, layer), &[hidden, facts.count])?;
        let weights = match (self.names.scheme, self.family.hf) {
            (Scheme::Gguf, _) => self.stacked(facts, layer)?,
            (Scheme::Hf, "gpt_oss") => self.mxfp4(facts, layer)?,
            (Scheme::Hf, "granitemoe") => {
                let (width, count) = (facts.width, facts.count);
                let [input, output] = [Role::Experts, Role::ExpertsOutput].map(|role| self.names.of(role, layer));
                ExpertWeights::StackedFused {
                    gate_up: self.linear(&input, &[hidden, 2 * width, count])?,
                    down: self.linear(&output, &[width, hidden, count])?,
                }
            }
            (Scheme::Hf, _) => self.apart(facts, layer)?,
        };
        let shared = match facts.shared_width {
            Some(width) => Some(self.shared(width, layer)?),
            None => None,
        };
        let ExpertFacts { count, used, width, gating, normalize, scale, .. } = *facts;
        Ok(Experts { count, used, width, gating, normalize, scale, router, weights, shared })
    }

    fn stacked(&mut self, facts: &ExpertFacts, layer: usize) -> Result<ExpertWeights, ArchError> {
        let (hidden, width, count) = (self.facts.hidden, facts.width, facts.count);
        let name = |part: &str| format!("blk.{layer}.ffn_{part}_exps");
        Ok(ExpertWeights::Stacked {
            gate: self.linear(&name("gate"), &[hidden, width, count])?,
            up: self.linear(&name("up"), &[hidden, width, count])?,
            down: self.linear(&name("down"), &[width, hidden, count])?,
        })
    }

    fn apart(&mut self, facts: &ExpertFacts, layer: usize) -> Result<ExpertWeights, ArchError> {
        let (hidden, width) = (self.facts.hidden, facts.width);
        let mut experts = Vec::new();
        for expert in 0..facts.count {
            let name = |part| self.names.expert(layer, expert, part);
            let (gate, up, down) = (name(Role::Gate), name(Role::Up), name(Role::Down));
            let up = Up::Gated { gate: self.linear(&gate, &[hidden, width])?, up: self.linear(&up, &[hidden, width])? };
            experts.push(Dense { width, up, down: self.linear(&down, &[width, hidden])? });
        }
        Ok(ExpertWeights::Apart(experts))
    }

    fn mxfp4(&mut self, facts: &ExpertFacts, layer: usize) -> Result<ExpertWeights, ArchError> {
        let (hidden, width, count) = (self.facts.hidden, facts.width, facts.count);
        let base = self.names.of(Role::Experts, layer);
        let name = |part: &str| format!("{base}.{part}");
        Ok(ExpertWeights::Mxfp4 {
            gate_up_blocks: self.tensor(name("gate_up_proj_blocks"), &[16, hidden / 32, 2 * width, count])?,
            gate_up_scales: self.tensor(name("gate_up_proj_scales"), &[hidden / 32, 2 * width, count])?,
            gate_up_bias: self.tensor(name("gate_up_proj_bias"), &[2 * width, count])?,
            down_blocks: self.tensor(name("down_proj_blocks"), &[16, width / 32, hidden, count])?,
            down_scales: self.tensor(name("down_proj_scales"), &[width / 32, hidden, count])?,
            down_bias: self.tensor(name("down_proj_bias"), &[hidden, count])?,
        })
    }

    fn shared(&mut self, width: usize, layer: usize) -> Result<SharedExpert, ArchError> {
        let hidden = self.facts.hidden;
        let up = Up::Gated {
            gate: self.linear(&self.names.of(Role::SharedGate, layer), &[hidden, width])?,
            up: self.linear(&self.names.of(Role::SharedUp, layer), &[hidden, width])?,
        };
        let down = self.linear(&self.names.of(Role::SharedDown, layer), &[width, hidden])?;
        let router = self.optional(format!("{}.weight", self.names.of(Role::SharedRouter, layer)), &[hidden])?;
        Ok(SharedExpert { network: Dense { width, up, down }, router })
    }

    /// A tensor that nobody asked for would silently be left out of the results.
    fn no_strangers(&self) -> Result<(), ArchError> {
        // The pooler of BERT is for next-sentence prediction; positions are only their own numbers.
        let harmless = |name: &str| {
            let name = name.strip_prefix(self.names.prefix).unwrap_or(name);
            self.names.scheme == Scheme::Hf
                && (name.ends_with("rotary_emb.inv_freq")
                    // Activations are not rounded to FP8 here, so their scales are of no use.
                    || name.ends_with(".input_scale")
                    || self.family.is_bert() && (name.starts_with("pooler.") || name == "embeddings.position_ids"))
        };
        let stranger = self.tensors.names().find(|name| !self.used.contains(*name) && !harmless(name));
        match stranger {
            Some(name) => {
                Err(ArchError::UnknownTensor { tensor: name.to_owned(), architecture: self.family.name().to_owned() })
            }
            None => Ok(()),
        }
    }
}
