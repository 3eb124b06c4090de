//! What an adapter (LoRA, Hu et al., arXiv 2106.09685) adds to a product with weights: its two thin matrices, checked, and
//! which rows of a step get it. Computes nothing.

use std::ops::Range;

use crate::ops::{MatrixSource, OpsError};
use crate::quant::dequantize_row;

/// What an adapter adds to some columns of a product: `scale * b * (a * x)`.
#[derive(Clone, Copy, Debug)]
pub struct LowRankSource<'a> {
    /// The column of the result at which its outputs begin.
    pub first_col: usize,
    /// `[rank, inputs]`, floating-point.
    pub a: MatrixSource<'a>,
    /// `[outputs, rank]`, floating-point.
    pub b: MatrixSource<'a>,
    /// What the product is multiplied by.
    pub scale: f32,
}

/// Rows of a step that one adapter changes.
#[derive(Debug)]
pub struct Adapted<'a, T> {
    /// Which rows.
    pub rows: Range<usize>,
    /// By what.
    pub by: &'a T,
}

/// Refuses parts that contradict themselves or each other: parts of one product have the same inputs, and outputs apart
/// from each other, in order of their columns.
pub(crate) fn check_parts(parts: &[LowRankSource<'_>]) -> Result<(), OpsError> {
    let inputs = parts.first().map_or(0, |part| part.a.cols);
    let mut free_from = 0;
    for part in parts {
        let (a, b) = (&part.a, &part.b);
        for matrix in [a, b] {
            let bytes = matrix.rows.checked_mul(matrix.quant.row_bytes(matrix.cols));
            let why = match () {
                () if !matrix.quant.is_float() => "adapters have floating-point values",
                () if matrix.rows == 0 || matrix.cols == 0 => "it is empty",
                () if bytes != Some(matrix.data.len()) => "its data are longer or shorter than its shape says",
                () => continue,
            };
            return Err(bad(matrix, why));
        }
        match () {
            () if a.cols != inputs => return Err(bad(a, "parts of one product have the same inputs")),
            () if a.rows != b.cols => return Err(bad(b, "both matrices of an adapter have the same rank")),
            () if part.first_col < free_from => return Err(bad(b, "two parts change the same columns")),
            () if !part.scale.is_finite() => return Err(bad(a, "its scale is not finite")),
            () => free_from = part.first_col.saturating_add(b.rows),
        }
    }
    match parts.is_empty() {
        true => Err(OpsError::Fault("an adapter without parts".to_owned())),
        false => Ok(()),
    }
}

fn bad(matrix: &MatrixSource<'_>, why: &str) -> OpsError {
    OpsError::BadMatrix { rows: matrix.rows, cols: matrix.cols, quant: matrix.quant, why: why.to_owned() }
}

/// What all backends demand of their callers; breaking it is a bug.
pub(crate) fn check_rows<T>(adapted: &[Adapted<'_, T>], (x, out): (usize, usize)) {
    assert_eq!(x, out, "rows are added to as many rows");
    let mut free_from = 0;
    for Adapted { rows, .. } in adapted {
        assert!(
            rows.start >= free_from && rows.start <= rows.end && rows.end <= out,
            "adapted rows are apart, in order"
        );
        free_from = rows.end;
    }
}

/// Parts as plain numbers, for the backends that are not meant to be fast.
pub struct PlainLowRank {
    pub(crate) parts: Vec<PlainPart>,
}

/// One part of [`PlainLowRank`].
pub(crate) struct PlainPart {
    pub(crate) first_col: usize,
    /// `[rank][inputs]`.
    pub(crate) a: Vec<Vec<f32>>,
    /// `[outputs][rank]`.
    pub(crate) b: Vec<Vec<f32>>,
    pub(crate) scale: f32,
}

impl PlainLowRank {
    pub(crate) fn new(parts: &[LowRankSource<'_>]) -> Result<Self, OpsError> {
        check_parts(parts)?;
        let part = |part: &LowRankSource<'_>| PlainPart {
            first_col: part.first_col,
            a: rows(&part.a),
            b: rows(&part.b),
            scale: part.scale,
        };
        Ok(Self { parts: parts.iter().map(part).collect() })
    }
}

fn rows(matrix: &MatrixSource<'_>) -> Vec<Vec<f32>> {
    let row = |bytes: &[u8]| {
        let mut values = vec![0.0; matrix.cols];
        dequantize_row(matrix.quant, bytes, &mut values);
        values
    };
    matrix.data.chunks_exact(matrix.quant.row_bytes(matrix.cols)).map(row).collect()
}
