//! What a model computes: its architecture and sizes, read from GGUF metadata and proved against the tensors present.
//! It holds no weights and computes nothing.

use crate::gguf::{GgmlType, Gguf, TensorInfo};

/// The sizes of a model. Every number was checked: bounds, divisibility, and agreement with every tensor's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchSpec {
    /// The architecture's GGUF name: `llama`.
    pub architecture: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Tokens in the vocabulary: rows of the embedding and of the output head.
    pub vocab: usize,
    /// The longest sequence the model was trained for, in tokens.
    pub context_tokens: usize,
    /// The epsilon of RMS norms.
    pub norm_epsilon: f32,
    /// The base of rotary position embeddings.
    pub rope_base: f32,
    /// How many elements of a head are rotated; even, at most `head_dim`. Pairs are (2i, 2i+1), as GGUF stores llama.
    pub rope_dims: usize,
    /// Whether `rope_freqs.weight` is present: `rope_dims / 2` divisors, one per frequency (llama 3.1 and later).
    pub rope_freqs: bool,
    /// Whether the output head is the token embedding (there is no `output.weight`).
    pub tied_head: bool,
}

/// Why a well-formed GGUF file is not a model that can run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages are the documentation of the variants and their fields.
pub enum ArchError {
    #[error("the file has no general.architecture, so it is not a language model: give a model's .gguf file")]
    NoArchitecture,
    #[error("architecture {0:?} is not supported yet (\"llama\" is): choose another model")]
    Unsupported(String),
    #[error("metadata key {0:?} is missing or has the wrong type: convert the model again")]
    MissingKey(String),
    #[error("metadata key {key:?} is {value}, outside {min}..={max}: damaged, or a model this engine cannot run")]
    OutOfBounds { key: String, value: String, min: String, max: String },
    #[error("{0}: damaged, or a model this engine cannot run")]
    Inconsistent(String),
    #[error("the model uses {0}, which this engine does not compute yet: choose another model")]
    Feature(String),
    #[error("tensor {0:?} is missing: the file is incomplete, download it again")]
    MissingTensor(String),
    #[error("tensor {tensor:?} has shape {found:?} where {expected:?} is needed: convert the model again")]
    Shape { tensor: String, found: Vec<u64>, expected: Vec<u64> },
    #[error("tensor {0:?} is no part of the llama architecture computed here: results would be wrong without it")]
    UnknownTensor(String),
}

const LAYERS_MAX: u64 = 1_024;
const HIDDEN_MAX: u64 = 1 << 16;
const HEADS_MAX: u64 = 1_024;
const HEAD_DIM_MAX: u64 = 1_024;
const FFN_MAX: u64 = 1 << 20;
const VOCAB_MAX: u64 = 1 << 21;
const CONTEXT_TOKENS_MAX: u64 = 1 << 24;

impl ArchSpec {
    /// Reads and checks the sizes of the model in `gguf`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ArchError> {
        let architecture = gguf.str("general.architecture").ok_or(ArchError::NoArchitecture)?;
        if architecture != "llama" {
            return Err(ArchError::Unsupported(architecture.to_owned()));
        }
        let keys = Keys { gguf, prefix: architecture };
        keys.refuse_features()?;
        let hidden = keys.size("embedding_length", HIDDEN_MAX)?;
        let heads = keys.size("attention.head_count", HEADS_MAX)?;
        let kv_heads = keys.size_or("attention.head_count_kv", HEADS_MAX, heads)?;
        if heads % kv_heads != 0 {
            return Err(ArchError::Inconsistent(format!(
                "{heads} query heads do not divide among {kv_heads} kv heads"
            )));
        }
        if keys.absent("attention.key_length") && hidden % heads != 0 {
            return Err(ArchError::Inconsistent(format!("width {hidden} does not divide among {heads} heads")));
        }
        let head_dim = keys.size_or("attention.key_length", HEAD_DIM_MAX, hidden / heads)?;
        let value_dim = keys.size_or("attention.value_length", HEAD_DIM_MAX, head_dim)?;
        let rope_dims = keys.size_or("rope.dimension_count", HEAD_DIM_MAX, head_dim)?;
        if value_dim != head_dim || head_dim % 2 != 0 || rope_dims % 2 != 0 || rope_dims > head_dim {
            return Err(ArchError::Inconsistent(format!(
                "heads of {head_dim} keys, {value_dim} values and {rope_dims} rotated elements"
            )));
        }
        let embedding = tensor(gguf, "token_embd.weight")?;
        let spec = Self {
            architecture: architecture.to_owned(),
            layers: keys.size("block_count", LAYERS_MAX)?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: keys.size("feed_forward_length", FFN_MAX)?,
            vocab: keys.bounded("token_embd.weight rows", embedding.dims.get(1).copied().unwrap_or(0), VOCAB_MAX)?,
            context_tokens: keys.size("context_length", CONTEXT_TOKENS_MAX)?,
            norm_epsilon: keys.real("attention.layer_norm_rms_epsilon", None, 1e-12, 1e-1)?,
            rope_base: keys.real("rope.freq_base", Some(10_000.0), 1.0, 1e12)?,
            rope_dims,
            rope_freqs: gguf.tensor("rope_freqs.weight").is_some(),
            tied_head: gguf.tensor("output.weight").is_none(),
        };
        spec.check_vocab(gguf)?;
        spec.check_tensors(gguf)?;
        Ok(spec)
    }

    /// The width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The parameters of the model: elements of all its tensors but `rope_freqs.weight`, which is no weight.
    pub fn parameters(gguf: &Gguf) -> u64 {
        gguf.tensors().iter().filter(|tensor| tensor.name != "rope_freqs.weight").map(TensorInfo::elements).sum()
    }

    fn check_vocab(&self, gguf: &Gguf) -> Result<(), ArchError> {
        match gguf.strings("tokenizer.ggml.tokens") {
            Some(tokens) if tokens.len() != self.vocab => Err(ArchError::Inconsistent(format!(
                "the tokenizer has {} tokens, the embedding {} rows",
                tokens.len(),
                self.vocab
            ))),
            _ => Ok(()),
        }
    }

    /// Every tensor that a llama needs is there with the right shape, and nothing else is.
    fn check_tensors(&self, gguf: &Gguf) -> Result<(), ArchError> {
        let (hidden, query, kv) = (self.hidden, self.query_width(), self.kv_width());
        expect(gguf, "token_embd.weight", &[hidden, self.vocab])?;
        expect(gguf, "output_norm.weight", &[hidden])?;
        let mut known = 2;
        if !self.tied_head {
            expect(gguf, "output.weight", &[hidden, self.vocab])?;
            known += 1;
        }
        if self.rope_freqs {
            expect(gguf, "rope_freqs.weight", &[self.rope_dims / 2])?;
            if tensor(gguf, "rope_freqs.weight")?.kind != GgmlType::F32 {
                return Err(ArchError::Inconsistent("rope_freqs.weight is not F32".to_owned()));
            }
            known += 1;
        }
        let block: [(&str, &[usize]); 9] = [
            ("attn_norm", &[hidden]),
            ("attn_q", &[hidden, query]),
            ("attn_k", &[hidden, kv]),
            ("attn_v", &[hidden, kv]),
            ("attn_output", &[query, hidden]),
            ("ffn_norm", &[hidden]),
            ("ffn_gate", &[hidden, self.ffn]),
            ("ffn_up", &[hidden, self.ffn]),
            ("ffn_down", &[self.ffn, hidden]),
        ];
        for layer in 0..self.layers {
            for (name, dims) in block {
                expect(gguf, &format!("blk.{layer}.{name}.weight"), dims)?;
            }
        }
        known += self.layers * block.len();
        if gguf.tensors().len() == known {
            return Ok(());
        }
        // Only names that were expected above may appear; say which one did not belong.
        let expected = |name: &str| {
            let mut parts = name.splitn(3, '.');
            match (parts.next(), parts.next(), parts.next()) {
                (Some("blk"), Some(layer), Some(rest)) => {
                    let in_range = layer.parse::<usize>().is_ok_and(|layer| layer < self.layers);
                    in_range && block.iter().any(|(name, _)| rest.strip_suffix(".weight") == Some(*name))
                }
                _ => matches!(name, "token_embd.weight" | "output_norm.weight" | "output.weight" | "rope_freqs.weight"),
            }
        };
        let stranger = gguf.tensors().iter().find(|tensor| !expected(&tensor.name));
        Err(ArchError::UnknownTensor(stranger.map(|tensor| tensor.name.clone()).unwrap_or_default()))
    }
}

fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, ArchError> {
    gguf.tensor(name).ok_or_else(|| ArchError::MissingTensor(name.to_owned()))
}

fn expect(gguf: &Gguf, name: &str, dims: &[usize]) -> Result<(), ArchError> {
    let found = &tensor(gguf, name)?.dims;
    let expected: Vec<u64> = dims.iter().map(|dim| *dim as u64).collect();
    // Trailing dimensions of one say nothing: some writers pad shapes to two or four.
    let significant = |dims: &[u64]| dims.len() - dims.iter().rev().take_while(|dim| **dim == 1).count();
    if found[..significant(found)] == expected[..significant(&expected)] {
        return Ok(());
    }
    Err(ArchError::Shape { tensor: name.to_owned(), found: found.clone(), expected })
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
        self.bounded(&name, value, max)
    }

    fn size_or(&self, key: &str, max: u64, default: usize) -> Result<usize, ArchError> {
        if self.absent(key) { self.bounded(&self.named(key), default as u64, max) } else { self.size(key, max) }
    }

    fn bounded(&self, name: &str, value: u64, max: u64) -> Result<usize, ArchError> {
        if (1..=max).contains(&value) {
            return Ok(value as usize);
        }
        let (value, max) = (value.to_string(), max.to_string());
        Err(ArchError::OutOfBounds { key: name.to_owned(), value, min: "1".to_owned(), max })
    }

    fn real(&self, key: &str, default: Option<f32>, min: f32, max: f32) -> Result<f32, ArchError> {
        let name = self.named(key);
        let value = match (self.gguf.f32(&name), default) {
            (Some(value), _) => value,
            (None, Some(default)) if self.absent(key) => default,
            _ => return Err(ArchError::MissingKey(name)),
        };
        if (min..=max).contains(&value) {
            return Ok(value); // A NaN is in no range.
        }
        Err(ArchError::OutOfBounds { key: name, value: value.to_string(), min: min.to_string(), max: max.to_string() })
    }

    /// What would change results silently if it were ignored.
    fn refuse_features(&self) -> Result<(), ArchError> {
        if let Some(count) = self.gguf.u64(&self.named("expert_count")).filter(|count| *count > 0) {
            return Err(ArchError::Feature(format!("a mixture of {count} experts")));
        }
        if let Some(kind) = self.gguf.str(&self.named("rope.scaling.type")).filter(|kind| *kind != "none") {
            return Err(ArchError::Feature(format!("{kind:?} scaling of positions")));
        }
        if self.gguf.f32(&self.named("rope.scale_linear")).is_some_and(|scale| scale != 1.0 && scale != 0.0) {
            return Err(ArchError::Feature("linear scaling of positions".to_owned()));
        }
        for key in ["logit_scale", "residual_scale", "embedding_scale", "attention.scale"] {
            if !self.absent(key) {
                return Err(ArchError::Feature(self.named(key)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
