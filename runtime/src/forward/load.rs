//! Weights from a file to a device, as a model's description names them.

use cuckoo_kernels::Memory;
use cuckoo_kernels::ops::{Activation, Mask, MatrixSource, OpsError};
use cuckoo_kernels::routing::{Gating, Routing};
use cuckoo_models::TensorKind;
use cuckoo_models::arch::{
    self, ArchSpec, ExpertWeights, FeedForward, InputSpec, LayerSpec, Linear, Pooling, Qkv, RopeFactors, RopeScaling,
    TensorSpec, Up,
};

mod packed;
mod parts;

use self::parts::Part;
pub(super) use self::parts::Reader;
use super::experts::{Experts, Shared};
use super::input::Input;
use super::kv::kv_places;
use super::rope::rope;
use super::{Branch, Layer, Model, Network, Norm, Projection, experts_max, widths};

/// Why weights could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("weights cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The device refused them.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The backend has no arithmetic for them.
    #[error(
        "tensor {tensor} is stored as {kind}, which cannot be computed with; use a GGUF file quantized as one of F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4, or a folder in F32, F16, BF16, AWQ, GPTQ or FP8"
    )]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its format.
        kind: TensorKind,
    },
    /// An adapter that is damaged.
    #[error(transparent)]
    Adapter(#[from] cuckoo_models::AdapterError),
    /// The model asks for something that is not computed.
    #[error("the model uses {0}, which this engine does not compute yet: choose another model")]
    Feature(String),
    /// A tensor that the architecture needs is not there.
    #[error("tensor {0} is missing: this is not a complete model file")]
    Missing(String),
    /// A tensor holds what is no number.
    #[error("tensor {tensor} holds bytes that are no numbers in E4M3: damaged, download it again")]
    NotNumbers {
        /// The tensor.
        tensor: String,
    },
}

/// Refuses what [`super::Model::forward`] would compute wrongly. The error names the first such thing.
pub fn check(spec: &ArchSpec) -> Result<(), LoadError> {
    let checks = [
        (spec.causal || spec.pooling != Pooling::None, "no pooling, so it makes no vector of a text"),
        (spec.causal || spec.blocks.iter().all(|layer| layer.attention.window.is_none()), "windows in an encoder"),
        (spec.head_dim.is_multiple_of(16), "heads whose size is no multiple of 16"),
        (spec.blocks.iter().all(|layer| same_experts(layer, spec)), "layers with different numbers of experts"),
        (spec.is_encoder() || spec.output.norm.is_some(), "no norm before its output head"),
    ];
    match checks.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(LoadError::Feature((*what).to_owned())),
        None => Ok(()),
    }
}

/// Whether a layer has as many experts as all others that have some: their logits share a buffer.
fn same_experts(layer: &LayerSpec, spec: &ArchSpec) -> bool {
    match &layer.ffn {
        FeedForward::Dense(_) => true,
        FeedForward::Experts(experts) => experts.count == experts_max(spec),
    }
}

pub(super) struct Loader<'a, O: Memory> {
    ops: &'a mut O,
    pub(super) reader: Reader<'a>,
    spec: &'a ArchSpec,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a, O: Memory> Loader<'a, O> {
    pub(super) fn new(
        ops: &'a mut O,
        reader: Reader<'a>,
        spec: &'a ArchSpec,
        progress: &'a mut dyn FnMut(u64),
    ) -> Self {
        Self { ops, reader, spec, progress }
    }

    pub(super) fn model(&mut self) -> Result<Model<O>, LoadError> {
        let spec = self.spec;
        check(spec)?;
        let input = self.input(&spec.input)?;
        let layers = spec.blocks.iter().zip(kv_places(spec)).map(|(layer, kv)| self.layer(layer, kv));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = spec.output.norm.as_ref().map(|norm| self.norm(norm)).transpose()?;
        let head = match (&spec.output.head, spec.tied_head) {
            (Some(head), false) => Some(self.projection(&[head])?),
            _ => None,
        };
        let ropes = spec.ropes.iter().map(|rope| self.rope(rope)).collect::<Result<_, _>>()?;
        Ok(Model { spec: spec.clone(), input, layers, norm, head, ropes })
    }

    fn input(&mut self, input: &InputSpec) -> Result<Input<O>, LoadError> {
        let token_type = input.token_types.as_ref().map(|types| self.reader.values(types)).transpose()?;
        Ok(Input {
            embedding: self.table(&input.embedding)?,
            positions: input.positions.as_ref().map(|positions| self.table(positions)).transpose()?,
            token_type: token_type.map(|types| self.ops.vector(&types[..self.spec.hidden])).transpose()?,
            norm: input.norm.as_ref().map(|norm| self.norm(norm)).transpose()?,
        })
    }

    fn layer(&mut self, layer: &LayerSpec, kv: (usize, usize)) -> Result<Layer<O>, LoadError> {
        let attention = &layer.attention;
        Ok(Layer {
            attention_norms: self.branch(&layer.attention_norms)?,
            qkv: match &attention.qkv {
                Qkv::Separate { q, k, v } => self.projection(&[q, k, v])?,
                Qkv::Fused(all) => self.projection(&[all])?,
            },
            q_norm: attention.q_norm.as_ref().map(|norm| self.factors(norm)).transpose()?,
            k_norm: attention.k_norm.as_ref().map(|norm| self.factors(norm)).transpose()?,
            rope: attention.rope,
            mask: Mask {
                scale: self.spec.attention_scale,
                softcap: self.spec.attention_softcap,
                window: attention.window,
                causal: self.spec.causal,
            },
            kv,
            sinks: attention.sinks.as_ref().map(|sinks| self.vector(sinks)).transpose()?,
            output: self.projection(&[&attention.output])?,
            ffn_norms: self.branch(&layer.ffn_norms)?,
            ffn: match &layer.ffn {
                FeedForward::Dense(dense) => super::FeedForward::Dense(self.network(dense)?),
                FeedForward::Experts(experts) => super::FeedForward::Experts(self.experts(experts)?),
            },
        })
    }

    fn network(&mut self, dense: &arch::Dense) -> Result<Network<O>, LoadError> {
        let (up, gated) = match &dense.up {
            Up::Gated { gate, up } => (self.projection(&[gate, up])?, true),
            Up::Fused(both) => (self.projection(&[both])?, true),
            Up::Plain(up) => (self.projection(&[up])?, false),
        };
        Ok(Network { up, gated, down: self.projection(&[&dense.down])?, width: self.width(dense.width) })
    }

    /// Which of the workspace's buffers are as wide.
    fn width(&self, width: usize) -> usize {
        widths(self.spec).binary_search(&width).expect("every network's width is among those of the model")
    }

    fn experts(&mut self, experts: &arch::Experts) -> Result<Experts<O>, LoadError> {
        let networks = match &experts.weights {
            ExpertWeights::Stacked { gate, up, down } => {
                let (ups, downs) = (self.stacked(&[gate, up], experts.count)?, self.stacked(&[down], experts.count)?);
                let width = self.width(experts.width);
                ups.into_iter().zip(downs).map(|(up, down)| Network { up, gated: true, down, width }).collect()
            }
            ExpertWeights::StackedFused { gate_up, down } => {
                let (ups, downs) = (self.stacked(&[gate_up], experts.count)?, self.stacked(&[down], experts.count)?);
                let width = self.width(experts.width);
                ups.into_iter().zip(downs).map(|(up, down)| Network { up, gated: true, down, width }).collect()
            }
            ExpertWeights::Apart(each) => each.iter().map(|dense| self.network(dense)).collect::<Result<_, _>>()?,
            ExpertWeights::Mxfp4 { .. } => self.mxfp4(experts)?,
        };
        let shared = match &experts.shared {
            None => None,
            Some(shared) => Some(Shared {
                network: self.network(&shared.network)?,
                router: shared.router.as_ref().map(|row| self.table(row)).transpose()?,
            }),
        };
        Ok(Experts {
            router: self.projection(&[&experts.router])?,
            routing: Routing {
                used: experts.used,
                gating: match experts.gating {
                    arch::Gating::Softmax => Gating::Softmax,
                    arch::Gating::Sigmoid => Gating::Sigmoid,
                    arch::Gating::SoftmaxOfChosen => Gating::SoftmaxOfChosen,
                },
                normalize: experts.normalize,
                scale: experts.scale,
            },
            networks,
            shared,
        })
    }

    /// One projection for each of `count` experts, from tensors that hold all of them one after the other.
    fn stacked(&mut self, parts: &[&Linear], count: usize) -> Result<Vec<Projection<O>>, LoadError> {
        let mut read = Vec::new();
        for part in parts {
            let bias = part.bias.as_ref().map(|bias| self.reader.values(bias)).transpose()?;
            read.push((part, self.reader.plain(&part.weight)?, bias));
        }
        let mut projections = Vec::new();
        for expert in 0..count {
            let (mut sources, mut biases) = (Vec::new(), Vec::new());
            for (part, all, bias) in &read {
                let (cols, rows) = (part.weight.dims[0], part.weight.dims[1]);
                let bytes = all.data.len() / count;
                let data = &all.data[expert * bytes..][..bytes];
                sources.push(MatrixSource { quant: all.quant, rows, cols, data });
                match bias {
                    Some(bias) => biases.extend_from_slice(&bias[expert * rows..][..rows]),
                    None => biases.resize(biases.len() + rows, 0.0),
                }
            }
            let weight = self.ops.matrix(&sources)?;
            let any = read.iter().any(|(_, _, bias)| bias.is_some());
            projections.push(Projection { weight, bias: any.then(|| self.ops.vector(&biases)).transpose()? });
        }
        (self.progress)(self.reader.placed());
        Ok(projections)
    }

    /// gpt-oss' experts. Outputs of gate and up alternate in the file, biases too.
    fn mxfp4(&mut self, experts: &arch::Experts) -> Result<Vec<Network<O>>, LoadError> {
        let ExpertWeights::Mxfp4 { gate_up_bias, down_bias, .. } = &experts.weights else { return Ok(Vec::new()) };
        let (up_bias, down_bias) = (self.reader.values(gate_up_bias)?, self.reader.values(down_bias)?);
        let (width, hidden) = (self.width(experts.width), self.spec.hidden);
        let parts = self.reader.mxfp4(&experts.weights, experts.count)?;
        let biases = up_bias.chunks_exact(2 * experts.width).zip(down_bias.chunks_exact(hidden));
        let mut networks = Vec::new();
        for ([gate, up, down], (up_bias, down_bias)) in parts.into_iter().zip(biases) {
            let apart: Vec<f32> = [0, 1].iter().flat_map(|i| up_bias.iter().skip(*i).step_by(2)).copied().collect();
            let up = Projection { weight: self.matrix(&[gate, up])?, bias: Some(self.ops.vector(&apart)?) };
            let down = Projection { weight: self.matrix(&[down])?, bias: Some(self.ops.vector(down_bias)?) };
            networks.push(Network { up, gated: true, down, width });
        }
        Ok(networks)
    }

    fn branch(&mut self, norms: &arch::BranchNorms) -> Result<Branch<O>, LoadError> {
        let mut load = |norm: &Option<arch::Norm>| norm.as_ref().map(|norm| self.norm(norm)).transpose();
        Ok(Branch { before: load(&norms.before)?, after: load(&norms.after)?, residual: load(&norms.residual)? })
    }

    fn norm(&mut self, norm: &arch::Norm) -> Result<Norm<O>, LoadError> {
        let bias = match (&norm.bias, self.spec.norm) {
            (Some(bias), _) => Some(self.vector(bias)?),
            (None, arch::NormKind::Layer) => Some(self.ops.vector(&vec![0.0; self.spec.hidden])?),
            (None, arch::NormKind::Rms) => None,
        };
        Ok(Norm { weight: self.factors(&norm.weight)?, bias })
    }

    /// The factors of a norm.
    fn factors(&mut self, tensor: &TensorSpec) -> Result<O::Vector, LoadError> {
        let mut values = self.reader.values(tensor)?;
        values.iter_mut().for_each(|v| *v += self.spec.norm_weight_offset);
        Ok(self.ops.vector(&values)?)
    }

    /// Products stacked by rows into one, with their biases if any has one.
    fn projection(&mut self, parts: &[&Linear]) -> Result<Projection<O>, LoadError> {
        let read = parts.iter().map(|part| self.reader.linear(part)).collect::<Result<Vec<_>, _>>()?;
        let weight = self.matrix(&read)?;
        if parts.iter().all(|part| part.bias.is_none()) {
            return Ok(Projection { weight, bias: None });
        }
        let mut bias = Vec::new();
        for part in parts {
            match &part.bias {
                Some(tensor) => bias.extend(self.reader.values(tensor)?),
                None => bias.resize(bias.len() + part.weight.dims[1], 0.0),
            }
        }
        Ok(Projection { weight, bias: Some(self.ops.vector(&bias)?) })
    }

    fn rope(&mut self, spec: &arch::RopeSpec) -> Result<O::RopeTable, LoadError> {
        let mut factors = spec.factors.as_ref().map(|tensor| self.reader.values(tensor)).transpose()?;
        if let RopeScaling::LongRope { original_context, short, long, .. } = &spec.scaling {
            // Decided once: what is cached has been rotated already.
            let chosen = if self.spec.context_tokens > *original_context { long } else { short };
            factors = Some(match chosen {
                RopeFactors::Tensor(tensor) => self.reader.values(tensor)?,
                RopeFactors::Values(values) => values.clone(),
            });
        }
        Ok(self.ops.rope_table(&rope(spec, factors.as_deref(), self.spec.context_tokens))?)
    }

    /// Parts stacked by rows into one matrix.
    fn matrix(&mut self, parts: &[Part]) -> Result<O::Matrix, LoadError> {
        let sources: Vec<MatrixSource<'_>> = parts.iter().map(Part::source).collect();
        let matrix = self.ops.matrix(&sources)?;
        (self.progress)(self.reader.placed());
        Ok(matrix)
    }

    /// A matrix that is never packed.
    fn table(&mut self, tensor: &TensorSpec) -> Result<O::Matrix, LoadError> {
        let part = self.reader.plain(tensor)?;
        self.matrix(&[part])
    }

    fn vector(&mut self, tensor: &TensorSpec) -> Result<O::Vector, LoadError> {
        let values = self.reader.values(tensor)?;
        Ok(self.ops.vector(&values)?)
    }
}

/// The kernels' name of an activation.
pub(super) fn activation(of: arch::Activation) -> Activation {
    match of {
        arch::Activation::Silu => Activation::Silu,
        arch::Activation::GeluTanh => Activation::GeluTanh,
        arch::Activation::GeluErf => Activation::GeluErf,
        arch::Activation::ClampedSwiglu { alpha, limit } => Activation::ClampedSwiglu { alpha, limit },
    }
}
