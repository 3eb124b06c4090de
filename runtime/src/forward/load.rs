//! Weights from a file to a device, as a model's description names them.

use std::fs::File;

use cuckoo_kernels::ops::{Activation, Mask, MatrixSource, OpsError};
use cuckoo_kernels::quant::dequantize_row;
use cuckoo_kernels::routing::{Gating, Routing};
use cuckoo_kernels::{Ops, Quant};
use cuckoo_models::arch::{
    self, ArchSpec, ExpertWeights, FeedForward, LayerSpec, Linear, Qkv, RopeFactors, RopeScaling, TensorSpec, Up,
};
use cuckoo_models::{GgmlType, Gguf, TensorInfo};

use super::experts::{Experts, Shared};
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
        "tensor {tensor} is stored as {kind}, which cannot be computed with; use a file quantized as one of F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4"
    )]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its format.
        kind: GgmlType,
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
}

/// Refuses what [`super::Model::forward`] would compute wrongly. The error names the first such thing.
pub fn check(spec: &ArchSpec) -> Result<(), LoadError> {
    let apart = |layer: &LayerSpec| match &layer.ffn {
        FeedForward::Dense(_) => false,
        FeedForward::Experts(experts) => !matches!(experts.weights, ExpertWeights::Stacked { .. }),
    };
    let packed = |layer: &LayerSpec| layer.attention.output.packed.is_some();
    let checks = [
        (spec.causal, "attention in both directions: it is an encoder"),
        (spec.head_dim.is_multiple_of(16), "heads whose size is no multiple of 16"),
        (!spec.blocks.iter().any(apart), "experts in a layout of safetensors files"),
        (spec.blocks.iter().all(|layer| same_experts(layer, spec)), "layers with different numbers of experts"),
        (!spec.blocks.iter().any(packed), "packed safetensors weights"),
        (spec.input.positions.is_none() && spec.input.token_types.is_none(), "embeddings of positions or types"),
        (spec.input.norm.is_none(), "a norm of embeddings"),
        (spec.output.norm.is_some(), "no norm before its output head"),
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

pub(super) struct Loader<'a, O: Ops> {
    pub(super) ops: &'a mut O,
    pub(super) gguf: &'a Gguf,
    pub(super) file: &'a File,
    pub(super) spec: &'a ArchSpec,
    pub(super) loaded_bytes: u64,
    pub(super) progress: &'a mut dyn FnMut(u64),
}

impl<'a, O: Ops> Loader<'a, O> {
    pub(super) fn model(&mut self) -> Result<Model<O>, LoadError> {
        let spec = self.spec;
        check(spec)?;
        let embedding = self.matrix(&[&spec.input.embedding])?;
        let layers = spec.blocks.iter().zip(kv_places(spec)).map(|(layer, kv)| self.layer(layer, kv));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = match &spec.output.norm {
            Some(norm) => self.norm(norm)?,
            None => return Err(LoadError::Feature("no norm before its output head".to_owned())),
        };
        let head = match (&spec.output.head, spec.tied_head) {
            (Some(head), false) => Some(self.projection(&[head])?),
            _ => None,
        };
        let ropes = spec.ropes.iter().map(|rope| self.rope(rope)).collect::<Result<_, _>>()?;
        Ok(Model { spec: spec.clone(), embedding, layers, norm, head, ropes })
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
        let ExpertWeights::Stacked { gate, up, down } = &experts.weights else {
            return Err(LoadError::Feature("experts in a layout of safetensors files".to_owned()));
        };
        let width = self.width(experts.width);
        let (ups, downs) = (self.stacked(&[gate, up], experts.count)?, self.stacked(&[down], experts.count)?);
        let network = |(up, down)| Network { up, gated: true, down, width };
        let shared = match &experts.shared {
            None => None,
            Some(shared) => Some(Shared {
                network: self.network(&shared.network)?,
                router: shared.router.as_ref().map(|row| self.matrix(&[row])).transpose()?,
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
            networks: ups.into_iter().zip(downs).map(network).collect(),
            shared,
        })
    }

    /// One projection for each of `count` experts, from tensors that hold all of them one after the other.
    fn stacked(&mut self, parts: &[&Linear], count: usize) -> Result<Vec<Projection<O>>, LoadError> {
        let mut read = Vec::new();
        for part in parts {
            let info = self.info(&part.weight.name)?;
            let bias = part.bias.as_ref().map(|bias| self.values(bias)).transpose()?;
            read.push((part, quant(info)?, self.read(info)?, bias));
        }
        let mut projections = Vec::new();
        for expert in 0..count {
            let (mut sources, mut biases) = (Vec::new(), Vec::new());
            for (part, quant, data, bias) in &read {
                let (cols, rows) = (part.weight.dims[0], part.weight.dims[1]);
                let bytes = data.len() / count;
                sources.push(MatrixSource { quant: *quant, rows, cols, data: &data[expert * bytes..][..bytes] });
                match bias {
                    Some(bias) => biases.extend_from_slice(&bias[expert * rows..][..rows]),
                    None => biases.resize(biases.len() + rows, 0.0),
                }
            }
            let weight = self.ops.matrix(&sources)?;
            let any = read.iter().any(|(_, _, _, bias)| bias.is_some());
            projections.push(Projection { weight, bias: any.then(|| self.ops.vector(&biases)).transpose()? });
        }
        self.loaded_bytes += read.iter().map(|(_, _, data, _)| data.len() as u64).sum::<u64>();
        (self.progress)(self.loaded_bytes);
        Ok(projections)
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
        let mut values = self.values(tensor)?;
        values.iter_mut().for_each(|v| *v += self.spec.norm_weight_offset);
        Ok(self.ops.vector(&values)?)
    }

    /// Products stacked by rows into one, with their biases if any has one.
    fn projection(&mut self, parts: &[&Linear]) -> Result<Projection<O>, LoadError> {
        let weights: Vec<&TensorSpec> = parts.iter().map(|part| &part.weight).collect();
        let weight = self.matrix(&weights)?;
        if parts.iter().all(|part| part.bias.is_none()) {
            return Ok(Projection { weight, bias: None });
        }
        let mut bias = Vec::new();
        for part in parts {
            match &part.bias {
                Some(tensor) => bias.extend(self.values(tensor)?),
                None => bias.resize(bias.len() + part.weight.dims[1], 0.0),
            }
        }
        Ok(Projection { weight, bias: Some(self.ops.vector(&bias)?) })
    }

    fn rope(&mut self, spec: &arch::RopeSpec) -> Result<O::RopeTable, LoadError> {
        let mut factors = spec.factors.as_ref().map(|tensor| self.values(tensor)).transpose()?;
        if let RopeScaling::LongRope { original_context, short, long, .. } = &spec.scaling {
            // Decided once: what is cached has been rotated already.
            let chosen = if self.spec.context_tokens > *original_context { long } else { short };
            factors = Some(match chosen {
                RopeFactors::Tensor(tensor) => self.values(tensor)?,
                RopeFactors::Values(values) => values.clone(),
            });
        }
        Ok(self.ops.rope_table(&rope(spec, factors.as_deref(), self.spec.context_tokens))?)
    }

    /// Matrices stacked by rows into one.
    fn matrix(&mut self, tensors: &[&TensorSpec]) -> Result<O::Matrix, LoadError> {
        let parts = tensors
            .iter()
            .map(|tensor| {
                let info = self.info(&tensor.name)?;
                Ok((tensor, quant(info)?, self.read(info)?))
            })
            .collect::<Result<Vec<_>, LoadError>>()?;
        let sources: Vec<MatrixSource<'_>> = parts
            .iter()
            .map(|(tensor, quant, data)| MatrixSource {
                quant: *quant,
                rows: tensor.dims[1..].iter().product(),
                cols: tensor.dims[0],
                data,
            })
            .collect();
        let matrix = self.ops.matrix(&sources)?;
        self.loaded_bytes += parts.iter().map(|(_, _, data)| data.len() as u64).sum::<u64>();
        (self.progress)(self.loaded_bytes);
        Ok(matrix)
    }

    fn vector(&mut self, tensor: &TensorSpec) -> Result<O::Vector, LoadError> {
        let values = self.values(tensor)?;
        Ok(self.ops.vector(&values)?)
    }

    fn values(&mut self, tensor: &TensorSpec) -> Result<Vec<f32>, LoadError> {
        let info = self.info(&tensor.name)?;
        let (quant, data) = (quant(info)?, self.read(info)?);
        let mut values = vec![0.0; tensor.dims.iter().product()];
        dequantize_row(quant, &data, &mut values);
        Ok(values)
    }

    fn info(&self, name: &str) -> Result<&'a TensorInfo, LoadError> {
        self.gguf.tensor(name).ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, LoadError> {
        Ok(self.gguf.read_tensor(self.file, info)?)
    }
}

fn quant(info: &TensorInfo) -> Result<Quant, LoadError> {
    Quant::from_gguf(info.kind.code())
        .ok_or_else(|| LoadError::Unsupported { tensor: info.name.clone(), kind: info.kind })
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
