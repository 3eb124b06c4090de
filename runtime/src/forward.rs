//! The forward pass of a transformer, once, over any backend and for every family that [`ArchSpec`] describes. Knows no
//! batch, actor or peer.

mod load;
mod rope;

use std::fs::File;

use cuckoo_kernels::Ops;
use cuckoo_kernels::ops::{Heads, KvShape, Mask, OpsError, StepLayout};
use cuckoo_models::{ArchSpec, Gguf};

pub use self::load::{LoadError, check};
use self::load::{Loader, activation};

/// Weights on a device.
pub struct Model<O: Ops> {
    spec: ArchSpec,
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    norm: Norm<O>,
    /// `None` where the output head is the embedding table.
    head: Option<Projection<O>>,
    ropes: Vec<O::RopeTable>,
}

struct Layer<O: Ops> {
    attention_norms: Branch<O>,
    /// Rows are `[query | key | value]`.
    qkv: Projection<O>,
    q_norm: Option<O::Vector>,
    k_norm: Option<O::Vector>,
    /// Which of the model's rotations.
    rope: Option<usize>,
    mask: Mask,
    sinks: Option<O::Vector>,
    output: Projection<O>,
    ffn_norms: Branch<O>,
    /// Rows are `[gate | up]`, or just `up`.
    up: Projection<O>,
    gated: bool,
    down: Projection<O>,
}

/// A matrix, and what is added to its products.
struct Projection<O: Ops> {
    weight: O::Matrix,
    bias: Option<O::Vector>,
}

/// The factors of a norm; layer norms have a bias.
struct Norm<O: Ops> {
    weight: O::Vector,
    bias: Option<O::Vector>,
}

/// The norms around attention or the feed-forward network: on its input, on its result, on the sum with the residual.
struct Branch<O: Ops> {
    before: Option<Norm<O>>,
    after: Option<Norm<O>>,
    residual: Option<Norm<O>>,
}

/// Activations of one step, allocated once.
pub struct Workspace<O: Ops> {
    hidden: O::Buffer,
    normed: O::Buffer,
    /// What a branch gives, where more than an addition is done with it.
    branch: O::Buffer,
    qkv: O::Buffer,
    attended: O::Buffer,
    gate_up: O::Buffer,
    gated: O::Buffer,
    picked: O::Buffer,
    /// Logits of the rows that were asked for, in their order.
    pub logits: O::Buffer,
}

impl<O: Ops> Model<O> {
    /// Loads every tensor of `gguf` that `spec` names; `progress` hears the bytes loaded so far.
    pub fn load(
        ops: &mut O,
        gguf: &Gguf,
        file: &File,
        spec: &ArchSpec,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        Loader { ops, gguf, file, spec, loaded_bytes: 0, progress: &mut progress }.model()
    }

    /// What was loaded.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// Runs `tokens`, laid out as `step` says, and leaves the logits of the rows in `wanted` in `work.logits`.
    pub fn forward(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut O::KvCache,
        tokens: &[u32],
        step: &StepLayout<'_>,
        wanted: &[usize],
    ) -> Result<(), OpsError> {
        ops.embed(&self.embedding, tokens, &mut work.hidden)?;
        if self.spec.embedding_scale != 1.0 {
            ops.scale(self.spec.embedding_scale, None, &mut work.hidden)?;
        }
        for (i, layer) in self.layers.iter().enumerate() {
            self.attention(ops, work, cache, step, (i, layer))?;
            self.feed_forward(ops, work, layer)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        ops.gather(&work.hidden, wanted, &mut work.picked)?;
        self.norm.apply(ops, self.spec.norm_epsilon, &work.picked, &mut work.normed)?;
        match &self.head {
            Some(head) => head.apply(ops, &work.normed, &mut work.logits)?,
            None => ops.linear(&work.normed, &self.embedding, &mut work.logits)?,
        }
        if (self.spec.logit_scale, self.spec.final_softcap) != (1.0, None) {
            ops.scale(self.spec.logit_scale, self.spec.final_softcap, &mut work.logits)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut O::KvCache,
        step: &StepLayout<'_>,
        (i, layer): (usize, &Layer<O>),
    ) -> Result<(), OpsError> {
        let (heads, epsilon) = (heads(&self.spec), self.spec.norm_epsilon);
        let input = layer.attention_norms.input(ops, epsilon, &work.hidden, &mut work.normed)?;
        layer.qkv.apply(ops, input, &mut work.qkv)?;
        if let Some(norm) = &layer.q_norm {
            ops.norm_heads(norm, epsilon, 0..heads.query, &mut work.qkv)?;
        }
        if let Some(norm) = &layer.k_norm {
            ops.norm_heads(norm, epsilon, heads.query..heads.query + heads.kv, &mut work.qkv)?;
        }
        let rope = layer.rope.map(|rope| &self.ropes[rope]);
        ops.rope_store(rope, step, heads, &mut work.qkv, cache, i)?;
        let sinks = layer.sinks.as_ref();
        ops.attention(step, heads, layer.mask, sinks, &work.qkv, cache, i, &mut work.attended)?;
        let Workspace { hidden, normed, branch, attended, .. } = work;
        self.add_branch(ops, &layer.output, &layer.attention_norms, attended, (hidden, normed, branch))
    }

    fn feed_forward(&self, ops: &mut O, work: &mut Workspace<O>, layer: &Layer<O>) -> Result<(), OpsError> {
        let act = activation(self.spec.activation);
        let input = layer.ffn_norms.input(ops, self.spec.norm_epsilon, &work.hidden, &mut work.normed)?;
        if layer.gated {
            layer.up.apply(ops, input, &mut work.gate_up)?;
            ops.gate(act, &work.gate_up, &mut work.gated)?;
        } else {
            layer.up.apply(ops, input, &mut work.gated)?;
            ops.activate(act, &mut work.gated)?;
        }
        let Workspace { hidden, normed, branch, gated, .. } = work;
        self.add_branch(ops, &layer.down, &layer.ffn_norms, gated, (hidden, normed, branch))
    }

    /// `hidden = residual(hidden + residual_scale * after(last(x)))`, where absent norms change nothing.
    fn add_branch(
        &self,
        ops: &mut O,
        last: &Projection<O>,
        norms: &Branch<O>,
        x: &O::Buffer,
        (hidden, normed, branch): (&mut O::Buffer, &mut O::Buffer, &mut O::Buffer),
    ) -> Result<(), OpsError> {
        let (epsilon, scale) = (self.spec.norm_epsilon, self.spec.residual_scale);
        match &norms.after {
            None if last.bias.is_none() && scale == 1.0 => ops.linear_add(x, &last.weight, hidden)?,
            None => {
                last.apply(ops, x, branch)?;
                ops.add_scaled(branch, scale, hidden)?;
            }
            Some(after) => {
                last.apply(ops, x, branch)?;
                after.apply(ops, epsilon, branch, normed)?;
                ops.add_scaled(normed, scale, hidden)?;
            }
        }
        if let Some(residual) = &norms.residual {
            residual.apply(ops, epsilon, hidden, normed)?;
            std::mem::swap(hidden, normed);
        }
        Ok(())
    }
}

impl<O: Ops> Projection<O> {
    fn apply(&self, ops: &mut O, x: &O::Buffer, out: &mut O::Buffer) -> Result<(), OpsError> {
        ops.linear(x, &self.weight, out)?;
        match &self.bias {
            Some(bias) => ops.add_bias(bias, out),
            None => Ok(()),
        }
    }
}

impl<O: Ops> Norm<O> {
    fn apply(&self, ops: &mut O, epsilon: f32, x: &O::Buffer, out: &mut O::Buffer) -> Result<(), OpsError> {
        match &self.bias {
            Some(bias) => ops.layer_norm(x, &self.weight, bias, epsilon, out),
            None => ops.norm(x, &self.weight, epsilon, out),
        }
    }
}

impl<O: Ops> Branch<O> {
    /// What the branch works on: the residual stream, normed if there is a norm for it.
    fn input<'a>(
        &self,
        ops: &mut O,
        epsilon: f32,
        hidden: &'a O::Buffer,
        normed: &'a mut O::Buffer,
    ) -> Result<&'a O::Buffer, OpsError> {
        match &self.before {
            Some(before) => {
                before.apply(ops, epsilon, hidden, normed)?;
                Ok(normed)
            }
            None => Ok(hidden),
        }
    }
}

impl<O: Ops> Workspace<O> {
    /// For steps of at most `rows` rows of which at most `wanted` need logits.
    pub fn new(ops: &mut O, spec: &ArchSpec, rows: usize, wanted: usize) -> Result<Self, OpsError> {
        Ok(Self {
            hidden: ops.buffer(rows, spec.hidden)?,
            normed: ops.buffer(rows, spec.hidden)?,
            branch: ops.buffer(rows, spec.hidden)?,
            qkv: ops.buffer(rows, heads(spec).qkv_cols())?,
            attended: ops.buffer(rows, spec.query_width())?,
            gate_up: ops.buffer(rows, 2 * spec.ffn)?,
            gated: ops.buffer(rows, spec.ffn)?,
            picked: ops.buffer(wanted, spec.hidden)?,
            logits: ops.buffer(wanted, spec.vocab)?,
        })
    }

    /// Bytes that [`Workspace::new`] will ask for.
    pub fn bytes(spec: &ArchSpec, rows: usize, wanted: usize) -> usize {
        let row = 3 * spec.hidden + heads(spec).qkv_cols() + spec.query_width() + 3 * spec.ffn;
        4 * (rows * row + wanted * (spec.hidden + spec.vocab))
    }
}

fn heads(spec: &ArchSpec) -> Heads {
    Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim }
}

/// The KV cache that `spec` needs for `blocks` blocks.
pub fn kv_shape(spec: &ArchSpec, blocks: usize) -> KvShape {
    KvShape { layers: spec.layers, kv_heads: spec.kv_heads, head_dim: spec.head_dim, blocks }
}
