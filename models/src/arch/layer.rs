//! What one layer computes, and the tensors it computes it with. Types only; `build.rs` fills them in.

/// A tensor that the model has, proved present with this shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Its shape in GGUF order: `dims[0]` is the contiguous dimension, so a matrix is `[inputs, outputs]`.
    pub dims: Vec<usize>,
}

/// A matrix, and what is added to its product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// `[inputs, outputs]`; for stacked experts `[inputs, outputs, experts]`.
    pub weight: TensorSpec,
    /// `[outputs]`; for stacked experts `[outputs, experts]`.
    pub bias: Option<TensorSpec>,
    /// How the weight is packed in a quantized safetensors file. GGUF files say so by a tensor's type instead.
    pub packed: Option<Box<Packed>>,
}

/// A quantized matrix of a safetensors file, in the shapes that GGUF would give them (the file's, turned round).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packed {
    /// AWQ, 4 bits: `weight` names no tensor. `w[i, o] = (q - zero) * scale` with `q` the nibble of `o` in
    /// `qweight[o / 8, i]`; nibbles from the lowest hold outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight.
    Awq {
        /// Inputs that share a scale.
        group: usize,
        /// `[outputs / 8, inputs]`, 32-bit.
        qweight: TensorSpec,
        /// `[outputs / 8, inputs / group]`, 32-bit, in the same order.
        qzeros: TensorSpec,
        /// `[outputs, inputs / group]`.
        scales: TensorSpec,
    },
    /// GPTQ, 4 bits: `weight` names no tensor. `w[i, o] = (q - (zero + zero_offset) % 16) * scale` with `q` the nibble
    /// `i % 8` from the lowest of `qweight[o, i / 8]` and the group of `i` from `g_idx`, where there is one, else
    /// `i / group`.
    Gptq {
        /// 1 in the first version of the format, which stores zero points less one, and 0 in the second.
        zero_offset: u8,
        /// Inputs that share a scale.
        group: usize,
        /// `[outputs, inputs / 8]`, 32-bit.
        qweight: TensorSpec,
        /// `[outputs / 8, inputs / group]`, 32-bit, the lowest nibble first.
        qzeros: TensorSpec,
        /// `[outputs, inputs / group]`.
        scales: TensorSpec,
        /// `[inputs]`, 32-bit.
        g_idx: Option<TensorSpec>,
    },
    /// FP8: `weight` is F8_E4M3 and is multiplied by the scale of its block.
    Fp8 {
        /// Inputs and outputs of a block: a whole row where each output has a scale, the whole matrix where there is one.
        block: [usize; 2],
        /// One for each block, `[inputs / block, outputs / block]`, rounded up.
        scale: TensorSpec,
    },
}

/// A norm's factors, and for layer norms what is added. Kind and epsilon are the model's: `ArchSpec::norm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Norm {
    /// One factor for each element.
    pub weight: TensorSpec,
    /// Only layer norms have one.
    pub bias: Option<TensorSpec>,
}

/// The norms around one branch (attention or feed-forward) of a layer:
/// `x = residual(x + residual_scale * after(branch(before(x))))`, where an absent norm changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BranchNorms {
    /// On the branch's input: most models.
    pub before: Option<Norm>,
    /// On the branch's output, before it is added to the residual stream: gemma 2 and 3.
    pub after: Option<Norm>,
    /// On the residual stream after the addition: BERT.
    pub residual: Option<Norm>,
}

/// One transformer layer, in the order in which it is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Norms around attention.
    pub attention_norms: BranchNorms,
    /// The attention branch.
    pub attention: AttentionSpec,
    /// Norms around the feed-forward branch.
    pub ffn_norms: BranchNorms,
    /// The feed-forward branch.
    pub ffn: FeedForward,
}

/// The attention of a layer. What all layers share (heads, scale, soft-cap) is in `ArchSpec`.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// The projections of queries, keys and values.
    pub qkv: Qkv,
    /// RMS norm of every query head, `[head_dim]`, before it is rotated.
    pub q_norm: Option<TensorSpec>,
    /// RMS norm of every key head, `[head_dim]`, before it is rotated.
    pub k_norm: Option<TensorSpec>,
    /// Index into `ArchSpec::ropes`; `None` where positions are not rotated.
    pub rope: Option<usize>,
    /// How many of the newest positions are attended to, the token's own included; `None` is all of them.
    pub window: Option<usize>,
    /// One logit for each head that takes part in the softmax and adds nothing to the result.
    pub sinks: Option<TensorSpec>,
    /// From all heads back to the residual stream.
    pub output: Linear,
}

/// The projections of queries, keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One a layer.
pub enum Qkv {
    /// Three matrices.
    Separate {
        /// `[hidden, heads * head_dim]`.
        q: Linear,
        /// `[hidden, kv_heads * head_dim]`.
        k: Linear,
        /// `[hidden, kv_heads * head_dim]`.
        v: Linear,
    },
    /// One matrix whose outputs are all of q, then all of k, then all of v.
    Fused(Linear),
}

/// The feed-forward branch of a layer.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // One a layer.
pub enum FeedForward {
    /// One network.
    Dense(Dense),
    /// Some of many networks for each token.
    Experts(Experts),
}

/// One feed-forward network: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Its inner width.
    pub width: usize,
    /// Its first half.
    pub up: Up,
    /// `[width, hidden]`.
    pub down: Linear,
}

/// The first half of a feed-forward network.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // One a layer, and the large one is the usual one.
pub enum Up {
    /// Two matrices `[hidden, width]`.
    Gated {
        /// What the activation is applied to.
        gate: Linear,
        /// What it is multiplied by.
        up: Linear,
    },
    /// One matrix `[hidden, 2 * width]`: all outputs of the gate, then all of up.
    Fused(Linear),
    /// No gate: one matrix `[hidden, width]`.
    Plain(Linear),
}

/// A mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token uses: those with the largest router logits.
    pub used: usize,
    /// The inner width of an expert.
    pub width: usize,
    /// How logits become the weights of experts.
    pub gating: Gating,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalize: bool,
    /// What weights are then multiplied by.
    pub scale: f32,
    /// `[hidden, count]`.
    pub router: Linear,
    /// The experts' matrices.
    pub weights: ExpertWeights,
    /// A network that every token uses as well.
    pub shared: Option<SharedExpert>,
}

/// How a router's logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts, then choose.
    Softmax,
    /// A sigmoid for each expert, then choose.
    Sigmoid,
    /// Choose, then softmax over the chosen.
    SoftmaxOfChosen,
}

/// Where the matrices of experts lie.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // One a layer.
pub enum ExpertWeights {
    /// All experts of one kind in one tensor, as GGUF files have them: `[inputs, outputs, experts]`.
    Stacked {
        /// Gates.
        gate: Linear,
        /// Ups.
        up: Linear,
        /// Downs.
        down: Linear,
    },
    /// All experts in one tensor, all outputs of the gate before those of up: granite in safetensors files.
    StackedFused {
        /// `[hidden, 2 * width, experts]`.
        gate_up: Linear,
        /// `[width, hidden, experts]`.
        down: Linear,
    },
    /// Each expert by itself, as most safetensors files have them.
    Apart(Vec<Dense>),
    /// gpt-oss in safetensors: MXFP4 bytes, four-bit pairs with one scale byte for 32 elements. Outputs of gate and up
    /// alternate: row `2i` is the gate's, row `2i + 1` up's.
    Mxfp4 {
        /// `[16, hidden / 32, 2 * width, experts]` bytes.
        gate_up_blocks: TensorSpec,
        /// `[hidden / 32, 2 * width, experts]` bytes, exponents biased by 127.
        gate_up_scales: TensorSpec,
        /// `[2 * width, experts]`.
        gate_up_bias: TensorSpec,
        /// `[16, width / 32, hidden, experts]` bytes.
        down_blocks: TensorSpec,
        /// `[width / 32, hidden, experts]` bytes.
        down_scales: TensorSpec,
        /// `[hidden, experts]`.
        down_bias: TensorSpec,
    },
}

/// The expert that every token uses.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedExpert {
    /// Its network.
    pub network: Dense,
    /// A vector `[hidden]` whose product with the input, through a sigmoid, is the weight of the result; else it is 1.
    pub router: Option<TensorSpec>,
}
