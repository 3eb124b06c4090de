//! Rows of B that belong to queries and keys, in the order of the base's. GGUF files of llama and its kin have the rows of
//! every head permuted, so that the pairs which are rotated together are neighbours; everything else has them half a head
//! apart.

use super::{AdapterError, is_rotated};
use crate::arch::{ArchError, ArchSpec, Product, ProductSpec};
use crate::gguf::GgmlType;

/// What is done to the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// They stay.
    AsTheyAre,
    /// Row `i` of a head of so many rows goes to `2 * i`, row `dim / 2 + i` to `2 * i + 1`.
    Interleave(usize),
    /// The way back.
    Part(usize),
}

impl Order {
    /// From a GGUF adapter to `base`.
    pub(super) fn of(base: &ArchSpec, product: &ProductSpec) -> Result<Self, AdapterError> {
        match base.rows_are_permuted()? {
            (false, true) if is_rotated(product.product) => Ok(Self::Part(base.head_dim)),
            (false, true) if product.product == Product::Qkv => Err(fused()),
            _ => Ok(Self::AsTheyAre),
        }
    }

    /// From a file of Hugging Face to a GGUF adapter.
    pub(super) fn from_hf(base: &ArchSpec, product: &ProductSpec) -> Result<Self, AdapterError> {
        match base.rows_are_permuted()?.1 {
            true if is_rotated(product.product) => Ok(Self::Interleave(base.head_dim)),
            true if product.product == Product::Qkv => Err(fused()),
            _ => Ok(Self::AsTheyAre),
        }
    }

    /// Reorders `rows` rows of equal length.
    pub(super) fn apply(self, bytes: &mut Vec<u8>, rows: usize) {
        let (dim, interleave) = match self {
            Self::AsTheyAre => return,
            Self::Interleave(dim) => (dim, true),
            Self::Part(dim) => (dim, false),
        };
        let row_bytes = bytes.len() / rows;
        let mut ordered = vec![0; bytes.len()];
        for row in 0..rows {
            let (head, i) = (row / dim * dim, row % dim);
            let apart = (head + i % 2 * (dim / 2) + i / 2) * row_bytes;
            let (from, to) = if interleave { (apart, row * row_bytes) } else { (row * row_bytes, apart) };
            ordered[to..to + row_bytes].copy_from_slice(&bytes[from..from + row_bytes]);
        }
        *bytes = ordered;
    }
}

/// No family has both, so nobody has said in which order such rows stand.
fn fused() -> AdapterError {
    AdapterError::Base(ArchError::Feature(
        "one matrix for queries, keys and values that are rotated in pairs".to_owned(),
    ))
}

/// Whether all values are finite numbers.
pub(super) fn are_finite(kind: GgmlType, bytes: &[u8]) -> bool {
    // An exponent of all ones is an infinity or no number.
    let half = |mask: u16| bytes.as_chunks::<2>().0.iter().all(|v| u16::from_le_bytes(*v) & mask != mask);
    match kind {
        GgmlType::F32 => bytes.as_chunks::<4>().0.iter().all(|v| f32::from_le_bytes(*v).is_finite()),
        GgmlType::F16 => half(0x7c00),
        GgmlType::BF16 => half(0x7f80),
        _ => false,
    }
}
