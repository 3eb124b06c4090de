//! How the matrices of a safetensors file are quantized, from `quantization_config` in `config.json`.

use serde_json::Value;

use super::facts::{FFN_MAX, bounded};
use super::{ArchError, hf};

/// A file's quantization. The layout of each matrix is in [`super::Packed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfQuantization {
    /// AWQ with 4 bits and zero points; `None` is one group a row.
    Awq {
        /// Inputs that share a scale.
        group: Option<usize>,
    },
    /// GPTQ with 4 bits.
    Gptq {
        /// Inputs that share a scale.
        group: Option<usize>,
        /// Whether groups are not runs of inputs but listed in `g_idx`.
        act_order: bool,
        /// What is added to stored zero points: see [`super::Packed::Gptq`].
        zero_offset: u8,
    },
    /// FP8 (E4M3) with scales.
    Fp8 {
        /// Inputs and outputs of a block; `None` where matrices have one scale, or one for each output.
        block: Option<[usize; 2]>,
    },
    /// MXFP4 in experts: see [`super::ExpertWeights::Mxfp4`].
    Mxfp4,
}

impl HfQuantization {
    /// The quantization that the text of a `config.json` names, if it names one.
    pub fn from_hf_config(config: &str) -> Result<Option<Self>, ArchError> {
        let value = hf::parse(config)?;
        let Some(value) = value.get("quantization_config").filter(|value| !value.is_null()) else { return Ok(None) };
        let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("");
        let four_bits = || match value.get("bits").and_then(Value::as_u64) {
            Some(4) => Ok(()),
            bits => Err(ArchError::Feature(format!("{method} with {bits:?} bits"))),
        };
        match method {
            "awq" => {
                four_bits()?;
                let layout = value.get("version").and_then(Value::as_str).unwrap_or("gemm");
                let zeros = value.get("zero_point").and_then(Value::as_bool).unwrap_or(true);
                if !layout.eq_ignore_ascii_case("gemm") || !zeros {
                    return Err(ArchError::Feature(format!("AWQ in the layout {layout:?}, zero points {zeros}")));
                }
                Ok(Some(Self::Awq { group: group(value)? }))
            }
            "gptq" => {
                four_bits()?;
                let format = value.get("checkpoint_format").and_then(Value::as_str).unwrap_or("gptq");
                let zero_offset = match format {
                    "gptq" => 1,
                    "gptq_v2" => 0,
                    format => return Err(ArchError::Feature(format!("GPTQ in the format {format:?}"))),
                };
                let act_order = value.get("desc_act").and_then(Value::as_bool).unwrap_or(false);
                Ok(Some(Self::Gptq { group: group(value)?, act_order, zero_offset }))
            }
            "fp8" => {
                let format = value.get("fmt").and_then(Value::as_str).unwrap_or("e4m3");
                if format != "e4m3" {
                    return Err(ArchError::Feature(format!("FP8 in the format {format:?}")));
                }
                let Some(block) = value.get("weight_block_size").filter(|block| !block.is_null()) else {
                    return Ok(Some(Self::Fp8 { block: None }));
                };
                let side = |i: usize| block.get(i).and_then(Value::as_u64).unwrap_or(0);
                // The file gives rows (outputs) first.
                let block =
                    [bounded("weight_block_size", side(1), FFN_MAX)?, bounded("weight_block_size", side(0), FFN_MAX)?];
                Ok(Some(Self::Fp8 { block: Some(block) }))
            }
            "compressed-tensors" if is_plain_fp8(value) => Ok(Some(Self::Fp8 { block: None })),
            "mxfp4" => Ok(Some(Self::Mxfp4)),
            method => Err(ArchError::Feature(format!("the quantization {method:?}"))),
        }
    }
}

/// Whether all that is compressed is FP8 with a scale for each matrix, or each of its rows.
fn is_plain_fp8(value: &Value) -> bool {
    let groups = value.get("config_groups").and_then(Value::as_object).filter(|groups| !groups.is_empty());
    let plain = |group: &Value| {
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let is =
            |key: &str, wanted: &[&str]| weights.get(key).and_then(Value::as_str).is_some_and(|v| wanted.contains(&v));
        weights.get("num_bits").and_then(Value::as_u64) == Some(8)
            && is("type", &["float"])
            && is("strategy", &["tensor", "channel"])
    };
    groups.is_some_and(|groups| groups.values().all(plain))
}

fn group(value: &Value) -> Result<Option<usize>, ArchError> {
    match value.get("group_size").and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(group) => bounded("group_size", u64::try_from(group).unwrap_or(0), FFN_MAX).map(Some),
        None => Err(ArchError::MissingKey("quantization_config.group_size".to_owned())),
    }
}
