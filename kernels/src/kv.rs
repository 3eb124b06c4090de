//! How keys and values are kept: formats of one head's values at one position, and the one rounding into each. Knows no
//! blocks and no layout: what a backend keeps is what [`KvKind::rounded`] says, wherever it lies.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::quant::{ACTIVATION_MAX, activation_scale};

/// How a KV cache keeps the values of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "as such formats are called everywhere")]
pub enum KvKind {
    /// IEEE half precision.
    #[default]
    F16,
    /// The upper halves of singles.
    BF16,
    /// Signed bytes, and an `f16` that [`scale_block`] of them are multiplied by.
    Q8_0,
}

/// Values that share a scale: 32, as in ggml; 16 where a head is no multiple of 32.
pub const fn scale_block(head_dim: usize) -> usize {
    if head_dim.is_multiple_of(32) { 32 } else { 16 }
}

impl KvKind {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::F16, Self::BF16, Self::Q8_0];

    /// Bytes of the values of one head at one position, a key's or a value's.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2 * head_dim,
            Self::Q8_0 => head_dim + 2 * head_dim.div_ceil(scale_block(head_dim)),
        }
    }

    /// What is read where `row` was stored: exact in `f32` for every format.
    pub fn rounded(self, row: &[f32]) -> Vec<f32> {
        match self {
            Self::F16 => row.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
            Self::BF16 => row.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
            Self::Q8_0 => {
                let block = scale_block(row.len());
                let (mut q, mut scales) = (vec![0; row.len()], vec![f16::ZERO; row.len().div_ceil(block)]);
                quantize(row, &mut q, &mut scales);
                q.iter().enumerate().map(|(i, q)| scales[i / block].to_f32() * f32::from(*q)).collect()
            }
        }
    }
}

/// Rounds a head's values for [`KvKind::Q8_0`]: `d = amax / 127`, `q = round_ties_even(x * (1 / d))`, the scale is `d` rounded
/// to `f16`. Zeros with scale 0 where `d` would be subnormal, with scale NaN where a value is no number or infinite.
pub(crate) fn quantize(row: &[f32], q: &mut [i8], scales: &mut [f16]) {
    let block = scale_block(row.len());
    for ((row, q), scale) in row.chunks(block).zip(q.chunks_mut(block)).zip(scales) {
        let amax_bits = row.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
        let d = activation_scale(amax_bits, ACTIVATION_MAX);
        *scale = f16::from_f32(d);
        let inverse = 1.0 / d;
        let unit = |v: f32| if d > 0.0 { (v * inverse).round_ties_even() as i8 } else { 0 };
        q.iter_mut().zip(row).for_each(|(q, v)| *q = unit(*v));
    }
}

impl fmt::Display for KvKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
        })
    }
}

impl FromStr for KvKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| "keys and values are kept as f16, bf16 or q8_0".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn formats_have_names_and_sizes() {
        for kind in KvKind::ALL {
            assert_eq!(kind.to_string().parse::<KvKind>().unwrap(), kind);
        }
        assert!("q4_0".parse::<KvKind>().is_err());
        assert_eq!(KvKind::ALL.map(|kind| kind.row_bytes(64)), [128, 128, 68]);
        assert_eq!(KvKind::Q8_0.row_bytes(80), 80 + 2 * 5, "five blocks of 16");
    }

    #[test]
    fn bytes_are_rounded_by_blocks() {
        let mut row = [0.0f32; 64];
        (row[3], row[4], row[40]) = (127.0, -0.5, 0.254);
        let rounded = KvKind::Q8_0.rounded(&row);
        // A unit is 1 in the first block: half of it is even at 0. In the second it is 0.002, as f16 has it.
        let unit = f16::from_f32(0.254 / 127.0).to_f32();
        assert_eq!((rounded[3], rounded[4], rounded[40]), (127.0, 0.0, 127.0 * unit));
        assert_eq!(KvKind::BF16.rounded(&[1.003]), [1.0]);
        assert_eq!(KvKind::F16.rounded(&[1.0 + 1.0 / 2048.0]), [1.0]);
        // In a head of 48 values the second sixteen have a scale of their own.
        let mut row = [1.0f32; 48];
        row[16] = 100.0;
        let rounded = KvKind::Q8_0.rounded(&row);
        assert!(rounded[0] > 0.99 && (rounded[17] - 1.0).abs() > 0.2 && rounded[32] > 0.99, "{rounded:?}");
    }

    #[test]
    fn faults_show_and_small_values_vanish() {
        let mut row = [1.0f32; 64];
        (row[0], row[32]) = (f32::INFINITY, 1e-40);
        (33..64).for_each(|i| row[i] = 0.0);
        let rounded = KvKind::Q8_0.rounded(&row);
        assert!(rounded[..32].iter().all(|v| v.is_nan()) && rounded[32..].iter().all(|v| *v == 0.0), "{rounded:?}");
    }
}
