//! What the tensors of each role are called, in GGUF files and in safetensors files. Only names; no shapes.

use super::family::{Family, NormPlaces};

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Gguf,
    Hf,
}

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    Positions,
    TokenTypes,
    InputNorm,
    OutputNorm,
    Head,
    AttentionNorm,
    AttentionAfterNorm,
    AttentionResidualNorm,
    Q,
    K,
    V,
    Qkv,
    QNorm,
    KNorm,
    Sinks,
    AttentionOutput,
    FfnNorm,
    FfnAfterNorm,
    FfnResidualNorm,
    Gate,
    Up,
    GateUp,
    Down,
    Router,
    Experts,
    ExpertsOutput,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
}

/// The names of a family's tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) scheme: Scheme,
    pub(super) family: &'a Family,
    /// What all names of the file begin with (`bert.`, `model.`).
    pub(super) prefix: &'a str,
}

impl Names<'_> {
    /// The name of a role's tensor, without `.weight` or `.bias`.
    pub(super) fn of(&self, role: Role, layer: usize) -> String {
        match self.scheme {
            Scheme::Gguf => gguf(self.family, role, layer),
            Scheme::Hf if role == Role::Head => "lm_head".to_owned(),
            Scheme::Hf if self.family.gguf == "nomic-bert" => format!("{}{}", self.prefix, nomic(role, layer)),
            Scheme::Hf if self.family.is_bert() => format!("{}{}", self.prefix, bert(role, layer)),
            Scheme::Hf => format!("{}{}", self.prefix, decoder(self.family, role, layer)),
        }
    }

    /// The name of one matrix of one expert, where each is a tensor of its own.
    pub(super) fn expert(&self, layer: usize, expert: usize, part: Role) -> String {
        let mixtral = self.family.hf == "mixtral";
        let part = match (part, mixtral) {
            (Role::Gate, true) => "w1",
            (Role::Up, true) => "w3",
            (_, true) => "w2",
            (Role::Gate, false) => "gate_proj",
            (Role::Up, false) => "up_proj",
            (_, false) => "down_proj",
        };
        let folder = if mixtral { "block_sparse_moe" } else { "mlp" };
        format!("{}layers.{layer}.{folder}.experts.{expert}.{part}", self.prefix)
    }
}

fn gguf(family: &Family, role: Role, layer: usize) -> String {
    let whole = match role {
        Role::Embedding => "token_embd",
        Role::Positions => "position_embd",
        Role::TokenTypes => "token_types",
        Role::InputNorm => "token_embd_norm",
        Role::OutputNorm => "output_norm",
        Role::Head => "output",
        _ => "",
    };
    if !whole.is_empty() {
        return whole.to_owned();
    }
    let part = match role {
        Role::AttentionNorm => "attn_norm",
        Role::AttentionAfterNorm => "post_attention_norm",
        Role::AttentionResidualNorm => "attn_output_norm",
        Role::Q => "attn_q",
        Role::K => "attn_k",
        Role::V => "attn_v",
        Role::Qkv => "attn_qkv",
        Role::QNorm => "attn_q_norm",
        Role::KNorm => "attn_k_norm",
        Role::Sinks => "attn_sinks",
        Role::AttentionOutput => "attn_output",
        // gpt-oss calls the norm in front of its experts by where it comes after.
        Role::FfnNorm if family.sinks => "post_attention_norm",
        Role::FfnNorm => "ffn_norm",
        Role::FfnAfterNorm => "post_ffw_norm",
        Role::FfnResidualNorm => "layer_output_norm",
        Role::Gate => "ffn_gate",
        Role::Up | Role::GateUp => "ffn_up",
        Role::Down => "ffn_down",
        Role::Router => "ffn_gate_inp",
        Role::SharedRouter => "ffn_gate_inp_shexp",
        Role::SharedGate => "ffn_gate_shexp",
        Role::SharedUp => "ffn_up_shexp",
        Role::SharedDown => "ffn_down_shexp",
        Role::Experts => "ffn",
        _ => unreachable!("roles outside layers were named above"),
    };
    format!("blk.{layer}.{part}")
}

fn decoder(family: &Family, role: Role, layer: usize) -> String {
    let around = family.norms == NormPlaces::Around;
    let part = match role {
        Role::Embedding => return "embed_tokens".to_owned(),
        Role::OutputNorm => return "norm".to_owned(),
        Role::AttentionNorm => "input_layernorm",
        Role::AttentionAfterNorm => "post_attention_layernorm",
        Role::FfnNorm if around => "pre_feedforward_layernorm",
        Role::FfnNorm => "post_attention_layernorm",
        Role::FfnAfterNorm => "post_feedforward_layernorm",
        Role::Q => "self_attn.q_proj",
        Role::K => "self_attn.k_proj",
        Role::V => "self_attn.v_proj",
        Role::Qkv => "self_attn.qkv_proj",
        Role::QNorm => "self_attn.q_norm",
        Role::KNorm => "self_attn.k_norm",
        Role::Sinks => "self_attn.sinks",
        Role::AttentionOutput => "self_attn.o_proj",
        Role::Gate => "mlp.gate_proj",
        Role::Up => "mlp.up_proj",
        Role::GateUp => "mlp.gate_up_proj",
        Role::Down => "mlp.down_proj",
        Role::Router if family.hf == "mixtral" => "block_sparse_moe.gate",
        Role::Router if family.hf == "granitemoe" => "block_sparse_moe.router.layer",
        Role::Router if family.sinks => "mlp.router",
        Role::Router => "mlp.gate",
        Role::Experts if family.hf == "granitemoe" => "block_sparse_moe.input_linear",
        Role::Experts => "mlp.experts",
        Role::ExpertsOutput => "block_sparse_moe.output_linear",
        Role::SharedRouter => "mlp.shared_expert_gate",
        Role::SharedGate => "mlp.shared_expert.gate_proj",
        Role::SharedUp => "mlp.shared_expert.up_proj",
        Role::SharedDown => "mlp.shared_expert.down_proj",
        other => unreachable!("decoders have no {other:?}"),
    };
    format!("layers.{layer}.{part}")
}

fn bert(role: Role, layer: usize) -> String {
    let part = match role {
        Role::Embedding => return "embeddings.word_embeddings".to_owned(),
        Role::Positions => return "embeddings.position_embeddings".to_owned(),
        Role::TokenTypes => return "embeddings.token_type_embeddings".to_owned(),
        Role::InputNorm => return "embeddings.LayerNorm".to_owned(),
        Role::Q => "attention.self.query",
        Role::K => "attention.self.key",
        Role::V => "attention.self.value",
        Role::Qkv => "attention.self.qkv",
        Role::AttentionOutput => "attention.output.dense",
        Role::AttentionResidualNorm => "attention.output.LayerNorm",
        Role::Up => "intermediate.dense",
        Role::Down => "output.dense",
        Role::FfnResidualNorm => "output.LayerNorm",
        other => unreachable!("encoders have no {other:?}"),
    };
    format!("encoder.layer.{layer}.{part}")
}

fn nomic(role: Role, layer: usize) -> String {
    let part = match role {
        Role::Embedding => return "embeddings.word_embeddings".to_owned(),
        Role::TokenTypes => return "embeddings.token_type_embeddings".to_owned(),
        Role::InputNorm => return "emb_ln".to_owned(),
        Role::Q => "attn.Wq",
        Role::K => "attn.Wk",
        Role::V => "attn.Wv",
        Role::Qkv => "attn.Wqkv",
        Role::AttentionOutput => "attn.out_proj",
        Role::AttentionResidualNorm => "norm1",
        // Named the other way round: fc12 goes through the activation.
        Role::Gate => "mlp.fc12",
        Role::Up => "mlp.fc11",
        Role::Down => "mlp.fc2",
        Role::FfnResidualNorm => "norm2",
        other => unreachable!("encoders have no {other:?}"),
    };
    format!("encoder.layers.{layer}.{part}")
}
