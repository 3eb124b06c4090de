//! The subset that the first forward pass computes. This file goes when the engine computes all of `ArchSpec`.

use super::{
    Activation, ArchError, ArchSpec, FeedForward, LayerSpec, Linear, NormKind, Qkv, RopePairing, RopeScaling, Up,
};

impl ArchSpec {
    /// Whether this is no more than a plain llama; the error names the first thing that is.
    pub fn plain_llama(&self) -> Result<(), ArchError> {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let [rope] = self.ropes.as_slice() else {
            return Err(ArchError::Feature(format!("{} kinds of positions", self.ropes.len())));
        };
        let scales = [self.embedding_scale, self.residual_scale, self.logit_scale];
        let checks = [
            (self.norm == NormKind::Rms && self.norm_weight_offset == 0.0, "layer norms"),
            (rope.pairs == RopePairing::Adjacent, "rotation by halves"),
            (rope.scaling == RopeScaling::None, "scaling of positions"),
            ((self.attention_scale - scale).abs() <= 1e-6 * scale, "a scale of attention"),
            (self.attention_softcap.is_none() && self.final_softcap.is_none(), "soft-capping"),
            (scales == [1.0; 3], "scales of embeddings, residuals or logits"),
            (self.activation == Activation::Silu, "another activation than SiLU"),
            (self.causal, "attention in both directions"),
            (self.input.positions.is_none() && self.input.token_types.is_none(), "embeddings of positions"),
            (self.input.norm.is_none(), "a norm of embeddings"),
            (self.output.head.as_ref().is_none_or(|head| head.bias.is_none()), "a bias of logits"),
        ];
        require(&checks)?;
        self.blocks.iter().try_for_each(plain_layer)
    }
}

fn require(checks: &[(bool, &str)]) -> Result<(), ArchError> {
    match checks.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(ArchError::Feature((*what).to_owned())),
        None => Ok(()),
    }
}

fn plain_layer(layer: &LayerSpec) -> Result<(), ArchError> {
    let attention = &layer.attention;
    let norms = [&layer.attention_norms, &layer.ffn_norms];
    let no_bias = |linears: &[&Linear]| linears.iter().all(|linear| linear.bias.is_none());
    let separate = match &attention.qkv {
        Qkv::Separate { q, k, v } => no_bias(&[q, k, v, &attention.output]),
        Qkv::Fused(_) => false,
    };
    let FeedForward::Dense(dense) = &layer.ffn else {
        return Err(ArchError::Feature("a mixture of experts".to_owned()));
    };
    let gated = match &dense.up {
        Up::Gated { gate, up } => no_bias(&[gate, up, &dense.down]),
        Up::Fused(_) | Up::Plain(_) => false,
    };
    require(&[
        (norms.iter().all(|norms| norms.after.is_none() && norms.residual.is_none()), "norms after branches"),
        (separate, "biases or fused matrices of attention"),
        (attention.q_norm.is_none() && attention.k_norm.is_none(), "norms of queries and keys"),
        (attention.rope == Some(0), "layers without rotation"),
        (attention.window.is_none(), "sliding windows"),
        (attention.sinks.is_none(), "attention sinks"),
        (gated, "biases, fused or ungated matrices of feed-forward layers"),
    ])
}
