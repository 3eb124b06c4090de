//! The forward pass of a transformer, once, over any backend and for every family that [`ArchSpec`] describes. Knows no
//! batch, actor or peer.

mod adapter;
mod experts;
mod input;
mod kv;
mod load;
mod pool;
mod rope;

use cuckoo_kernels::ops::{Activation, Heads, Mask, OpsError, StepLayout};
use cuckoo_kernels::{Memory, Ops};
use cuckoo_models::{ArchSpec, ModelFiles, arch};

pub use self::adapter::{Adapter, Use};
use self::adapter::{Changes, Place};
use self::experts::{Experts, Mixture};
use self::input::Input;
pub use self::kv::{KvMemory, kv_groups, kv_shapes};
pub use self::load::{LoadError, check};
use self::load::{Loader, Reader, activation};

/// Weights on a device.
pub struct Model<O: Memory> {
    spec: ArchSpec,
    input: Input<O>,
    layers: Vec<Layer<O>>,
    /// On the residual stream, before the head; encoders have none.
    norm: Option<Norm<O>>,
    /// `None` where the output head is the embedding table.
    head: Option<Projection<O>>,
    ropes: Vec<O::RopeTable>,
}

struct Layer<O: Memory> {
    attention_norms: Branch<O>,
    /// Rows are `[query | key | value]`.
    qkv: Projection<O>,
    q_norm: Option<O::Vector>,
    k_norm: Option<O::Vector>,
    /// Which of the model's rotations.
    rope: Option<usize>,
    mask: Mask,
    /// Its group of [`KvMemory`], and its number in that.
    kv: (usize, usize),
    sinks: Option<O::Vector>,
    output: Projection<O>,
    ffn_norms: Branch<O>,
    ffn: FeedForward<O>,
}

enum FeedForward<O: Memory> {
    Dense(Network<O>),
    Experts(Experts<O>),
}

/// One feed-forward network.
struct Network<O: Memory> {
    /// Rows are `[gate | up]`, or just `up`.
    up: Projection<O>,
    gated: bool,
    down: Projection<O>,
    /// Which of the workspace's buffers are as wide.
    width: usize,
}

/// A matrix, and what is added to its products.
struct Projection<O: Memory> {
    weight: O::Matrix,
    bias: Option<O::Vector>,
}

/// The factors of a norm; layer norms have a bias.
struct Norm<O: Memory> {
    weight: O::Vector,
    bias: Option<O::Vector>,
}

/// The norms around attention or the feed-forward network: on its input, on its result, on the sum with the residual.
struct Branch<O: Memory> {
    before: Option<Norm<O>>,
    after: Option<Norm<O>>,
    residual: Option<Norm<O>>,
}

/// Activations of one step, allocated once.
pub struct Workspace<O: Memory> {
    hidden: O::Buffer,
    normed: O::Buffer,
    /// What a branch gives, where more than an addition is done with it.
    branch: O::Buffer,
    qkv: O::Buffer,
    attended: O::Buffer,
    /// For feed-forward networks, one pair for each width in use.
    networks: Vec<Inner<O>>,
    mixture: Option<Mixture<O>>,
    /// Rows whose logits are asked for, or the vectors that [`Model::pool`] made of texts.
    pub picked: O::Buffer,
    /// Logits of the rows that were asked for, in their order.
    pub logits: O::Buffer,
}

/// Inner activations of feed-forward networks of one width.
struct Inner<O: Memory> {
    /// `[gate | up]`.
    gate_up: O::Buffer,
    gated: O::Buffer,
}

impl<O: Memory> Model<O> {
    /// Loads every tensor of `files` that `spec` names; `progress` hears the bytes loaded so far.
    pub fn load(
        ops: &mut O,
        files: &ModelFiles,
        spec: &ArchSpec,
        mut progress: impl FnMut(u64),
    ) -> Result<Self, LoadError> {
        Loader::new(ops, Reader::new(files), spec, &mut progress).model()
    }

    /// Asks `memory` for the same room without reading a weight, and returns the most bytes of the files that loading holds at
    /// once. For memory that only counts: what it is given are sizes, and the values of vectors are zero.
    pub fn survey(memory: &mut O, files: &ModelFiles, spec: &ArchSpec) -> Result<u64, LoadError> {
        let mut progress = |_| ();
        let mut loader = Loader::new(memory, Reader::of_sizes(files), spec, &mut progress);
        loader.model()?;
        Ok(loader.reader.held_max)
    }

    /// What was loaded.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }
}

impl<O: Ops> Model<O> {
    /// Runs `tokens`, laid out as `steps` say, and leaves the logits of the rows in `wanted` in `work.logits`. There is one
    /// layout for each group of layers: the same spans, and the group's own block tables.
    pub fn forward(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut KvMemory<O>,
        tokens: &[u32],
        steps: &[StepLayout<'_>],
        wanted: &[usize],
    ) -> Result<(), OpsError> {
        self.forward_adapted(ops, work, cache, tokens, (steps, &[]))?;
        match wanted.is_empty() {
            true => Ok(()),
            false => self.logits(ops, work, wanted),
        }
    }

    /// The same without logits, where some rows use adapters; those of `uses` are apart and in order. A row without one has
    /// the same result as if nobody had one.
    pub fn forward_adapted(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut KvMemory<O>,
        tokens: &[u32],
        (steps, uses): (&[StepLayout<'_>], &[Use<'_, O>]),
    ) -> Result<(), OpsError> {
        assert_eq!(steps.len(), cache.groups.len(), "every group of layers has its block tables");
        self.input.begin(ops, &self.spec, work, tokens, steps)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let changes = Changes { uses, layer: number };
            self.attention(ops, work, cache, steps, (layer, changes))?;
            self.feed_forward(ops, work, (layer, changes))?;
        }
        Ok(())
    }

    /// Some rows of the residual stream after the last [`Model::forward`], row-major; no more than have room for logits.
    pub fn hidden(&self, ops: &mut O, work: &mut Workspace<O>, rows: &[usize]) -> Result<Vec<f32>, OpsError> {
        ops.gather(&work.hidden, rows, &mut work.picked)?;
        ops.read(&work.picked)
    }

    /// Leaves the logits of some rows of the last [`Model::forward`] in `work.logits`; may be called again for others.
    pub fn logits(&self, ops: &mut O, work: &mut Workspace<O>, wanted: &[usize]) -> Result<(), OpsError> {
        ops.gather(&work.hidden, wanted, &mut work.picked)?;
        let Workspace { picked, normed, logits, .. } = &mut *work;
        let input = self.normed(ops, picked, normed)?;
        match &self.head {
            Some(head) => head.apply(ops, input, logits)?,
            None => ops.linear(input, &self.input.embedding, logits)?,
        }
        if (self.spec.logit_scale, self.spec.final_softcap) != (1.0, None) {
            ops.scale(self.spec.logit_scale, self.spec.final_softcap, &mut work.logits)?;
        }
        Ok(())
    }

    /// What the output head or pooling works on.
    fn normed<'a>(&self, ops: &mut O, x: &'a O::Buffer, normed: &'a mut O::Buffer) -> Result<&'a O::Buffer, OpsError> {
        match &self.norm {
            Some(norm) => {
                norm.apply(ops, self.spec.norm_epsilon, x, normed)?;
                Ok(normed)
            }
            None => Ok(x),
        }
    }

    fn attention(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        cache: &mut KvMemory<O>,
        steps: &[StepLayout<'_>],
        (layer, changes): (&Layer<O>, Changes<'_, O>),
    ) -> Result<(), OpsError> {
        let (group, i) = layer.kv;
        let (step, cache) = (&steps[group], &mut cache.groups[group]);
        let (heads, epsilon) = (heads(&self.spec), self.spec.norm_epsilon);
        let input = layer.attention_norms.input(ops, epsilon, &work.hidden, &mut work.normed)?;
        layer.qkv.apply_fine(ops, input, &mut work.qkv)?;
        changes.add(ops, Place::Qkv, input, &mut work.qkv)?;
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
        let last = (&layer.output, Place::Output, changes);
        self.add_branch(ops, last, &layer.attention_norms, attended, (hidden, normed, branch))
    }

    fn feed_forward(
        &self,
        ops: &mut O,
        work: &mut Workspace<O>,
        (layer, changes): (&Layer<O>, Changes<'_, O>),
    ) -> Result<(), OpsError> {
        let act = activation(self.spec.activation);
        let Workspace { hidden, normed, branch, networks, mixture, .. } = work;
        let input = layer.ffn_norms.input(ops, self.spec.norm_epsilon, hidden, normed)?;
        match (&layer.ffn, mixture) {
            (FeedForward::Dense(network), _) => {
                let inner = &mut networks[network.width];
                network.begin(ops, act, (input, changes), inner)?;
                let last = (&network.down, Place::Down, changes);
                self.add_branch(ops, last, &layer.ffn_norms, &inner.gated, (hidden, normed, branch))
            }
            (FeedForward::Experts(experts), Some(mixture)) => {
                experts.apply(ops, act, input, (networks, mixture), branch)?;
                self.add_result(ops, &layer.ffn_norms, (hidden, normed, branch))
            }
            (FeedForward::Experts(_), None) => unreachable!("a workspace has what its model needs"),
        }
    }

    /// `hidden = residual(hidden + residual_scale * after(last(x)))`, where absent norms change nothing.
    fn add_branch(
        &self,
        ops: &mut O,
        (last, place, changes): (&Projection<O>, Place, Changes<'_, O>),
        norms: &Branch<O>,
        x: &O::Buffer,
        (hidden, normed, branch): (&mut O::Buffer, &mut O::Buffer, &mut O::Buffer),
    ) -> Result<(), OpsError> {
        if norms.after.is_none() && last.bias.is_none() && self.spec.residual_scale == 1.0 {
            ops.linear_add(x, &last.weight, hidden)?;
            changes.add(ops, place, x, hidden)?;
            return self.end_branch(ops, norms, hidden, normed);
        }
        last.apply(ops, x, branch)?;
        changes.add(ops, place, x, branch)?;
        self.add_result(ops, norms, (hidden, normed, branch))
    }

    /// [`Model::add_branch`] of what is in `branch` already.
    fn add_result(
        &self,
        ops: &mut O,
        norms: &Branch<O>,
        (hidden, normed, branch): (&mut O::Buffer, &mut O::Buffer, &mut O::Buffer),
    ) -> Result<(), OpsError> {
        match &norms.after {
            Some(after) => {
                after.apply(ops, self.spec.norm_epsilon, branch, normed)?;
                ops.add_scaled(normed, self.spec.residual_scale, hidden)?;
            }
            None => ops.add_scaled(branch, self.spec.residual_scale, hidden)?,
        }
        self.end_branch(ops, norms, hidden, normed)
    }

    fn end_branch(
        &self,
        ops: &mut O,
        norms: &Branch<O>,
        hidden: &mut O::Buffer,
        normed: &mut O::Buffer,
    ) -> Result<(), OpsError> {
        if let Some(residual) = &norms.residual {
            residual.apply(ops, self.spec.norm_epsilon, hidden, normed)?;
            std::mem::swap(hidden, normed);
        }
        Ok(())
    }
}

impl<O: Ops> Network<O> {
    /// Everything but the last product, into `inner.gated`.
    fn begin(
        &self,
        ops: &mut O,
        act: Activation,
        (x, changes): (&O::Buffer, Changes<'_, O>),
        inner: &mut Inner<O>,
    ) -> Result<(), OpsError> {
        if self.gated {
            self.up.apply(ops, x, &mut inner.gate_up)?;
            changes.add(ops, Place::Up, x, &mut inner.gate_up)?;
            return ops.gate(act, &inner.gate_up, &mut inner.gated);
        }
        self.up.apply(ops, x, &mut inner.gated)?;
        changes.add(ops, Place::Up, x, &mut inner.gated)?;
        ops.activate(act, &mut inner.gated)
    }

    fn apply(
        &self,
        ops: &mut O,
        act: Activation,
        x: &O::Buffer,
        networks: &mut [Inner<O>],
        out: &mut O::Buffer,
    ) -> Result<(), OpsError> {
        let inner = &mut networks[self.width];
        self.begin(ops, act, (x, Changes::none()), inner)?;
        self.down.apply(ops, &inner.gated, out)
    }
}

impl<O: Ops> Projection<O> {
    fn apply(&self, ops: &mut O, x: &O::Buffer, out: &mut O::Buffer) -> Result<(), OpsError> {
        ops.linear(x, &self.weight, out)?;
        self.add_bias(ops, out)
    }

    /// With finer activations, where the error of a result is magnified by what follows.
    fn apply_fine(&self, ops: &mut O, x: &O::Buffer, out: &mut O::Buffer) -> Result<(), OpsError> {
        ops.linear_fine(x, &self.weight, out)?;
        self.add_bias(ops, out)
    }

    fn add_bias(&self, ops: &mut O, out: &mut O::Buffer) -> Result<(), OpsError> {
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

impl<O: Memory> Workspace<O> {
    /// For steps of at most `rows` rows of which at most `wanted` need logits, or of at most `wanted` texts for an encoder.
    pub fn new(ops: &mut O, spec: &ArchSpec, rows: usize, wanted: usize) -> Result<Self, OpsError> {
        Ok(Self {
            hidden: ops.buffer(rows, spec.hidden)?,
            normed: ops.buffer(rows, spec.hidden)?,
            branch: ops.buffer(rows, spec.hidden)?,
            qkv: ops.buffer(rows, heads(spec).qkv_cols())?,
            attended: ops.buffer(rows, spec.query_width())?,
            networks: widths(spec)
                .into_iter()
                .map(|w| Ok(Inner { gate_up: ops.buffer(rows, 2 * w)?, gated: ops.buffer(rows, w)? }))
                .collect::<Result<_, OpsError>>()?,
            mixture: match experts_max(spec) {
                0 => None,
                experts => Some(Mixture {
                    logits: ops.buffer(rows, experts)?,
                    shared: ops.buffer(rows, 1)?,
                    gathered: ops.buffer(rows, spec.hidden)?,
                    result: ops.buffer(rows, spec.hidden)?,
                }),
            },
            picked: ops.buffer(wanted, spec.hidden)?,
            logits: ops.buffer(wanted_logits(spec, wanted), spec.vocab)?,
        })
    }
}

/// An encoder has no logits.
fn wanted_logits(spec: &ArchSpec, wanted: usize) -> usize {
    if spec.is_encoder() { 0 } else { wanted }
}

/// The widths of all feed-forward networks, each once.
fn widths(spec: &ArchSpec) -> Vec<usize> {
    let mut widths: Vec<usize> = Vec::new();
    for layer in &spec.blocks {
        let of_layer = match &layer.ffn {
            arch::FeedForward::Dense(dense) => vec![dense.width],
            arch::FeedForward::Experts(experts) => {
                std::iter::once(experts.width).chain(experts.shared.as_ref().map(|s| s.network.width)).collect()
            }
        };
        widths.extend(of_layer);
    }
    widths.sort_unstable();
    widths.dedup();
    widths
}

/// The most experts that a layer has.
fn experts_max(spec: &ArchSpec) -> usize {
    let count = |layer: &arch::LayerSpec| match &layer.ffn {
        arch::FeedForward::Dense(_) => 0,
        arch::FeedForward::Experts(experts) => experts.count,
    };
    spec.blocks.iter().map(count).max().unwrap_or(0)
}

fn heads(spec: &ArchSpec) -> Heads {
    Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim }
}
