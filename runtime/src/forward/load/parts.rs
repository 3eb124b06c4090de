//! Reads a model's matrices from its files, in whatever format they are there, into rows that backends take.

use cuckoo_kernels::Quant;
use cuckoo_kernels::ops::MatrixSource;
use cuckoo_kernels::quant::dequantize_row;
use cuckoo_models::arch::{ExpertWeights, Linear, Packed, TensorSpec};
use cuckoo_models::{Dtype, ModelFiles, Tensor, TensorKind};

use super::LoadError;
use super::packed::{self, FourBits};

/// Rows of one format.
pub(super) struct Part {
    pub(super) quant: Quant,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Vec<u8>,
}

impl Part {
    pub(super) fn source(&self) -> MatrixSource<'_> {
        MatrixSource { quant: self.quant, rows: self.rows, cols: self.cols, data: &self.data }
    }
}

/// Reads parts, and counts what it reads.
pub(in crate::forward) struct Reader<'a> {
    files: &'a ModelFiles,
    /// Whether it only counts: parts then have sizes and no bytes, and values are zero.
    only_sizes: bool,
    loaded_bytes: u64,
    /// Bytes that are held until they are placed on the device, and the most so far.
    held: u64,
    pub(in crate::forward) held_max: u64,
}

impl<'a> Reader<'a> {
    /// Reads `files`.
    pub(in crate::forward) fn new(files: &'a ModelFiles) -> Self {
        Self { files, only_sizes: false, loaded_bytes: 0, held: 0, held_max: 0 }
    }

    /// Reads nothing but the sizes of what is in `files`.
    pub(in crate::forward) fn of_sizes(files: &'a ModelFiles) -> Self {
        Self { only_sizes: true, ..Self::new(files) }
    }

    /// What was read is on the device; returns the bytes read so far.
    pub(super) fn placed(&mut self) -> u64 {
        self.held = 0;
        self.loaded_bytes
    }

    /// A matrix, packed or not.
    pub(super) fn linear(&mut self, linear: &Linear) -> Result<Part, LoadError> {
        let weight = &linear.weight;
        match linear.packed.as_deref() {
            None => self.plain(weight),
            Some(Packed::Awq { group, qweight, qzeros, scales }) => {
                let (words, zeros, scales) = (self.words(qweight)?, self.words(qzeros)?, self.values(scales)?);
                Ok(self.four_bits(weight, *group, (&words, &zeros, &scales), |part| part.awq()))
            }
            Some(Packed::Gptq { group, zero_offset, qweight, qzeros, scales, g_idx }) => {
                if let Some(g_idx) = g_idx {
                    self.check_order(g_idx, *group)?;
                }
                let (words, zeros, scales) = (self.words(qweight)?, self.words(qzeros)?, self.values(scales)?);
                Ok(self.four_bits(weight, *group, (&words, &zeros, &scales), |part| part.gptq(*zero_offset)))
            }
            Some(Packed::Fp8 { block, scale }) => {
                let (codes, scales) = (self.bytes(weight, Dtype::F8_E4M3)?, self.values(scale)?);
                let (cols, rows) = (weight.dims[0], weight.dims[1]);
                let damaged = || LoadError::NotNumbers { tensor: weight.name.clone() };
                self.hold(rows * Quant::FP8.row_bytes(cols));
                let data = packed::fp8(&codes, cols, *block, &scales).ok_or_else(damaged)?;
                Ok(Part { quant: Quant::FP8, rows, cols, data })
            }
        }
    }

    /// A matrix that is stored as one tensor; all but its first dimension are rows.
    pub(super) fn plain(&mut self, tensor: &TensorSpec) -> Result<Part, LoadError> {
        let info = self.info(&tensor.name)?;
        let quant = quant(&info)?;
        Ok(Part { quant, rows: tensor.dims[1..].iter().product(), cols: tensor.dims[0], data: self.read(&info)? })
    }

    /// The values of a tensor.
    pub(super) fn values(&mut self, tensor: &TensorSpec) -> Result<Vec<f32>, LoadError> {
        let info = self.info(&tensor.name)?;
        let (quant, data) = (quant(&info)?, self.read(&info)?);
        let mut values = vec![0.0; tensor.dims.iter().product()];
        if !self.only_sizes {
            dequantize_row(quant, &data, &mut values);
        }
        Ok(values)
    }

    /// gpt-oss' experts one by one: gate, up and down, as `count` parts each.
    pub(super) fn mxfp4(&mut self, weights: &ExpertWeights, count: usize) -> Result<Vec<[Part; 3]>, LoadError> {
        let ExpertWeights::Mxfp4 { gate_up_blocks, gate_up_scales, down_blocks, down_scales, .. } = weights else {
            return Ok(Vec::new());
        };
        let [ups, up_scales] = [self.bytes(gate_up_blocks, Dtype::U8)?, self.bytes(gate_up_scales, Dtype::U8)?];
        let [downs, down_exponents] = [self.bytes(down_blocks, Dtype::U8)?, self.bytes(down_scales, Dtype::U8)?];
        let (hidden, width) = (32 * gate_up_blocks.dims[1], 32 * down_blocks.dims[1]);
        let part = |blocks: &[u8], exponents: &[u8], cols, rows, which| Part {
            quant: Quant::MXFP4,
            rows,
            cols,
            data: packed::mxfp4(blocks, exponents, cols, which),
        };
        let each = |bytes: &[u8], expert: usize| {
            let len = bytes.len() / count;
            expert * len..(expert + 1) * len
        };
        let expert = |i: usize| {
            let (up, up_scales) = (&ups[each(&ups, i)], &up_scales[each(&up_scales, i)]);
            let (down, down_scales) = (&downs[each(&downs, i)], &down_exponents[each(&down_exponents, i)]);
            [
                part(up, up_scales, hidden, width, (0, 2)),
                part(up, up_scales, hidden, width, (1, 2)),
                part(down, down_scales, width, hidden, (0, 1)),
            ]
        };
        Ok((0..count).map(expert).collect())
    }

    /// Refuses columns in another order than the model's.
    fn check_order(&mut self, g_idx: &TensorSpec, group: usize) -> Result<(), LoadError> {
        let words = self.words(g_idx)?;
        let in_order = |(i, word): (usize, &[u8; 4])| u32::from_le_bytes(*word) as usize == i / group;
        match words.as_chunks().0.iter().enumerate().all(in_order) {
            true => Ok(()),
            false => Err(LoadError::Feature("GPTQ weights whose columns were reordered (desc_act)".to_owned())),
        }
    }

    /// The bytes of 32-bit integers.
    fn words(&mut self, tensor: &TensorSpec) -> Result<Vec<u8>, LoadError> {
        self.bytes(tensor, Dtype::I32)
    }

    /// The bytes of a tensor that must be stored so.
    fn bytes(&mut self, tensor: &TensorSpec, dtype: Dtype) -> Result<Vec<u8>, LoadError> {
        let info = self.info(&tensor.name)?;
        match info.kind == TensorKind::Safetensors(dtype) {
            true => self.read(&info),
            false => Err(LoadError::Unsupported { tensor: info.name, kind: info.kind }),
        }
    }

    fn info(&self, name: &str) -> Result<Tensor, LoadError> {
        self.files.tensor(name).ok_or_else(|| LoadError::Missing(name.to_owned()))
    }

    fn read(&mut self, info: &Tensor) -> Result<Vec<u8>, LoadError> {
        self.hold(info.bytes() as usize);
        if self.only_sizes {
            return Ok(Vec::new());
        }
        self.loaded_bytes += info.bytes();
        Ok(self.files.read(info)?)
    }

    /// Counts what is held beside the rest.
    fn hold(&mut self, bytes: usize) {
        self.held = self.held.saturating_add(bytes as u64);
        self.held_max = self.held_max.max(self.held);
    }

    fn four_bits(
        &mut self,
        weight: &TensorSpec,
        group: usize,
        (qweight, qzeros, scales): (&[u8], &[u8], &[f32]),
        rows: impl Fn(&FourBits<'_>) -> Vec<u8>,
    ) -> Part {
        let (inputs, outputs) = (weight.dims[0], weight.dims[1]);
        self.hold(outputs * Quant::INT4.row_bytes(inputs));
        let data = match self.only_sizes {
            true => Vec::new(),
            false => rows(&FourBits { inputs, outputs, group, qweight, qzeros, scales }),
        };
        Part { quant: Quant::INT4, rows: outputs, cols: inputs, data }
    }
}

fn quant(info: &Tensor) -> Result<Quant, LoadError> {
    let quant = match info.kind {
        TensorKind::Ggml(kind) => Quant::from_gguf(kind.code()),
        TensorKind::Safetensors(Dtype::F32) => Some(Quant::F32),
        TensorKind::Safetensors(Dtype::F16) => Some(Quant::F16),
        TensorKind::Safetensors(Dtype::BF16) => Some(Quant::BF16),
        TensorKind::Safetensors(_) => None,
    };
    quant.ok_or_else(|| LoadError::Unsupported { tensor: info.name.clone(), kind: info.kind })
}
