//! Products with weights as launches.

use super::args::{cuckoo_linear_floats, cuckoo_linear_integers, cuckoo_quantize};
use super::machine::Machine;
use super::matrix::{LINEAR_THREADS, Matrix, Part, Shares, Weights};
use super::operations::{THREADS, WARP};
use super::{Buffer, Cuda};
use crate::ops::{ACTIVATION_BLOCK, OpsError};
use crate::quant::Quant;

/// The whole of a matrix that some rows are multiplied by, and where products go.
pub(super) struct Product<'a, M: Machine> {
    pub(super) x: &'a Buffer<M>,
    pub(super) w: &'a Matrix<M>,
    pub(super) planes: usize,
    pub(super) add: bool,
}

impl<M: Machine> Cuda<M> {
    /// Activations as integers.
    fn quantize(&mut self, x: &Buffer<M>, planes: usize) -> Result<(u64, u64), OpsError> {
        let (machine, blocks) = (&mut self.machine, x.rows * x.cols / ACTIVATION_BLOCK);
        let q = self.scratch.codes.at_least(machine, planes * x.rows * x.cols, "rounded activations")?;
        let scales = self.scratch.scales.at_least(machine, planes * blocks * size_of::<f32>(), "scales")?;
        let args = cuckoo_quantize {
            x: x.address(),
            q,
            scales,
            rows: x.rows as u32,
            cols: x.cols as u32,
            planes: planes as u32,
            padding: 0,
        };
        let grid = [blocks.div_ceil(THREADS / WARP), 1, 1];
        // SAFETY: `x` has so many rows and columns in use, and the scratch was asked to have room for them.
        unsafe { self.launch(c"cuckoo_quantize_rows", grid, (THREADS, 0), &args)? };
        Ok((q, scales))
    }

    pub(super) fn product(&mut self, p: &Product<'_, M>, out: &mut Buffer<M>) -> Result<(), OpsError> {
        let (x, w) = (p.x, p.w);
        assert_eq!(x.cols, w.cols, "activations and weights have the same number of columns");
        assert_eq!(out.cols, w.rows, "a product has a column for each row of weights");
        if p.add {
            assert_eq!(out.rows, x.rows, "rows are added to as many rows");
        } else {
            out.begin(x.rows);
        }
        let any = w.parts.iter().any(|part| matches!(part.weights, Weights::Integers { .. }));
        let quantized = if any { self.quantize(x, p.planes)? } else { (0, 0) };
        self.narrow(x, w)?;
        w.parts.iter().try_for_each(|part| self.part(p, part, quantized, out))
    }

    fn part(
        &mut self,
        p: &Product<'_, M>,
        part: &Part<M>,
        (q, scales): (u64, u64),
        out: &Buffer<M>,
    ) -> Result<(), OpsError> {
        let (tokens, out_cols) = (p.x.rows, out.cols as u32);
        let (first_row, add) = (part.first_row as u32, u32::from(p.add));
        match &part.weights {
            Weights::Integers { kind, args, .. } => {
                let shares = Shares::of(p.w.cols, tokens);
                let args = cuckoo_linear_integers {
                    w: *args,
                    q,
                    scales,
                    out: out.address(),
                    tokens: tokens as u32,
                    planes: p.planes as u32,
                    out_cols,
                    first_row,
                    add,
                    tokens_each: shares.tokens as u32,
                    rows_each: shares.rows as u32,
                    padding: 0,
                };
                let grid = [part.rows.div_ceil(shares.rows), tokens.div_ceil(shares.tokens), 1];
                // SAFETY: the weights are packed for so many rows and columns, the activations were rounded just now, and
                // `out` has a column for each row of the matrix and a row for each of `x`.
                unsafe { self.launch(kind.linear, grid, (LINEAR_THREADS, shares.shared_bytes), &args) }
            }
            Weights::Floats { quant, args, .. } => {
                if let Some(kind) = self.narrow_kind(*quant) {
                    return self.narrow_product(p, kind, (*args, first_row), out);
                }
                let args = cuckoo_linear_floats {
                    w: *args,
                    x: p.x.address(),
                    out: out.address(),
                    tokens: tokens as u32,
                    out_cols,
                    first_row,
                    add,
                    scale: 1.0,
                    padding: 0,
                };
                // SAFETY: as above, of activations as they are.
                unsafe { self.float_product(*quant, &args) }
            }
        }
    }

    /// A product with floating-point weights.
    ///
    /// # Safety
    /// As [`Machine::launch`].
    pub(super) unsafe fn float_product(&mut self, quant: Quant, args: &cuckoo_linear_floats) -> Result<(), OpsError> {
        let kernel = match quant {
            Quant::F32 => c"cuckoo_linear_f32",
            Quant::F16 => c"cuckoo_linear_f16",
            Quant::FP8 => c"cuckoo_linear_fp8",
            _ => c"cuckoo_linear_bf16",
        };
        let grid = [(args.w.rows as usize).div_ceil(THREADS / 4), args.tokens as usize, 1];
        // SAFETY: the caller's promise.
        unsafe { self.launch(kernel, grid, (THREADS, 0), args) }
    }
}
