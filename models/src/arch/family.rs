//! How the supported families differ, as data. A new family is a row here, and names in `names.rs` if it has its own.

use super::{Activation, NormKind, RopePairing};

/// Where a family's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormPlaces {
    /// Before each branch.
    Before,
    /// Before and after each branch.
    Around,
    /// On the residual stream, after each branch was added.
    Residual,
}

/// What all models of a family share.
#[derive(Debug)]
pub(super) struct Family {
    /// `general.architecture` of GGUF files.
    pub(super) gguf: &'static str,
    /// `model_type` of `config.json`.
    pub(super) hf: &'static str,
    pub(super) norm: NormKind,
    pub(super) norms: NormPlaces,
    pub(super) activation: Activation,
    pub(super) gated: bool,
    /// Gate and up are one matrix: always, as against where a file happens to have it.
    pub(super) fused_up: bool,
    pub(super) qk_norm: bool,
    /// Biases on q, k and v that no model of the family lacks.
    pub(super) qkv_bias: bool,
    pub(super) sinks: bool,
    /// `None`: positions are embedded, not rotated.
    pub(super) rope: Option<RopePairing>,
    /// All layers but every n-th have the window; `None`: no layer has one, unless `windowed` says all.
    pub(super) window_period: Option<usize>,
    /// The rope base of layers with a window, where it is not the model's.
    pub(super) window_rope_base: Option<f32>,
    /// Every n-th layer's positions are not rotated.
    pub(super) unrotated_period: Option<usize>,
    /// Embeddings are multiplied by the root of the width.
    pub(super) root_embedding_scale: bool,
    pub(super) causal: bool,
    /// Experts are required, allowed, or neither.
    pub(super) experts: ExpertsRule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpertsRule {
    Never,
    May,
    Always,
}

const LLAMA: Family = Family {
    gguf: "llama",
    hf: "llama",
    norm: NormKind::Rms,
    norms: NormPlaces::Before,
    activation: Activation::Silu,
    gated: true,
    fused_up: false,
    qk_norm: false,
    qkv_bias: false,
    sinks: false,
    rope: Some(RopePairing::Adjacent),
    window_period: None,
    window_rope_base: None,
    unrotated_period: None,
    root_embedding_scale: false,
    causal: true,
    experts: ExpertsRule::May,
};

const QWEN2: Family = Family {
    gguf: "qwen2",
    hf: "qwen2",
    qkv_bias: true,
    rope: Some(RopePairing::Halves),
    experts: ExpertsRule::Never,
    ..LLAMA
};

const GEMMA2: Family = Family {
    gguf: "gemma2",
    hf: "gemma2",
    norms: NormPlaces::Around,
    activation: Activation::GeluTanh,
    rope: Some(RopePairing::Halves),
    window_period: Some(2),
    root_embedding_scale: true,
    experts: ExpertsRule::Never,
    ..LLAMA
};

const BERT: Family = Family {
    gguf: "bert",
    hf: "bert",
    norm: NormKind::Layer,
    norms: NormPlaces::Residual,
    activation: Activation::GeluErf,
    gated: false,
    rope: None,
    causal: false,
    experts: ExpertsRule::Never,
    ..LLAMA
};

/// Every family that is understood.
pub(super) const FAMILIES: &[Family] = &[
    LLAMA,
    // In GGUF files these are called llama.
    Family { gguf: "", hf: "mistral", ..LLAMA },
    Family { gguf: "", hf: "mixtral", experts: ExpertsRule::Always, ..LLAMA },
    QWEN2,
    Family { gguf: "qwen2moe", hf: "qwen2_moe", experts: ExpertsRule::Always, ..QWEN2 },
    Family { gguf: "qwen3", hf: "qwen3", qk_norm: true, qkv_bias: false, ..QWEN2 },
    Family { gguf: "qwen3moe", hf: "qwen3_moe", qk_norm: true, qkv_bias: false, experts: ExpertsRule::Always, ..QWEN2 },
    GEMMA2,
    Family {
        gguf: "gemma3",
        hf: "gemma3_text",
        qk_norm: true,
        window_period: Some(6),
        window_rope_base: Some(10_000.0),
        ..GEMMA2
    },
    Family { gguf: "phi3", hf: "phi3", fused_up: true, qkv_bias: false, ..QWEN2 },
    Family { gguf: "granite", hf: "granite", ..LLAMA },
    Family { gguf: "granitemoe", hf: "granitemoe", experts: ExpertsRule::Always, ..LLAMA },
    Family { gguf: "smollm3", hf: "smollm3", unrotated_period: Some(4), experts: ExpertsRule::Never, ..LLAMA },
    Family {
        gguf: "gpt-oss",
        hf: "gpt_oss",
        activation: Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
        sinks: true,
        window_period: Some(2),
        experts: ExpertsRule::Always,
        ..QWEN2
    },
    BERT,
    Family {
        gguf: "nomic-bert",
        hf: "nomic_bert",
        activation: Activation::Silu,
        gated: true,
        rope: Some(RopePairing::Halves),
        ..BERT
    },
];

impl Family {
    pub(super) fn named(gguf: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.gguf == gguf && !gguf.is_empty())
    }

    pub(super) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.hf == model_type)
    }

    /// The family's GGUF name, for those that have none of their own too.
    pub(super) fn name(&self) -> &'static str {
        if self.gguf.is_empty() { "llama" } else { self.gguf }
    }

    pub(super) fn is_bert(&self) -> bool {
        self.norms == NormPlaces::Residual
    }

    pub(super) fn is_granite(&self) -> bool {
        self.gguf.starts_with("granite")
    }

    pub(super) fn is_gemma(&self) -> bool {
        self.root_embedding_scale
    }
}

/// The GGUF names of all families, for messages.
pub(super) fn known() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.gguf).filter(|name| !name.is_empty()).collect();
    names.join(", ")
}
